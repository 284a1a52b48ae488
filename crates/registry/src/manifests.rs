//! Manifests: checked against what the repository has, stored by digest, named by tags.
//!
//! Never takes one whose parts are not here or lie elsewhere, nor one that is two things at once
//! (security list R3).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use perch_types::image::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::limits::{DESCRIPTORS_MAX, MANIFEST_BYTES_MAX, TAGS_MAX};
use crate::registry::{Inner, blocking};
use crate::reply::{Fault, answer};
use crate::route::Name;
use crate::storage;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a manifest names.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// The parts of a manifest that a registry reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    pub(crate) artifact_type: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub(crate) manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

pub(crate) async fn get(
    inner: &Arc<Inner>,
    name: &str,
    reference: &Name,
    headers: &HeaderMap,
) -> Result<Response, Fault> {
    let unknown = || Fault::manifest_unknown("the repository has no such manifest");
    let guard = inner.collection.read().await;
    let digest = match reference {
        Name::Digest(digest) => digest.clone(),
        Name::Tag(tag) => inner.storage.tag(name, tag)?.ok_or_else(unknown)?,
    };
    let media_type = inner.storage.media_type(name, &digest)?.ok_or_else(unknown)?;
    if !accepts(headers, &media_type) {
        let text = format!("the manifest is of type `{media_type}`, which the client excludes");
        return Err(Fault::manifest_unknown(text));
    }
    let path = inner.storage.blob(&digest);
    let bytes = tokio::fs::read(&path).await.map_err(|e| Error::io("read", path, e))?;
    drop(guard);
    let headers = [
        ("content-type", media_type),
        ("content-length", bytes.len().to_string()),
        ("docker-content-digest", digest.to_string()),
        ("etag", format!("\"{digest}\"")),
        ("x-content-type-options", "nosniff".to_owned()),
    ];
    Ok(answer(StatusCode::OK, &headers, bytes.into()))
}

pub(crate) async fn put(
    inner: &Arc<Inner>,
    name: String,
    reference: Name,
    request: Request,
) -> Result<Response, Fault> {
    let header = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let header = header.unwrap_or_default();
    let media_type = header.split(';').next().unwrap_or_default().trim().to_owned();
    let reading = axum::body::to_bytes(request.into_body(), MANIFEST_BYTES_MAX);
    let bytes = tokio::time::timeout(inner.limits.body_idle, reading)
        .await
        .map_err(|_| Fault::manifest_invalid("the sender fell silent"))?
        .map_err(|_| Fault::too_large(format!("at most {MANIFEST_BYTES_MAX} bytes, whole")))?;
    let manifest = parse(&bytes, &media_type)?;
    let digest = Digest::from_sha256(&Sha256::digest(&bytes).into());
    if let Name::Digest(wanted) = &reference
        && *wanted != digest
    {
        return Err(Fault::digest_invalid(format!("the manifest has digest `{digest}`")));
    }
    let _guard = inner.collection.read().await;
    let subject = manifest.subject.as_ref().map(|subject| subject.digest.clone());
    let (stored, kept, repository) = (Arc::clone(inner), digest.clone(), name.clone());
    blocking(move || {
        check_parts(&stored, &repository, &manifest)?;
        store(&stored, &repository, (&kept, &bytes, &media_type))?;
        if let Some(subject) = &manifest.subject {
            let folder = stored.storage.referrers(&repository, &subject.digest);
            stored.storage.write(&folder.join(kept.hex()), b"")?;
        }
        match &reference {
            Name::Tag(tag) => set_tag(&stored, &repository, tag, &kept),
            Name::Digest(_) => Ok(()),
        }
    })
    .await?;
    let mut headers = vec![
        ("location", format!("/v2/{name}/manifests/{digest}")),
        ("docker-content-digest", digest.to_string()),
    ];
    headers.extend(subject.map(|subject| ("oci-subject", subject.to_string())));
    Ok(answer(StatusCode::CREATED, &headers, Body::empty()))
}

pub(crate) async fn delete(
    inner: &Arc<Inner>,
    name: String,
    reference: Name,
) -> Result<Response, Fault> {
    let _guard = inner.collection.read().await;
    let inner = Arc::clone(inner);
    let found = blocking(move || match reference {
        Name::Tag(tag) => storage::remove(&inner.storage.tags(&name).join(tag)),
        Name::Digest(digest) => forget(&inner, &name, &digest),
    })
    .await?;
    if found {
        Ok(answer(StatusCode::ACCEPTED, &[], Body::empty()))
    } else {
        Err(Fault::manifest_unknown("the repository has no such manifest"))
    }
}

/// Removes a manifest and every tag that stands for it; returns whether it was there.
pub(crate) fn forget(inner: &Inner, name: &str, digest: &Digest) -> Result<bool, Error> {
    let link = inner.storage.manifest_link(name, digest);
    if !storage::exists(&link)? {
        return Ok(false);
    }
    let tags = inner.storage.tags(name);
    for tag in storage::names(&tags, TAGS_MAX)? {
        if inner.storage.tag(name, &tag)?.as_ref() == Some(digest) {
            storage::remove(&tags.join(tag))?;
        }
    }
    if let Some(subject) = load(inner, digest)?.and_then(|manifest| manifest.subject) {
        let folder = inner.storage.referrers(name, &subject.digest);
        storage::remove(&folder.join(digest.hex()))?;
    }
    storage::remove(&link)
}

/// Reads a stored manifest; nothing when it is gone or does not parse.
pub(crate) fn load(inner: &Inner, digest: &Digest) -> Result<Option<Manifest>, Error> {
    let text = storage::read_text(&inner.storage.blob(digest))?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Parses a manifest that came with this media type.
fn parse(bytes: &[u8], media_type: &str) -> Result<Manifest, Fault> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| Fault::manifest_invalid(format!("it does not parse: {error}")))?;
    let invalid = |text: &str| Err(Fault::manifest_invalid(text));
    let index = match media_type {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        _ => return invalid("its media type is not one of an image or an index"),
    };
    if manifest.schema_version != 2 {
        return invalid("its schema version is not 2");
    }
    if manifest.media_type.as_deref().is_some_and(|inside| inside != media_type) {
        return invalid("its media type differs from the request's");
    }
    let shape =
        (manifest.manifests.is_some(), manifest.config.is_some(), manifest.layers.is_some());
    if shape != (index, !index, !index) {
        return invalid("it is both or neither of an image and an index");
    }
    let count = parts(&manifest).count();
    if count > DESCRIPTORS_MAX {
        return invalid("it names too many parts");
    }
    let elsewhere = |part: &Descriptor| {
        part.urls.as_ref().is_some_and(|urls| !urls.is_empty())
            || part.media_type.contains("nondistributable")
            || part.media_type.contains("foreign")
    };
    if parts(&manifest).any(elsewhere) {
        return invalid("it names a layer outside of the registry");
    }
    Ok(manifest)
}

/// Returns the blobs and manifests that a manifest consists of.
pub(crate) fn parts(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let lists = [&manifest.layers, &manifest.manifests];
    manifest.config.iter().chain(lists.into_iter().flatten().flatten())
}

fn check_parts(inner: &Inner, name: &str, manifest: &Manifest) -> Result<(), Fault> {
    let missing = |part: &Descriptor| {
        Err(Fault::manifest_blob_unknown(format!("the repository does not have `{}`", part.digest)))
    };
    for part in manifest.manifests.iter().flatten() {
        if inner.storage.media_type(name, &part.digest)?.is_none() {
            return missing(part);
        }
        inner.storage.touch(&part.digest, inner.clock.now())?;
    }
    for part in manifest.config.iter().chain(manifest.layers.iter().flatten()) {
        match inner.storage.blob_size(name, &part.digest)? {
            None => return missing(part),
            Some(size) if size != part.size => {
                let text = format!("`{}` has {size} bytes, not {}", part.digest, part.size);
                return Err(Fault::manifest_invalid(text));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn store(
    inner: &Inner,
    name: &str,
    (digest, bytes, media_type): (&Digest, &[u8], &str),
) -> Result<(), Error> {
    let storage = &inner.storage;
    if !storage.touch(digest, inner.clock.now())? {
        storage.write(&storage.blob(digest), bytes)?;
        storage.touch(digest, inner.clock.now())?;
    }
    storage.write(&storage.manifest_link(name, digest), media_type.as_bytes())
}

fn set_tag(inner: &Inner, name: &str, tag: &str, digest: &Digest) -> Result<(), Fault> {
    let tags = inner.storage.tags(name);
    let path = tags.join(tag);
    if !storage::exists(&path)? && storage::names(&tags, TAGS_MAX)?.len() >= TAGS_MAX {
        return Err(Fault::too_many(format!("a repository may have at most {TAGS_MAX} tags")));
    }
    inner.storage.write(&path, digest.as_str().as_bytes())?;
    Ok(())
}

/// Tells whether a client takes this type; one that names no type of its own takes all.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let mut asked = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|item| item.split(';').next().unwrap_or_default().trim())
        .filter(|item| !item.is_empty())
        .peekable();
    asked.peek().is_none()
        || asked.any(|item| matches!(item, "*/*" | "application/*") || item == media_type)
}
