//! PID 1 inside a machine: prepares it, starts its program, collects what dies, runs further
//! programs, and ends with its program.
//!
//! Never opens a socket or a file outside the machine: everything it knows comes through the one
//! descriptor that the monitor left it.

mod accounts;
mod channel;
mod files;
mod machine;
mod mains;
mod placed;
mod program;
mod signals;
mod terminal;

use std::process::ExitCode;

/// The status of init itself when it could not do its work; the monitor sees that no report came.
const FAULT: u8 = 70;

fn main() -> ExitCode {
    match machine::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            files::complain(&format!("perch-init: {error}"));
            ExitCode::from(FAULT)
        }
    }
}
