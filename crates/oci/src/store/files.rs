//! The store's files: made, published by rename, read, removed.
//!
//! Never follows a link in a temporary folder: an unpacked tree may contain anything.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use perch_types::image::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CONFIG, EROFS};
use crate::error::Error;

/// The most images that a list returns.
const IMAGES_MAX: usize = 100_000;

/// Makes the store's folders and removes what is under `tmp/`.
pub(super) fn prepare(root: &Path) -> Result<(), Error> {
    for name in ["images", "aliases", "tmp"] {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(|e| Error::io("make", &path, e))?;
    }
    let temporary = root.join("tmp");
    // The unpacking child must be able to pass through the store, not to list it.
    for entry in fs::read_dir(&temporary).map_err(|e| Error::io("list", &temporary, e))? {
        discard(&entry.map_err(|e| Error::io("list", &temporary, e))?.path())?;
    }
    make_private(&temporary.join(super::layers::FOLDER))
}

/// Makes a folder that only its owner may enter.
pub(super) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(path).map_err(|e| Error::io("make", path, e))
}

/// Removes a file or folder; fine when it is not there.
pub(super) fn discard(path: &Path) -> Result<(), Error> {
    let gone = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes an image visible: file and record in a folder of their own, synced, then renamed.
pub(super) fn publish(
    work: &Path,
    staged: &Path,
    target: &Path,
    record: &impl Serialize,
) -> Result<(), Error> {
    make_private(staged)?;
    let erofs = work.join(EROFS);
    fs::rename(&erofs, staged.join(EROFS)).map_err(|e| Error::io("move", &erofs, e))?;
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::io("write", staged.join(CONFIG), io::Error::other(e)))?;
    write_synced(&staged.join(CONFIG), &bytes)?;
    sync_folder(staged)?;
    match fs::rename(staged, target) {
        // Another process was first with the same bytes.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) =>
        {
            discard(staged)?;
        }
        other => other.map_err(|e| Error::io("publish", target, e))?,
    }
    target.parent().map_or(Ok(()), sync_folder)
}

/// Reads a record; nothing when there is none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::io("parse", path, io::Error::other(e))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Reads what an alias stands for.
pub(super) fn read_alias(path: &Path) -> Result<Option<Digest>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Writes what an alias stands for.
pub(super) fn write_alias(path: &Path, temporary: &Path, target: &Digest) -> Result<(), Error> {
    write_synced(temporary, target.as_str().as_bytes())?;
    fs::rename(temporary, path).map_err(|e| Error::io("publish", path, e))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes all aliases of an image.
pub(super) fn forget_aliases(folder: &Path, target: &Digest) -> Result<(), Error> {
    for digest in list(folder)? {
        let path = folder.join(digest.hex());
        if read_alias(&path)?.as_ref() == Some(target) {
            discard(&path)?;
        }
    }
    Ok(())
}

/// Takes an image out of sight by a rename, then removes it.
pub(super) fn remove(image: &Path, temporary: &Path) -> Result<(), Error> {
    match fs::rename(image, temporary) {
        Ok(()) => discard(temporary),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", image, error)),
    }
}

/// Returns the digests that entries of a folder are named by.
pub(super) fn list(folder: &Path) -> Result<Vec<Digest>, Error> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut digests: Vec<Digest> = entries
        .filter_map(Result::ok)
        .take(IMAGES_MAX)
        .filter_map(|entry| format!("sha256:{}", entry.file_name().to_string_lossy()).parse().ok())
        .collect();
    digests.sort();
    Ok(digests)
}

/// Returns the bytes of all files under a folder; what goes away meanwhile is passed over.
pub(super) fn size_bytes(folder: &Path) -> u64 {
    let mut total = 0;
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten();
            left.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
        } else {
            total += metadata.len();
        }
    }
    total
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    file.sync_all().map_err(|e| Error::io("sync", path, e))
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = File::open(path).map_err(|e| Error::io("open", path, e))?;
    folder.sync_all().map_err(|e| Error::io("sync", path, e))
}
