//! The HTTP client with which issuers are asked: limits on time and size, and how long to wait when
//! one has enough.
//!
//! Never follows a redirect, and never speaks without TLS.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use perch_types::error::chain;
use reqwest::redirect::Policy;

use crate::error::Error;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Why an issuer was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It cannot be reached, or broke off.
    #[error("ask the issuer")]
    Ask(#[source] reqwest::Error),
    /// The answer is too large.
    #[error("read the issuer's answer: it is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    /// The answer is of another kind.
    #[error("read the issuer's answer: {0}")]
    Odd(String),
}

/// The client. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Net {
    client: reqwest::Client,
    /// For how long the issuer that had enough last wants nothing.
    pause: Arc<Mutex<Option<Duration>>>,
}

impl Net {
    /// Makes a client that trusts who the system trusts, or only the certificates in `roots`.
    pub(crate) fn new(roots: Option<&str>) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .user_agent(concat!("perch/", env!("CARGO_PKG_VERSION")));
        if let Some(roots) = roots {
            let roots = reqwest::Certificate::from_pem_bundle(roots.as_bytes())
                .map_err(|error| Error::Trust(chain(&error)))?;
            if roots.is_empty() {
                return Err(Error::Trust("there is no certificate in the file".to_owned()));
            }
            builder = builder.tls_certs_only(roots);
        }
        let client = builder.build().map_err(|error| Error::Trust(chain(&error)))?;
        Ok(Self { client, pause: Arc::default() })
    }

    /// Returns for how long an issuer that just had enough wants nothing, if it said that.
    pub(crate) fn take_pause(&self) -> Option<Duration> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn send(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Fault> {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let request = Request::from_parts(parts, body);
        self.execute(reqwest::Request::try_from(request).map_err(Fault::Ask)?).await
    }

    async fn execute(&self, request: reqwest::Request) -> Result<Response<Full<Bytes>>, Fault> {
        let asked = |error: reqwest::Error| Fault::Ask(error.without_url());
        let mut response = self.client.execute(request).await.map_err(asked)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(asked)? {
            if bytes.len().saturating_add(chunk.len()) > ANSWER_BYTES_MAX {
                return Err(Fault::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
            *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = retry_after(&headers);
        }
        let mut answer = Response::new(Full::new(Bytes::from(bytes)));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// Gets JSON, and after which pause it may be asked for again.
    pub(crate) async fn json(
        &self,
        url: &str,
    ) -> Result<(serde_json::Value, Option<Duration>), Fault> {
        let request = self.client.get(url).build().map_err(Fault::Ask)?;
        let answer = self.execute(request).await?;
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() {
            return Err(Fault::Odd(format!("its status is {}", parts.status)));
        }
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let value = serde_json::from_slice(&body).map_err(|error| Fault::Odd(error.to_string()))?;
        Ok((value, retry_after(&parts.headers)))
    }
}

impl HttpClient for Net {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let net = self.clone();
        Box::pin(async move {
            match net.send(request).await {
                Ok(answer) => Ok(BytesResponse::from(answer)),
                Err(fault) => Err(instant_acme::Error::Other(Box::new(fault))),
            }
        })
    }
}

/// Reads for how long to wait; a date instead of seconds is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// A pause is the number that was said, and a moment can be that much later: for the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(bytes) else {
        return;
    };
    let said = value.to_str().unwrap_or_default().trim().to_owned();
    let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
    let Some(pause) = retry_after(&headers) else {
        return;
    };
    let digits = said.strip_prefix('+').unwrap_or(&said).trim_start_matches('0');
    assert_eq!(digits, pause.as_secs().to_string().trim_start_matches('0'), "{said:?}");
    let later = perch_types::Timestamp::UNIX_EPOCH.plus(pause);
    assert!(later >= perch_types::Timestamp::UNIX_EPOCH, "{later}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_in_seconds_only() {
        for (text, want) in [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("-1", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers), want.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        for text in ["", "nonsense"] {
            Net::new(Some(text)).map(drop).unwrap_err();
        }
    }
}
