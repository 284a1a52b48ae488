//! Looks that the CLI can be built for other systems than Linux: what it links there, all of it,
//! holds no crate of the server and none that exists for Linux only.
//!
//! Never compiles anything; a call that only Linux has is found by `cargo check --target`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The package whose tree is looked at.
const CLI: &str = "perch-cli";
/// The other systems that the CLI is for.
const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "x86_64-apple-darwin"];
/// Crates that are nothing without Linux, or bring what only the server needs.
const LINUX_ONLY: &[&str] = &[
    "aya",
    "capctl",
    "caps",
    "cgroups-rs",
    "inotify",
    "io-uring",
    "landlock",
    "libbpf-sys",
    "libcgroups",
    "libcontainer",
    "libseccomp",
    "libsqlite3-sys",
    "linux-raw-sys",
    "neli",
    "nftables",
    "procfs",
    "rtnetlink",
    "rusqlite",
    "sd-notify",
    "seccompiler",
    "signalfd",
    "tokio-uring",
    "userfaultfd",
];
/// The beginning of the names of crates that speak to the Linux kernel's sockets.
const NETLINK: &str = "netlink-";

/// Returns what speaks against building the CLI elsewhere; `allowed` are the workspace's crates that
/// it may use.
pub(crate) fn faults(root: &Path, allowed: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for target in TARGETS {
        let output = Command::new("cargo")
            .args(["tree", "--package", CLI, "--target", target, "--locked"])
            .args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
            .current_dir(root)
            .output()
            .context("run cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let tree = String::from_utf8_lossy(&output.stdout).into_owned();
        faults.extend(in_tree(&tree, allowed).into_iter().map(|it| format!("{target}: {it}")));
    }
    Ok(faults)
}

fn in_tree(tree: &str, allowed: &BTreeSet<String>) -> Vec<String> {
    let packages: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if !packages.contains(CLI) {
        return vec![format!("the tree of `{CLI}` does not name it: is this what cargo printed?")];
    }
    packages
        .into_iter()
        .filter_map(|package| match package.strip_prefix("perch-") {
            Some(own) if package != CLI && !allowed.contains(own) => {
                Some(format!("`{CLI}` links `{package}`, which is the server's"))
            }
            None if LINUX_ONLY.contains(&package) || package.starts_with(NETLINK) => {
                Some(format!("`{CLI}` links `{package}`, which is for Linux or the server only"))
            }
            Some(_) | None => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_elsewhere_is_judged_by_name() {
        let allowed = ["client", "types"].map(str::to_owned).into_iter().collect();
        let good = "perch-cli v0.1.0 (/x)\nperch-client v0.1.0 (/x) (*)\nclap v4.6.1\n";
        assert_eq!(in_tree(good, &allowed), Vec::<String>::new());
        for (line, word) in [
            ("perch-host v0.1.0 (/x)", "perch-host"),
            ("libcontainer v0.7.0", "libcontainer"),
            ("netlink-sys v0.8.8 (*)", "netlink-sys"),
            ("rusqlite v0.40.1", "rusqlite"),
        ] {
            let faults = in_tree(&format!("{good}{line}\n"), &allowed);
            assert!(matches!(faults.as_slice(), [one] if one.contains(word)), "{faults:?}");
        }
        assert_eq!(in_tree("", &allowed).len(), 1, "nothing at all is no proof");
    }
}
