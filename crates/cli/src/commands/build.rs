//! `perch build`, and the build that `deploy` and `launch` share.
//!
//! Never touches a machine.

use std::path::{Path, PathBuf};

use clap::Args;
use perch_client::Api;
use perch_types::AppName;
use perch_types::app_config::{AppConfig, BuildSection};
use perch_types::build::{BuildEvent, BuildRequest};
use serde::Serialize;

use crate::clock::new_ulid;
use crate::context::{Context, LARGE_BYTES, Listing, size_in_words};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::ui::Ui;

/// What changes a build.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BuildOptions {
    /// Dockerfile, relative to the source folder
    #[arg(long, value_name = "FILE")]
    dockerfile: Option<String>,
    /// Stage of the Dockerfile to build
    #[arg(long, value_name = "STAGE")]
    build_target: Option<String>,
    /// Build argument; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Run every step anew
    #[arg(long)]
    no_cache: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Source folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    #[command(flatten)]
    options: BuildOptions,
}

/// An image that was built.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Built {
    /// Its reference with the digest: always this very image.
    pub(crate) image: String,
    /// Bytes of its layers.
    pub(crate) size_bytes: u64,
}

pub(crate) async fn run(invocation: &Invocation, args: BuildArgs) -> Result {
    let file = invocation.config_file(&args.folder)?;
    let config = file.map(|it| it.config).unwrap_or_default();
    let name = match (&invocation.global.app, &config.app) {
        (None, Some(name)) => crate::invocation::app_name(name, "fly.toml")?,
        _ => invocation.app()?,
    };
    let api = invocation.api()?;
    let built =
        build(invocation, &api, &name, &Job::new(&args.folder, &config, &args.options)?).await?;
    if invocation.ui.is_json() {
        invocation.ui.json(&built);
    } else {
        invocation.ui.data(&built.image);
    }
    Ok(())
}

/// What to build.
#[derive(Debug)]
pub(crate) struct Job {
    folder: PathBuf,
    dockerfile: String,
    ignorefile: Option<String>,
    request: BuildRequest,
}

impl Job {
    /// Makes a job of the file's `[build]` and the options, which win.
    pub(crate) fn new(folder: &Path, config: &AppConfig, options: &BuildOptions) -> Result<Self> {
        let section = config.build.clone().unwrap_or_default();
        let BuildSection { mut args, .. } = section;
        for pair in &options.build_arg {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                CommandError::usage(
                    format!("`{pair}` is no build argument"),
                    "`--build-arg NAME=VALUE`",
                )
            })?;
            args.insert(name.to_owned(), value.to_owned());
        }
        let dockerfile = options.dockerfile.clone().or(section.dockerfile);
        let dockerfile = match dockerfile {
            Some(path) => path.trim_start_matches("./").to_owned(),
            None => ["Dockerfile", "Containerfile", "dockerfile"]
                .into_iter()
                .find(|name| folder.join(name).is_file())
                .unwrap_or("Dockerfile")
                .to_owned(),
        };
        if !folder.join(&dockerfile).is_file() {
            return Err(CommandError::refused(
                format!("there is no `{dockerfile}` in `{}`", folder.display()),
                "`perch launch` writes one for apps that it recognises; `--image` takes a ready image",
            ));
        }
        let tag = format!("deployment-{}", new_ulid().during("name the build")?);
        let request = BuildRequest {
            dockerfile: Some(dockerfile.clone()),
            target: options.build_target.clone().or(section.target),
            args,
            tag,
            no_cache: options.no_cache,
        };
        Ok(Self { folder: folder.to_owned(), dockerfile, ignorefile: section.ignorefile, request })
    }
}

/// Packs the source folder, sends it, and shows the build.
pub(crate) async fn build(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    job: &Job,
) -> Result<Built> {
    let ui = &invocation.ui;
    let what = format!("build the image of `{app}`");
    let context = pack(ui, job).during(&what)?;
    ui.say(format!(
        "sending {} files, {} packed to {}",
        context.entries,
        size_in_words(context.bytes),
        size_in_words(context.packed_bytes)
    ));
    let mut lines = api.build(app, &job.request, context.into_body()).await.during(&what)?;
    let mut work = ui.working("building");
    let mut built = None;
    while let Some(event) = lines.next().await {
        match event {
            Ok(BuildEvent::Log { line }) => work.output(&line),
            Ok(BuildEvent::Progress { text }) => work.step(&text),
            Ok(BuildEvent::Image { reference, digest, size_bytes }) => {
                let image = format!("{reference}@{}", digest.as_str());
                built = Some(Built { image, size_bytes });
            }
            Ok(BuildEvent::Done) => break,
            Ok(BuildEvent::Failed { error }) => {
                work.keep_output();
                return Err(CommandError::operation(what, error));
            }
            Err(perch_client::Error::Interrupted { .. }) => break,
            Err(error) => {
                work.keep_output();
                return Err(CommandError::operation(what, error));
            }
        }
    }
    let Some(built) = built else {
        work.keep_output();
        return Err(CommandError::refused(
            "the build broke off: the server stopped in the middle of it",
            "nothing was changed; run `perch deploy` (or `perch build`) again",
        ));
    };
    drop(work);
    ui.good(format!("image of {} is built", size_in_words(built.size_bytes)));
    Ok(built)
}

fn pack(ui: &Ui, job: &Job) -> std::result::Result<Context, crate::context::ContextError> {
    let work = ui.working("packing the source folder");
    let keep = [job.dockerfile.as_str(), job.ignorefile.as_deref().unwrap_or(".dockerignore")];
    let listing = Listing::of(&job.folder, job.ignorefile.as_deref(), &keep)?;
    if listing.bytes > LARGE_BYTES {
        ui.warn(format!(
            "the source folder has {}; name what the build does not need in .dockerignore",
            size_in_words(listing.bytes)
        ));
    }
    let context = listing.pack()?;
    drop(work);
    for path in &context.skipped {
        ui.warn(format!("`{path}` is neither file, folder nor link, and stays out"));
    }
    Ok(context)
}
