//! The registry's files.
//!
//! Never shows a file that is not whole and synced. Contents are stored once for all repositories;
//! which repository has which content is a file of its own, so that nobody learns or gets what
//! another repository has (security list R1).
//!
//! Layout: `blobs/<hex>`; `repositories/<name>/_blobs/<hex>` (empty),
//! `…/_manifests/<hex>` (its media type), `…/_tags/<tag>` (a digest),
//! `…/_referrers/<hex of the subject>/<hex>` (empty); `uploads/<id>`. No part of a repository's
//! name begins with an underscore.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use perch_types::Timestamp;
use perch_types::image::Digest;

use crate::error::Error;

/// The folders of the registry.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
    next_temporary: AtomicU64,
}

impl Storage {
    /// Makes the folders and removes uploads that a former process left.
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        let uploads = root.join("uploads");
        match fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", uploads, error));
            }
            _ => {}
        }
        for name in ["blobs", "repositories", "uploads"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(|e| Error::io("make", &path, e))?;
        }
        Ok(Self { root, next_temporary: AtomicU64::new(0) })
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn upload(&self, id: &str) -> PathBuf {
        self.uploads().join(id)
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.repositories().join(name)
    }

    pub(crate) fn blob_link(&self, name: &str, digest: &Digest) -> PathBuf {
        self.repository(name).join("_blobs").join(digest.hex())
    }

    pub(crate) fn manifest_link(&self, name: &str, digest: &Digest) -> PathBuf {
        self.repository(name).join("_manifests").join(digest.hex())
    }

    pub(crate) fn blob_links(&self, name: &str) -> PathBuf {
        self.repository(name).join("_blobs")
    }

    pub(crate) fn manifests(&self, name: &str) -> PathBuf {
        self.repository(name).join("_manifests")
    }

    pub(crate) fn tags(&self, name: &str) -> PathBuf {
        self.repository(name).join("_tags")
    }

    pub(crate) fn referrers(&self, name: &str, subject: &Digest) -> PathBuf {
        self.repository(name).join("_referrers").join(subject.hex())
    }

    /// Returns the size of a blob that a repository has.
    pub(crate) fn blob_size(&self, name: &str, digest: &Digest) -> Result<Option<u64>, Error> {
        if !exists(&self.blob_link(name, digest))? {
            return Ok(None);
        }
        let path = self.blob(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    /// Returns the media type of a manifest that a repository has.
    pub(crate) fn media_type(&self, name: &str, digest: &Digest) -> Result<Option<String>, Error> {
        read_text(&self.manifest_link(name, digest))
    }

    /// Returns what a tag stands for.
    pub(crate) fn tag(&self, name: &str, tag: &str) -> Result<Option<Digest>, Error> {
        Ok(read_text(&self.tags(name).join(tag))?.and_then(|text| text.parse().ok()))
    }

    /// Tells whether anything was ever pushed to a repository.
    pub(crate) fn has_repository(&self, name: &str) -> Result<bool, Error> {
        Ok(exists(&self.repository(name).join("_manifests"))?
            || exists(&self.repository(name).join("_blobs"))?)
    }

    /// Writes a small file whole: beside, synced, renamed.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let temporary = self.temporary("write");
        let fault = |operation| move |source| Error::io(operation, path, source);
        let mut file = File::create_new(&temporary).map_err(fault("create"))?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(fault("write"))
            .and_then(|()| self.publish(&temporary, path));
        if written.is_err() {
            // What is told is why the write went wrong; the next start removes the rest.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    fn temporary(&self, kind: &str) -> PathBuf {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.uploads().join(format!("{kind}-{number}"))
    }

    /// Moves a synced file to its place.
    pub(crate) fn publish(&self, temporary: &Path, path: &Path) -> Result<(), Error> {
        let fault = |operation| move |source| Error::io(operation, path, source);
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(fault("make the folder of"))?;
        fs::rename(temporary, path).map_err(fault("publish"))?;
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(fault("sync the folder of"))
    }

    /// Marks a blob as wanted now, so that a collection leaves it for its grace time (R9).
    /// Returns whether it is there.
    pub(crate) fn touch(&self, digest: &Digest, now: Timestamp) -> Result<bool, Error> {
        let path = self.blob(digest);
        match File::options().append(true).open(&path) {
            Ok(file) => {
                let times = FileTimes::new().set_modified(system_time(now));
                file.set_times(times).map_err(|e| Error::io("touch", path, e))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("touch", path, error)),
        }
    }

    /// Removes all of a repository, and of those below it, but their contents, which a collection
    /// removes. Nothing of it is there any more after one rename; what a crash leaves of the rest
    /// the next start removes.
    pub(crate) fn delete_repository(&self, name: &str) -> Result<(), Error> {
        let (path, gone) = (self.repository(name), self.temporary("gone"));
        match fs::rename(&path, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("remove", path, error)),
        }
        let parent = path.parent().unwrap_or(&self.root);
        File::open(parent)
            .and_then(|folder| folder.sync_all())
            .and_then(|()| fs::remove_dir_all(&gone))
            .map_err(|e| Error::io("remove", path, e))
    }
}

pub(crate) fn system_time(now: Timestamp) -> SystemTime {
    let ms = u64::try_from(now.unix_ms()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|e| Error::io("look at", path, e))
}

pub(crate) fn read_text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Removes a file; returns whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// Returns the names in a folder, at most `limit`; none when it is not there.
pub(crate) fn names(path: &Path, limit: usize) -> Result<Vec<String>, Error> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .take(limit)
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("list", path, error)),
    }
}

/// Returns a file's size; 0 when it is gone.
pub(crate) fn size(path: &Path) -> Result<u64, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}
