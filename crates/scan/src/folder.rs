//! A source folder on disk.
//!
//! Never follows a symbolic link out of the folder, never reads more of a file than
//! [`FILE_BYTES_MAX`], never lists more than [`ENTRIES_MAX`] paths.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::files::{Entry, FILE_BYTES_MAX, Files, Kind};

/// The most paths that are listed.
pub const ENTRIES_MAX: usize = 20_000;
/// How many folders deep the list goes.
const DEPTH_MAX: usize = 4;
/// Folders that hold other people's code or none at all.
const SKIPPED: &[&str] =
    &[".git", ".hg", ".svn", "node_modules", "vendor", "venv", ".venv", "__pycache__", "target"];

/// Why a source folder cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("read the folder `{}`", path.display())]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A source folder on disk.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    entries: Vec<Entry>,
}

impl Folder {
    /// Lists a folder.
    ///
    /// # Errors
    /// When the folder itself cannot be read; folders within it that cannot are left out.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let error = |source| FolderError { path: path.to_owned(), source };
        let root = path.canonicalize().map_err(error)?;
        let mut entries = Vec::new();
        for found in fs::read_dir(&root).map_err(error)?.flatten() {
            add(&root, &found.path(), 1, &mut entries);
        }
        entries.sort();
        Ok(Self { root, entries })
    }
}

fn add(root: &Path, path: &Path, depth: usize, entries: &mut Vec<Entry>) {
    let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str) else {
        return;
    };
    if entries.len() >= ENTRIES_MAX {
        return;
    }
    let kind = kind_of(root, path);
    entries.push(Entry { path: relative.replace('\\', "/"), kind });
    let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let skipped =
        path.file_name().and_then(|it| it.to_str()).is_some_and(|it| SKIPPED.contains(&it));
    if kind != Kind::Folder || is_link || skipped || depth >= DEPTH_MAX {
        return;
    }
    for found in fs::read_dir(path).into_iter().flatten().flatten() {
        add(root, &found.path(), depth + 1, entries);
    }
}

fn kind_of(root: &Path, path: &Path) -> Kind {
    let inside = path.canonicalize().is_ok_and(|real| real.starts_with(root));
    match fs::metadata(path) {
        Ok(metadata) if inside && metadata.is_file() => Kind::File,
        Ok(metadata) if inside && metadata.is_dir() => Kind::Folder,
        Ok(_) | Err(_) => Kind::Other,
    }
}

impl Files for Folder {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        let path = self.root.join(path);
        if kind_of(&self.root, &path) != Kind::File {
            return None;
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
        File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}
