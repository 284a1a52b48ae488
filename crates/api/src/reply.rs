//! Answers: errors in the contract's shape, request ids, the access log.
//!
//! Never shows the inside of a fault: that goes to the log under the request's id.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use perch_types::endpoint::REQUEST_ID_HEADER;
use perch_types::error::chain;
use perch_types::{ApiError, Code};
use serde_json::Value;

use crate::config::Shared;
use crate::error::Error;
use crate::names;

/// An error as a client gets it.
#[derive(Debug)]
pub(crate) struct Failure(Box<ApiError>, RetryAfter);

/// Seconds after which a request that came too often may come again.
#[derive(Debug, Clone, Copy, Default)]
struct RetryAfter(Option<u64>);

/// Characters of a name that is not known, and names that are, that an error shows.
const NAMED_CHARS_MAX: usize = 80;
const KNOWN_MAX: usize = 20;

/// What [`RetryAfter`] is when nobody said it.
const RETRY_AFTER_S_DEFAULT: u64 = 5;

impl Failure {
    /// Makes a failure of a code and its text.
    pub(crate) fn new(code: Code, error: impl Into<String>) -> Self {
        Self(Box::new(ApiError::new(code, error)), RetryAfter::default())
    }

    /// Makes the failure of a body that names something that the app has not, at `path`: a thing
    /// of some kind, by its name or id. What it has is told.
    pub(crate) fn unknown_reference(
        path: &str,
        (kind, named): (&str, &str),
        known: &[String],
    ) -> Self {
        let shown: String = named.chars().take(NAMED_CHARS_MAX).collect();
        let list: Vec<&str> = known.iter().take(KNOWN_MAX).map(String::as_str).collect();
        let list = list.join(", ");
        let allowed = match known.len().saturating_sub(KNOWN_MAX) {
            _ if known.is_empty() => "it has none".to_owned(),
            0 => format!("allowed are {list}"),
            more => format!("allowed are {list} and {more} more"),
        };
        let text = format!("{path}: the app has no {kind} `{shown}`; {allowed}");
        Self::new(Code::InvalidValue, text)
    }

    /// Makes the failure of a request that came too often.
    pub(crate) fn too_often(seconds: u64) -> Self {
        let text = format!("too many requests of this kind for one thing; {seconds} s are enough");
        let error = ApiError::new(Code::RateLimited, text);
        Self(Box::new(error), RetryAfter(Some(seconds)))
    }

    /// Adds what to do about it.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self(Box::new(self.0.with_hint(hint)), self.1)
    }

    /// Returns the code.
    pub(crate) const fn code(&self) -> Code {
        self.0.code
    }

    /// Returns the error.
    #[cfg(test)]
    pub(crate) fn error(&self) -> &ApiError {
        &self.0
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(Box::new(error), RetryAfter::default())
    }
}

impl From<perch_client::Error> for Failure {
    fn from(error: perch_client::Error) -> Self {
        if error.code().is_none() {
            tracing::warn!(error = chain(&error), "host did not answer as it should");
        }
        Self::from(error.to_api_error())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = error.code();
        match code {
            Code::Conflict => Self::new(code, "somebody else changed it in between")
                .with_hint("read it again, then try again"),
            Code::RateLimited => Self::new(code, error.to_string()),
            Code::NoSpace => Self::new(code, "the platform's disk is full"),
            _ => {
                tracing::error!(error = chain(&error), "request not carried out");
                match code {
                    Code::Unavailable => Self::new(code, "the directory does not answer")
                        .with_hint("try again in a moment"),
                    _ => Self::new(Code::Internal, "the platform has a fault")
                        .with_hint("the server's log has more under the request's id"),
                }
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        let mut response = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        if self.0.code == Code::RateLimited {
            let seconds = self.1.0.unwrap_or(RETRY_AFTER_S_DEFAULT);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        // The body is written by `finish`, which knows the request's id.
        response.extensions_mut().insert(Arc::new(*self.0));
        response
    }
}

/// Returns the body of an error. Clients look for the text of one about a lease under `message`
/// (contract 1.1).
fn body(error: &ApiError) -> Vec<u8> {
    let mut body = serde_json::to_value(error).unwrap_or_default();
    if matches!(error.code, Code::LeaseHeld | Code::LeaseNotFound | Code::LeaseLost) {
        body["message"] = Value::from(error.error.as_str());
    }
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The outermost layer: gives each request an id, writes the body of errors, logs the access.
pub(crate) async fn finish(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = names::ulid(shared.clock.now());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        let mut error = Arc::unwrap_or_clone(error);
        error.request = Some(id.clone());
        *response.body_mut() = body(&error).into();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static(REQUEST_ID_HEADER), value);
    }
    tracing::info!(
        request = id,
        %method,
        route = route.as_ref().map_or("", MatchedPath::as_str),
        status = response.status().as_u16(),
        head_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request answered"
    );
    response
}

/// Answers a path that does not exist.
pub(crate) async fn no_such_path() -> Failure {
    Failure::new(Code::NotFound, "there is no such path")
}

/// Answers a method that the path does not have.
pub(crate) async fn no_such_method() -> Failure {
    Failure::new(Code::MethodNotAllowed, "the path does not have this method")
}
