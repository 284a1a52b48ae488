//! `perchd`: the server.
//!
//! Never holds logic of its own: it reads the configuration, starts the processes and wires the
//! roles together.
#![forbid(unsafe_code)]

mod addresses;
mod authority;
mod backup;
mod certificate;
mod certificates;
mod clock;
mod config;
mod edges;
mod handover;
mod identity;
mod inside;
mod manager;
mod peer;
mod ports;
mod roles;
mod setup;
mod sockets;
mod supervisor;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::clock::SystemClock;
use crate::config::{Config, Flags};
use crate::roles::Role;
use crate::supervisor::Ready;

/// A developer cloud on your own metal: the server
#[derive(Debug, Parser)]
#[command(name = "perchd", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT; machines outlive it. At SIGHUP the program that is
    /// installed now takes its place, and no request is dropped
    Serve(Flags),
    /// Print the settings as the server would take them
    Config(Flags),
    /// Destroy all machines and take away everything that the server made on this host
    Remove {
        #[command(flatten)]
        flags: Flags,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Work with the master key of a server that runs
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Write the server's state into one archive, also while it runs: apps, machines, tokens, keys
    /// and the images of its registry
    Backup {
        #[command(flatten)]
        flags: Flags,
        /// The new archive, or a folder for it
        #[arg(value_name = "FOLDER|FILE")]
        target: PathBuf,
    },
    /// Put the state of a server out of an archive onto this one, which must have none
    Restore {
        #[command(flatten)]
        flags: Flags,
        /// What `perchd backup` wrote
        #[arg(value_name = "FILE")]
        archive: PathBuf,
    },
    /// Run one of the server's processes; the server does this itself
    #[command(hide = true)]
    Role { role: Role },
    /// Unpack image layers in a process without rights; the server does this itself
    #[command(hide = true)]
    UnpackLayers,
}

/// What to do with the master key.
#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a new version of it and wrap every app's key with that
    Rotate(Flags),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::UnpackLayers = arguments.command {
        return perch_oci::unpack::child_main();
    }
    start_log();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = String::from("error: could not go on");
            for cause in error.chain() {
                text.push_str("\n  caused by: ");
                text.push_str(&cause.to_string());
            }
            writeln!(std::io::stderr(), "{text}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(flags) => {
            let config = Config::load(&flags)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(supervisor::serve(config, announce))
        }
        Command::Config(flags) => {
            let text =
                toml::to_string_pretty(&Config::load(&flags)?).context("write the settings")?;
            print(&text)
        }
        Command::Remove { flags, yes } => roles::host::remove(&Config::load(&flags)?, yes),
        Command::Keys(KeysCommand::Rotate(flags)) => {
            let config = Config::load(&flags)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            print(&runtime.block_on(roles::keys::rotate(&config))?)
        }
        Command::Backup { flags, target } => {
            ensure_root()?;
            let taken = backup::backup(&Config::load(&flags)?, &target, &SystemClock)?;
            print(&taken.to_string())
        }
        Command::Restore { flags, archive } => {
            ensure_root()?;
            let config = Config::load(&flags)?;
            let restored = backup::restore(&config, &archive, Arc::new(SystemClock))?;
            print(&format!(
                "restored host {} as it was at {}, written by perchd {}\n  \
                 now start the server: machines come back with empty disks of their own, and those \
                 with volumes once the images of these are back in the pool\n",
                restored.host, restored.created_at, restored.perch,
            ))
        }
        Command::Role { role } => role.run(),
        // Handled before the log is started: this child must have one thread and two pipes.
        Command::UnpackLayers => Ok(()),
    }
}

fn ensure_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the server's state is root's alone (try `sudo`)"
    );
    Ok(())
}

fn start_log() {
    let filter =
        EnvFilter::try_from_env(perch_types::env::LOG).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Says what runs and what to do next.
fn announce(ready: &Ready) {
    let Ready { config, admin, admin_path, data_dir } = ready;
    let fingerprint = admin.fingerprint.as_deref().unwrap_or_default();
    let outside = match config.api_tls {
        Some(address) => {
            format!("\n  from outside  perch auth login https://{address}#{fingerprint}")
        }
        None => String::new(),
    };
    let http = format!("http://<app>.{}:{}", config.domain, config.http.port());
    let apps = match config.https.address() {
        Some(https) => {
            format!("https://<app>.{}:{}\n  over http     {http}", config.domain, https.port())
        }
        None => http,
    };
    let text = format!(
        "perchd is ready
  apps          {apps}
  api           http://{}
  token         in {} (only root can read it; `perch` on this server finds it)
  data          {}{outside}\n",
        config.api,
        admin_path.display(),
        data_dir.display(),
    );
    if print(&text).is_err() {
        tracing::warn!("standard output is closed");
    }
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).context("write to standard output")?;
    stdout.flush().context("write to standard output")
}
