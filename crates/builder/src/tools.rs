//! The programs that a build needs, and the Debian package that has each.
//!
//! Never installs anything.

use std::path::{Path, PathBuf};

/// A program that is not on this server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the program `{program}` is missing: install it with `apt-get install {package}`")]
pub struct MissingTool {
    /// Its name.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Programs for every build.
pub(crate) const FOR_BUILDS: &[(&str, &str)] = &[
    ("buildah", "buildah"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("umount", "mount"),
];
/// Programs for the base images, besides.
pub(crate) const FOR_BASE_IMAGES: &[(&str, &str)] =
    &[("mmdebstrap", "mmdebstrap"), ("apt-get", "apt")];

const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];

/// Checks that every program of a list is there.
///
/// # Errors
/// The first one that is missing.
pub(crate) fn check(tools: &[(&'static str, &'static str)]) -> Result<(), MissingTool> {
    for &(program, package) in tools {
        if find(program, &FOLDERS).is_none() {
            return Err(MissingTool { program, package });
        }
    }
    Ok(())
}

fn find(program: &str, folders: &[&str]) -> Option<PathBuf> {
    folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let missing = check(&[("tar", "tar"), ("no-such-program", "nowhere")]).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "the program `no-such-program` is missing: install it with `apt-get install nowhere`"
        );
        assert_eq!(check(&[("tar", "tar")]), Ok(()));
    }
}
