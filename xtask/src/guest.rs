//! Builds the static programs `perch-init` and `perch-monitor` into `target/guest`.
//!
//! Never shares a target folder with the other crates: the flags differ, and would make both
//! build anew each time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Static glibc, which every toolchain for the host has.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROGRAMS: [(&str, &str); 2] = [("perch-init", "perch-init"), ("perch-runtime", "perch-monitor")];

pub(crate) fn run(root: &Path) -> Result<String> {
    let target_dir = root.join("target/guest-build");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--profile", "guest", "--target", TARGET])
        .args(["--target-dir".as_ref(), target_dir.as_os_str()])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root);
    for (package, program) in PROGRAMS {
        cargo.args(["--package", package, "--bin", program]);
    }
    if !cargo.status().context("run cargo build")?.success() {
        bail!("cargo build ended with an error");
    }
    let guest = root.join("target/guest");
    std::fs::create_dir_all(&guest).context("make folder `target/guest`")?;
    let mut sizes = Vec::new();
    for (_, program) in PROGRAMS {
        let built = target_dir.join(TARGET).join("guest").join(program);
        // A running machine keeps the program it started with: replace, never write into it.
        let fresh = guest.join(format!("{program}.new"));
        let bytes = std::fs::copy(&built, &fresh)
            .with_context(|| format!("copy `{}`", built.display()))?;
        std::fs::rename(&fresh, guest.join(program))
            .with_context(|| format!("publish `{program}`"))?;
        sizes.push(format!("{program} {} KB", bytes / 1000));
    }
    Ok(sizes.join(", "))
}
