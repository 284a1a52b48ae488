//! What must hold of any head: for the fuzz targets, and for tests with fewer.
//!
//! Never repeats a rule of the common path: the general one says what is right.

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Version};

use super::request::{Asked, general};
use crate::headers::{self, Seen};
use crate::strict;

/// Whatever is taken for common is sent on in no doubt, and as the general path would.
pub(crate) fn requests(bytes: &[u8]) {
    let Some(end) = strict::lone_head(bytes) else {
        return;
    };
    let (head, mut out) = (bytes.get(..end).unwrap_or_default(), BytesMut::new());
    let Some(asked) = Asked::read(head, &mut out) else {
        return;
    };
    let of = HeaderValue::from_static;
    let (client, port, region, id) = (of("192.0.2.1"), of("80"), of("ams"), of("01A-ams"));
    let seen = Seen {
        client: &client,
        port: &port,
        region: &region,
        request_id: &id,
        over_tls: false,
        version: Version::HTTP_11,
    };
    asked.tell(&seen, &mut out);
    // With the platform's own there may be more than a client may send.
    if strict::fields(&out).count() <= strict::HEAD_FIELDS_MAX {
        assert_eq!(strict::lone_head(&out), Some(out.len()), "{out:?}");
    }
    assert_eq!(strict::words(&out), strict::words(head));
    let request = general(head);
    assert!(request.is_some(), "{out:?}");
    let mut fields = request.map(|request| request.into_parts().0.headers).unwrap_or_default();
    headers::strip(&mut fields);
    headers::tell_app(&mut fields, &seen);
    assert_eq!(all(strict::fields(&out)), of_map(&fields));
}

/// Returns fields in an order of their own.
pub(crate) fn all<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<(String, Vec<u8>)> {
    let text = |name| String::from_utf8_lossy(name).into_owned();
    let mut all: Vec<_> = fields.map(|(name, value)| (text(name), value.to_vec())).collect();
    all.sort_unstable();
    all
}

pub(crate) fn of_map(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    all(headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
}
