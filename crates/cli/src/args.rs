//! The command line.
//!
//! Never more than shapes: each command's own arguments stand in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use perch_types::env::{API_TOKEN, API_URL};

use crate::commands::{
    apps, auth, build, certs, deploy, doctor, explain, images, ips, launch, logs, machine, open,
    secrets, status, system, tokens, volumes,
};

/// Run apps on your own servers.
#[derive(Debug, Parser)]
#[command(name = "perch", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// App to work on [default: the one that fly.toml names]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Configuration file of the app [default: fly.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Address of the platform
    #[arg(long, global = true, value_name = "URL", env = API_URL, hide_env_values = true)]
    pub(crate) api_url: Option<String>,
    /// Token for the platform; the environment is safer, as others can see command lines
    #[arg(long, global = true, value_name = "TOKEN", env = API_TOKEN, hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Launch a new app from a source folder or an image
    Launch(launch::LaunchArgs),
    /// Build the app and roll it out as fly.toml says
    Deploy(deploy::DeployArgs),
    /// Build an image and leave the machines alone
    Build(build::BuildArgs),
    /// Show an app, its machines and what happened last
    Status(status::StatusArgs),
    /// Show what the app's programs print
    Logs(logs::LogsArgs),
    /// List, create and destroy apps
    #[command(subcommand)]
    Apps(apps::AppsCommand),
    /// Work with single machines
    #[command(subcommand, visible_alias = "machines")]
    Machine(machine::MachineCommand),
    /// Work with volumes and their snapshots
    #[command(subcommand, visible_alias = "volume", visible_alias = "vol")]
    Volumes(volumes::VolumesCommand),
    /// Work with the app's public addresses
    #[command(subcommand, visible_alias = "ip")]
    Ips(ips::IpsCommand),
    /// Work with certificates of the app's own host names
    #[command(subcommand, visible_alias = "cert")]
    Certs(certs::CertsCommand),
    /// Set, list and take away the app's secrets
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Work with images in the platform's registry
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Show the app's address and open it in a browser
    Open(open::OpenArgs),
    /// Show what takes the servers' disks, and free it
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Look whether this machine and the platform fit together, and say what to do if not
    Doctor(doctor::DoctorArgs),
    /// Log in to a platform
    #[command(subcommand)]
    Auth(auth::AuthCommand),
    /// Make, list and end tokens for an app
    #[command(subcommand)]
    Tokens(tokens::TokensCommand),
    /// Explain an error code
    Explain(explain::ExplainArgs),
    /// Show the versions of the CLI and the platform
    Version,
}
