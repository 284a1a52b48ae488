//! Collection: marks what tags, callers and manifests hold, removes the rest.
//!
//! Never removes what was asked about or sent within the grace time (security list R9), and never
//! runs beside a push: the caller holds the lock.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use perch_types::image::Digest;

use crate::error::Error;
use crate::limits::{REFERRERS_SCAN_MAX, TAGS_MAX};
use crate::manifests;
use crate::registry::{GcReport, Inner, Usage};
use crate::storage;

/// The most manifests of one repository and blobs of the registry that one collection looks at.
const SCAN_MAX: usize = 1_000_000;

pub(crate) fn collect(inner: &Inner, keep: &BTreeSet<Digest>) -> Result<GcReport, Error> {
    let now = storage::system_time(inner.clock.now());
    // Before this moment nothing can belong to a push that still runs.
    let before = now.checked_sub(inner.limits.unreferenced_grace).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut report = GcReport::default();
    let mut held = HashSet::new();
    let root = inner.storage.repositories();
    let mut repositories = Vec::new();
    find_repositories(&root, &root, &mut repositories)?;
    for name in &repositories {
        let kept = mark(inner, name, keep, before)?;
        for digest in digests(&inner.storage.manifests(name))? {
            if !kept.contains(&digest) && manifests::forget(inner, name, &digest)? {
                report.manifests += 1;
            }
        }
        held.extend(kept);
    }
    for digest in digests(&inner.storage.blobs())? {
        let path = inner.storage.blob(&digest);
        if held.contains(&digest) || !is_older(&path, before)? {
            continue;
        }
        report.bytes += storage::size(&path)?;
        storage::remove(&path)?;
        report.blobs += 1;
    }
    for name in &repositories {
        drop_links(inner, name)?;
    }
    Ok(report)
}

pub(crate) fn usage(inner: &Inner) -> Result<Usage, Error> {
    let (blobs, blob_bytes) = count(&inner.storage.blobs())?;
    let (uploads, upload_bytes) = count(&inner.storage.uploads())?;
    Ok(Usage { blobs, blob_bytes, uploads, upload_bytes })
}

fn count(folder: &Path) -> Result<(u64, u64), Error> {
    let (mut files, mut bytes) = (0, 0);
    for name in storage::names(folder, SCAN_MAX)? {
        files += 1;
        bytes += storage::size(&folder.join(name))?;
    }
    Ok((files, bytes))
}

/// Returns all that a repository holds: tagged, kept and recent manifests, their parts, and what
/// refers to them.
fn mark(
    inner: &Inner,
    name: &str,
    keep: &BTreeSet<Digest>,
    before: SystemTime,
) -> Result<HashSet<Digest>, Error> {
    let mut left = Vec::new();
    for digest in digests(&inner.storage.manifests(name))? {
        if keep.contains(&digest) || !is_older(&inner.storage.blob(&digest), before)? {
            left.push(digest);
        }
    }
    for tag in storage::names(&inner.storage.tags(name), TAGS_MAX)? {
        left.extend(inner.storage.tag(name, &tag)?);
    }
    let mut held = HashSet::new();
    while let Some(digest) = left.pop() {
        if !held.insert(digest.clone()) {
            continue;
        }
        let Some(manifest) = manifests::load(inner, &digest)? else {
            continue;
        };
        left.extend(manifest.manifests.iter().flatten().map(|part| part.digest.clone()));
        held.extend(manifest.config.iter().map(|part| part.digest.clone()));
        held.extend(manifest.layers.iter().flatten().map(|part| part.digest.clone()));
        for hex in storage::names(&inner.storage.referrers(name, &digest), REFERRERS_SCAN_MAX)? {
            left.extend(format!("sha256:{hex}").parse::<Digest>().ok());
        }
    }
    Ok(held)
}

/// Removes a repository's claims to blobs that are gone.
fn drop_links(inner: &Inner, name: &str) -> Result<(), Error> {
    for digest in digests(&inner.storage.blob_links(name))? {
        if !storage::exists(&inner.storage.blob(&digest))? {
            storage::remove(&inner.storage.blob_link(name, &digest))?;
        }
    }
    Ok(())
}

pub(crate) fn find_repositories(
    root: &Path,
    folder: &Path,
    found: &mut Vec<String>,
) -> Result<(), Error> {
    for name in storage::names(folder, SCAN_MAX)? {
        let path = folder.join(&name);
        if !name.starts_with('_') {
            find_repositories(root, &path, found)?;
        } else if matches!(name.as_str(), "_manifests" | "_blobs")
            && let Some(repository) = folder.strip_prefix(root).ok().and_then(Path::to_str)
            && found.last().is_none_or(|last| last != repository)
        {
            found.push(repository.to_owned());
        }
    }
    Ok(())
}

fn digests(folder: &Path) -> Result<Vec<Digest>, Error> {
    let names = storage::names(folder, SCAN_MAX)?;
    Ok(names.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect())
}

fn is_older(path: &Path, before: SystemTime) -> Result<bool, Error> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(modified) => Ok(modified < before),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}
