//! Uploads of blobs: whole, in chunks, or mounted from another repository.
//!
//! Never shows a byte before its digest was checked (security list R2), and never keeps an upload
//! for ever: their number is capped, and one that rests too long is thrown away.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Query, Request};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode, Uri};
use perch_types::image::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::access::Access;
use crate::error::Error;
use crate::registry::{Inner, blocking};
use crate::reply::{Fault, answer};
use crate::{route, storage};

/// How many bytes go to the disk, and into the hash, at once.
const WRITE_BYTES: usize = 1024 * 1024;

/// An upload under way and the repository that it is for.
#[derive(Debug)]
pub(crate) struct Open {
    repository: String,
    upload: Arc<AsyncMutex<Upload>>,
}

/// What an upload has come to. One request at a time holds it.
#[derive(Debug)]
pub(crate) struct Upload {
    sink: Arc<Mutex<Sink>>,
    touched_ms: u64,
}

/// What was received: outlives a request that is cut off in the middle of a write.
#[derive(Debug)]
struct Sink {
    file: File,
    hash: Sha256,
    size_bytes: u64,
    /// A write failed half-way: the file's end is not known.
    broken: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parameters {
    digest: Option<String>,
    mount: Option<String>,
    from: Option<String>,
}

pub(crate) async fn begin(
    inner: &Arc<Inner>,
    name: &str,
    request: Request,
) -> Result<Response, Fault> {
    let parameters = parameters(request.uri())?;
    let headers = request.headers().clone();
    if let (Some(digest), Some(from)) = (&parameters.mount, &parameters.from)
        && let Some(digest) = mount(inner, name, (digest, from), &headers).await?
    {
        return Ok(created(name, &digest));
    }
    let digest = parameters.digest.as_deref().map(route::digest).transpose()?;
    check_length(&headers, inner.limits.blob_bytes_max)?;
    let id = open(inner, name).await?;
    let Some(digest) = digest else {
        return Ok(accepted(StatusCode::ACCEPTED, name, &id, 0));
    };
    let mut upload = take(inner, name, &id)?;
    let outcome = complete(inner, &mut upload, (name, &id), (digest, request)).await;
    forget(inner, &id)?;
    outcome
}

pub(crate) async fn status(inner: &Arc<Inner>, name: &str, id: &str) -> Result<Response, Fault> {
    let upload = take(inner, name, id)?;
    let sink = Arc::clone(&upload.sink);
    let size = blocking(move || Ok::<_, Error>(lock(&sink).size_bytes)).await?;
    Ok(accepted(StatusCode::NO_CONTENT, name, id, size))
}

pub(crate) async fn append(
    inner: &Arc<Inner>,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Fault> {
    let mut upload = take(inner, name, id)?;
    check_range(&upload, request.headers())?;
    let size = receive(inner, &mut upload, request).await?;
    Ok(accepted(StatusCode::ACCEPTED, name, id, size))
}

pub(crate) async fn finish(
    inner: &Arc<Inner>,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Fault> {
    let mut upload = take(inner, name, id)?;
    let text = parameters(request.uri())?.digest;
    let text = text.ok_or_else(|| Fault::digest_invalid("the digest of the blob is missing"))?;
    let digest = route::digest(&text)?;
    check_range(&upload, request.headers())?;
    let outcome = complete(inner, &mut upload, (name, id), (digest, request)).await;
    // A body cut short may be sent again from where it ended; all else is over.
    if !matches!(&outcome, Err(Fault::Client { code: "BLOB_UPLOAD_INVALID", .. })) {
        forget(inner, id)?;
    }
    outcome
}

pub(crate) async fn cancel(inner: &Arc<Inner>, name: &str, id: &str) -> Result<Response, Fault> {
    let _upload = take(inner, name, id)?;
    tokio::task::yield_now().await;
    forget(inner, id)?;
    Ok(answer(StatusCode::NO_CONTENT, &[], Body::empty()))
}

/// Throws away uploads that rested too long; returns how many.
pub(crate) fn expire(inner: &Inner) -> u64 {
    let now_ms = inner.clock.boot_ms();
    let idle_ms = u64::try_from(inner.limits.upload_idle.as_millis()).unwrap_or(u64::MAX);
    let mut uploads = inner.uploads.lock().unwrap_or_else(PoisonError::into_inner);
    let before = uploads.len();
    uploads.retain(|id, open| {
        let rests = open
            .upload
            .try_lock()
            .is_ok_and(|upload| now_ms.saturating_sub(upload.touched_ms) > idle_ms);
        if rests && let Err(error) = storage::remove(&inner.storage.upload(id)) {
            tracing::warn!(error = %error, "resting upload stays on the disk");
        }
        !rests
    });
    (before - uploads.len()) as u64
}

/// Gives a repository a blob that another one has, if the caller may read it there (R1).
async fn mount(
    inner: &Arc<Inner>,
    name: &str,
    (digest, from): (&str, &str),
    headers: &HeaderMap,
) -> Result<Option<Digest>, Fault> {
    let (Ok(digest), Ok(from)) = (route::digest(digest), route::repository(from)) else {
        return Ok(None);
    };
    // A refusal looks like a blob that is not there: the caller then sends it.
    if inner.allow(headers, &from, Access::Pull).await.is_err() {
        return Ok(None);
    }
    let _guard = inner.collection.read().await;
    if inner.storage.blob_size(&from, &digest)?.is_none()
        || !inner.storage.touch(&digest, inner.clock.now())?
    {
        return Ok(None);
    }
    inner.storage.write(&inner.storage.blob_link(name, &digest), b"")?;
    Ok(Some(digest))
}

async fn open(inner: &Arc<Inner>, name: &str) -> Result<String, Fault> {
    let mut bits = [0_u8; 16];
    getrandom::fill(&mut bits).map_err(|source| Error::Random { source })?;
    let id = format!("{:032x}", u128::from_be_bytes(bits));
    let path = inner.storage.upload(&id);
    expire(inner);
    // Again below, under the lock that it is added with; here so that no file is made in vain.
    check_room(inner, &inner.uploads.lock().unwrap_or_else(PoisonError::into_inner), name)?;
    let file = blocking(move || {
        let mut options = File::options();
        options.write(true).create_new(true).open(&path).map_err(|e| Error::io("create", path, e))
    })
    .await?;
    let sink = Sink { file, hash: Sha256::new(), size_bytes: 0, broken: false };
    let upload = Upload { sink: Arc::new(Mutex::new(sink)), touched_ms: inner.clock.boot_ms() };
    let open = Open { repository: name.to_owned(), upload: Arc::new(AsyncMutex::new(upload)) };
    let mut uploads = inner.uploads.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(fault) = check_room(inner, &uploads, name) {
        drop(uploads);
        storage::remove(&inner.storage.upload(&id))?;
        return Err(fault);
    }
    uploads.insert(id.clone(), open);
    Ok(id)
}

/// Refuses an upload when there are too many, in all or of the repository.
fn check_room(inner: &Inner, uploads: &HashMap<String, Open>, name: &str) -> Result<(), Fault> {
    let own = uploads.values().filter(|open| open.repository == name).count();
    if uploads.len() >= inner.limits.uploads_max || own >= inner.limits.repository_uploads_max {
        return Err(Fault::too_many("too many uploads are open"));
    }
    Ok(())
}

/// Takes hold of an upload of this repository; another request may hold it, then it is refused.
fn take(inner: &Inner, name: &str, id: &str) -> Result<OwnedMutexGuard<Upload>, Fault> {
    let unknown = || Fault::upload_unknown("there is no such upload");
    let uploads = inner.uploads.lock().unwrap_or_else(PoisonError::into_inner);
    let found = uploads.get(id).filter(|open| open.repository == name);
    Arc::clone(&found.ok_or_else(unknown)?.upload)
        .try_lock_owned()
        .map_err(|_| Fault::upload_invalid("another request is sending to this upload"))
}

fn forget(inner: &Inner, id: &str) -> Result<(), Fault> {
    inner.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    storage::remove(&inner.storage.upload(id))?;
    Ok(())
}

async fn complete(
    inner: &Arc<Inner>,
    upload: &mut Upload,
    (name, id): (&str, &str),
    (digest, request): (Digest, Request),
) -> Result<Response, Fault> {
    receive(inner, upload, request).await?;
    let _guard = inner.collection.read().await;
    let (sink, inner) = (Arc::clone(&upload.sink), Arc::clone(inner));
    let (repository, id, wanted) = (name.to_owned(), id.to_owned(), digest.clone());
    blocking(move || publish(&inner, &sink, &repository, (&id, &wanted))).await?;
    Ok(created(name, &digest))
}

fn publish(
    inner: &Inner,
    sink: &Mutex<Sink>,
    repository: &str,
    (id, wanted): (&str, &Digest),
) -> Result<(), Fault> {
    let sink = lock(sink);
    let actual = Digest::from_sha256(&sink.hash.clone().finalize().into());
    if actual != *wanted {
        return Err(Fault::digest_invalid(format!("the bytes have digest `{actual}`")));
    }
    let storage = &inner.storage;
    let path = storage.upload(id);
    sink.file.sync_all().map_err(|e| Error::io("sync", &path, e))?;
    if !storage.touch(wanted, inner.clock.now())? {
        storage.publish(&path, &storage.blob(wanted))?;
        storage.touch(wanted, inner.clock.now())?;
    }
    storage.write(&storage.blob_link(repository, wanted), b"")?;
    Ok(())
}

/// Appends a request's body; returns the size so far.
async fn receive(inner: &Inner, upload: &mut Upload, request: Request) -> Result<u64, Fault> {
    let limits = &inner.limits;
    check_length(request.headers(), limits.blob_bytes_max)?;
    let mut stream = request.into_body().into_data_stream();
    let mut buffer = BytesMut::new();
    loop {
        let next = tokio::time::timeout(limits.body_idle, stream.next());
        let chunk = next.await.map_err(|_| Fault::upload_invalid("the sender fell silent"));
        let chunk = match chunk {
            Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) => Err(Fault::upload_invalid("the body was cut short")),
            Err(fault) => Err(fault),
        };
        let more = matches!(&chunk, Ok(Some(_)));
        if let Ok(Some(chunk)) = &chunk {
            buffer.extend_from_slice(chunk);
        }
        if buffer.len() >= WRITE_BYTES || !more {
            let (sink, bytes) = (Arc::clone(&upload.sink), buffer.split().freeze());
            let size_max = limits.blob_bytes_max;
            let size = blocking(move || write(&mut lock(&sink), &bytes, size_max)).await?;
            upload.touched_ms = inner.clock.boot_ms();
            if !more {
                return chunk.map(|_| size);
            }
        }
    }
}

fn write(sink: &mut Sink, bytes: &Bytes, size_max: u64) -> Result<u64, Fault> {
    if sink.broken {
        return Err(Fault::upload_unknown("an earlier write of this upload went wrong"));
    }
    let size = sink.size_bytes.saturating_add(bytes.len() as u64);
    if size > size_max {
        return Err(Fault::too_large(format!("a blob may have at most {size_max} bytes")));
    }
    sink.broken = true;
    sink.file.write_all(bytes).map_err(|e| Error::io("write", "uploads", e))?;
    sink.hash.update(bytes);
    sink.size_bytes = size;
    sink.broken = false;
    Ok(size)
}

fn lock(sink: &Mutex<Sink>) -> std::sync::MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_length(headers: &HeaderMap, size_max: u64) -> Result<(), Fault> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match length.and_then(|text| text.parse::<u64>().ok()) {
        Some(length) if length > size_max => {
            Err(Fault::too_large(format!("a blob may have at most {size_max} bytes")))
        }
        _ => Ok(()),
    }
}

/// A chunk that says where it belongs must belong at the end of what is here.
fn check_range(upload: &Upload, headers: &HeaderMap) -> Result<(), Fault> {
    let Some(text) = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let text = text.split('/').next().unwrap_or_default();
    let (start, end) = text.split_once('-').unwrap_or_default();
    let (start, end) = (start.trim().parse::<u64>().ok(), end.trim().parse::<u64>().ok());
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<u64>().ok());
    if let (Some(start), Some(end), Some(length)) = (start, end, length)
        && end.checked_sub(start).and_then(|less| less.checked_add(1)) != Some(length)
    {
        return Err(Fault::size_invalid("the range and the length of the chunk differ"));
    }
    let here = lock(&upload.sink).size_bytes;
    if start == Some(here) {
        Ok(())
    } else {
        Err(Fault::upload_range(format!("the next byte is number {here}")))
    }
}

fn parameters(uri: &Uri) -> Result<Parameters, Fault> {
    Query::<Parameters>::try_from_uri(uri)
        .map(|Query(parameters)| parameters)
        .map_err(|error| Fault::bad_parameter(error.to_string()))
}

fn created(name: &str, digest: &Digest) -> Response {
    let headers = [
        ("location", format!("/v2/{name}/blobs/{digest}")),
        ("docker-content-digest", digest.to_string()),
    ];
    answer(StatusCode::CREATED, &headers, Body::empty())
}

fn accepted(status: StatusCode, name: &str, id: &str, size: u64) -> Response {
    let headers = [
        ("location", format!("/v2/{name}/blobs/uploads/{id}")),
        ("range", format!("0-{}", size.saturating_sub(1))),
        ("docker-upload-uuid", id.to_owned()),
    ];
    answer(status, &headers, Body::empty())
}
