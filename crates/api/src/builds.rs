//! Builds: the context goes through to the builder's socket, its lines come back.
//!
//! Never keeps a byte of either. When the caller goes away the builder's request is dropped, and
//! with the answer ends the token with which the build pushes.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use perch_client::{BoxError, Connection, Error, RequestBody, RequestParts, body_of};
use perch_types::build::{
    BUILD_HEADER, BuildRequest, CONTEXT_BYTES_MAX, FORCE_HEADER, STORE_HEADER,
};
use perch_types::error::chain;
use perch_types::image::check_tag;
use perch_types::{ApiError, Code, OrgSlug, Secret};
use tokio::time::{Instant, Sleep};

use crate::body::parse;
use crate::config::Shared;
use crate::logs::LINES_TYPE;
use crate::push_tokens::{PushScope, PushTokens};
use crate::reply::Failure;
use crate::routes::OfApp;

/// The builder's paths.
const BUILD_PATH: &str = "/builder/v1/build";
const BOOTSTRAP_PATH: &str = "/builder/v1/bootstrap";
/// The header that names the app whose image is built.
const APP_HEADER: &str = "perch-build-app";
/// The header with the token that may push it.
const TOKEN_HEADER: &str = "perch-build-token";
/// How long a push token holds: longer than any build may take.
const TOKEN_TTL: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a context may pause while it comes up.
const CONTEXT_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// In so much time spent waiting for the caller, a context has to bring at least
/// [`CONTEXT_WINDOW_BYTES_MIN`]: a trickle would hold a place that others need.
const CONTEXT_WINDOW: Duration = Duration::from_secs(60);
/// See [`CONTEXT_WINDOW`].
const CONTEXT_WINDOW_BYTES_MIN: u64 = 512 * 1024;
/// How long the builder may take for the head of its answer; the context goes up before.
const BUILDER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The largest error of a builder in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;

pub(crate) async fn build(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    request: Request,
) -> Result<Response, Failure> {
    let asked = asked(request.headers())?;
    let socket = builder(&shared)?;
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(BUILD_HEADER), asked);
    headers.insert(HeaderName::from_static(APP_HEADER), header(app.name.as_str())?);
    headers.insert(HeaderName::from_static(STORE_HEADER), header(&app.id)?);
    let scope = PushScope::App { name: app.name.clone(), id: app.id.clone() };
    let revoked_at_end = may_push(&shared, scope, Some(app.org.clone()), &mut headers)?;
    let limit = usize::try_from(CONTEXT_BYTES_MAX).unwrap_or(usize::MAX);
    let context = Limited::new(Paced::new(request.into_body()), limit).boxed_unsync();
    let answer = ask(socket, BUILD_PATH, headers, context).await?;
    Ok(lines(answer, revoked_at_end))
}

pub(crate) async fn bootstrap(
    State(shared): State<Arc<Shared>>,
    asked: HeaderMap,
) -> Result<Response, Failure> {
    let socket = builder(&shared)?;
    let mut headers = HeaderMap::new();
    if let Some(force) = asked.get(FORCE_HEADER) {
        headers.insert(HeaderName::from_static(FORCE_HEADER), force.clone());
    }
    let revoked_at_end = may_push(&shared, PushScope::Base, None, &mut headers)?;
    let answer = ask(socket, BOOTSTRAP_PATH, headers, body_of(Bytes::new())).await?;
    Ok(lines(answer, revoked_at_end))
}

/// Makes a push token and puts it into the headers of a builder's request; it ends with the value
/// that is returned.
fn may_push(
    shared: &Shared,
    scope: PushScope,
    org: Option<OrgSlug>,
    headers: &mut HeaderMap,
) -> Result<Revoke, Failure> {
    let token = shared.push_tokens.mint(scope, org, TOKEN_TTL)?;
    let revoke = Revoke { tokens: shared.push_tokens.clone(), token: token.clone() };
    let mut value = header(token.expose())?;
    value.set_sensitive(true);
    headers.insert(HeaderName::from_static(TOKEN_HEADER), value);
    Ok(revoke)
}

fn builder(shared: &Shared) -> Result<&Path, Failure> {
    shared.builder_socket.as_deref().ok_or_else(no_builder)
}

fn no_builder() -> Failure {
    Failure::new(Code::Unavailable, "no builder runs on this platform")
        .with_hint("look at the server's log, or build the image elsewhere and push it")
}

/// Returns the build's header once it was understood.
fn asked(headers: &HeaderMap) -> Result<HeaderValue, Failure> {
    let missing =
        || Failure::new(Code::InvalidRequest, format!("the header `{BUILD_HEADER}` is missing"));
    let value = headers.get(BUILD_HEADER).ok_or_else(missing)?;
    let build: BuildRequest = parse(value.as_bytes())?;
    check_tag(&build.tag)
        .map_err(|error| Failure::new(Code::InvalidValue, format!("tag: {error}")))?;
    Ok(value.clone())
}

fn header(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text)
        .map_err(|_| Failure::new(Code::Internal, "the platform has a fault"))
}

async fn ask(
    socket: &Path,
    path: &str,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<http::Response<Incoming>, Failure> {
    let mut parts = RequestParts::new(Method::POST, path.to_owned());
    parts.headers.extend(headers);
    parts.body = body;
    parts.headers_timeout = BUILDER_TIMEOUT;
    let answer = Connection::unix(socket).forward(parts).await.map_err(|error| {
        tracing::warn!(error = chain(&error), "builder did not answer");
        match error {
            Error::Unreachable { .. } => no_builder(),
            other => other.to_api_error().into(),
        }
    })?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect().await;
    let error = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    Err(error.map_or_else(
        || {
            tracing::error!(%status, "builder answered without an error");
            Failure::new(Code::Internal, "the platform has a fault")
        },
        |error: ApiError| error.into(),
    ))
}

fn lines(answer: http::Response<Incoming>, at_end: Revoke) -> Response {
    let body = answer.into_body().map_frame(move |frame: Frame<Bytes>| {
        // Held until the last frame is gone, or the caller is.
        let _ = &at_end;
        frame
    });
    ([(CONTENT_TYPE, LINES_TYPE)], Body::new(body)).into_response()
}

/// Ends a push token when it is dropped.
struct Revoke {
    tokens: PushTokens,
    token: Secret,
}

impl Drop for Revoke {
    fn drop(&mut self) {
        self.tokens.revoke(&self.token);
    }
}

/// How much came in how much waiting.
#[derive(Debug, Default)]
struct Rate {
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// Counts what came after a wait; returns whether it was enough so far.
    fn count(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited = self.waited.saturating_add(waited);
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if self.waited < CONTEXT_WINDOW {
            return true;
        }
        let enough = self.bytes >= CONTEXT_WINDOW_BYTES_MIN;
        *self = Self::default();
        enough
    }
}

/// A body that may not pause for too long, nor come too slowly.
struct Paced {
    body: Body,
    rate: Rate,
    // Only the caller's slowness counts, not the time in which nobody asked for more.
    waiting_since: Option<Instant>,
    deadline: Pin<Box<Sleep>>,
}

#[derive(Debug, thiserror::Error)]
#[error("nothing of the context came for {} s", CONTEXT_IDLE_TIMEOUT.as_secs())]
struct Paused;

#[derive(Debug, thiserror::Error)]
#[error(
    "less than {CONTEXT_WINDOW_BYTES_MIN} bytes of the context came in {} s",
    CONTEXT_WINDOW.as_secs()
)]
struct Slow;

impl Paced {
    fn new(body: Body) -> Self {
        Self {
            body,
            rate: Rate::default(),
            waiting_since: None,
            deadline: Box::pin(tokio::time::sleep(CONTEXT_IDLE_TIMEOUT)),
        }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.deadline.as_mut().reset(Instant::now() + CONTEXT_IDLE_TIMEOUT);
            let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            if let Some(Ok(frame)) = &frame {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if !self.rate.count(waited, bytes) {
                    return Poll::Ready(Some(Err(Box::new(Slow))));
                }
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Box::new(Paused)))),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_too_slow_and_time_that_nobody_waited_is_not_counted() {
        let mut rate = Rate::default();
        assert!(rate.count(Duration::from_secs(59), 1));
        assert!(!rate.count(Duration::from_secs(59), 1));
        let half = usize::try_from(CONTEXT_WINDOW_BYTES_MIN / 2).unwrap();
        let mut rate = Rate::default();
        for _ in 0..10 {
            assert!(rate.count(Duration::from_secs(30), half));
        }
        assert!((0..1000).all(|_| rate.count(Duration::ZERO, 1)));
    }
}
