//! `perch`: parses a command line, calls the platform, prints.
//!
//! Never links a server crate and never decides what the platform does.

#![forbid(unsafe_code)]

mod args;
mod authority;
mod clock;
mod commands;
mod context;
mod credentials;
mod error;
mod escape;
mod explain;
mod invocation;
mod probe;
mod raw_mode;
mod stop_signals;
mod table;
mod ui;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::error::CommandError;
use crate::invocation::Invocation;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let invocation = Invocation::new(cli.global);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(commands::run(&invocation, cli.command));
            // A read of the terminal may still be waiting; it must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(CommandError::operation("start", error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&invocation.ui, &error),
    }
}
