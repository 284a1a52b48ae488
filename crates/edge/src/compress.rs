//! Compression of answers that the app left as they are (contract 4.1, `compress`).
//!
//! Never touches what is encoded already, a part of something, a stream of events, or what is too
//! small to gain; and never holds back what the app has sent: a pause of the app passes on.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, VARY,
};
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame};

use crate::body::{BodyError, ReplyBody};

/// The least that is worth it: what is smaller fits a packet as it is.
const BYTES_MIN: u64 = 1024;
/// How much is compressed at once, before others have their turn.
const PIECE_BYTES: usize = 32 * 1024;
/// How many answers a loop compresses at once; each has a window of its own. More pass as they are.
const PLACES_MAX: usize = 256;
/// How hard gzip tries, of 9.
const GZIP_LEVEL: u32 = 5;
/// How hard brotli tries, of 11; the logarithm of its window; its buffer.
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW: u32 = 18;
const BROTLI_BUFFER_BYTES: usize = 4096;

/// Types beside `text/` that gain.
const TYPES: [&str; 14] = [
    "application/javascript",
    "application/json",
    "application/manifest+json",
    "application/rss+xml",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-javascript",
    "application/x-ndjson",
    "application/xhtml+xml",
    "application/xml",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/svg+xml",
];
/// Digests of a body that is another one afterwards.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// How an answer is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Brotli,
    Gzip,
}

impl Coding {
    const fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// What a client said that it takes; read before the request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Accepted(Option<Coding>);

/// Returns what the client likes best of what there is (RFC 9110, section 12.5.3).
pub(crate) fn accepted(headers: &HeaderMap) -> Accepted {
    let (mut brotli, mut gzip, mut any) = (None, None, None);
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for word in values.flat_map(|value| value.split(',')) {
        let mut parts = word.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(weight).unwrap_or(1000);
        if name.eq_ignore_ascii_case("br") {
            brotli = Some(weight);
        } else if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(weight);
        } else if name == "*" {
            any = Some(weight);
        }
    }
    let (brotli, gzip) = (brotli.or(any).unwrap_or(0), gzip.or(any).unwrap_or(0));
    Accepted(match (brotli, gzip) {
        (0, 0) => None,
        (brotli, gzip) if brotli >= gzip => Some(Coding::Brotli),
        _ => Some(Coding::Gzip),
    })
}

/// Returns a weight in thousandths; one that is none counts as a refusal.
fn weight(parameter: &str) -> Option<u32> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value = value.trim();
    let (whole, rest) = value.split_once('.').unwrap_or((value, ""));
    let digits = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    Some(match whole {
        "1" if digits => 1000,
        "0" if digits => format!("{rest:0<3}").parse().unwrap_or(0),
        _ => 0,
    })
}

/// Returns whether an answer gains by compression, whoever gets it.
fn gains(status: StatusCode, headers: &HeaderMap) -> bool {
    let has_body = !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_MODIFIED
        );
    if !has_body || headers.contains_key(CONTENT_ENCODING) || headers.contains_key(CONTENT_RANGE) {
        return false;
    }
    if words(headers, &CACHE_CONTROL).any(|word| word.eq_ignore_ascii_case("no-transform")) {
        return false;
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.is_some_and(|length| length.parse::<u64>().is_ok_and(|length| length < BYTES_MIN)) {
        return false;
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // Events have to come one by one, whole; a compressed stream of them is at its buffers' mercy.
    kind != "text/event-stream"
        && (kind.starts_with("text/")
            || TYPES.contains(&kind.as_str())
            || kind.ends_with("+json")
            || kind.ends_with("+xml"))
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Answers that are being compressed in one loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Rc<Cell<usize>>);

#[derive(Debug)]
struct Place(Rc<Cell<usize>>);

impl Places {
    fn take(&self) -> Option<Place> {
        let taken = self.0.get();
        (taken < PLACES_MAX).then(|| {
            self.0.set(taken + 1);
            Place(Rc::clone(&self.0))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Compresses an answer if it gains and the client takes it.
pub(crate) fn answer(
    response: Response<ReplyBody>,
    method: &Method,
    accepted: Accepted,
    places: &Places,
) -> Response<ReplyBody> {
    if !gains(response.status(), response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // It would have been another one for another client, also when this one gets it as it is.
    vary(&mut parts.headers);
    let place = if *method == Method::HEAD { None } else { places.take() };
    let (Some(coding), Some(place)) = (accepted.0, place) else {
        return Response::from_parts(parts, body);
    };
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(ACCEPT_RANGES);
    for name in &DIGESTS {
        parts.headers.remove(name);
    }
    weaken(&mut parts.headers);
    let body = Compressed::new(body, coding, place);
    Response::from_parts(parts, ReplyBody::Compressed(Box::new(body)))
}

fn vary(headers: &mut HeaderMap) {
    let says = |word: &str| word == "*" || word.eq_ignore_ascii_case("accept-encoding");
    if !words(headers, &VARY).any(says) {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Makes a tag weak: the bytes are other ones now (RFC 9110, section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let weak = headers
        .get(ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""))
        .and_then(|tag| HeaderValue::from_bytes(&[b"W/".as_slice(), tag.as_bytes()].concat()).ok());
    if let Some(weak) = weak {
        headers.insert(ETAG, weak);
    }
}

enum Encoder {
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Brotli => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER_BYTES,
                BROTLI_QUALITY,
                BROTLI_WINDOW,
            ))),
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Brotli(writer) => writer.write_all(bytes),
            Self::Gzip(writer) => writer.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Brotli(writer) => writer.flush(),
            Self::Gzip(writer) => writer.flush(),
        }
    }

    /// Takes what has come out so far.
    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(match self {
            Self::Brotli(writer) => writer.get_mut(),
            Self::Gzip(writer) => writer.get_mut(),
        }))
    }

    fn finish(self) -> io::Result<Bytes> {
        match self {
            Self::Brotli(writer) => Ok(Bytes::from(writer.into_inner())),
            Self::Gzip(writer) => writer.finish().map(Bytes::from),
        }
    }
}

/// An answer that is compressed on its way.
pub(crate) struct Compressed {
    inner: ReplyBody,
    /// Nothing once the end was written.
    encoder: Option<Encoder>,
    /// What came and was not compressed yet.
    rest: Bytes,
    /// Whether the encoder holds something back.
    holds: bool,
    /// What comes behind the end.
    trailers: Option<HeaderMap>,
    _place: Place,
}

impl std::fmt::Debug for Compressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Compressed {
    fn new(inner: ReplyBody, coding: Coding, place: Place) -> Self {
        Self {
            inner,
            encoder: Some(Encoder::new(coding)),
            rest: Bytes::new(),
            holds: false,
            trailers: None,
            _place: place,
        }
    }

    pub(crate) const fn is_over(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Polled {
        loop {
            let Some(encoder) = &mut self.encoder else {
                let trailers = self.trailers.take();
                return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))));
            };
            if !self.rest.is_empty() {
                let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
                if let Err(error) = encoder.write(&piece) {
                    return Poll::Ready(Some(Err(BodyError::Compress(error))));
                }
                self.holds = true;
                let out = encoder.take();
                if !out.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(out))));
                }
                continue;
            }
            match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        return self.end();
                    }
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return self.end(),
                Poll::Pending if self.holds => {
                    self.holds = false;
                    if let Err(error) = encoder.flush() {
                        return Poll::Ready(Some(Err(BodyError::Compress(error))));
                    }
                    let out = encoder.take();
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn end(&mut self) -> Polled {
        let Some(encoder) = self.encoder.take() else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(encoder.finish().map(Frame::data).map_err(BodyError::Compress)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::task::Waker;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn the_client_chooses() {
        use Coding::{Brotli, Gzip};
        for (said, want) in [
            ("gzip, deflate, br", Some(Brotli)),
            ("gzip", Some(Gzip)),
            ("GZIP;q=0.5", Some(Gzip)),
            ("br;q=0.4, gzip;q=0.5", Some(Gzip)),
            ("br;q=0, gzip;q=0", None),
            ("br;q=0.000, gzip;q=1.0", Some(Gzip)),
            ("*", Some(Brotli)),
            ("br;q=0, *;q=0.1", Some(Gzip)),
            ("identity", None),
            ("deflate, zstd", None),
            ("gzip;q=2", None),
            ("gzip;q=x", None),
            ("gzip;level=9;q=0.001", Some(Gzip)),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(said));
            assert_eq!(accepted(&headers), Accepted(want), "{said}");
        }
        assert_eq!(accepted(&HeaderMap::new()), Accepted(None));
    }

    #[test]
    fn what_gains_is_compressed_and_the_rest_left() {
        let html = ("content-type", "Text/HTML; charset=utf-8");
        for (status, fields, want) in [
            (200, &[html][..], true),
            (404, &[html], true),
            (200, &[html, ("content-length", "1024")], true),
            (200, &[html, ("content-length", "1023")], false),
            (200, &[("content-type", "application/problem+json")], true),
            (200, &[("content-type", "image/svg+xml")], true),
            (200, &[("content-type", "image/png")], false),
            (200, &[("content-type", "application/grpc")], false),
            (200, &[("content-type", "text/event-stream")], false),
            (200, &[], false),
            (200, &[html, ("content-encoding", "zstd")], false),
            (200, &[html, ("content-encoding", "identity")], false),
            (206, &[html], false),
            (200, &[html, ("content-range", "bytes 0-1/2")], false),
            (200, &[html, ("cache-control", "public, No-Transform")], false),
            (204, &[html], false),
            (304, &[html], false),
            (101, &[html], false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(gains(status, &map(fields)), want, "{status} {fields:?}");
        }
    }

    fn response(text: &str) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::page(text.to_owned()));
        *response.headers_mut() = map(&[
            ("content-type", "text/plain"),
            ("etag", "\"a\""),
            ("accept-ranges", "bytes"),
            ("digest", "x"),
        ]);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        response
    }

    fn read(body: &mut ReplyBody) -> Vec<u8> {
        let mut context = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(Some(frame)) = Pin::new(&mut *body).poll_frame(&mut context) {
            all.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert!(body.is_end_stream());
        all
    }

    fn plain(bytes: &[u8], coding: Coding) -> String {
        let mut text = String::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_string(&mut text),
            Coding::Brotli => {
                brotli::Decompressor::new(bytes, BROTLI_BUFFER_BYTES).read_to_string(&mut text)
            }
        }
        .unwrap();
        text
    }

    #[test]
    fn an_answer_is_the_same_afterwards_and_says_what_it_is() {
        let text = "all work and no play makes jack a dull boy. ".repeat(10_000);
        let places = Places::default();
        for coding in [Coding::Brotli, Coding::Gzip] {
            let accepted = Accepted(Some(coding));
            let mut packed = answer(response(&text), &Method::GET, accepted, &places);
            let headers = packed.headers().clone();
            let get = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(get("content-encoding"), Some(coding.name()));
            assert_eq!(get("vary"), Some("accept-encoding"));
            assert_eq!(get("etag"), Some("W/\"a\""));
            for gone in ["content-length", "accept-ranges", "digest"] {
                assert_eq!(get(gone), None, "{gone}");
            }
            assert_eq!(places.0.get(), 1);
            let bytes = read(packed.body_mut());
            assert!(bytes.len() < text.len() / 10, "{}", bytes.len());
            assert_eq!(plain(&bytes, coding), text);
            drop(packed);
            assert_eq!(places.0.get(), 0);
        }
    }

    #[test]
    fn an_answer_that_passes_as_it_is_says_that_it_varies() {
        let text = "x".repeat(4096);
        let (get, head) = (Method::GET, Method::HEAD);
        let full = Places(Rc::new(Cell::new(PLACES_MAX)));
        let places = Places::default();
        let gzip = Accepted(Some(Coding::Gzip));
        for (method, accepted, places) in
            [(&get, Accepted(None), &places), (&head, gzip, &places), (&get, gzip, &full)]
        {
            let mut passed = answer(response(&text), method, accepted, places);
            assert_eq!(passed.headers()[VARY], "accept-encoding");
            assert_eq!(passed.headers()[CONTENT_LENGTH], "4096");
            assert_eq!(read(passed.body_mut()), text.as_bytes());
        }
        let mut varied = response(&text);
        varied.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding, Origin"));
        let varied = answer(varied, &get, gzip, &places);
        assert_eq!(varied.headers().get_all(VARY).iter().count(), 1);
    }
}
