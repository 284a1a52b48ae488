//! What lies in the registry, for people: repositories, tags and sizes.
//!
//! Never served over HTTP by the registry itself: who may see which repository is the API's matter.

use std::sync::Arc;

use perch_types::api::ImageInfo;
use perch_types::image::Digest;
use serde_json::Value;

use crate::error::Error;
use crate::gc::find_repositories;
use crate::registry::Inner;
use crate::storage;

/// The most repositories that are listed.
const REPOSITORIES_MAX: usize = 10_000;
/// The most tags of one repository that are listed, by name.
const TAGS_MAX: usize = 1_000;
/// The largest manifest that is read for its size.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Lists every repository that has a tag, by name.
pub(crate) fn images(inner: &Arc<Inner>) -> Result<Vec<ImageInfo>, Error> {
    let root = inner.storage.repositories();
    let mut names = Vec::new();
    find_repositories(&root, &root, &mut names)?;
    names.sort();
    names.truncate(REPOSITORIES_MAX);
    let mut images = Vec::new();
    for repository in names {
        let mut tags = storage::names(&inner.storage.tags(&repository), TAGS_MAX)?;
        tags.sort();
        let Some(newest) = tags.last() else { continue };
        let digest = inner.storage.tag(&repository, newest)?;
        let size_bytes = digest.map_or(0, |digest| layers_bytes(inner, &digest));
        images.push(ImageInfo { repository, tags, size_bytes });
    }
    Ok(images)
}

/// Returns the bytes of a manifest's layers; 0 for an index or one that cannot be read.
fn layers_bytes(inner: &Arc<Inner>, digest: &Digest) -> u64 {
    let path = inner.storage.blob(digest);
    let fits = std::fs::metadata(&path).is_ok_and(|data| data.len() <= MANIFEST_BYTES_MAX);
    let manifest: Option<Value> = fits
        .then(|| std::fs::read(&path).ok())
        .flatten()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    manifest
        .as_ref()
        .and_then(|manifest| manifest.get("layers")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|layer| layer.get("size")?.as_u64())
        .fold(0, u64::saturating_add)
}
