//! The heads of common requests and answers: what makes them common, and which of their fields go
//! on. Pure.
//!
//! Never guesses: what is not surely common is not. What becomes of a field by its name is said once
//! for all paths ([`headers::fate`]).

use bytes::BytesMut;
use http::Method;
use http::header::VIA;

use crate::headers::{self, Fate, Seen};
use crate::replay;

/// What the edge itself may answer.
const EDGES: &[u8] = b"/.well-known/acme-challenge/";
/// The longest target.
const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Returns whether a request begins as a common one does: with a method that all know, and a path
/// that nobody reads in two ways, and an app's.
pub(crate) fn begins_common(method: &Method, target: &[u8]) -> bool {
    let is_known = matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::DELETE
            | Method::PATCH
            | Method::OPTIONS
    );
    let is_plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%?[]".contains(byte);
    is_known
        && target.starts_with(b"/")
        && target.len() <= TARGET_BYTES_MAX
        && !target.starts_with(EDGES)
        && target.iter().all(is_plain)
}

/// Writes the first line of a request.
pub(crate) fn put_line(method: &Method, target: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes a field, its name in lower case as the general path does.
pub(crate) fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    let at = out.len();
    out.extend_from_slice(name);
    if let Some(name) = out.get_mut(at..) {
        name.make_ascii_lowercase();
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What a request's fields say of the way that it has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Way {
    is_forwarded: bool,
    has_port: bool,
}

impl Way {
    /// Takes in a field and returns what becomes of it; nothing when no request with it is common.
    pub(crate) fn take(&mut self, name: &[u8]) -> Option<Fate> {
        // What some programs take for the edge's own, and what asks for more than an answer.
        let is_odd = name.contains(&b'_') || name.eq_ignore_ascii_case(b"expect");
        if is_odd || headers::is_platforms(name) {
            return None;
        }
        let fate = headers::fate(name);
        self.is_forwarded |= fate == Fate::ForwardedFor;
        self.has_port |= fate == Fate::ForwardedPort;
        Some(fate)
    }

    /// Writes what the app is told beside what goes on of these fields (contract 4.2), and the end
    /// of the head.
    pub(crate) fn tell<'a>(
        self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        seen: &Seen<'_>,
        out: &mut BytesMut,
    ) {
        for (name, value) in seen.said() {
            put(out, name.as_str().as_bytes(), value.as_bytes());
        }
        out.extend_from_slice(headers::X_FORWARDED_FOR.as_str().as_bytes());
        out.extend_from_slice(b": ");
        if self.is_forwarded {
            let is_known = |name: &[u8]| headers::fate(name) == Fate::ForwardedFor;
            for (_, known) in fields.filter(|(name, _)| is_known(name)) {
                out.extend_from_slice(known);
                out.extend_from_slice(b", ");
            }
        }
        out.extend_from_slice(seen.client.as_bytes());
        out.extend_from_slice(b"\r\n");
        if !self.has_port {
            put(out, headers::X_FORWARDED_PORT.as_str().as_bytes(), seen.port.as_bytes());
        }
        put(out, VIA.as_str().as_bytes(), headers::via(seen.version).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Returns whether a field `Connection` ends its connection; nothing when it says anything but that
/// or the opposite.
pub(crate) fn closes(value: &[u8]) -> Option<bool> {
    let mut closes = false;
    for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if word.eq_ignore_ascii_case(b"close") {
            closes = true;
        } else if !word.is_empty() && !word.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
    }
    Some(closes)
}

/// Returns whether an answer of these fields is passed on field by field: it says nothing to the
/// edge, or in its name.
pub(crate) fn is_common<'a>(mut fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
    fields.all(|(name, value)| match headers::fate(name) {
        Fate::Connection => closes(value).is_some(),
        Fate::Hop => true,
        Fate::Kept | Fate::ForwardedFor | Fate::ForwardedPort | Fate::Edges => {
            let is_replay = name.eq_ignore_ascii_case(b"content-type") && replay::is_kind(value);
            !is_replay && !headers::is_platforms(name)
        }
    })
}

/// Returns whether a field of a common answer goes on to the client, by its name.
pub(crate) fn goes_on(name: &[u8]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    let is_here = matches!(headers::fate(name), Fate::Connection | Fate::Hop)
        || is("transfer-encoding")
        || is("server");
    !is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_app_says_to_the_edge_is_not_common() {
        for (name, value, want) in [
            ("Content-Type", "application/json", true),
            ("Set-Cookie", "a", true),
            ("Connection", "close", true),
            ("Connection", "x-hop", false),
            ("Upgrade", "h2c", true),
            ("Fly-Replay", "app=other", false),
            ("fly-cache-status", "HIT", false),
            ("perch-hop", "static", false),
            ("content-type", "application/vnd.fly.replay+json; a=b", false),
        ] {
            let fields = [(name.as_bytes(), value.as_bytes())];
            assert_eq!(is_common(fields.into_iter()), want, "{name}: {value}");
        }
        assert!(is_common(std::iter::empty()));
    }
}
