//! Builds the static programs: `perch-monitor` and `perch-init`, which every machine carries, and
//! `perch-testserver`, which tests and measurements run.
//!
//! Never shares a target folder with the other builds: its flags would make both build again.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// Static against glibc: the musl target is not on every server that builds Perch.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static, and overriding every other source of flags.
const FLAGS: &str = "-C target-feature=+crt-static";
const PROGRAMS: [(&str, &str); 3] = [
    ("perch-runtime", "perch-monitor"),
    ("perch-init", "perch-init"),
    ("perch-testserver", "perch-testserver"),
];

/// Builds all and copies them to `target/guest`.
pub(crate) fn run(root: &Path) -> anyhow::Result<String> {
    let build = root.join("target/guest-build");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root)
        .args(["build", "--profile", "guest", "--target", TARGET, "--target-dir"])
        .arg(&build)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for (package, program) in PROGRAMS {
        command.args(["--package", package, "--bin", program]);
    }
    let status = command.status().context("run cargo")?;
    if !status.success() {
        bail!("build the guest programs: cargo ended with {status}");
    }
    let to = root.join("target/guest");
    std::fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    for (_, program) in PROGRAMS {
        install(&build.join(TARGET).join("guest").join(program), &to.join(program))?;
    }
    Ok(format!("built into {}", to.display()))
}

/// Puts a program in its place in one step: a running one keeps its old file.
fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).with_context(|| format!("copy {}", from.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("rename to {}", to.display()))
}
