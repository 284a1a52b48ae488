//! Requests over pooled connections to one server.
//!
//! Never sends a request twice once a byte of it was written.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use perch_types::error::ERROR_TEXT_BYTES_MAX;
use perch_types::exec::ExecSpec;
use perch_types::{ApiError, Code, exec, host};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::address::Address;
use crate::connector::{ConnectError, Connector};
use crate::error::{BoxError, Error};
use crate::lines::Lines;
use crate::session::Session;

/// How long the head of an ordinary answer may take.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the head of a build's answer may take: the whole context goes up before.
pub const BUILD_HEADERS_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How long the body of an answer may take that is read as a whole.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer that is read as a whole, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Idle connections that are kept.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// How long an idle connection is kept; shorter than servers keep theirs, so that a request does
/// not meet a connection that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A request, but for the server.
#[derive(Debug)]
pub struct RequestParts {
    /// The method.
    pub method: Method,
    /// The path with the query.
    pub path: String,
    /// Headers beside those of the connection.
    pub headers: HeaderMap,
    /// The body.
    pub body: RequestBody,
    /// How long the head of the answer may take, the sending of the body included.
    pub headers_timeout: Duration,
}

/// A server that can be asked. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Connection {
    client: Client<Connector, RequestBody>,
    base: String,
    url: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Returns a body of bytes.
#[must_use]
pub fn body_of(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The answer's status is not one that was agreed.
#[derive(Debug, thiserror::Error)]
#[error("unexpected status {0}")]
struct UnexpectedStatus(StatusCode);

/// The head of the answer did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
struct NoAnswer(Duration);

impl Connection {
    /// Makes a connection to an address; nothing is opened before the first request.
    ///
    /// # Errors
    /// When the address' host cannot be the name of a TLS server.
    pub fn new(address: &Address) -> Result<Self, Error> {
        let connector = Connector::new(address.clone())
            .map_err(|source| Error::Tls { url: address.url(), source: Box::new(source) })?;
        Ok(Self::with(connector, address))
    }

    /// Makes a connection to a Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        Self::with(Connector::unix(path.clone()), &Address::Unix(path))
    }

    fn with(connector: Connector, address: &Address) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        // TLS is the connector's; the pool only needs a stable key.
        Self { client, base: format!("http://{}", address.authority()), url: address.url() }
    }

    /// Sends a request and returns whatever comes back, errors of the server included.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn forward(&self, parts: RequestParts) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder()
            .method(parts.method)
            .uri(format!("{}{}", self.base, parts.path))
            .body(parts.body)
            .map_err(|source| Error::Request { url: self.url.clone(), source: source.into() })?;
        *request.headers_mut() = parts.headers;
        let agent = HeaderValue::from_static(concat!("perch/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(USER_AGENT).or_insert(agent);
        let url = format!("{}{}", self.url, without_query(&parts.path));
        match tokio::time::timeout(parts.headers_timeout, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(self.broken(url, source)),
            Err(_) => {
                let source = Box::new(NoAnswer(parts.headers_timeout));
                Err(Error::Interrupted { url, source })
            }
        }
    }

    /// Sends a request; an answer above 299 is an error, but for 101.
    pub(crate) async fn send(&self, parts: RequestParts) -> Result<Response<Incoming>, Error> {
        let url = format!("{}{}", self.url, without_query(&parts.path));
        let response = self.forward(parts).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = read_whole(response.into_body(), &url).await?;
        let error = serde_json::from_slice(&body)
            .map_err(|_| Error::Protocol { url, source: Box::new(UnexpectedStatus(status)) })
            .map(cut)?;
        Err(Error::Api { error: Box::new(error), status: status.as_u16() })
    }

    /// Sends a request and reads its answer as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, parts: RequestParts) -> Result<T, Error> {
        let url = format!("{}{}", self.url, without_query(&parts.path));
        let response = self.send(parts).await?;
        let body = read_whole(response.into_body(), &url).await?;
        serde_json::from_slice(&body)
            .map_err(|source| Error::Protocol { url, source: Box::new(source) })
    }

    /// Sends a request whose answer says nothing.
    pub(crate) async fn done(&self, parts: RequestParts) -> Result<(), Error> {
        let url = format!("{}{}", self.url, without_query(&parts.path));
        let response = self.send(parts).await?;
        read_whole(response.into_body(), &url).await.map(drop)
    }

    /// Sends a request whose answer comes line by line.
    pub(crate) async fn lines<T: DeserializeOwned>(
        &self,
        parts: RequestParts,
        limit_bytes: usize,
        idle_timeout: Option<Duration>,
    ) -> Result<Lines<T>, Error> {
        let url = format!("{}{}", self.url, without_query(&parts.path));
        let response = self.send(parts).await?;
        Ok(Lines::new(response.into_body(), url, limit_bytes, idle_timeout))
    }

    /// Sends a request that turns the connection into an exec session.
    pub(crate) async fn session(
        &self,
        mut parts: RequestParts,
        spec: &ExecSpec,
    ) -> Result<Session, Error> {
        let url = format!("{}{}", self.url, without_query(&parts.path));
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, HeaderValue::from_static(exec::UPGRADE));
        parts
            .headers
            .insert(HeaderName::from_static(host::EXEC_HEADER), json_header(spec, &self.url)?);
        let response = self.send(parts).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let source = Box::new(UnexpectedStatus(response.status()));
            return Err(Error::Protocol { url, source });
        }
        match hyper::upgrade::on(response).await {
            Ok(upgraded) => Ok(Session::new(upgraded, url)),
            Err(source) => Err(Error::Interrupted { url, source: Box::new(source) }),
        }
    }

    fn broken(&self, url: String, error: hyper_util::client::legacy::Error) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(connect) = current.downcast_ref::<ConnectError>() {
                let (url, tls) = (self.url.clone(), matches!(connect, ConnectError::Tls(_)));
                let source = without_wrapper(error);
                return if tls {
                    Error::Tls { url, source }
                } else {
                    Error::Unreachable { url, source }
                };
            }
            cause = current.source();
        }
        Error::Interrupted { url, source: Box::new(error) }
    }
}

/// Takes off hyper's "client error (Connect)", which says nothing that the variant does not.
fn without_wrapper(error: hyper_util::client::legacy::Error) -> BoxError {
    Box::new(Unwrapped(error))
}

#[derive(Debug)]
struct Unwrapped(hyper_util::client::legacy::Error);

impl Unwrapped {
    fn inner(&self) -> &(dyn std::error::Error + 'static) {
        std::error::Error::source(&self.0).unwrap_or(&self.0)
    }
}

impl fmt::Display for Unwrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.inner(), f)
    }
}

impl std::error::Error for Unwrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner().source()
    }
}

impl RequestParts {
    /// Makes a request without a body and with the ordinary timeout.
    #[must_use]
    pub fn new(method: Method, path: String) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let body = body_of(Bytes::new());
        Self { method, path, headers, body, headers_timeout: HEADERS_TIMEOUT }
    }

    /// Adds a body of JSON.
    pub(crate) fn with_json<T: Serialize>(mut self, value: &T) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(value).map_err(|source| Error::Request {
            url: self.path.clone(),
            source: Box::new(source),
        })?;
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = body_of(bytes);
        Ok(self)
    }

    /// Adds one parameter to the query.
    pub(crate) fn with_query(mut self, name: &str, value: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        percent_encode(&mut self.path, name);
        self.path.push('=');
        percent_encode(&mut self.path, value);
        self
    }
}

/// Returns a value as JSON for a header: ASCII only.
pub(crate) fn json_header<T: Serialize>(value: &T, url: &str) -> Result<HeaderValue, Error> {
    let request = |source: BoxError| Error::Request { url: url.to_owned(), source };
    let json = serde_json::to_string(value).map_err(|source| request(source.into()))?;
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() && character != '\u{7f}' {
            ascii.push(character);
        } else {
            // Only inside of JSON's strings, where an escape means the same.
            let mut units = [0; 2];
            let escape = |unit: &mut u16| format!("\\u{unit:04x}");
            ascii.extend(character.encode_utf16(&mut units).iter_mut().map(escape));
        }
    }
    HeaderValue::from_str(&ascii).map_err(|source| request(source.into()))
}

pub(crate) fn percent_encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                for nibble in [byte >> 4, byte & 15] {
                    let digit = char::from_digit(nibble.into(), 16).unwrap_or('0');
                    out.push(digit.to_ascii_uppercase());
                }
            }
        }
    }
}

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// Reads a body whole, within the limits of size and time.
async fn read_whole(body: Incoming, url: &str) -> Result<Bytes, Error> {
    let interrupted = |source: BoxError| Error::Interrupted { url: url.to_owned(), source };
    let collected = Limited::new(body, ANSWER_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, collected).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(source)) if source.is::<LengthLimitError>() => {
            Err(Error::Protocol { url: url.to_owned(), source })
        }
        Ok(Err(source)) => Err(interrupted(source)),
        Err(_) => Err(interrupted(Box::new(NoAnswer(BODY_TIMEOUT)))),
    }
}

/// Cuts an error's text to the limit that was agreed.
fn cut(mut error: ApiError) -> ApiError {
    if error.error.len() > ERROR_TEXT_BYTES_MAX {
        let mut end = ERROR_TEXT_BYTES_MAX;
        while !error.error.is_char_boundary(end) {
            end -= 1;
        }
        error.error.truncate(end);
    }
    error
}

impl Error {
    /// Makes the API error that a fault of a call to another part of the platform is to a client.
    #[must_use]
    pub fn to_api_error(&self) -> ApiError {
        match self {
            Self::Api { error, .. } => error.as_ref().clone(),
            Self::Unreachable { .. } | Self::Tls { .. } => {
                ApiError::new(Code::Unavailable, "a part of the platform does not answer")
                    .with_hint("try again in a moment")
            }
            Self::Interrupted { .. } => {
                ApiError::new(Code::Unavailable, "a part of the platform did not finish its answer")
                    .with_hint("look whether it was carried out, then try again")
            }
            Self::Protocol { .. } | Self::Request { .. } => ApiError::new(
                Code::Internal,
                "two parts of the platform do not understand each other",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        let parts = RequestParts::new(Method::GET, "/v1/apps".to_owned())
            .with_query("metadata.a b", "1&2=ä")
            .with_query("state", "started,stopped");
        assert_eq!(parts.path, "/v1/apps?metadata.a%20b=1%262%3D%C3%A4&state=started,stopped");
    }

    #[test]
    fn a_header_of_json_is_ascii_and_means_the_same() {
        let spec = ExecSpec { command: vec!["é𝄞\u{7f}\n".to_owned()], ..ExecSpec::default() };
        let header = json_header(&spec, "").unwrap();
        assert!(header.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)));
        assert_eq!(serde_json::from_slice::<ExecSpec>(header.as_bytes()).unwrap(), spec);
    }
}
