//! `perch apps list|create|destroy`.
//!
//! Never destroys without a question or `--yes`.

use clap::Subcommand;
use perch_types::api::CreateApp;

use crate::error::{CommandError, During as _, Result};
use crate::invocation::{Invocation, app_name};
use crate::table::{row, table};

/// What to do with apps.
#[derive(Debug, Subcommand)]
pub(crate) enum AppsCommand {
    /// List the apps
    #[command(visible_alias = "ls")]
    List,
    /// Create an app without machines
    Create {
        /// Name, unique on the platform
        name: String,
        /// Organization that owns it
        #[arg(short, long, value_name = "SLUG", default_value = "personal")]
        org: String,
    },
    /// Destroy an app and all that it has
    #[command(visible_alias = "rm")]
    Destroy {
        /// Name
        name: String,
    },
}

pub(crate) async fn run(invocation: &Invocation, command: AppsCommand) -> Result {
    match command {
        AppsCommand::List => list(invocation).await,
        AppsCommand::Create { name, org } => create(invocation, &name, org).await,
        AppsCommand::Destroy { name } => destroy(invocation, &name).await,
    }
}

async fn list(invocation: &Invocation) -> Result {
    let apps = invocation.api()?.apps(None).await.during("list the apps")?;
    if invocation.ui.is_json() {
        invocation.ui.json(&apps.apps);
        return Ok(());
    }
    if apps.apps.is_empty() {
        invocation.ui.say("there are no apps yet; `perch launch` in a source folder makes one");
        return Ok(());
    }
    let mut rows = vec![row(["NAME", "OWNER", "STATUS", "MACHINES", "HOSTNAME"])];
    rows.extend(apps.apps.iter().map(|app| {
        row([
            app.name.as_str(),
            app.organization.slug.as_str(),
            &app.status,
            &app.machine_count.to_string(),
            &app.hostname,
        ])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn create(invocation: &Invocation, name: &str, org: String) -> Result {
    let name = app_name(name, "the command line")?;
    let request =
        CreateApp { name: Some(name.to_string()), org_slug: Some(org), ..CreateApp::default() };
    let app =
        invocation.api()?.create_app(&request).await.during(format!("create the app `{name}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&app);
    } else {
        invocation.ui.good(format!("app `{name}` is made; machines come with `perch deploy`"));
    }
    Ok(())
}

async fn destroy(invocation: &Invocation, name: &str) -> Result {
    let name = app_name(name, "the command line")?;
    let api = invocation.api()?;
    let app = api.app(&name).await.during(format!("look at the app `{name}`"))?;
    let question = format!(
        "Destroy the app `{name}` with {} machines and all that it has?",
        app.machine_count
    );
    match invocation.ui.confirm(&question) {
        Some(true) => {}
        Some(false) => {
            return Err(CommandError::Refused {
                fact: "nothing was destroyed".to_owned(),
                hint: None,
            });
        }
        None => {
            return Err(CommandError::refused(
                "there is nobody to ask whether this is meant",
                "add `--yes` to destroy without a question",
            ));
        }
    }
    let work = invocation.ui.working(&format!("destroying `{name}`"));
    api.delete_app(&name).await.during(format!("destroy the app `{name}`"))?;
    drop(work);
    invocation.ui.good(format!("app `{name}` is destroyed"));
    Ok(())
}
