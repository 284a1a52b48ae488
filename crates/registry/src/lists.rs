//! Lists: tags page by page, and what refers to a manifest.
//!
//! Never answers with more than a page.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, Request};
use axum::response::Response;
use http::StatusCode;
use perch_types::image::Digest;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::{PAGE_ITEMS_MAX, REFERRERS_SCAN_MAX, TAGS_MAX};
use crate::registry::Inner;
use crate::reply::{Fault, answer};
use crate::{manifests, storage};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    n: Option<usize>,
    last: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

fn page(request: &Request) -> Result<Page, Fault> {
    Query::<Page>::try_from_uri(request.uri())
        .map(|Query(page)| page)
        .map_err(|error| Fault::bad_parameter(error.to_string()))
}

pub(crate) fn tags(inner: &Arc<Inner>, name: &str, request: &Request) -> Result<Response, Fault> {
    let page = page(request)?;
    if !inner.storage.has_repository(name)? {
        return Err(Fault::name_unknown("nothing was ever pushed to this repository"));
    }
    let mut tags = storage::names(&inner.storage.tags(name), TAGS_MAX)?;
    tags.sort();
    let last = page.last.unwrap_or_default();
    let mut rest: Vec<String> = tags.into_iter().filter(|tag| *tag > last).collect();
    let count = page.n.unwrap_or(PAGE_ITEMS_MAX).min(PAGE_ITEMS_MAX);
    let more = rest.len() > count;
    rest.truncate(count);
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if more && let Some(last) = rest.last() {
        let next = format!("</v2/{name}/tags/list?n={count}&last={last}>; rel=\"next\"");
        headers.push(("link", next));
    }
    let body = json!({ "name": name, "tags": rest }).to_string();
    Ok(answer(StatusCode::OK, &headers, body.into()))
}

pub(crate) fn referrers(
    inner: &Arc<Inner>,
    name: &str,
    subject: &Digest,
    request: &Request,
) -> Result<Response, Fault> {
    let wanted = page(request)?.artifact_type;
    let folder = inner.storage.referrers(name, subject);
    let mut names = storage::names(&folder, REFERRERS_SCAN_MAX)?;
    names.sort();
    let mut entries = Vec::new();
    for hex in names {
        let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() else {
            continue;
        };
        let Some(entry) = referrer(inner, name, &digest)? else {
            continue;
        };
        let fits = wanted
            .as_ref()
            .is_none_or(|wanted| entry.get("artifactType").and_then(Value::as_str) == Some(wanted));
        if fits && entries.len() < PAGE_ITEMS_MAX {
            entries.push(entry);
        }
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let mut headers = vec![("content-type", media_type.to_owned())];
    if wanted.is_some() {
        headers.push(("oci-filters-applied", "artifactType".to_owned()));
    }
    let body = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    Ok(answer(StatusCode::OK, &headers, Body::from(body.to_string())))
}

fn referrer(inner: &Inner, name: &str, digest: &Digest) -> Result<Option<Value>, Fault> {
    let Some(media_type) = inner.storage.media_type(name, digest)? else {
        return Ok(None);
    };
    let Some(manifest) = manifests::load(inner, digest)? else {
        return Ok(None);
    };
    let size = storage::size(&inner.storage.blob(digest))?;
    let kind = manifest.artifact_type.or_else(|| manifest.config.map(|config| config.media_type));
    let mut entry = json!({ "mediaType": media_type, "digest": digest, "size": size });
    if let Some(fields) = entry.as_object_mut() {
        fields.extend(kind.map(|kind| ("artifactType".to_owned(), kind.into())));
        fields.extend(
            manifest.annotations.map(|notes| ("annotations".to_owned(), Value::Object(notes))),
        );
    }
    Ok(Some(entry))
}
