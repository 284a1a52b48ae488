//! Fuzz targets: functions that take any bytes and panic when what must hold does not.
//!
//! Never in a server: they are built for tests, and for the runner in the folder `fuzz`. Whoever
//! writes a parser of bytes from outside adds one.

mod parsers;

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};
use perch_types::view::View;

use crate::{far, h1, headers, origin1, raw, route, strict};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("framing", strict::fuzz::framing),
    ("chunks", strict::fuzz::chunks),
    ("frames", strict::fuzz::frames),
    ("host", host),
    ("fields", fields),
    ("h2", parsers::of_h2),
    ("replay", parsers::replay),
    ("wishes", parsers::wishes),
    ("codings", parsers::codings),
    ("paths", parsers::paths),
    ("sessions", parsers::sessions),
    ("sticky", parsers::sticky),
    ("options", parsers::options),
    ("postgres", raw::pg_tls::fuzz),
    ("hops", far::fuzz),
    ("common", h1::fuzz::requests),
    ("answers", origin1::answer::fuzz),
];

/// Messages that are as they should be, or nearly: what bytes are made of.
pub const SEEDS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "[2001:DB8::1]:80",
    "\r\nGET /a?b=c HTTP/1.0\r\nHost: a.example:80\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, X\r\nUpgrade: websocket\r\nX: y\r\n\r\nab",
    "GET http://a/ HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
    "GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Port: 1\r\nVia: 1.1 b\r\nConnection: close\r\n\r\n",
    "3\r\nabc\r\na;b=c\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
    "0\r\n\r\n",
    "a.b-c.example.:8080",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x04\x08\0\0\0\0\x01\0\0\0\x01",
    "https://a.example/b?c\nx-forwarded-for: 1.1.1.1\nte: trailers\nvia: 1.1 b\ncookie: s=1\n",
    "https://a.example/b?c\nhost: a.example\ncookie: s=1\ncookie: t=2\ncontent-length: 3\n",
    "fly-replay: app=web;region=ams,eu;state=\"a;b\";timeout=10s;fallback=force_self;elsewhere=true\n",
    "fly-replay: instance=00000000000001\nfly-replay-cache: a.example/b/*\nfly-replay-cache-ttl-secs: 60\n",
    "{\"app\":\"web\",\"region\":[\"ams\",\"any\"],\"transform\":{\"path\":\"/a\",\"delete_headers\":[\"x-a\"],\
     \"set_headers\":[{\"name\":\"x-b\",\"value\":\"c\"}]},\"cache\":{\"prefix\":\"/a\",\"ttl\":\"60s\"}}",
    "{\"port\":443,\"handlers\":[\"tls\",\"http\"],\"tls_options\":{\"alpn\":[\"h2\"],\"versions\":[\"TLSv1.3\"]}}",
    "fly-prefer-region: ams,eu,any\nfly-force-instance-id: 00000000000001\nfly-prefer-instance-id: x\n",
    "gzip;q=0.5, br;q=1.000, *;q=0",
    "/a/b%20c/%2e%2E/d?e",
    "a=b; s=c; s=d",
    "x-a: someone\ncookie: s=someone\n",
    "from=000000000001;org=personal;app=web;port=443;wait=1500;machine=00000000000001",
    "unsent=PC03",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close, x\r\n\r\nabc",
    "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nX:\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "\r\nHTTP/1.0 304 Not Modified\nConnection: keep-alive\n\n",
];

/// A host name that is taken is one, and is the same when it is taken again.
fn host(bytes: &[u8]) {
    let take = |bytes: &[u8]| {
        let value = HeaderValue::from_bytes(bytes).ok()?;
        let request = http::Request::builder().header(HOST, value).body(()).ok()?;
        route::host_of(&request.into_parts().0).ok()
    };
    let Some(host) = take(bytes) else {
        return;
    };
    assert!(host.len() <= 253 && !host.is_empty(), "{host:?}");
    let address = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_address = address.is_some_and(|it| it.parse::<std::net::Ipv6Addr>().is_ok());
    let is_plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    assert!(is_address || host.bytes().all(is_plain), "{host:?}");
    assert_eq!(take(host.as_bytes()).as_deref(), Some(host.as_str()));
    assert_eq!(route::app_of(&host, "perch.localhost", &View::default()), None);
}

/// Returns the fields that there are in lines, as far as they are any.
fn fields_of(bytes: &[u8]) -> HeaderMap {
    let mut all = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else {
            continue;
        };
        let value = HeaderValue::from_bytes(value.trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            all.append(name, value);
        }
    }
    all
}

/// Fields of one connection are gone behind the edge, whatever they and `Connection` say.
fn fields(bytes: &[u8]) {
    let mut all = fields_of(bytes);
    let protocol = headers::upgrade(&http::Method::GET, &all);
    assert!(protocol.is_none() || all.contains_key(UPGRADE));
    let had_host = all.contains_key(HOST);
    headers::strip(&mut all);
    for gone in [CONNECTION, TE, UPGRADE] {
        assert!(!all.contains_key(&gone), "{gone}");
    }
    assert_eq!(all.contains_key(HOST), had_host);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(bytes: &[u8]) {
        for (_, target) in TARGETS {
            target(bytes);
        }
    }

    #[test]
    fn seeds_hold() {
        for seed in SEEDS {
            run(seed.as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_hold(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            run(&bytes);
        }

        // Bytes that look like messages get further into the parsers.
        #[test]
        fn changed_seeds_hold(
            which in 0..SEEDS.len(),
            other in 0..SEEDS.len(),
            changes in proptest::collection::vec(
                (any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 0..6,
            ),
        ) {
            let mut bytes = [SEEDS[which], SEEDS[other]].concat().into_bytes();
            for (at, byte, kind) in changes {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => bytes.insert(at, b"\r\n\t :;,0"[usize::from(byte) % 8]),
                    _ => {
                        bytes.remove(at);
                    }
                }
            }
            run(&bytes);
        }
    }
}
