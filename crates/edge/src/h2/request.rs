//! The head of a stream's common request, as its machine is sent that. Pure.
//!
//! Never guesses: what is not surely common is none. A head is read only when the strict layer has
//! found it good.

use bytes::BytesMut;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TE, TRANSFER_ENCODING};
use http::request::Parts;

use crate::headers::Fate;
use crate::shortcut::fields::{self, Way};

/// Writes what goes on of a request that is all in its head. Where it is not common what was written
/// is nothing's beginning.
pub(super) fn put(parts: &Parts, out: &mut BytesMut) -> Option<Way> {
    let target = parts.uri.path_and_query()?.as_str().as_bytes();
    if !fields::begins_common(&parts.method, target) {
        return None;
    }
    fields::put_line(&parts.method, target, out);
    let mut way = Way::default();
    for (name, value) in &parts.headers {
        let (text, value) = (name.as_str().as_bytes(), value.as_bytes());
        let has_body = *name == TRANSFER_ENCODING || (*name == CONTENT_LENGTH && value != b"0");
        match way.take(text)? {
            Fate::Kept if has_body => return None,
            Fate::Kept | Fate::ForwardedPort => fields::put(out, text, value),
            Fate::ForwardedFor | Fate::Edges => {}
            // Fields behind a body go to each client of HTTP/2, whether it says this or not.
            Fate::Hop if *name == TE => {}
            Fate::Hop | Fate::Connection => return None,
        }
    }
    Some(way)
}

/// Returns the names and the values of fields.
pub(super) fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// Whatever is taken for common of a head that was found good is sent on in no doubt, and as the
/// general path would: for the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(parts: &Parts) {
    use http::{HeaderValue, Version};

    use crate::h1::fuzz::{all, of_map};
    use crate::headers::{self, Seen};
    use crate::{route, strict};

    let mut out = BytesMut::new();
    let Some(way) = put(parts, &mut out).filter(|_| route::host_of(parts).is_ok()) else {
        return;
    };
    let of = HeaderValue::from_static;
    let (client, port, region, id) = (of("192.0.2.1"), of("443"), of("ams"), of("01A-ams"));
    let seen = Seen {
        client: &client,
        port: &port,
        region: &region,
        request_id: &id,
        over_tls: true,
        version: Version::HTTP_2,
    };
    way.tell(pairs(&parts.headers), &seen, &mut out);
    assert_eq!(strict::lone_head(&out), Some(out.len()), "{out:?}");
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let line = [parts.method.as_str(), target, "HTTP/1.1"].map(str::as_bytes);
    assert_eq!(strict::words(&out), Some(line));
    let mut general = parts.headers.clone();
    headers::strip(&mut general);
    headers::tell_app(&mut general, &seen);
    assert_eq!(all(strict::fields(&out)), of_map(&general));
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::strict;

    /// Returns a request that was found good.
    fn good(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        strict::h2::judge(&mut parts).unwrap();
        parts
    }

    fn is_common(parts: &Parts) -> bool {
        put(parts, &mut BytesMut::new()).is_some()
    }

    const WEB: &str = "https://web.d/a?b";

    #[test]
    fn what_is_not_surely_common_is_none() {
        for (name, value, want) in [
            ("accept", "*/*", true),
            ("te", "trailers", true),
            ("content-length", "0", true),
            ("x-forwarded-for", "1.1.1.1", true),
            ("content-length", "1", false),
            ("transfer-encoding", "chunked", false),
            ("expect", "100-continue", false),
            ("trailer", "x", false),
            ("proxy-authorization", "x", false),
            ("connection", "close", false),
            ("upgrade", "websocket", false),
            ("fly-prefer-region", "ams", false),
            ("perch-hop", "static", false),
            ("fly_client_ip", "6.6.6.6", false),
        ] {
            let parts = good("GET", WEB, &[(name, value)]);
            assert_eq!(is_common(&parts), want, "{name}: {value}");
        }
        for (method, uri, want) in [
            ("HEAD", WEB, true),
            ("OPTIONS", "https://web.d/", true),
            ("MKCOL", WEB, false),
            ("GET", "https://web.d/\"a\"", false),
            ("GET", "https://web.d/.well-known/acme-challenge/x", false),
        ] {
            assert_eq!(is_common(&good(method, uri, &[])), want, "{method} {uri}");
        }
        assert!(!is_common(&good("OPTIONS", "*", &[("host", "web.d")])));
    }

    #[test]
    fn e2_a_machine_is_told_the_same_as_on_the_general_path() {
        for fields in [
            &[][..],
            &[("accept", "*/*"), ("user-agent", "a b"), ("te", "trailers"), ("empty", "")],
            &[("x-forwarded-for", "1.1.1.1"), ("x", "y"), ("x-forwarded-for", "2.2.2.2, 3.3.3.3")],
            &[("x-forwarded-port", "8443"), ("x-forwarded-ssl", "off"), ("via", "1.1 other")],
            &[("cookie", "a=b"), ("cookie", "c=d"), ("content-length", "0"), ("host", "web.d")],
        ] {
            let parts = good("POST", WEB, fields);
            assert!(is_common(&parts), "{fields:?}");
            fuzz(&parts);
        }
    }
}
