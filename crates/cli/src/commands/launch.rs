//! `perch launch`: from a source folder or an image to a running app.
//!
//! Never overwrites a file, and changes nothing before the plan was agreed to.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use perch_client::{Api, ListFilter};
use perch_deploy::{NewApp, new_fly_toml, read_local_files, with_app_name};
use perch_scan::{Decision, Folder, LaunchPlan, Source, scan};
use perch_types::api::{CreateApp, Platform};
use perch_types::app_config::AppConfig;
use perch_types::{AppName, Code, MachineState};

use super::build::{BuildOptions, Job, build};
use super::deploy::{Place, roll_out};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::{ConfigFile, Invocation, app_name};
use crate::table::{row, table};

/// The longest name that is made of a folder's.
const NAME_CHARACTERS_MAX: usize = 40;
/// The port of an image that says nothing.
const IMAGE_PORT: u16 = 8080;
/// Memory for an image of which nothing is known, in MiB.
const IMAGE_MEMORY_MB: u32 = 512;

#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Source folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Name of the app [default: the folder's]
    #[arg(short, long)]
    name: Option<String>,
    /// Region of its machines [default: the platform's]
    #[arg(short, long)]
    region: Option<String>,
    /// Ready image; nothing is built
    #[arg(short, long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Port that the program listens on [default: what the scan finds]
    #[arg(short, long)]
    port: Option<u16>,
    /// Write the files and create the app, but run nothing
    #[arg(long)]
    no_deploy: bool,
}

/// What a launch will do.
struct Proposal {
    name: AppName,
    decisions: Vec<Decision>,
    warnings: Vec<String>,
    /// Files to write, none of which is there.
    files: Vec<(PathBuf, String)>,
    config: AppConfig,
    /// Whether a file that was there names the app: an earlier launch may have written it.
    is_from_file: bool,
}

pub(crate) async fn run(invocation: &Invocation, args: LaunchArgs) -> Result {
    let ui = &invocation.ui;
    let (api, address) = invocation.api_and_address()?;
    let platform = api.platform().await.during("look at the platform")?;
    let proposal = match invocation.config_file(&args.folder)? {
        Some(file) => from_file(&args, file)?,
        None => from_scan(invocation, &args, &platform)?,
    };
    invocation.check_supported(&proposal.config)?;
    show(invocation, &proposal, &platform);
    let name = proposal.name.clone();
    match ui.confirm(&format!("Launch `{name}`?")) {
        Some(true) => {}
        Some(false) => {
            return Err(CommandError::Refused {
                fact: "nothing was launched".to_owned(),
                hint: None,
            });
        }
        None => {
            return Err(CommandError::refused(
                "there is nobody to ask whether the plan is right",
                "add `--yes` to launch without a question",
            ));
        }
    }
    make_app(invocation, &api, &proposal).await?;
    for (path, text) in &proposal.files {
        write_new(path, text).during(format!("write `{}`", path.display()))?;
        ui.good(format!("{} is written", path.display()));
    }
    if args.no_deploy {
        ui.say(format!("nothing runs yet; `perch deploy --app {name}` rolls it out"));
        return Ok(());
    }
    let place = Place { api, address, app: name };
    match Box::pin(build_and_roll_out(invocation, args, &place, &proposal.config)).await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.halfway(next(&place).await)),
    }
}

/// Returns how to go on after a launch that failed once the app was made.
async fn next(Place { api, app, .. }: &Place) -> String {
    if machines(api, app).await.is_ok_and(|machines| machines > 0) {
        return format!("the app has machines; mend it and run `perch deploy --app {app}`");
    }
    format!(
        "mend it and run the same command again: it goes on with the app `{app}`; \
         `perch apps destroy {app}` takes it away"
    )
}

async fn build_and_roll_out(
    invocation: &Invocation,
    args: LaunchArgs,
    place: &Place,
    config: &AppConfig,
) -> Result {
    let image = args.image.or_else(|| config.build.as_ref()?.image.clone());
    let image = match image {
        Some(image) => image,
        None => {
            let job = Job::new(&args.folder, config, &BuildOptions::default())?;
            Box::pin(build(invocation, &place.api, &place.app, &job)).await?.image
        }
    };
    Box::pin(roll_out(invocation, place, config, &image)).await
}

/// Makes the app; goes on with one that an earlier launch of this folder has made and that nothing
/// runs of yet.
async fn make_app(invocation: &Invocation, api: &Api, proposal: &Proposal) -> Result {
    let name = &proposal.name;
    let request = CreateApp { name: Some(name.to_string()), ..CreateApp::default() };
    match api.create_app(&request).await {
        Ok(_) => {
            invocation.ui.good(format!("app `{name}` is made"));
            return Ok(());
        }
        Err(error) if error.code() == Some(Code::NameTaken) => {}
        Err(error) => {
            return Err(CommandError::operation(format!("create the app `{name}`"), error));
        }
    }
    // An app of somebody else is as good as none to this token.
    let is_ours = match api.app(name).await {
        Ok(_) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error).during(format!("look at the app `{name}`")),
    };
    if !is_ours || !proposal.is_from_file {
        let hint = if is_ours {
            format!(
                "the app is yours: go on in the folder that has its fly.toml, choose another name \
                 with `perch launch --name NAME`, or take it away with `perch apps destroy {name}`"
            )
        } else {
            "choose another with `perch launch --name NAME`".to_owned()
        };
        return Err(CommandError::refused(format!("the name `{name}` is taken"), hint));
    }
    let machines = machines(api, name).await;
    let machines = machines.during(format!("look at the machines of `{name}`"))?;
    if machines > 0 {
        return Err(CommandError::refused(
            format!("`{name}` is launched already, with {machines} machines"),
            format!("roll out what has changed with `perch deploy --app {name}`"),
        ));
    }
    invocation.ui.good(format!("app `{name}` is there from an earlier launch; going on with it"));
    Ok(())
}

/// Returns how many machines an app has, without those that are on their way out.
async fn machines(api: &Api, app: &AppName) -> std::result::Result<usize, perch_client::Error> {
    let found = api.machines(app, &ListFilter::default()).await?;
    let going = |state| matches!(state, MachineState::Destroying | MachineState::Destroyed);
    Ok(found.iter().filter(|machine| !going(machine.state)).count())
}

/// Proposes what a file that is there says; only the app's name may change.
fn from_file(args: &LaunchArgs, file: ConfigFile) -> Result<Proposal> {
    let ConfigFile { path, text, mut config } = copy_for(args, file)?;
    let shown = path.display().to_string();
    read_local_files(&mut config, &path).during("read the files that the app's machines get")?;
    let name = match (&args.name, &config.app) {
        (Some(name), _) => app_name(name, "--name")?,
        (None, Some(name)) => app_name(name, &shown)?,
        (None, None) => name_of_folder(&args.folder)?,
    };
    let mut decisions = vec![decision("app", name.as_str(), format!("{shown} is there and stays"))];
    let mut warnings = Vec::new();
    let mut files = Vec::new();
    if config.app.as_deref() != Some(name.as_str()) {
        decisions = vec![decision("app", name.as_str(), "the command line, else the folder")];
        let text = with_app_name(&text, name.as_str()).during(format!("edit `{shown}`"))?;
        let copy = copy_path(&path, name.as_str());
        warnings.push(format!(
            "{shown} names another app and stays as it is; the new name goes to {}: deploy with \
             `--config`",
            copy.display()
        ));
        files.push((copy, text));
        config.app = Some(name.to_string());
    }
    if let Some(http) = &config.http_service {
        decisions.push(decision(
            "port",
            &http.internal_port.to_string(),
            format!("`internal_port` in {shown}"),
        ));
    }
    if let Some(region) = &config.primary_region {
        decisions.push(decision("region", region, format!("`primary_region` in {shown}")));
    }
    let is_from_file = files.is_empty();
    Ok(Proposal { name, decisions, warnings, files, config, is_from_file })
}

/// Returns where a file goes that is the same but for the app's name.
fn copy_path(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(format!("fly.{name}.toml"))
}

/// Returns the copy that an earlier launch under another name has made of a file, or the file.
fn copy_for(args: &LaunchArgs, file: ConfigFile) -> Result<ConfigFile> {
    let Some(name) = args.name.as_deref().filter(|name| file.config.app.as_deref() != Some(name))
    else {
        return Ok(file);
    };
    let path = copy_path(&file.path, name);
    if !path.is_file() {
        return Ok(file);
    }
    let (config, text) = perch_deploy::load(&path).during("read the app's configuration")?;
    Ok(ConfigFile { path, text, config })
}

/// Proposes what the source shows, or what is known of a ready image.
fn from_scan(invocation: &Invocation, args: &LaunchArgs, platform: &Platform) -> Result<Proposal> {
    let (name, name_why) = match args.name.as_ref().or(invocation.global.app.as_ref()) {
        Some(name) => (app_name(name, "--name")?, "the command line says so"),
        None => (name_of_folder(&args.folder)?, "the folder's name"),
    };
    let mut decisions = vec![decision("app", name.as_str(), name_why)];
    let region = args.region.clone().unwrap_or_else(|| platform.region.to_string());
    let why =
        if args.region.is_some() { "the command line says so" } else { "where the platform is" };
    decisions.push(decision("region", &region, why));
    let scanned = match args.image {
        Some(_) => None,
        None => {
            let folder = Folder::open(&args.folder).during("look at the source folder")?;
            Some(scan(&folder).during("find out what this app is")?)
        }
    };
    let mut new = new_app(&name, region, scanned.as_ref(), platform);
    new.image.clone_from(&args.image);
    match &scanned {
        Some(plan) => decisions.extend(plan.decisions.iter().cloned()),
        None => {
            let image = args.image.clone().unwrap_or_default();
            decisions.push(decision("image", &image, "the command line says so"));
            decisions.push(decision(
                "port",
                &IMAGE_PORT.to_string(),
                "the usual one; change it with `--port`",
            ));
            decisions.push(decision("memory", "512 MB", "it is not known what the image runs"));
        }
    }
    if let Some(port) = args.port {
        new.internal_port = port;
        "The command line said so.".clone_into(&mut new.port_why);
        if new.env.contains_key("PORT") {
            new.env.insert("PORT".to_owned(), port.to_string());
        }
        decisions.retain(|it| it.what != "port");
        decisions.push(decision("port", &port.to_string(), "the command line says so"));
    }
    decisions.push(decision(
        "machines",
        "1",
        "the platform is one server; it is replaced without a gap",
    ));
    let beside = |name: &str| match args.folder.as_path() {
        here if here == Path::new(".") => PathBuf::from(name),
        folder => folder.join(name),
    };
    let path = invocation.config_path(&args.folder);
    let text = new_fly_toml(&new);
    let config = perch_deploy::parse(&text).during("read back the new configuration")?;
    let mut files = vec![(path, text)];
    let mut warnings = Vec::new();
    if let Some(plan) = scanned {
        if let Source::Generated(text) = plan.dockerfile {
            files.push((beside("Dockerfile"), text));
        }
        files.extend(plan.dockerignore.map(|text| (beside(".dockerignore"), text)));
        warnings = plan.warnings;
    }
    Ok(Proposal { name, decisions, warnings, files, config, is_from_file: false })
}

fn new_app(
    name: &AppName,
    region: String,
    plan: Option<&LaunchPlan>,
    platform: &Platform,
) -> NewApp {
    let port_why = plan.and_then(|plan| plan.decisions.iter().find(|it| it.what == "port"));
    NewApp {
        app: name.to_string(),
        region,
        dockerfile: plan.and_then(|plan| match &plan.dockerfile {
            Source::Existing(path) if path != "Dockerfile" => Some(path.clone()),
            Source::Existing(_) | Source::Generated(_) => None,
        }),
        image: None,
        env: plan.map_or_else(BTreeMap::new, |plan| plan.env.clone()),
        internal_port: plan.map_or(IMAGE_PORT, |plan| plan.internal_port),
        port_why: port_why
            .map_or_else(|| "The usual port.".to_owned(), |it| format!("Why: {}.", it.why)),
        kill_signal: plan.and_then(|plan| plan.kill_signal),
        memory_mb: plan.map_or(IMAGE_MEMORY_MB, |plan| plan.memory_mb),
        has_https: platform.https_port.is_some(),
    }
}

fn decision(what: &'static str, value: &str, why: impl Into<String>) -> Decision {
    Decision { what, value: value.to_owned(), why: why.into() }
}

/// Makes an app's name of a folder's.
fn name_of_folder(folder: &Path) -> Result<AppName> {
    let folder = folder.canonicalize().during(format!("look at `{}`", folder.display()))?;
    let name = folder.file_name().map(|it| it.to_string_lossy().to_ascii_lowercase());
    let mut made = String::new();
    for character in name.unwrap_or_default().chars() {
        if character.is_ascii_alphanumeric() {
            made.push(character);
        } else if !made.ends_with('-') {
            made.push('-');
        }
    }
    let made: String = made.trim_matches('-').chars().take(NAME_CHARACTERS_MAX).collect();
    made.trim_end_matches('-').parse().map_err(|_| {
        CommandError::usage(
            format!("no name can be made of `{}`", folder.display()),
            "name the app: `perch launch --name NAME`",
        )
    })
}

/// Shows what will be done and why.
fn show(invocation: &Invocation, proposal: &Proposal, platform: &Platform) {
    let ui = &invocation.ui;
    ui.headline(format!("Launch plan for `{}` on {}", proposal.name, platform.domain));
    let rows: Vec<Vec<String>> = proposal
        .decisions
        .iter()
        .map(|it| row([&format!("  {}", it.what), &it.value, &it.why]))
        .collect();
    table(&rows).iter().for_each(|line| ui.say(line));
    for (path, _) in &proposal.files {
        ui.say(format!("  writes {}", path.display()));
    }
    for warning in &proposal.warnings {
        ui.warn(warning);
    }
}

/// Writes a file that is not there; one that came meanwhile is not touched.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
