//! `perch machine run`.
//!
//! Never builds: it takes a ready image.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use perch_client::{Api, WaitFor};
use perch_types::AppName;
use perch_types::MachineConfig;
use perch_types::api::CreateMachineRequest;
use perch_types::machine_config::RestartPolicy;
use perch_types::service::{Handler, Port, Service};

use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;

/// How long the start of a machine is waited for.
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Image's reference
    #[arg(required_unless_present = "machine_config")]
    image: Option<String>,
    /// Program and arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Name of the machine
    #[arg(short, long)]
    name: Option<String>,
    /// Region
    #[arg(short, long)]
    region: Option<String>,
    /// Environment; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Port that it serves HTTP on, for the edge
    #[arg(short, long)]
    port: Option<u16>,
    /// Memory in MB
    #[arg(short, long, value_name = "MB")]
    memory: Option<u32>,
    /// CPUs
    #[arg(long)]
    cpus: Option<u32>,
    /// When to start it again
    #[arg(long, value_enum)]
    restart: Option<Restart>,
    /// Destroy it when its program has ended
    #[arg(long)]
    rm: bool,
    /// Do not wait for its start
    #[arg(short, long)]
    detach: bool,
    /// Machine's configuration as a JSON file; options win over it
    #[arg(long, value_name = "FILE")]
    machine_config: Option<PathBuf>,
}

/// The words of `--restart`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Restart {
    No,
    Always,
    OnFailure,
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    args: RunArgs,
) -> Result {
    let detach = args.detach;
    let request = request(args)?;
    let what = format!("run a machine of `{app}`");
    let work = invocation.ui.working("creating the machine");
    let mut machine = api.create_machine(app, &request).await.during(&what)?;
    if !detach {
        work.step("starting the machine");
        let wait = WaitFor { timeout: START_TIMEOUT, ..WaitFor::default() };
        let waited = api.wait(app, &machine.id, &wait).await;
        machine = api.machine(app, &machine.id).await.during(&what)?;
        // A program that was quicker than the look at it has run all the same.
        let ran = machine.events.iter().any(|event| event.kind == "exit");
        if !ran {
            waited.during(&what)?;
        }
    }
    drop(work);
    if invocation.ui.is_json() {
        invocation.ui.json(&machine);
    } else {
        invocation.ui.good(format!("machine {} is {}", machine.id, machine.state));
        invocation.ui.data(machine.id);
    }
    Ok(())
}

fn request(args: RunArgs) -> Result<CreateMachineRequest> {
    let mut config = match &args.machine_config {
        Some(path) => read(path)?,
        None => MachineConfig::default(),
    };
    if let Some(image) = args.image {
        config.image = image;
    }
    config.auto_destroy |= args.rm;
    if !args.command.is_empty() {
        config.init.cmd = args.command;
    }
    for pair in &args.env {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            CommandError::usage(format!("`{pair}` is no variable"), "`--env NAME=VALUE`")
        })?;
        config.env.insert(name.to_owned(), value.to_owned());
    }
    if args.memory.is_some() || args.cpus.is_some() {
        let guest = config.guest.get_or_insert_default();
        guest.cpus = args.cpus.or(guest.cpus);
        guest.memory_mb = args.memory.or(guest.memory_mb);
    }
    let policy = args.restart.map(|restart| match restart {
        Restart::No => RestartPolicy::No,
        Restart::Always => RestartPolicy::Always,
        Restart::OnFailure => RestartPolicy::OnFailure,
    });
    if policy.is_some() {
        config.restart.get_or_insert_default().policy = policy;
    }
    if let Some(internal_port) = args.port {
        let port = |port, handlers| Port { port: Some(port), handlers, ..Port::default() };
        config.services.push(Service {
            internal_port,
            ports: vec![
                port(80, vec![Handler::Http]),
                port(443, vec![Handler::Http, Handler::Tls]),
            ],
            ..Service::default()
        });
    }
    Ok(CreateMachineRequest {
        config,
        name: args.name,
        region: args.region,
        ..CreateMachineRequest::default()
    })
}

/// Reads a machine's configuration from a file.
fn read(path: &Path) -> Result<MachineConfig> {
    let what = || format!("read the machine's configuration from `{}`", path.display());
    let text = std::fs::read_to_string(path).during(what())?;
    serde_json::from_str(&text).during(what())
}
