//! Files that the host has of an app's image, served before the app is asked and without waking it.
//!
//! Never opens a file: the host does. What it does not have is the app's to answer.

use std::time::Duration;

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use perch_client::HostClient;
use perch_types::host::STATIC_NAME_HEADER;
use perch_types::{MachineId, MachineState};
use tokio::runtime::Handle;

use crate::Limits;
use crate::body::{FileBody, ReplyBody};
use crate::cause::Cause;
use crate::live::{AppKey, Live, Target};

mod places;

pub(crate) use self::places::Place;
use self::places::Places;

/// Types by the ending of a file's name.
const TYPES: [(&str, &str); 30] = [
    ("html", "text/html; charset=utf-8"),
    ("htm", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("txt", "text/plain; charset=utf-8"),
    ("md", "text/markdown; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("xml", "application/xml"),
    ("json", "application/json"),
    ("map", "application/json"),
    ("webmanifest", "application/manifest+json"),
    ("wasm", "application/wasm"),
    ("pdf", "application/pdf"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("avif", "image/avif"),
    ("ico", "image/vnd.microsoft.icon"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("ttf", "font/ttf"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("mp3", "audio/mpeg"),
];

/// Asks the host for files, on the runtime that follows it.
#[derive(Debug)]
pub(crate) struct Statics {
    host: HostClient,
    runtime: Handle,
    places: Places,
    /// How long the host may send nothing in the middle of a file.
    idle: Duration,
}

impl Statics {
    pub(crate) fn new(host: HostClient, runtime: Handle, limits: &Limits) -> Self {
        Self { host, runtime, places: Places::new(limits), idle: limits.idle }
    }

    /// Answers a request from the image of one of its app's machines, if that has the file. Where
    /// it cannot be read the app is not asked instead: what it says of a path that is not its own
    /// would be kept.
    pub(crate) async fn answer(
        &self,
        live: &Live,
        app: &AppKey,
        request: &Parts,
    ) -> Result<Option<Response<ReplyBody>>, Cause> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Ok(None);
        }
        let Some(machines) = live.machines_of(app) else { return Ok(None) };
        // Most apps have none: nothing was decoded for them.
        if machines.iter().all(|target| target.record.statics.is_empty()) {
            return Ok(None);
        }
        let Some(path) = decoded(request.uri.path()) else { return Ok(None) };
        let Some(machine) = holder(&machines, &path) else { return Ok(None) };
        let Some(place) = self.places.take(app).await else {
            tracing::debug!(app = %app.name, "files of images at their limit");
            return Err(Cause::StaticUnread);
        };
        let (host, asked) = (self.host.clone(), path);
        let asking = async move { host.static_file(&machine, &asked).await };
        match self.runtime.spawn(asking).await {
            Ok(Ok(found)) => {
                let file = |body| FileBody::new(body, self.idle, place);
                Ok(Some(reply(found, request, file)))
            }
            Ok(Err(error)) if error.code() == Some(perch_types::Code::NotFound) => Ok(None),
            Ok(Err(error)) => {
                tracing::warn!(app = %app.name, %error, "file of an image not served");
                Err(Cause::StaticUnread)
            }
            Err(_) => Err(Cause::StaticUnread),
        }
    }
}

/// Returns the machine whose image is asked: one that is ready before one that is not.
fn holder(machines: &[std::sync::Arc<Target>], path: &str) -> Option<MachineId> {
    let has = |target: &&std::sync::Arc<Target>| {
        let record = &target.record;
        let is_there = !matches!(
            record.state,
            MachineState::Destroying | MachineState::Destroyed | MachineState::Failed
        );
        is_there && !record.cordoned && record.statics.iter().any(|one| one.rest_of(path).is_some())
    };
    let found = machines.iter().filter(has).max_by_key(|target| target.record.ready)?;
    Some(found.record.id.clone())
}

fn reply(
    found: Response<Incoming>,
    request: &Parts,
    file: impl FnOnce(Incoming) -> FileBody,
) -> Response<ReplyBody> {
    let (head, body) = found.into_parts();
    let mut response = Response::new(ReplyBody::Page(None));
    let headers = response.headers_mut();
    let tag = head.headers.get(ETAG).cloned();
    if let Some(tag) = &tag {
        headers.insert(ETAG, tag.clone());
    }
    if tag.as_ref().is_some_and(|tag| matches_tag(&request.headers, tag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let name = head.headers.get(STATIC_NAME_HEADER).and_then(|name| name.to_str().ok());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(type_of(name.unwrap_or_default())));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    if let Some(length) = head.headers.get(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    if request.method == Method::GET {
        *response.body_mut() = ReplyBody::File(Box::new(file(body)));
    }
    response
}

/// Returns whether the client has the content already (RFC 9110, section 13.1.2).
fn matches_tag(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let Ok(tag) = tag.to_str() else {
        return false;
    };
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

fn type_of(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let known = ending.and_then(|ending| TYPES.iter().find(|(known, _)| *known == ending));
    known.map_or("application/octet-stream", |(_, kind)| kind)
}

/// Returns a path without its escapes; nothing when one of its parts is more than a plain name.
pub(crate) fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = (digit(rest.next())? << 4) | digit(rest.next())?;
        let value = u8::try_from(value).ok()?;
        if matches!(value, b'/' | 0) {
            return None;
        }
        bytes.push(value);
    }
    let text = String::from_utf8(bytes).ok()?;
    let plain = |part: &str| !matches!(part, "." | "..");
    text.split('/').all(plain).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_or_left_to_the_app() {
        for (path, want) in [
            ("/static/a.css", Some("/static/a.css")),
            ("/static/a%20b%C3%A4.css", Some("/static/a bä.css")),
            ("/static/%2e%2e/x", None),
            ("/static/../x", None),
            ("/static/a%2Fb", None),
            ("/static/a%00", None),
            ("/static/a%", None),
            ("/static/a%zz", None),
            ("/static/a%ff", None),
        ] {
            assert_eq!(decoded(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn types_follow_the_name() {
        for (name, want) in [
            ("a.CSS", "text/css; charset=utf-8"),
            ("a.min.js", "text/javascript; charset=utf-8"),
            ("a", "application/octet-stream"),
            ("a.unknown", "application/octet-stream"),
        ] {
            assert_eq!(type_of(name), want, "{name}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let tag = HeaderValue::from_static("\"abc\"");
        for (value, want) in [
            ("\"abc\"", true),
            ("W/\"abc\"", true),
            ("\"x\", \"abc\"", true),
            ("*", true),
            ("\"x\"", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static(value));
            assert_eq!(matches_tag(&headers, &tag), want, "{value}");
        }
        assert!(!matches_tag(&HeaderMap::new(), &tag));
    }
}
