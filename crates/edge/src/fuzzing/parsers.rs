//! Targets for what clients and apps say in fields, paths and bodies that ask for a replay.
//!
//! Never repeats a parser's own rules: each looks at what came out with rules that are simpler.

use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue,
};
use http::uri::{PathAndQuery, Uri};
use perch_types::MachineId;
use perch_types::service::{HttpOptions, Port, TlsOptions};
use tokio::time::Instant;

use super::fields_of;
use crate::compress::{self, Accepted};
use crate::direction::Direction;
use crate::replay::{self, Remember, Replay};
use crate::replay_cache::Query;
use crate::{h2, regions, statics, sticky, strict};

/// The bounds of what an app can ask for (contract 4.3).
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const TTL_S: std::ops::RangeInclusive<u64> = 10..=86_400;
/// The most regions that one list names.
const WISHES_MAX: usize = 32;
/// Fields that no app changes, whatever it says.
const EDGES: [(&str, &str); 9] = [
    ("host", "web.example"),
    ("content-length", "3"),
    ("transfer-encoding", "chunked"),
    ("fly-client-ip", "192.0.2.1"),
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "https"),
    ("fly-request-id", "id"),
    ("fly-replay-src", "instance=1"),
    ("perch-hop", "static"),
];

/// A replay stays within its bounds and leaves alone what is the edge's.
pub(super) fn replay(bytes: &[u8]) {
    let fields = fields_of(bytes);
    // Whatever they say, these have an answer.
    let _said = (replay::is_body(&fields), replay::forgets(&fields));
    if let Ok(Some(replay)) = replay::from_fields(&fields) {
        look_at(&replay);
    }
    if let Ok(replay) = replay::from_body(bytes) {
        look_at(&replay);
    }
}

fn look_at(replay: &Replay) {
    assert!(replay.timeout.is_none_or(|timeout| timeout <= TIMEOUT_MAX), "{replay:?}");
    let state = replay.state.as_deref().unwrap_or_default();
    assert!(HeaderValue::from_str(state).is_ok(), "{replay:?}");
    if let Some(Remember::Paths { paths, ttl, .. }) = &replay.cache {
        assert!(TTL_S.contains(&ttl.as_secs()), "{replay:?}");
        // Whatever kind they are, they begin as a path does.
        assert!(format!("{paths:?}").contains("(\"/"), "{replay:?}");
    }
    let direction = replay.direction(&MachineId::from_bits(1));
    assert!(direction.regions.len() <= WISHES_MAX, "{direction:?}");
    assert_eq!(direction.without.is_some(), replay.elsewhere);
    let mut headers: HeaderMap = EDGES
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .into_iter()
        .collect();
    let mut path = PathAndQuery::from_static("/a");
    replay.transform.apply(&mut path, &mut headers);
    assert!(path.as_str().starts_with('/'), "{path}");
    for (name, value) in EDGES {
        let now: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(now, [value], "{name} was changed by {replay:?}");
    }
}

/// What a client wants is within bounds, and nothing is wanted of which nothing was said.
pub(super) fn wishes(bytes: &[u8]) {
    let fields = fields_of(bytes);
    let direction = Direction::of(&fields);
    assert!(direction.regions.len() <= WISHES_MAX, "{direction:?}");
    let is_said = fields.keys().any(|name| {
        let name = name.as_str();
        name.starts_with("fly-prefer-") || name.starts_with("fly-force-")
    });
    assert!(is_said || direction.is_free(), "{direction:?} of {fields:?}");
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(regions::list(text).len() <= WISHES_MAX);
    if let Ok(name) = perch_types::certificates::hostname(text) {
        assert_eq!(perch_types::certificates::hostname(&name).as_deref(), Ok(name.as_str()));
        let fine = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'*')
        };
        assert!(name.len() <= 253 && name.bytes().all(fine), "{name:?}");
    }
}

/// A coding is chosen only where it was named, and the same in one field and in two.
pub(super) fn codings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let of = |texts: &[&str]| {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(text).ok()?);
        }
        headers.values().all(|value| value.to_str().is_ok()).then(|| compress::accepted(&headers))
    };
    let Some(accepted) = of(&[text]) else {
        return;
    };
    let lower = text.to_ascii_lowercase();
    let is_named = ["br", "gzip", "*"].iter().any(|name| lower.contains(name));
    assert!(is_named || accepted == Accepted::default(), "{accepted:?} of {text:?}");
    if let Some((first, rest)) = text.split_once(',') {
        assert_eq!(of(&[first, rest]), Some(accepted), "{text:?}");
    }
}

/// A file's path has as many parts as it was asked with, and none leads up.
pub(super) fn paths(bytes: &[u8]) {
    let Some(path) = PathAndQuery::try_from(bytes).ok().filter(|it| it.path().starts_with('/'))
    else {
        return;
    };
    let asked = path.path();
    let Some(found) = statics::decoded(asked) else {
        return;
    };
    assert!(found.split('/').all(|part| part != "." && part != ".."), "{found:?}");
    assert_eq!(found.matches('/').count(), asked.matches('/').count(), "{asked:?}");
    assert!(found.len() <= asked.len() && !found.contains('\0'), "{found:?}");
    assert!(asked.contains('%') || found == asked, "{found:?} of {asked:?}");
}

/// A session is known by what the client said, and by nothing else.
pub(super) fn sessions(bytes: &[u8]) {
    let rule = r#"{"replay_cache":[{"path_prefix":"/","type":"cookie","name":"s"}]}"#;
    let options: Option<HttpOptions> = serde_json::from_str(rule).ok();
    let mut headers = fields_of(bytes);
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        headers.append(COOKIE, value);
    }
    let query = Query {
        host: "web.example",
        path: "/",
        headers: &headers,
        options: options.as_ref(),
        now: Instant::now(),
    };
    let mut cookies = headers.get_all(COOKIE).iter();
    let is_said = cookies.any(|value| {
        value.as_bytes().windows(2).any(|pair| matches!(pair, b"s=" | b"s " | b"s\t"))
    });
    assert!(is_said || query.session().is_none(), "{headers:?}");
}

/// A request is of the session whose name it says, and without a name of none.
pub(super) fn sticky(bytes: &[u8]) {
    for (rule, field) in [
        (r#"{"sticky":{"type":"cookie","name":"s"}}"#, COOKIE),
        (r#"{"sticky":{"type":"header","name":"X-A"}}"#, HeaderName::from_static("x-a")),
    ] {
        let options: Option<HttpOptions> = serde_json::from_str(rule).ok();
        let mut headers = fields_of(bytes);
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(&field, value);
        }
        let session = sticky::session(options.as_ref(), &headers);
        assert_eq!(sticky::session(None, &headers), None);
        headers.insert("x-other", HeaderValue::from_static("s=1"));
        assert_eq!(sticky::session(options.as_ref(), &headers), session, "{headers:?}");
        headers.remove(&field);
        assert_eq!(sticky::session(options.as_ref(), &headers), None, "{headers:?}");
    }
}

/// What an app's port says of itself is read within bounds, or refused.
pub(super) fn options(bytes: &[u8]) {
    let Ok(port) = serde_json::from_slice::<Port>(bytes) else {
        return;
    };
    if let Ok(options) = TlsOptions::of(&port) {
        // More could not be said in a handshake.
        assert!(options.alpn.iter().all(|name| (1..=255).contains(&name.len())), "{options:?}");
        assert!(options.alpn.len() <= 8, "{options:?}");
    }
}

/// A request of HTTP/2 that passes is one of HTTP/1.1 with a host, one length and one cookie, and the
/// same to its machine whichever path it takes.
pub(super) fn of_h2(bytes: &[u8]) {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let uri = Uri::try_from(first).unwrap_or_else(|_| Uri::from_static("https://a.example/"));
    let Ok(request) = http::Request::builder().uri(uri).body(()) else {
        return;
    };
    let mut parts = request.into_parts().0;
    parts.headers = fields_of(bytes);
    if strict::h2::judge(&mut parts).is_err() {
        return;
    }
    let count = |name: &HeaderName| parts.headers.get_all(name).iter().count();
    assert!(count(&HOST) >= 1 && count(&COOKIE) <= 1, "{parts:?}");
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next().map_or(b"0".as_slice(), HeaderValue::as_bytes);
    assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "{parts:?}");
    assert!(lengths.next().is_none(), "{parts:?}");
    let path = parts.uri.path();
    assert!(path.starts_with('/') || path == "*", "{path:?}");
    h2::fuzz(&parts);
}
