//! The commands, one file each.
//!
//! Never prints by itself: everything goes through `ui`.

pub(crate) mod apps;
pub(crate) mod auth;
pub(crate) mod build;
pub(crate) mod certs;
pub(crate) mod deploy;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod images;
pub(crate) mod ips;
pub(crate) mod launch;
pub(crate) mod logs;
pub(crate) mod machine;
pub(crate) mod open;
pub(crate) mod secrets;
pub(crate) mod status;
pub(crate) mod system;
pub(crate) mod tokens;
mod version;
pub(crate) mod volumes;

use crate::args::Command;
use crate::error::Result;
use crate::invocation::Invocation;

/// Runs a command.
pub(crate) async fn run(invocation: &Invocation, command: Command) -> Result {
    match command {
        Command::Launch(args) => Box::pin(launch::run(invocation, args)).await,
        Command::Deploy(args) => Box::pin(deploy::run(invocation, args)).await,
        Command::Build(args) => Box::pin(build::run(invocation, args)).await,
        Command::Status(args) => Box::pin(status::run(invocation, args)).await,
        Command::Logs(args) => Box::pin(logs::run(invocation, args)).await,
        Command::Apps(command) => Box::pin(apps::run(invocation, command)).await,
        Command::Machine(command) => Box::pin(machine::run(invocation, command)).await,
        Command::Volumes(command) => Box::pin(volumes::run(invocation, command)).await,
        Command::Ips(command) => Box::pin(ips::run(invocation, command)).await,
        Command::Certs(command) => Box::pin(certs::run(invocation, command)).await,
        Command::Secrets(command) => Box::pin(secrets::run(invocation, command)).await,
        Command::Images(command) => Box::pin(images::run(invocation, command)).await,
        Command::Open(args) => Box::pin(open::run(invocation, args)).await,
        Command::Doctor(args) => Box::pin(doctor::run(invocation, args)).await,
        Command::Auth(command) => Box::pin(auth::run(invocation, command)).await,
        Command::Tokens(command) => Box::pin(tokens::run(invocation, command)).await,
        Command::System(command) => Box::pin(system::run(invocation, command)).await,
        Command::Explain(args) => explain::run(invocation, &args),
        Command::Version => Box::pin(version::run(invocation)).await,
    }
}
