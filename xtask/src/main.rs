//! The project's own tool: `cargo xtask <command>`.
//!
//! Never needed at run time.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod arch;
mod guest;
mod openapi;
mod portable;
mod security;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <command>
  arch                compare the crate table of ARCHITECTURE.md with the crates, and look what the
                      CLI links
  tidy                check what rustfmt and clippy do not: first lines, file lengths, names
  openapi [--write]   compare docs/openapi.json with what the code serves
  security [--write]  compare the tests that docs/security.md names with those there are
  guest               build the static programs perch-init and perch-monitor into target/guest";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let write = std::env::args().nth(2).as_deref() == Some("--write");
    let root = root();
    let result = match command.as_str() {
        "arch" => arch::run(&root),
        "tidy" => tidy::run(&root),
        "openapi" => openapi::run(&root, write),
        "security" => security::run(&root, write),
        "guest" => guest::run(&root),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(summary) => {
            println!("{command}: {summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: could not finish `{command}`");
            for cause in error.chain() {
                eprintln!("  {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}
