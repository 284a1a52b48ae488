//! Blobs: read whole or in part, and removed from a repository.
//!
//! Never shows a blob through a repository that does not have it.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::RANGE;
use http::{HeaderMap, Method, StatusCode};
use perch_types::image::Digest;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::error::Error;
use crate::registry::Inner;
use crate::reply::{Fault, answer};
use crate::storage;

const READ_BUFFER_BYTES: usize = 256 * 1024;

pub(crate) async fn get(
    inner: &Arc<Inner>,
    name: &str,
    digest: &Digest,
    (method, asked): (&Method, &HeaderMap),
) -> Result<Response, Fault> {
    let unknown = || Fault::blob_unknown("the repository does not have this blob");
    let guard = inner.collection.read().await;
    let size = inner.storage.blob_size(name, digest)?.ok_or_else(unknown)?;
    let mut headers = vec![
        ("content-type", "application/octet-stream".to_owned()),
        ("docker-content-digest", digest.to_string()),
        ("accept-ranges", "bytes".to_owned()),
        ("etag", format!("\"{digest}\"")),
        ("x-content-type-options", "nosniff".to_owned()),
    ];
    if *method == Method::HEAD {
        // Whoever asks whether a blob is here is about to push what needs it.
        inner.storage.touch(digest, inner.clock.now())?;
        headers.push(("content-length", size.to_string()));
        return Ok(answer(StatusCode::OK, &headers, Body::empty()));
    }
    let path = inner.storage.blob(digest);
    let mut file = tokio::fs::File::open(&path).await.map_err(|e| Error::io("open", &path, e))?;
    drop(guard);
    let text = asked.get(RANGE).and_then(|value| value.to_str().ok());
    let (status, start, length) = match text.map(|text| range(text, size)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, size),
        Some(Range::Part { start, length }) => {
            let end = start + length - 1;
            headers.push(("content-range", format!("bytes {start}-{end}/{size}")));
            (StatusCode::PARTIAL_CONTENT, start, length)
        }
        Some(Range::Outside) => {
            let headers = [("content-range", format!("bytes */{size}"))];
            return Ok(answer(StatusCode::RANGE_NOT_SATISFIABLE, &headers, Body::empty()));
        }
    };
    file.seek(SeekFrom::Start(start)).await.map_err(|e| Error::io("seek in", &path, e))?;
    headers.push(("content-length", length.to_string()));
    let stream = ReaderStream::with_capacity(file.take(length), READ_BUFFER_BYTES);
    Ok(answer(status, &headers, Body::from_stream(stream)))
}

pub(crate) async fn delete(
    inner: &Arc<Inner>,
    name: &str,
    digest: &Digest,
) -> Result<Response, Fault> {
    let _guard = inner.collection.read().await;
    if storage::remove(&inner.storage.blob_link(name, digest))? {
        Ok(answer(StatusCode::ACCEPTED, &[], Body::empty()))
    } else {
        Err(Fault::blob_unknown("the repository does not have this blob"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Whole,
    Part { start: u64, length: u64 },
    Outside,
}

/// Parses one range of bytes (RFC 9110, 14.1.2); several ranges or another unit mean the whole.
fn range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-'))
    else {
        return Range::Whole;
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if last.trim().is_empty() => (start, size),
        (Err(_), Ok(count)) if first.trim().is_empty() => (size.saturating_sub(count), size),
        _ => return Range::Whole,
    };
    if start >= end {
        return Range::Outside;
    }
    Range::Part { start, length: end - start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, length| Range::Part { start, length };
        let table = [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-", part(2, 8)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-30", part(0, 10)),
            ("bytes=5-500", part(5, 5)),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=18446744073709551615-18446744073709551615", Range::Outside),
        ];
        for (text, expected) in table {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Range::Outside);
    }
}
