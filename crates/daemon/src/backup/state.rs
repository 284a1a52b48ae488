//! Which files under the data folder are the server's state.
//!
//! Never reads one. Everything is, but for what is named here: a file that a later release adds is
//! in the backup until somebody decides otherwise.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::format;
use crate::identity;

/// What is left out, below the data folder, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("build", "caches of builds are filled again"),
    ("host/images", "images of other registries are pulled again"),
    ("host/machines", "machines' own disks and logs"),
    ("host/volumes", "contents of volumes"),
];
/// What no operator needs to know of: made anew at every start, or no record.
const OWN_BUSINESS: &[&str] = &[
    "front/registry/uploads",
    "front/view.json",
    "host/bin",
    "host/templates",
    identity::LOCK_FILE,
    super::COPIES,
    super::restore::STAGE,
];
/// Files beside a database, and files that are being written.
const LEFT_OUT_ENDINGS: &[&str] =
    &[".db-wal", ".db-shm", ".db-journal", ".db.lock", ".db.reserve", ".new"];
/// How a database's name ends.
const DATABASE_ENDING: &str = ".db";
/// The most files of a backup.
pub(super) const FILES_MAX: usize = 1_000_000;

/// A file that belongs into the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Below the data folder.
    pub(super) path: String,
    pub(super) is_database: bool,
    pub(super) mode: u32,
}

/// Lists the server's state, databases first.
pub(super) fn list(data: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    collect(data, Path::new(""), &mut found)?;
    found.sort_by(|one, other| {
        (!one.is_database, &one.path).cmp(&(!other.is_database, &other.path))
    });
    Ok(found)
}

fn collect(data: &Path, below: &Path, found: &mut Vec<Found>) -> Result<()> {
    let folder = data.join(below);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list `{}`", folder.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list `{}`", folder.display()))?;
        let relative: PathBuf = below.join(entry.file_name());
        let path = format::inside(&relative)?;
        if is_left_out(path) {
            continue;
        }
        let about = match entry.metadata() {
            // It went since the folder was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            about => about.with_context(|| format!("look at `{}`", entry.path().display()))?,
        };
        if about.is_dir() {
            collect(data, &relative, found)?;
            continue;
        }
        if !about.is_file() {
            bail!("`{}` is neither a file nor a folder", entry.path().display());
        }
        let is_database = path.ends_with(DATABASE_ENDING);
        let mode = about.mode() & 0o777;
        found.push(Found { path: path.to_owned(), is_database, mode });
        if found.len() > FILES_MAX {
            bail!("there are more than {FILES_MAX} files in `{}`", data.display());
        }
    }
    Ok(())
}

/// Returns what is left out and why, for whoever takes a backup.
pub(super) fn left_out() -> &'static [(&'static str, &'static str)] {
    LEFT_OUT
}

fn is_left_out(path: &str) -> bool {
    LEFT_OUT.iter().any(|(left_out, _)| path == *left_out)
        || OWN_BUSINESS.contains(&path)
        || LEFT_OUT_ENDINGS.iter().any(|ending| path.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_state_but_what_is_named() {
        let data = tempfile::tempdir().unwrap();
        for path in [
            "admin.json",
            "host/host.db",
            "host/host.db-wal",
            "host/host.db.lock",
            "host/host.db.reserve",
            "host/machines/1/log/0",
            "host/images/x",
            "front/view.json",
            "front/directory.db",
            "front/registry/blobs/ab",
            "front/registry/uploads/1",
            "keys/of-a-later-release.json",
            "perchd.lock",
            "admin.json.new",
        ] {
            let path = data.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let found = list(data.path()).unwrap();
        let paths: Vec<(&str, bool)> =
            found.iter().map(|one| (one.path.as_str(), one.is_database)).collect();
        assert_eq!(
            paths,
            [
                ("front/directory.db", true),
                ("host/host.db", true),
                ("admin.json", false),
                ("front/registry/blobs/ab", false),
                ("keys/of-a-later-release.json", false),
            ]
        );
    }
}
