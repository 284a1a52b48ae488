//! `perch images list|bootstrap`.
//!
//! Never touches a registry itself.

use clap::Subcommand;
use perch_types::build::BuildEvent;

use crate::context::size_in_words;
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List the images in the platform's registry
    #[command(visible_alias = "ls")]
    List,
    /// Make the base images that new Dockerfiles name, out of Debian's packages
    Bootstrap {
        /// Make those too that exist, with the newest packages
        #[arg(long)]
        force: bool,
    },
}

pub(crate) async fn run(invocation: &Invocation, command: ImagesCommand) -> Result {
    match command {
        ImagesCommand::List => list(invocation).await,
        ImagesCommand::Bootstrap { force } => bootstrap(invocation, force).await,
    }
}

async fn list(invocation: &Invocation) -> Result {
    let images = invocation.api()?.images().await.during("list the images")?;
    if invocation.ui.is_json() {
        invocation.ui.json(&images.images);
        return Ok(());
    }
    if images.images.is_empty() {
        invocation
            .ui
            .say("there are no images yet; `perch images bootstrap` makes the base images");
        return Ok(());
    }
    let mut rows = vec![row(["REPOSITORY", "TAGS", "SIZE"])];
    rows.extend(images.images.iter().map(|image| {
        row([&image.repository, &image.tags.join(", "), &size_in_words(image.size_bytes)])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn bootstrap(invocation: &Invocation, force: bool) -> Result {
    const WHAT: &str = "make the base images";
    let mut lines = invocation.api()?.bootstrap_images(force).await.during(WHAT)?;
    let mut work = invocation.ui.working("making the base images");
    while let Some(event) = lines.next().await {
        match event.during(WHAT)? {
            BuildEvent::Log { line } => work.output(&line),
            BuildEvent::Progress { text } => work.step(&text),
            BuildEvent::Image { reference, size_bytes, .. } => {
                invocation.ui.good(format!("{reference} ({})", size_in_words(size_bytes)));
            }
            BuildEvent::Done => return Ok(()),
            BuildEvent::Failed { error } => {
                work.keep_output();
                return Err(CommandError::operation(WHAT, error));
            }
        }
    }
    work.keep_output();
    Err(CommandError::refused("the server stopped in the middle", "run the command again"))
}
