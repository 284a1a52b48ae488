//! Requests whose framing two parsers could read differently: families of fields, chunks, request
//! lines and line ends, and random changes of bytes. The same ones at every run.
//!
//! Never sends one. Each may carry a request inside its body, which must stay there.

use std::collections::BTreeSet;

const HOST: &str = "Host: web.perch.localhost";
/// Stands for the number of the case, in as many digits.
const NUMBER: &str = "NNNN";
const RANDOM_CASES: usize = 900;

/// Ways to say that a body is chunked, and what only looks like one.
const CODINGS: &[&str] = &[
    "",
    "Transfer-Encoding: chunked",
    "transfer-encoding:chunked",
    "Transfer-Encoding: CHUNKED",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: chunked ",
    "Transfer-Encoding: chunked\t",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: \u{c}chunked",
    "Transfer-Encoding: chunked\u{b}",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: chunked;a=b",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: chu nked",
    "Transfer-Encoding: chunke\u{17f}",
    "Transfer-Encoding:",
    "Transfer-Encoding: \r\n chunked",
    "Transfer-Encoding:\r\n\tchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    " Transfer-Encoding: chunked",
    "\tTransfer-Encoding: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding\u{0}: chunked",
    "Transfer-Encoding: chunked\u{0}",
    "\u{0}Transfer-Encoding: chunked",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\r\n\rTransfer-Encoding: chunked",
    "Transfer-Encoding\r\n: chunked",
    "Transfer\u{ad}-Encoding: chunked",
    "TE: chunked\r\nTransfer-Encoding: chunked\r\nConnection: transfer-encoding",
];

/// Ways to say how long a body is; `LEN` is what is there.
const LENGTHS: &[&str] = &[
    "",
    "Content-Length: LEN",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: LEN\r\nContent-Length: LEN",
    "Content-Length: 0\r\nContent-Length: LEN",
    "Content-Length: LEN\r\nContent-Length: 0",
    "Content-Length: LEN, LEN",
    "Content-Length: +LEN",
    "Content-Length: -LEN",
    "Content-Length: 0xLEN",
    "Content-Length: LEN.0",
    "Content-Length: 00000LEN",
    "Content-Length: 1 0",
    "Content-Length: \u{b}LEN",
    "Content-Length : LEN",
    "Content-Length:\r\n LEN",
    "Content_Length: LEN",
    "Content-Length: 18446744073709551617",
    "Content-Length: LEN\r\nConnection: content-length",
];

/// What a chunked body may look like, up to its end or what could be taken for it.
const CHUNKS: &[&str] = &[
    "5\r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n0\r\n\r\n",
    "0000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "5;a\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\r\nc\"\r\nhello\r\n0\r\n\r\n",
    "5;\nhello\r\n0\r\n\r\n",
    "5;a\nhello\r\n0\r\n\r\n",
    "5;a\rX\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5_\r\nhello\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "5\rhello\r0\r\r",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhell\r\n0\r\n\r\n",
    "5\r\nhello!\r\n0\r\n\r\n",
    "5\r\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "100000005\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n00\r\n\r\n",
    "5\r\nhello\r\n0 \r\n\r\n",
    "5\r\nhello\r\n0\r\n",
    "5\r\nhello\r\n0\n\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0\r\n\rX\r\n",
    "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\n\r\n",
    "5\r\nhello\r\n0\r\nX y\r\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n0\r\nHost: other\r\n\r\n",
    "0\r\n\r\n",
    "0;a\r\n\r\n",
    "0;\r\n\r\n",
];

/// What stands on the first line.
const REQUEST_LINES: &[&str] = &[
    "POST /m-NNNN HTTP/1.1",
    "POST /m-NNNN HTTP/1.0",
    "POST /m-NNNN HTTP/1.2",
    "POST /m-NNNN HTTP/2.0",
    "POST /m-NNNN HTTP/0.9",
    "POST /m-NNNN HTTP/01.1",
    "POST /m-NNNN HTTP/1.10",
    "POST /m-NNNN http/1.1",
    "POST /m-NNNN HTTP /1.1",
    "POST /m-NNNN HTTP/1.1 ",
    "POST /m-NNNN  HTTP/1.1",
    "POST  /m-NNNN HTTP/1.1",
    "POST\t/m-NNNN\tHTTP/1.1",
    "POST /m-NNNN\u{b}HTTP/1.1",
    "POST /m-NNNN",
    "post /m-NNNN HTTP/1.1",
    " POST /m-NNNN HTTP/1.1",
    "PO\u{0}ST /m-NNNN HTTP/1.1",
    "POST: /m-NNNN HTTP/1.1",
    "BREW /m-NNNN HTTP/1.1",
    "HEAD /m-NNNN HTTP/1.1",
    "OPTIONS /m-NNNN HTTP/1.1",
    "TRACE /m-NNNN HTTP/1.1",
    "CONNECT /m-NNNN HTTP/1.1",
    "CONNECT web.perch.localhost:80 HTTP/1.1",
    "PRI * HTTP/2.0",
    "OPTIONS * HTTP/1.1",
    "POST m-NNNN HTTP/1.1",
    "POST http://web.perch.localhost/m-NNNN HTTP/1.1",
    "POST http://other.perch.localhost/m-NNNN HTTP/1.1",
    "POST http://web.perch.localhost@other/m-NNNN HTTP/1.1",
    "POST //web/m-NNNN HTTP/1.1",
    "POST /m-NNNN#part HTTP/1.1",
    "POST /m-NNNN\\x HTTP/1.1",
    "POST /m-NNNN?a HTTP/1.1 HTTP/1.1",
    "POST /m-NNNN?a\u{7f}b HTTP/1.1",
    "POST /m-NNNN?\u{e9} HTTP/1.1",
];

/// Fields that change what a server does with the rest of the message.
const FIELDS: &[&str] = &[
    "Connection: close",
    "Connection: keep-alive, host",
    "Connection: content-length",
    "Connection: fly-request-id, via",
    "Connection: close, transfer-encoding",
    "Proxy-Connection: keep-alive",
    "Keep-Alive: timeout=5",
    "Expect: 100-continue",
    "Expect: nonsense",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Upgrade: HTTP/1.1\r\nConnection: Upgrade",
    "Trailer: Content-Length",
    "TE: trailers",
    "Host: other.perch.localhost",
    " Host: other.perch.localhost",
    "Host : other.perch.localhost",
    "Fly-Request-Id: forged",
    "X: a\u{0}b",
    "X: a\u{7f}b",
    "X\u{e9}: y",
    "X: \u{e9}",
    ": y",
    "X",
    "X\u{b}: y",
    "X: y\r\n\tz",
    "X: y\rz",
    "X: y\nz: w",
    "(X): y",
    "X: y\r\n\r",
];

const LINE_ENDS: &[&str] = &["\n", "\r", "\r\r\n", "\n\r\n", " \r\n", "\t\r\n", "\r\n ", "\0\r\n"];

/// Returns all cases, each different and numbered.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let mut cases = BTreeSet::new();
    framings(&mut cases);
    chunked(&mut cases);
    first_lines(&mut cases);
    fields(&mut cases);
    line_ends(&mut cases);
    random(&mut cases);
    let number = |(index, case): (usize, Vec<u8>)| {
        let (sign, digits) = (NUMBER.as_bytes(), format!("{index:04}"));
        let mut numbered = Vec::with_capacity(case.len());
        let mut rest = case.as_slice();
        while let Some(at) = rest.windows(sign.len()).position(|window| window == sign) {
            numbered.extend_from_slice(&rest[..at]);
            numbered.extend_from_slice(digits.as_bytes());
            rest = &rest[at + sign.len()..];
        }
        numbered.extend_from_slice(rest);
        numbered
    };
    cases.into_iter().enumerate().map(number).collect()
}

/// A request that no server may see unless the edge has read it as one of its own.
fn inner() -> String {
    format!("GET /inner-{NUMBER} HTTP/1.1\r\n{HOST}\r\nX-Inner: 1\r\n\r\n")
}

fn message(line: &str, fields: &[&str], body: &str) -> String {
    let fields: String = fields
        .iter()
        .filter(|field| !field.is_empty())
        .map(|field| format!("{field}\r\n"))
        .collect();
    format!("{line}\r\n{HOST}\r\n{fields}\r\n{body}").replace("LEN", &body.len().to_string())
}

/// Every coding with every length, before a body in chunks, an empty one, and bare bytes.
fn framings(cases: &mut BTreeSet<Vec<u8>>) {
    let inner = inner();
    let bodies = [format!("5\r\nhello\r\n0\r\n\r\n{inner}"), format!("0\r\n\r\n{inner}"), inner];
    for coding in CODINGS {
        for length in LENGTHS {
            for (index, body) in bodies.iter().enumerate() {
                let method = if index == 2 { "GET" } else { "POST" };
                let line = format!("{method} /m-{NUMBER} HTTP/1.1");
                // Which of two comes first is what some parsers go by.
                let order = if (coding.len() + length.len()).is_multiple_of(2) {
                    [*coding, *length]
                } else {
                    [*length, *coding]
                };
                cases.insert(message(&line, &order, body).into_bytes());
            }
        }
    }
}

fn chunked(cases: &mut BTreeSet<Vec<u8>>) {
    for chunks in CHUNKS {
        for line in [format!("POST /m-{NUMBER} HTTP/1.1"), format!("GET /m-{NUMBER} HTTP/1.1")] {
            let body = format!("{chunks}{}", inner());
            let text = message(&line, &["Transfer-Encoding: chunked"], &body);
            cases.insert(text.into_bytes());
        }
    }
}

fn first_lines(cases: &mut BTreeSet<Vec<u8>>) {
    for line in REQUEST_LINES {
        for field in ["", "Content-Length: LEN", "Transfer-Encoding: chunked"] {
            let body =
                if field.starts_with('T') { format!("0\r\n\r\n{}", inner()) } else { inner() };
            cases.insert(message(line, &[field], &body).into_bytes());
            let before = format!("GET /before-{NUMBER} HTTP/1.1\r\n{HOST}\r\n\r\n");
            cases.insert([before, message(line, &[field], &body)].concat().into_bytes());
        }
    }
}

fn fields(cases: &mut BTreeSet<Vec<u8>>) {
    for field in FIELDS {
        for framing in ["", "Content-Length: LEN", "Transfer-Encoding: chunked"] {
            let body = if framing.starts_with('T') {
                format!("5\r\nhello\r\n0\r\n\r\n{}", inner())
            } else {
                inner()
            };
            for method in ["GET", "POST"] {
                let line = format!("{method} /m-{NUMBER} HTTP/1.1");
                cases.insert(message(&line, &[field, framing], &body).into_bytes());
                cases.insert(message(&line, &[framing, field], &body).into_bytes());
            }
        }
    }
}

/// Each line end of a head written otherwise, one at a time.
fn line_ends(cases: &mut BTreeSet<Vec<u8>>) {
    let line = format!("POST /m-{NUMBER} HTTP/1.1");
    for framing in ["Content-Length: LEN", "Transfer-Encoding: chunked"] {
        let text = message(&line, &["X: y", framing], &format!("0\r\n\r\n{}", inner()));
        let places: Vec<usize> = text.match_indices("\r\n").map(|(at, _)| at).collect();
        for place in places {
            for end in LINE_ENDS {
                let (before, after) = text.split_at(place);
                let after = after.strip_prefix("\r\n").unwrap();
                cases.insert(format!("{before}{end}{after}").into_bytes());
            }
        }
    }
}

/// Bytes that matter to framing, put in, taken out, doubled or swapped anywhere.
fn random(cases: &mut BTreeSet<Vec<u8>>) {
    const BYTES: &[u8] = b"\r\n\t \0:;,0159afx\x0b\x7f\xff\"'-_+=/";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from(state % limit).unwrap()
    };
    let bases = [
        message(
            &format!("POST /m-{NUMBER} HTTP/1.1"),
            &["Transfer-Encoding: chunked"],
            &format!("5\r\nhello\r\n0\r\n\r\n{}", inner()),
        ),
        message(&format!("POST /m-{NUMBER} HTTP/1.1"), &["Content-Length: LEN"], &inner()),
        message(
            &format!("GET /m-{NUMBER} HTTP/1.1"),
            &["Content-Length: 5"],
            &format!("hello{}", inner()),
        ),
        message(
            &format!("POST /m-{NUMBER} HTTP/1.1"),
            &["X: y", "Transfer-Encoding: chunked"],
            &format!("a;x=y\r\n0123456789\r\n0\r\nX-T: z\r\n\r\n{}", inner()),
        ),
    ];
    let wanted = cases.len() + RANDOM_CASES;
    while cases.len() < wanted {
        let mut text = bases[below(bases.len())].clone().into_bytes();
        for _ in 0..=below(3) {
            let at = below(text.len());
            match below(5) {
                0 => text.insert(at, BYTES[below(BYTES.len())]),
                1 => {
                    text.remove(at);
                }
                2 => text[at] = BYTES[below(BYTES.len())],
                3 => {
                    let end = (at + 1 + below(12)).min(text.len());
                    let piece = text[at..end].to_vec();
                    text.splice(at..at, piece);
                }
                _ => {
                    let other = below(text.len());
                    text.swap(at, other);
                }
            }
        }
        cases.insert(text);
    }
}
