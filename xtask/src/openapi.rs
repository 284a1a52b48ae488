//! Runs the program that makes docs/openapi.json of the source (`xtask/openapi`).
//!
//! Never parses Rust itself: that program is a workspace of its own, so that its parser does not
//! change how everything else is built.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The program's package, from the root of the repository.
const PACKAGE: &str = "xtask/openapi/Cargo.toml";

/// Checks the document, or writes it anew with `write`.
pub(crate) fn run(root: &Path, write: bool) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut program = Command::new(cargo);
    program.args(["run", "--quiet", "--locked", "--manifest-path"]).arg(root.join(PACKAGE));
    program.arg("--target-dir").arg(root.join("target/openapi"));
    program.args(write.then_some(["--", "--write"]).into_iter().flatten());
    let output = program.output().context("run the program in xtask/openapi")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
