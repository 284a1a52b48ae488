//! The head of a common request: what is read of it, and what the machine is sent of it. Pure.
//!
//! Never guesses: what is not surely common is none. A head is read only when the strict layer has
//! found it good.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use crate::headers::{Fate, Seen};
use crate::shortcut::fields::{self, Way};
use crate::strict;

/// A common request.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: Method,
    /// As the client wrote it.
    pub(crate) host: &'a str,
    /// Whether its answer is to be the last of its connection.
    pub(crate) closes: bool,
    head: &'a [u8],
    way: Way,
}

impl<'a> Asked<'a> {
    /// Reads a head that is all of its request, and writes what goes on as it came. Where it is not
    /// common what was written is nothing's beginning.
    pub(crate) fn read(head: &'a [u8], out: &mut BytesMut) -> Option<Self> {
        let [method, target, version] = strict::words(head)?;
        let method = Method::from_bytes(method).ok()?;
        if version != b"HTTP/1.1" || !fields::begins_common(&method, target) {
            return None;
        }
        fields::put_line(&method, target, out);
        let mut asked = Self { method, host: "", closes: false, head, way: Way::default() };
        for (name, value) in strict::fields(head) {
            if asked.take(name, value)? {
                fields::put(out, name, value);
            }
        }
        Some(asked)
    }

    /// Takes in a field; returns whether it goes on.
    fn take(&mut self, name: &'a [u8], value: &'a [u8]) -> Option<bool> {
        match self.way.take(name)? {
            Fate::Kept => {
                if name.eq_ignore_ascii_case(b"host") {
                    self.host = std::str::from_utf8(value).ok()?;
                }
                Some(true)
            }
            Fate::ForwardedPort => Some(true),
            Fate::Connection => {
                self.closes |= fields::closes(value)?;
                Some(false)
            }
            Fate::Hop => name.eq_ignore_ascii_case(b"keep-alive").then_some(false),
            Fate::ForwardedFor | Fate::Edges => Some(false),
        }
    }

    /// Writes what the app is told beside that, and the end of the head.
    pub(crate) fn tell(&self, seen: &Seen<'_>, out: &mut BytesMut) {
        self.way.tell(strict::fields(self.head), seen, out);
    }
}

/// Returns a head that was read once as the general path has it.
pub(crate) fn general(head: &[u8]) -> Option<Request<()>> {
    let [method, target, _] = strict::words(head)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method).ok()?;
    *request.uri_mut() = Uri::try_from(target).ok()?;
    for (name, value) in strict::fields(head) {
        let name = HeaderName::from_bytes(name).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz;
    use super::*;

    fn read(text: &str) -> Option<(Method, String, bool)> {
        let end = strict::lone_head(text.as_bytes())?;
        let mut out = BytesMut::new();
        let asked = Asked::read(&text.as_bytes()[..end], &mut out)?;
        Some((asked.method, asked.host.to_owned(), asked.closes))
    }

    #[test]
    fn what_is_not_surely_common_is_none() {
        let of = |line: &str, fields: &str| read(&format!("{line}\r\nHost: a\r\n{fields}\r\n"));
        let get = |fields: &str| of("GET / HTTP/1.1", fields);
        let is_last = |closes| Some((Method::GET, "a".to_owned(), closes));
        for (fields, want) in [
            ("", is_last(false)),
            ("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", is_last(false)),
            ("Connection: Keep-Alive, CLOSE\r\n", is_last(true)),
            ("Connection:\r\n", is_last(false)),
            ("Content-Length: 0\r\nX-Forwarded-For: 1.2.3.4\r\n", is_last(false)),
            ("X-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\nVia: 1.1 x\r\n", is_last(false)),
            ("Connection: close, x-hop\r\n", None),
            ("Connection: upgrade\r\n", None),
            ("Upgrade: websocket\r\n", None),
            ("Expect: 100-continue\r\n", None),
            ("TE: trailers\r\n", None),
            ("Trailer: x\r\n", None),
            ("Proxy-Authorization: x\r\n", None),
            ("Proxy-Connection: keep-alive\r\n", None),
            ("Fly-Prefer-Region: ams\r\n", None),
            ("fly-anything: x\r\n", None),
            ("Perch-Hop: x\r\n", None),
            ("fly_client_ip: 6.6.6.6\r\n", None),
            ("Content-Length: 1\r\n", None),
            ("Transfer-Encoding: chunked\r\n", None),
            ("Host: a\r\n", None),
        ] {
            assert_eq!(get(fields), want, "{fields}");
        }
        for (line, want) in [
            ("OPTIONS /a/%20b?c[]=d&e=f%2F+g;h@i HTTP/1.1", Some(Method::OPTIONS)),
            ("DELETE //a HTTP/1.1", Some(Method::DELETE)),
            ("OPTIONS * HTTP/1.1", None),
            ("GET http://a/ HTTP/1.1", None),
            ("GET / HTTP/1.0", None),
            ("CONNECT a:1 HTTP/1.1", None),
            ("MKCOL / HTTP/1.1", None),
            ("get / HTTP/1.1", None),
            ("GET /\u{e9} HTTP/1.1", None),
            ("GET /\"a\" HTTP/1.1", None),
            ("GET /.well-known/acme-challenge/x HTTP/1.1", None),
        ] {
            assert_eq!(of(line, "").map(|(method, ..)| method), want, "{line}");
        }
        assert_eq!(read("GET / HTTP/1.1\r\nHost: a\r\n"), None, "not whole");
        assert_eq!(read("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), None, "an empty line before");
    }

    #[test]
    fn e2_a_machine_is_told_the_same_as_on_the_general_path() {
        for fields in [
            "",
            "Connection: close\r\nAccept: */*\r\nUser-Agent: \t a b \t\r\n",
            "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for:2.2.2.2, 3.3.3.3\r\n",
            "X-Forwarded-Port: 8443\r\nX-Forwarded-SSL: on\r\nX-Forwarded-Proto: https\r\n",
            "Cookie: a=b\r\nCookie: c=d\r\nVia: 1.1 other\r\nEmpty:\r\nContent-Length: 0\r\n",
        ] {
            let head = format!("POST /a?b HTTP/1.1\r\nHost: Web.Example:80\r\n{fields}\r\n");
            assert!(read(&head).is_some(), "{head}");
            fuzz::requests(head.as_bytes());
        }
    }

    const NAMES: [&str; 16] = [
        "Accept",
        "cookie",
        "X-Forwarded-For",
        "x-forwarded-port",
        "X-Forwarded-Proto",
        "via",
        "Connection",
        "Keep-Alive",
        "X-Forwarded-SSL",
        "content-length",
        "Date",
        "forwarded",
        "Te",
        "fly-client-ip",
        "X-One",
        "x-one",
    ];
    const VALUES: [&str; 8] = ["", "0", "close", "keep-alive, close", "a, b", "1.1.1.1", "x", "\t"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn heads_are_told_alike(
            fields in proptest::collection::vec((0..NAMES.len(), 0..VALUES.len()), 0..12),
        ) {
            let mut head = "GET /a HTTP/1.1\r\nHost: a\r\n".to_owned();
            for (name, value) in fields {
                head.extend([NAMES[name], ": ", VALUES[value], "\r\n"]);
            }
            head.push_str("\r\n");
            fuzz::requests(head.as_bytes());
        }
    }
}
