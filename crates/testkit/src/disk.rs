//! A disk so small that a test fills it.
//!
//! Never one that is there already: it is a tmpfs of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::skipped;

/// As a mount knows it. The reserves of a state file fit, and little more.
const SIZE: &str = "size=12m";
/// Writes that fill it, the last byte by byte.
const PIECES: [usize; 3] = [64 * 1024, 1024, 1];

/// A small disk, until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    /// Removed once the disk is gone from it.
    _folder: Option<TempDir>,
}

impl SmallDisk {
    /// Mounts one on a folder of its own; `None`, and said aloud, without the right to.
    ///
    /// # Errors
    /// When there can be no such folder.
    pub fn mount(test: &str) -> Result<Option<Self>> {
        let folder = TempDir::new().context("make a folder")?;
        let path = folder.path().to_owned();
        Ok(is_mounted(test, &path).then(|| Self { path, _folder: Some(folder) }))
    }

    /// Mounts one on a folder that somebody else removes.
    #[must_use]
    pub fn mount_on(test: &str, folder: &Path) -> Option<Self> {
        is_mounted(test, folder).then(|| Self { path: folder.to_owned(), _folder: None })
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all the room there is; returns the file that has it.
    ///
    /// # Errors
    /// When there is no room for a file at all.
    pub fn fill(&self) -> Result<PathBuf> {
        let path = self.path.join("filler");
        let mut file = File::create(&path).context("make a file")?;
        for size in PIECES {
            let zeros = vec![0; size];
            while file.write(&zeros).is_ok_and(|written| written > 0) {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the disk is unmounted");
    }
}

/// Mounts one, or says that it cannot.
fn is_mounted(test: &str, folder: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", SIZE, "perch-test"]).arg(folder);
    let mounted = mount.output().is_ok_and(|output| output.status.success());
    if !mounted {
        skipped(test, "the right to mount a tmpfs");
    }
    mounted
}
