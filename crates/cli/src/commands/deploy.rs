//! `perch deploy`, and the roll-out that `launch` shares.
//!
//! Never decides what to do to a machine: that is `perch-deploy`'s.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use perch_client::{Address, Api};
use perch_deploy::{Deployer, Event, Limits, Observer, Options, Plan};
use perch_types::AppName;
use perch_types::app_config::AppConfig;
use perch_types::service::Port;
use serde::Serialize;

use super::build::{BuildOptions, Job, build};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::{Invocation, app_name};
use crate::probe::{Answer, Target};
use crate::ui::{Ui, Working};

/// How long the edge may take to answer for an app whose machines are ready.
const EDGE_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Source folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Ready image; nothing is built
    #[arg(short, long, value_name = "REFERENCE")]
    image: Option<String>,
    #[command(flatten)]
    build: BuildOptions,
    /// Show what would be done to the machines, and do nothing
    #[arg(long, requires = "image")]
    plan: bool,
}

/// A platform and the app on it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) api: Api,
    pub(crate) address: Address,
    pub(crate) app: AppName,
}

#[derive(Debug, Serialize)]
struct Deployed {
    app: AppName,
    image: String,
    release: u64,
    machines: Vec<perch_types::MachineId>,
    url: Option<String>,
}

pub(crate) async fn run(invocation: &Invocation, args: DeployArgs) -> Result {
    let mut file = invocation.needed_config_file(&args.folder)?;
    let name = match (&invocation.global.app, &file.config.app) {
        (Some(name), _) => app_name(name, "--app")?,
        (None, Some(name)) => app_name(name, &file.path.display().to_string())?,
        (None, None) => {
            return Err(CommandError::usage(
                format!("`{}` has no `app`", file.path.display()),
                "add it, or name the app with `--app NAME`",
            ));
        }
    };
    invocation.check_supported(&file.config)?;
    perch_deploy::read_local_files(&mut file.config, &file.path)
        .during("read the files that the app's machines get")?;
    // Contradictions of the file are found before minutes are spent on a build.
    for group in file.config.groups() {
        file.config.to_machine_config(group, "").during("understand the app's configuration")?;
    }
    let (api, address) = invocation.api_and_address()?;
    let place = Place { api, address, app: name };
    place.api.app(&place.app).await.during(format!("look at the app `{}`", place.app))?;
    let image = args.image.or_else(|| file.config.build.as_ref()?.image.clone());
    let image = match image {
        Some(image) => image,
        None => {
            let folder = if args.folder.as_os_str() == "." { file.folder() } else { args.folder };
            let job = Job::new(&folder, &file.config, &args.build)?;
            Box::pin(build(invocation, &place.api, &place.app, &job)).await?.image
        }
    };
    if args.plan {
        let plan = planned(&place, &file.config, &image).await?;
        invocation.ui.data(plan.to_string().trim_end());
        return Ok(());
    }
    Box::pin(roll_out(invocation, &place, &file.config, &image)).await
}

async fn planned(place: &Place, config: &AppConfig, image: &str) -> Result<Plan> {
    let deployer = Deployer::new(place.api.clone(), place.app.clone(), Limits::default());
    let what = format!("plan the deploy of `{}`", place.app);
    let machines = deployer.machines().await.during(&what)?;
    perch_deploy::plan(&machines, config, image, &Options::default()).during(what)
}

/// Rolls an image out, sees it at the edge, and prints where it is.
pub(crate) async fn roll_out(
    invocation: &Invocation,
    place: &Place,
    config: &AppConfig,
    image: &str,
) -> Result {
    let ui = &invocation.ui;
    let plan = planned(place, config, image).await?;
    let limits = Limits { ready: config.wait_timeout().get(), ..Limits::default() };
    let deployer = Deployer::new(place.api.clone(), place.app.clone(), limits);
    let mut progress = Progress { ui, work: ui.working("deploying") };
    let result = deployer.apply(&plan, &mut progress).await;
    drop(progress);
    let outcome = result.during(format!("deploy `{}`", place.app))?;
    let url = if is_public(config) { Some(see_at_edge(ui, place).await?) } else { None };
    let deployed = Deployed {
        app: place.app.clone(),
        image: image.to_owned(),
        release: plan.release,
        machines: outcome.machines,
        url,
    };
    if ui.is_json() {
        ui.json(&deployed);
    } else if let Some(url) = &deployed.url {
        ui.data(url);
    }
    Ok(())
}

/// Has the machines that run begin anew as they are, so that they see the app's secrets of at
/// least a version; returns how many did.
pub(crate) async fn restart(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    min_secrets_version: u64,
) -> Result<usize> {
    let ui = &invocation.ui;
    let deployer = Deployer::new(api.clone(), app.clone(), Limits::default());
    let what = format!("have the machines of `{app}` begin anew");
    let machines = deployer.machines().await.during(&what)?;
    let plan = perch_deploy::restart(&machines, min_secrets_version);
    let mut progress = Progress { ui, work: ui.working("deploying") };
    let result = deployer.apply(&plan, &mut progress).await;
    drop(progress);
    Ok(result.during(what)?.machines.len())
}

/// Returns whether a visitor can reach the app over HTTP.
fn is_public(config: &AppConfig) -> bool {
    let speaks_http = |port: &Port| !port.is_raw();
    config.http_service.is_some()
        || config.services.iter().any(|service| service.ports.iter().any(speaks_http))
}

/// Asks for the first page as a visitor does; returns the app's address.
async fn see_at_edge(ui: &Ui, place: &Place) -> Result<String> {
    let what = format!("see `{}` at the edge", place.app);
    let app = place.api.app(&place.app).await.during(&what)?;
    let platform = place.api.platform().await.during(&what)?;
    let target = Target::new(&place.address, &platform, &app.hostname);
    let work = ui.working("asking for the first page at the edge");
    let begun = tokio::time::Instant::now();
    let answer = target.wait(EDGE_PATIENCE).await;
    drop(work);
    let took_ms = begun.elapsed().as_millis();
    let hint = format!("`perch logs --app {0}` and `perch status --app {0}` say more", place.app);
    match answer {
        Answer::Status(status) if status < 500 => {
            ui.good(format!("the edge answers for it with status {status} ({took_ms} ms)"));
            Ok(target.url())
        }
        Answer::Status(status @ (502..=504)) => Err(CommandError::refused(
            format!("`{}` runs, but {} answers with status {status}", place.app, target.url()),
            hint,
        )),
        Answer::Status(status) => {
            ui.warn(format!("the first page answers with status {status}; {hint}"));
            Ok(target.url())
        }
        Answer::Nothing(reason) => Err(CommandError::refused(
            format!("`{}` runs, but {} does not answer: {reason}", place.app, target.url()),
            format!("is port {} of {} reachable from here?", target.port, target.host),
        )),
    }
}

/// Shows a deploy's events.
struct Progress<'a> {
    ui: &'a Ui,
    work: Working<'a>,
}

impl Observer for Progress<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Started { index, total, text } => {
                self.work.step(&format!("[{index}/{total}] {text}"));
            }
            Event::Waiting { index, total, machine, because } => {
                self.work.step(&format!("[{index}/{total}] machine {machine}: {because}"));
            }
            Event::Done { index, total, machine, result, took_ms } => self.ui.good(format!(
                "[{index}/{total}] machine {machine} is {result} ({}.{} s)",
                took_ms / 1000,
                took_ms % 1000 / 100
            )),
            Event::Undoing { machine, text } => {
                self.ui.warn(format!("machine {machine} did not come up: {text}"));
            }
            Event::Undone { machine, text } => self.ui.good(format!("machine {machine} {text}")),
            Event::Failed { index, total, because } => {
                self.ui.warn(format!("[{index}/{total}] failed too: {because}"));
            }
            Event::Halted { done: 0, untouched: 0 } => {}
            Event::Halted { done, untouched } => self.ui.warn(format!(
                "the deploy ends here: {done} machines have the new version, {untouched} were not \
                 touched"
            )),
        }
    }
}
