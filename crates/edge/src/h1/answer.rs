//! The head of an answer as the client is sent it, and what is written around its body. Pure.
//!
//! Never passes on what an app says to the edge: an answer that says anything of the kind goes the
//! general way.

use std::fmt::Write as _;

use bytes::BytesMut;
use http::header::{CONNECTION, SERVER, VIA};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use crate::headers;
use crate::origin1::{Framing, Head};
use crate::shortcut::fields::{self, closes};

/// How the client sees where a body ends, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// There is none.
    Nothing,
    Length(u64),
    Chunks,
}

impl Ends {
    /// Returns that of a machine's answer. One that only ends with its connection has chunks here.
    pub(super) const fn of(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Nothing,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked | Framing::ToClose => Self::Chunks,
        }
    }

    /// Begins a piece, of at least one byte; returns whether there may be as much.
    pub(super) fn begin_piece(&mut self, count: usize, out: &mut BytesMut) -> bool {
        match self {
            Self::Nothing => false,
            Self::Length(left) => match left.checked_sub(count as u64) {
                Some(rest) => {
                    *left = rest;
                    true
                }
                None => false,
            },
            Self::Chunks => write!(out, "{count:X}\r\n").is_ok(),
        }
    }

    /// Returns what ends a piece.
    pub(super) const fn tail(self) -> &'static [u8] {
        match self {
            Self::Nothing | Self::Length(_) => b"",
            Self::Chunks => b"\r\n",
        }
    }

    /// Ends the body; returns whether it is as long as was said.
    pub(super) fn end(self, out: &mut BytesMut) -> bool {
        match self {
            Self::Nothing | Self::Length(0) => true,
            Self::Length(_) => false,
            Self::Chunks => {
                out.extend_from_slice(b"0\r\n\r\n");
                true
            }
        }
    }
}

/// Writes the first line.
pub(super) fn put_status(status: StatusCode, reason: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Writes what is passed on of a common answer's fields; returns whether it says its date.
pub(super) fn put_fields<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    has_length: bool,
    out: &mut BytesMut,
) -> bool {
    let mut has_date = false;
    for (name, value) in fields {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if fields::goes_on(name) && (has_length || !is("content-length")) {
            has_date = has_date || is("date");
            fields::put(out, name, value);
        }
    }
    has_date
}

/// Returns whether a common answer says to the client how long its body is, or would be.
pub(super) fn has_length(head: &Head, method: &Method) -> bool {
    matches!(head.framing, Framing::Length(_)) || *method == Method::HEAD
}

/// Writes what the client is told of a common answer.
pub(super) fn tell_client(request_id: &HeaderValue, minor: u8, out: &mut BytesMut) {
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    fields::put(out, headers::REQUEST_ID.as_str().as_bytes(), request_id.as_bytes());
    fields::put(out, VIA.as_str().as_bytes(), headers::via(version).as_bytes());
    fields::put(out, SERVER.as_str().as_bytes(), headers::server().as_bytes());
}

/// Writes how the body ends and whether the connection does, and the end of the head.
pub(super) fn put_end(ends: Ends, is_last: bool, out: &mut BytesMut) {
    if ends == Ends::Chunks {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if is_last {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Returns how the body of a finished answer ends, of which `exact` says how long it is if that is
/// known.
pub(super) fn ends_of<B>(response: &Response<B>, method: &Method, exact: Option<u64>) -> Ends {
    let has_none = *method == Method::HEAD
        || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match exact {
        _ if has_none => Ends::Nothing,
        Some(length) => Ends::Length(length),
        None => Ends::Chunks,
    }
}

/// Writes the first line and the fields of a finished answer; returns whether it says its date.
pub(super) fn put_response<B>(
    response: &Response<B>,
    method: &Method,
    (ends, exact): (Ends, Option<u64>),
    out: &mut BytesMut,
) -> bool {
    let status = response.status();
    let said = response.extensions().get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    let reason = said.or_else(|| status.canonical_reason().map(str::as_bytes));
    put_status(status, reason.unwrap_or(b"<none>"), out);
    let is_head = *method == Method::HEAD;
    let headers = response.headers();
    let fields = headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    let mut has_date = false;
    let mut has_length = false;
    for (name, value) in fields {
        let is_length = name == b"content-length";
        let is_here = name == CONNECTION.as_str().as_bytes() || name == b"transfer-encoding";
        if !is_here && (!is_length || is_head) {
            has_length = has_length || is_length;
            has_date = has_date || name == b"date";
            fields::put(out, name, value);
        }
    }
    let length = match ends {
        Ends::Length(length) => Some(length),
        Ends::Nothing if is_head && !has_length => exact.filter(|length| *length > 0),
        Ends::Nothing | Ends::Chunks => None,
    };
    if let Some(length) = length {
        // Written to memory: it cannot fail.
        write!(out, "content-length: {length}\r\n").ok();
    }
    has_date
}

/// Returns whether a finished answer is the last of its connection.
pub(super) fn is_last(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|value| closes(value.as_bytes()) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::super::fuzz::{all, of_map};
    use super::*;
    use crate::{far, strict};

    fn fields(text: &'static str) -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
        text.lines().map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.as_bytes(), value.as_bytes())
        })
    }

    fn map(text: &'static str) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields(text) {
            let name = http::HeaderName::from_bytes(name).unwrap();
            map.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    #[test]
    fn e2_a_client_is_told_the_same_as_on_the_general_path() {
        let id = HeaderValue::from_static("01A-ams");
        for text in [
            "Content-Length: 2",
            "Content-Length: 2\nServer: app\nVia: 1.1 app\nDate: now\nX-Forwarded-For: odd",
            "Content-Length: 2\nConnection: close\nKeep-Alive: 5\nSet-Cookie: a\nSet-Cookie: b",
            "Content-Length: 2\nProxy-Authenticate: x\nTrailer: x\nUpgrade: x\nTE: x",
        ] {
            let mut out = BytesMut::from("GET / HTTP/1.1\r\n");
            put_fields(fields(text), true, &mut out);
            tell_client(&id, 1, &mut out);
            put_end(Ends::Length(2), false, &mut out);
            let mut general = map(text);
            headers::strip(&mut general);
            general.remove(http::header::TRANSFER_ENCODING);
            headers::strip_answer(&mut general);
            far::settle(&mut general);
            headers::tell_client(&mut general, id.clone(), Version::HTTP_11);
            assert_eq!(all(strict::fields(&out)), of_map(&general), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_body_is_said_once() {
        let head = |framing| Head {
            status: 200,
            minor: 1,
            reason: Default::default(),
            length: 0,
            framing,
            keeps: true,
        };
        let all = "Content-Length: 5\nTransfer-Encoding: chunked";
        for (framing, method, ends, length, coding) in [
            (Framing::Length(5), Method::GET, Ends::Length(5), true, false),
            (Framing::Chunked, Method::GET, Ends::Chunks, false, true),
            (Framing::ToClose, Method::POST, Ends::Chunks, false, true),
            (Framing::None, Method::HEAD, Ends::Nothing, true, false),
            (Framing::None, Method::GET, Ends::Nothing, false, false),
        ] {
            let (mut out, head) = (BytesMut::new(), head(framing));
            put_fields(fields(all), has_length(&head, &method), &mut out);
            put_end(Ends::of(framing), false, &mut out);
            let text = String::from_utf8(out.to_vec()).unwrap();
            assert_eq!(Ends::of(framing), ends);
            assert_eq!(text.contains("content-length: 5\r\n"), length, "{framing:?} {method}");
            assert_eq!(text.contains("transfer-encoding: chunked\r\n"), coding, "{framing:?}");
        }
    }

    #[test]
    fn pieces_are_as_many_bytes_as_was_said() {
        let (mut out, mut ends) = (BytesMut::new(), Ends::Length(3));
        assert!(ends.begin_piece(2, &mut out) && !ends.end(&mut out));
        assert!(!ends.begin_piece(2, &mut out));
        assert!(ends.begin_piece(1, &mut out) && ends.end(&mut out) && out.is_empty());
        assert!(!Ends::Nothing.begin_piece(1, &mut out) && Ends::Nothing.end(&mut out));
        let mut ends = Ends::Chunks;
        assert!(ends.begin_piece(31, &mut out));
        out.extend_from_slice(ends.tail());
        assert!(ends.end(&mut out));
        assert_eq!(&out[..], b"1F\r\n\r\n0\r\n\r\n");
    }

    #[test]
    fn a_finished_answer_has_the_length_that_it_has() {
        let response = |status: u16, fields: &'static str| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            *response.headers_mut() = map(fields);
            response
        };
        for (status, fields, method, exact, want) in [
            (200, "", Method::GET, Some(3), "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n"),
            (
                200,
                "content-length: 3",
                Method::GET,
                Some(3),
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n",
            ),
            (200, "", Method::GET, Some(0), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"),
            (200, "", Method::GET, None, "HTTP/1.1 200 OK\r\n"),
            (502, "", Method::HEAD, Some(3), "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n"),
            (
                200,
                "content-length: 9",
                Method::HEAD,
                Some(0),
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n",
            ),
            (204, "", Method::GET, Some(0), "HTTP/1.1 204 No Content\r\n"),
            (304, "content-length: 9", Method::GET, Some(0), "HTTP/1.1 304 Not Modified\r\n"),
            (299, "connection: close\nx: y", Method::GET, None, "HTTP/1.1 299 <none>\r\nx: y\r\n"),
        ] {
            let (mut out, response) = (BytesMut::new(), response(status, fields));
            let ends = ends_of(&response, &method, exact);
            assert!(!put_response(&response, &method, (ends, exact), &mut out));
            assert_eq!(String::from_utf8(out.to_vec()).unwrap(), want, "{status} {fields}");
            assert_eq!(is_last(response.headers()), fields.starts_with("connection"));
        }
    }
}
