//! What the HTTP/2 library lets pass and HTTP/1.1 behind it could read differently (RFC 9113,
//! sections 8.2 and 8.3). Pure.
//!
//! The library itself refuses fields of one connection, names in upper case, `te` other than
//! `trailers`, pseudo fields that are unknown, repeated, misplaced or missing (but for `:path`),
//! lengths that differ from each other or from what comes, and lists that are too long. Never
//! repeats one of those checks.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method};

use super::HEAD_FIELDS_MAX;
use super::head;
use crate::cause::Cause;

/// Judges a request and writes its fields as HTTP/1.1 has them: one `Host`, one `Cookie`.
///
/// Whether the host is a valid one, and the same as `:authority`, is judged with those of
/// HTTP/1.1.
pub(crate) fn judge(parts: &mut Parts) -> Result<(), Cause> {
    if parts.headers.len() > HEAD_FIELDS_MAX {
        return Err(Cause::HeadTooLarge);
    }
    target(parts)?;
    length(&parts.headers)?;
    if parts.headers.values().any(is_padded) {
        return Err(Cause::BadRequest);
    }
    host(parts)?;
    join_cookies(&mut parts.headers);
    Ok(())
}

/// A path, or `*` of OPTIONS; under TLS, nothing but HTTPS.
fn target(parts: &Parts) -> Result<(), Cause> {
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(Cause::BadRequest);
    }
    if parts.method == Method::CONNECT {
        // It has no path, and is refused as that of HTTP/1.1 is.
        return Ok(());
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let is_path = path.starts_with('/') || (path == "*" && parts.method == Method::OPTIONS);
    if is_path && head::is_clean_target(path.as_bytes()) { Ok(()) } else { Err(Cause::BadRequest) }
}

/// One length at most, and digits alone: the library takes an empty one for zero, and several that
/// are the same.
fn length(headers: &HeaderMap) -> Result<(), Cause> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if head::length(length.as_bytes()).is_some() => Ok(()),
        (Some(_), _) => Err(Cause::BadRequest),
    }
}

/// Space around a value is part of it here, and of HTTP/1.1's syntax there.
fn is_padded(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

fn host(parts: &mut Parts) -> Result<(), Cause> {
    match (parts.uri.authority(), parts.headers.contains_key(HOST)) {
        (Some(authority), false) => {
            let host = HeaderValue::from_str(authority.as_str());
            parts.headers.insert(HOST, host.map_err(|_| Cause::BadRequest)?);
            Ok(())
        }
        (None, false) => Err(Cause::BadRequest),
        // Several of them are refused where those of HTTP/1.1 are.
        (_, true) => Ok(()),
    }
}

/// A cookie may come in crumbs, which HTTP/1.1 does not know (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    const WEB: &str = "https://web.d/a";

    #[test]
    fn e1_what_http_1_could_read_differently_is_refused() {
        for (method, uri, fields) in [
            ("GET", "http://web.d/a", &[][..]),
            ("GET", "/a", &[]),
            ("GET", "*", &[("host", "web.d")]),
            ("GET", "https://web.d/a\\b", &[]),
            ("POST", WEB, &[("content-length", "")]),
            ("POST", WEB, &[("content-length", "+1")]),
            ("POST", WEB, &[("content-length", "1, 1")]),
            ("POST", WEB, &[("content-length", "1"), ("content-length", "1")]),
            ("GET", WEB, &[("x", " a")]),
            ("GET", WEB, &[("x", "a\t")]),
            ("GET", WEB, &[("host", "web.d ")]),
        ] {
            let mut parts = parts(method, uri, fields);
            assert_eq!(judge(&mut parts), Err(Cause::BadRequest), "{method} {uri} {fields:?}");
        }
        let many: Vec<_> = (0..=HEAD_FIELDS_MAX).map(|_| ("x", "y")).collect();
        assert_eq!(judge(&mut parts("GET", WEB, &many)), Err(Cause::HeadTooLarge));
    }

    #[test]
    fn e1_the_authority_becomes_the_host_and_crumbs_one_cookie() {
        let mut plain = parts("GET", WEB, &[("cookie", "a=1"), ("x", "a b"), ("cookie", "b=2")]);
        judge(&mut plain).unwrap();
        assert_eq!(plain.headers[HOST], "web.d");
        let cookies: Vec<_> = plain.headers.get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
        // Two hosts stay two, and are refused as those of HTTP/1.1 are.
        for fields in [&[("host", "other.d")][..], &[("host", "web.d"), ("host", "web.d")]] {
            let mut two = parts("GET", WEB, fields);
            judge(&mut two).unwrap();
            crate::route::host_of(&two).unwrap_err();
        }
        let mut alone = parts("OPTIONS", "*", &[("host", "web.d"), ("content-length", "0")]);
        judge(&mut alone).unwrap();
        assert_eq!(crate::route::host_of(&alone).as_deref(), Ok("web.d"));
    }
}
