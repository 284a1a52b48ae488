//! The head of an answer over HTTP/1.1, and where its body ends. Pure.
//!
//! Never guesses where two readers could differ: an answer has one length, or chunks alone, or it
//! is refused.

use std::mem::MaybeUninit;

use http::{HeaderMap, Method};
use httparse::{Header, ParserConfig, Response, Status};

/// The largest head.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most fields of a head, and as many behind a body.
pub(crate) const FIELDS_MAX: usize = 100;
/// The largest length: the largest numbers have other meanings to whoever counts the bytes.
const LENGTH_MAX: u64 = u64::MAX - 2;
const SWITCHING: u16 = 101;
const NO_CONTENT: u16 = 204;

/// What an answer's end depends on beside the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Asked {
    /// Whether the head alone was asked for.
    pub(crate) is_head: bool,
}

impl Asked {
    pub(crate) fn by(method: &Method) -> Self {
        Self { is_head: *method == Method::HEAD }
    }
}

/// What a head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// The minor version of HTTP/1.
    pub(crate) minor: u8,
    /// Where the reason phrase is.
    pub(crate) reason: Span,
    /// How many bytes it has.
    pub(crate) length: usize,
    pub(crate) framing: Framing,
    /// Whether the connection can be used again behind the answer.
    pub(crate) keeps: bool,
}

impl Head {
    /// Returns whether another one follows that is the answer.
    pub(crate) const fn is_interim(&self) -> bool {
        is_interim(self.status)
    }

    /// Returns whether the connection speaks another protocol behind it.
    pub(crate) const fn is_switch(&self) -> bool {
        self.status == SWITCHING
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none, whatever the head says of its length.
    None,
    Length(u64),
    Chunked,
    /// With the connection.
    ToClose,
}

/// Where a part of a head begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Returns where a part is that was found in these bytes.
    fn of(bytes: &[u8], part: &[u8]) -> Self {
        if part.is_empty() {
            return Self::default();
        }
        let start = part.as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
        Self { start, end: start + part.len() }
    }

    /// Returns the part of the bytes that it was found in.
    pub(crate) fn within(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

/// Where a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Span,
    pub(crate) value: Span,
}

/// Why an answer cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Doubt {
    /// What its head is.
    #[error("read the head of an answer")]
    Head(#[source] httparse::Error),
    /// The head is too large.
    #[error("find the end of an answer's head")]
    TooLarge,
    /// Where its body ends.
    #[error("find the one length of an answer")]
    Length,
    /// Where the body's chunks end.
    #[error("read the chunks of an answer")]
    Chunks,
    /// What stands behind the body.
    #[error("read the fields behind an answer")]
    Trailers,
}

/// Reads a head if it is whole, and notes where its fields are.
pub(crate) fn parse(
    bytes: &[u8],
    asked: Asked,
    fields: &mut Vec<Field>,
) -> Result<Option<Head>, Doubt> {
    let mut room = [MaybeUninit::<Header<'_>>::uninit(); FIELDS_MAX];
    let mut response = Response::new(&mut []);
    let config = ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut room) {
        Ok(Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Complete(_) | Status::Partial) => return Err(Doubt::TooLarge),
        Err(error) => return Err(Doubt::Head(error)),
    };
    let (Some(status @ 100..), Some(minor)) = (response.code, response.version) else {
        return Err(Doubt::Head(httparse::Error::Status));
    };
    fields.clear();
    let mut said = Said::default();
    for header in &*response.headers {
        said.take(header.name.as_bytes(), header.value);
        let name = Span::of(bytes, header.name.as_bytes());
        fields.push(Field { name, value: Span::of(bytes, header.value) });
    }
    let framing = said.framing(status, minor, asked)?;
    let is_open = !said.closes && (minor == 1 || said.stays);
    // What comes behind it is in doubt where it says that something does (RFC 9110, section 8.6).
    let is_odd = status == NO_CONTENT && said.has_body();
    Ok(Some(Head {
        status,
        minor,
        reason: Span::of(bytes, response.reason.unwrap_or_default().as_bytes()),
        length,
        framing,
        keeps: is_open && !is_odd && framing != Framing::ToClose && status != SWITCHING,
    }))
}

const fn is_interim(status: u16) -> bool {
    status < 200 && status != SWITCHING
}

/// Returns whether it is beyond doubt where an answer ends: one length, or chunks alone.
pub(crate) fn has_clear_length(headers: &HeaderMap) -> bool {
    let mut said = Said::default();
    for (name, value) in headers {
        said.take(name.as_str().as_bytes(), value.as_bytes());
    }
    said.is_clear()
}

/// Reads a length of a body; nothing but digits is one.
pub(crate) fn length_of(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?.trim_ascii();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length: u64 = is_number.then_some(text)?.parse().ok()?;
    (length <= LENGTH_MAX).then_some(length)
}

/// What fields say of an answer's end.
#[derive(Debug, Default)]
struct Said<'a> {
    lengths: usize,
    length: &'a [u8],
    codings: usize,
    coding: &'a [u8],
    /// Whether the connection ends, or stays although it is HTTP/1.0's.
    closes: bool,
    stays: bool,
}

impl<'a> Said<'a> {
    fn take(&mut self, name: &[u8], value: &'a [u8]) {
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            self.length = value;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            self.coding = value;
        } else if name.eq_ignore_ascii_case(b"connection") {
            for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                self.closes |= token.eq_ignore_ascii_case(b"close");
                self.stays |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }

    fn is_clear(&self) -> bool {
        match (self.lengths, self.codings) {
            (0 | 1, 0) => true,
            (0, 1) => self.coding.eq_ignore_ascii_case(b"chunked"),
            _ => false,
        }
    }

    /// Returns whether a body is promised, be there one or not.
    fn has_body(&self) -> bool {
        self.codings > 0 || (self.lengths > 0 && length_of(self.length) != Some(0))
    }

    fn framing(&self, status: u16, minor: u8, asked: Asked) -> Result<Framing, Doubt> {
        if is_interim(status) {
            return Ok(Framing::None);
        }
        if !self.is_clear() {
            return Err(Doubt::Length);
        }
        if asked.is_head || matches!(status, SWITCHING | NO_CONTENT | 304) {
            return Ok(Framing::None);
        }
        match (self.codings, self.lengths) {
            (0, 0) => Ok(Framing::ToClose),
            (0, _) => length_of(self.length).map(Framing::Length).ok_or(Doubt::Length),
            // HTTP/1.0 has no chunks (RFC 9112, section 6.1).
            _ if minor == 0 => Err(Doubt::Length),
            _ => Ok(Framing::Chunked),
        }
    }
}

/// However the bytes of a head are cut, it is whole at its end and says the same; what it says of
/// the body's end holds: for the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    for is_head in [false, true] {
        let (asked, mut fields) = (Asked { is_head }, Vec::new());
        let Ok(Some(head)) = parse(bytes, asked, &mut fields) else {
            continue;
        };
        assert!(head.length <= bytes.len() && head.length <= HEAD_BYTES_MAX, "{head:?}");
        assert!((100..=999).contains(&head.status) && fields.len() <= FIELDS_MAX, "{head:?}");
        let whole = bytes.get(..head.length).unwrap_or_default();
        assert!(whole.ends_with(b"\n"), "{head:?}");
        let before = whole.get(..head.length.saturating_sub(1)).unwrap_or_default();
        assert_eq!(parse(before, asked, &mut Vec::new()), Ok(None), "{head:?}");
        let mut again = Vec::new();
        assert_eq!(parse(whole, asked, &mut again), Ok(Some(head)));
        assert_eq!(fields, again);
        let named = |name: &[u8]| {
            fields.iter().filter(|it| it.name.within(bytes).eq_ignore_ascii_case(name)).count()
        };
        let ends = (named(b"content-length"), named(b"transfer-encoding"));
        match head.framing {
            Framing::None => {
                assert!(is_head || matches!(head.status, 100..=199 | 204 | 304), "{head:?}");
            }
            Framing::Length(_) => assert_eq!(ends, (1, 0), "{head:?}"),
            Framing::Chunked => assert_eq!((ends, head.minor), ((0, 1), 1), "{head:?}"),
            Framing::ToClose => assert!(ends == (0, 0) && !head.keeps, "{head:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GET: Asked = Asked { is_head: false };
    const HEAD: Asked = Asked { is_head: true };

    fn framing(asked: Asked, text: &str) -> Result<(Framing, bool), Doubt> {
        let head = parse(text.as_bytes(), asked, &mut Vec::new())?.unwrap();
        assert_eq!(head.length, text.len());
        Ok((head.framing, head.keeps))
    }

    #[test]
    fn a_head_says_where_its_body_ends_and_whether_the_connection_goes_on() {
        for (asked, text, want) in [
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", (Framing::Length(3), true)),
            (GET, "HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", (Framing::Length(0), true)),
            (GET, "HTTP/1.1 200 OK\nContent-Length: 3\n\n", (Framing::Length(3), true)),
            (GET, "HTTP/1.1 200 OK\r\n\r\n", (Framing::ToClose, false)),
            (GET, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", (Framing::Length(3), false)),
            (
                GET,
                "HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: x, Keep-Alive\r\n\r\n",
                (Framing::Length(3), true),
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: Close\r\n\
                 Connection: keep-alive\r\n\r\n",
                (Framing::Length(3), false),
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                (Framing::Chunked, true),
            ),
            (HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", (Framing::None, true)),
            (HEAD, "HTTP/1.1 200 OK\r\n\r\n", (Framing::None, true)),
            (GET, "HTTP/1.1 204 No Content\r\n\r\n", (Framing::None, true)),
            (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", (Framing::None, true)),
            (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", (Framing::None, false)),
            (
                HEAD,
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                (Framing::None, false),
            ),
            (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (Framing::None, true)),
            (GET, "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", (Framing::None, false)),
            (GET, "HTTP/1.1 100 Continue\r\n\r\n", (Framing::None, true)),
        ] {
            assert_eq!(framing(asked, text), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn e4_what_two_readers_could_read_differently_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0x3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
        ] {
            assert_eq!(framing(GET, text), Err(Doubt::Length), "{text:?}");
        }
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: a\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(matches!(framing(GET, text), Err(Doubt::Head(_))), "{text:?}");
        }
    }

    #[test]
    fn e5_a_head_has_bounds() {
        let head = |fields: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(fields));
        framing(GET, &head(FIELDS_MAX)).unwrap();
        assert!(matches!(framing(GET, &head(FIELDS_MAX + 1)), Err(Doubt::Head(_))));
        let large = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        let parsed = parse(large.as_bytes(), GET, &mut Vec::new());
        assert_eq!(parsed, Err(Doubt::TooLarge));
        let parsed = parse(format!("{large}\r\n\r\n").as_bytes(), GET, &mut Vec::new());
        assert_eq!(parsed, Err(Doubt::TooLarge));
    }

    #[test]
    fn fields_are_where_they_are_said_to_be() {
        let text = b"HTTP/1.1 200 Fine\r\nX-A:  b c \r\nEmpty:\r\n\r\nbody";
        let mut fields = Vec::new();
        let head = parse(text, GET, &mut fields).unwrap().unwrap();
        assert_eq!(head.reason.within(text), b"Fine");
        assert_eq!(head.length, text.len() - 4);
        let all: Vec<_> =
            fields.iter().map(|it| (it.name.within(text), it.value.within(text))).collect();
        assert_eq!(all, [(&b"X-A"[..], &b"b c"[..]), (b"Empty", b"")]);
        for end in 0..head.length {
            assert_eq!(parse(&text[..end], GET, &mut Vec::new()), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn e4_an_answer_has_one_clear_length() {
        for (fields, want) in [
            (&[][..], true),
            (&[("content-length", "3")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("content-length", "3"), ("content-length", "3")], false),
            (&[("content-length", "3"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(has_clear_length(&headers), want, "{fields:?}");
        }
    }
}
