//! `perch machine …`: the primitive under everything.
//!
//! Never decides placement or restarts anything by itself.

mod exec;
mod lease;
mod metadata;
mod resources;
mod run;
mod wait;

use clap::{Args, Subcommand};
use perch_client::{Api, ListFilter};
use perch_types::api::{Machine, MachineEvent, MachineVersion, StopRequest};
use perch_types::{AppName, MachineId};

use super::status::machine_table;
use crate::clock::{age, now};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with machines.
#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// List the app's machines
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Create a machine of an image and start it
    Run(run::RunArgs),
    /// Show a machine, its checks and its events
    Status {
        /// Machine's id
        id: MachineId,
    },
    /// Start machines
    Start {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// Stop machines
    Stop {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// Suspend machines: their processes stand still in memory until a start
    Suspend {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// Restart machines
    Restart {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
        /// Do not ask the program to end
        #[arg(long)]
        force: bool,
    },
    /// Destroy machines
    #[command(visible_alias = "rm")]
    Destroy {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
        /// Also one that runs
        #[arg(short, long)]
        force: bool,
    },
    /// List a machine's processes
    Ps(resources::PsArgs),
    /// Show or change how much memory a running machine may use
    Memory(resources::MemoryArgs),
    /// Take machines out of routing; they run on
    Cordon {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// Put machines back into routing
    Uncordon {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// Wait until a machine has reached a state
    Wait(wait::WaitArgs),
    /// Show and change a machine's labels
    #[command(subcommand)]
    Metadata(metadata::MetadataCommand),
    /// Show and end machines' leases
    #[command(subcommand, visible_alias = "leases")]
    Lease(lease::LeaseCommand),
    /// List the versions of a machine
    Versions {
        /// Machine's id
        id: MachineId,
    },
    /// Run a program inside a machine
    Exec(exec::ExecArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only machines in this state; several are separated by commas
    #[arg(short, long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// Only machines in this region
    #[arg(short, long)]
    region: Option<String>,
    /// Only machines with this label; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// Destroyed machines too, as long as they are remembered
    #[arg(long)]
    all: bool,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(invocation: &Invocation, command: MachineCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    match command {
        MachineCommand::List(args) => list(invocation, &api, &app, args).await,
        MachineCommand::Run(args) => run::run(invocation, &api, &app, args).await,
        MachineCommand::Status { id } => status(invocation, &api, &app, &id).await,
        MachineCommand::Start { ids } => {
            for id in ids {
                api.start(&app, &id).await.during(format!("start machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is starting"));
            }
            Ok(())
        }
        MachineCommand::Stop { ids } => {
            for id in ids {
                let stop = StopRequest::default();
                api.stop(&app, &id, &stop).await.during(format!("stop machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is stopping"));
            }
            Ok(())
        }
        MachineCommand::Suspend { ids } => {
            for id in ids {
                api.suspend(&app, &id).await.during(format!("suspend machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is being suspended"));
            }
            Ok(())
        }
        MachineCommand::Restart { ids, force } => {
            for id in ids {
                let result = api.restart(&app, &id, force, None).await;
                result.during(format!("restart machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is restarting"));
            }
            Ok(())
        }
        MachineCommand::Destroy { ids, force } => {
            destroy(invocation, (&api, &app), &ids, force).await
        }
        MachineCommand::Ps(args) => resources::ps(invocation, (&api, &app), args).await,
        MachineCommand::Memory(args) => resources::memory(invocation, (&api, &app), args).await,
        MachineCommand::Cordon { ids } => {
            for id in ids {
                api.cordon(&app, &id).await.during(format!("cordon machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is out of routing"));
            }
            Ok(())
        }
        MachineCommand::Uncordon { ids } => {
            for id in ids {
                api.uncordon(&app, &id).await.during(format!("uncordon machine `{id}`"))?;
                invocation.ui.good(format!("machine {id} is in routing"));
            }
            Ok(())
        }
        MachineCommand::Wait(args) => wait::run(invocation, &api, &app, args).await,
        MachineCommand::Metadata(command) => metadata::run(invocation, &api, &app, command).await,
        MachineCommand::Lease(command) => lease::run(invocation, &api, &app, command).await,
        MachineCommand::Versions { id } => versions(invocation, (&api, &app), &id).await,
        MachineCommand::Exec(args) => exec::run(invocation, &api, &app, args).await,
    }
}

async fn list(invocation: &Invocation, api: &Api, app: &AppName, args: ListArgs) -> Result {
    let labels = args.metadata.iter().map(|label| metadata::pair(label));
    let filter = ListFilter {
        include_deleted: args.all,
        region: args.region,
        states: args.state,
        metadata: labels.collect::<Result<_>>()?,
    };
    let machines =
        api.machines(app, &filter).await.during(format!("list the machines of `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&machines);
    } else if args.quiet {
        machines.iter().for_each(|machine| invocation.ui.data(&machine.id));
    } else if machines.is_empty() {
        let such = if filter == ListFilter::default() { "" } else { " such" };
        invocation.ui.say(format!("`{app}` has no{such} machines"));
    } else {
        machine_table(&machines).iter().for_each(|line| invocation.ui.data(line));
    }
    Ok(())
}

async fn versions(invocation: &Invocation, (api, app): (&Api, &AppName), id: &MachineId) -> Result {
    let versions = api.versions(app, id).await;
    let versions = versions.during(format!("list the versions of machine `{id}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&versions);
        return Ok(());
    }
    let mut rows = vec![row(["VERSION", "SIZE", "IMAGE"])];
    rows.extend(versions.iter().map(|MachineVersion { version, user_config }| {
        let size = format!("{} CPU, {} MB", user_config.cpus(), user_config.memory_mb());
        row([version.as_str(), &size, &user_config.image])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn status(invocation: &Invocation, api: &Api, app: &AppName, id: &MachineId) -> Result {
    let machine = api.machine(app, id).await.during(format!("look at machine `{id}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&machine);
        return Ok(());
    }
    machine_lines(&machine).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

fn machine_lines(machine: &Machine) -> Vec<String> {
    let now = now();
    let config = &machine.config;
    let rows = [
        row(["machine", machine.id.as_str()]),
        row(["name", &machine.name]),
        row(["state", machine.state.as_str()]),
        row(["version", machine.instance_id.as_str()]),
        row(["region", machine.region.as_str()]),
        row(["address", &machine.private_ip]),
        row(["image", config.image_references().first().copied().unwrap_or_default()]),
        row(["size", &format!("{} CPU, {} MB", config.cpus(), config.memory_mb())]),
        row(["created", &machine.created_at.to_string()]),
    ];
    let mut lines = table(&rows);
    lines.extend(container_lines(machine));
    if !machine.checks.is_empty() {
        lines.push(String::new());
        let mut rows = vec![row(["CHECK", "STATUS", "OUTPUT"])];
        rows.extend(machine.checks.iter().map(|check| {
            let status = format!("{:?}", check.status).to_ascii_lowercase();
            row([&check.name, &status, &check.output])
        }));
        lines.extend(table(&rows));
    }
    lines.push(String::new());
    let mut rows = vec![row(["EVENT", "STATUS", "BY", "AGE", "MORE"])];
    rows.extend(machine.events.iter().map(|event| {
        let then = perch_types::Timestamp::from_unix_ms(event.timestamp);
        let more = more_of(event);
        row([&event.kind, &event.status, &event.source, &age(then, now), &more])
    }));
    lines.extend(table(&rows));
    lines
}

fn container_lines(machine: &Machine) -> Vec<String> {
    if machine.containers.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![row(["CONTAINER", "STATE", "IMAGE"])];
    rows.extend(machine.containers.iter().map(|one| {
        let mut all = machine.config.containers.iter();
        let image = all.find(|config| config.name == one.name).map(|config| config.image.as_str());
        row([one.name.as_str(), one.state.as_str(), image.unwrap_or_default()])
    }));
    let mut lines = vec![String::new()];
    lines.extend(table(&rows));
    lines
}

/// Returns what an event says beside its kind.
fn more_of(event: &MachineEvent) -> String {
    let Some(request) = &event.request else {
        return String::new();
    };
    let text = |path: &str| request.pointer(path).and_then(serde_json::Value::as_str);
    match request.pointer("/exit_event/exit_code") {
        Some(code) if request.pointer("/exit_event/oom_killed") == Some(&true.into()) => {
            format!("exit code {code}, out of memory")
        }
        Some(code) => format!("exit code {code}"),
        None => text("/error").or_else(|| text("/reason")).unwrap_or_default().to_owned(),
    }
}

async fn destroy(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    ids: &[MachineId],
    force: bool,
) -> Result {
    for id in ids {
        let question = format!("Destroy machine {id} of `{app}`?");
        if !force && invocation.ui.confirm(&question) == Some(false) {
            return Err(CommandError::Refused {
                fact: format!("machine `{id}` stays"),
                hint: None,
            });
        }
        let result = api.delete_machine(app, id, force).await;
        result.during(format!("destroy machine `{id}`"))?;
        invocation.ui.good(format!("machine {id} is destroyed"));
    }
    Ok(())
}
