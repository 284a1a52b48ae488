//! The serving side: a store over HTTP/1.1 with JSON, a watch as lines of JSON.
//!
//! Never decides who may call: whoever binds the socket checks its peers.

pub(crate) mod wire;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::{Stream, StreamExt as _, stream};
use http::StatusCode;

use self::wire::{
    Fault, GrantRequest, KeyRequest, LeaseRequest, Line, PrefixRequest, TxnRequest, WatchRequest,
};
use crate::{Entry, Error, LeaseId, Listing, Store, Txn, Watch};

/// How large a request may be: a full transaction in base64.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often a watch without changes says that it lives.
pub const WATCH_BEAT: Duration = Duration::from_secs(5);

type Directory = State<Arc<dyn Store>>;
type Reply<T> = Result<Json<T>, Refusal>;

struct Refusal(Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code().status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(Fault::from(self.0))).into_response()
    }
}

/// Returns the routes that serve a store to [`crate::RemoteStore`].
pub fn router(store: Arc<dyn Store>) -> Router {
    Router::new()
        .route(wire::GET, post(get))
        .route(wire::LIST, post(list))
        .route(wire::TXN, post(txn))
        .route(wire::WATCH, post(watch))
        .route(wire::GRANT, post(grant))
        .route(wire::KEEP_ALIVE, post(keep_alive))
        .route(wire::REVOKE, post(revoke))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(store)
}

async fn get(State(store): Directory, Json(request): Json<KeyRequest>) -> Reply<Option<Entry>> {
    Ok(Json(store.get(&request.key).await?))
}

async fn list(State(store): Directory, Json(request): Json<PrefixRequest>) -> Reply<Listing> {
    Ok(Json(store.list(&request.prefix).await?))
}

async fn txn(State(store): Directory, Json(request): Json<TxnRequest>) -> Reply<Txn> {
    Ok(Json(store.txn_for(request.purpose, request.compares, request.ops).await?))
}

async fn grant(State(store): Directory, Json(request): Json<GrantRequest>) -> Reply<LeaseId> {
    Ok(Json(store.grant(request.ttl_s).await?))
}

async fn keep_alive(State(store): Directory, Json(request): Json<LeaseRequest>) -> Reply<()> {
    Ok(Json(store.keep_alive(request.lease).await?))
}

async fn revoke(State(store): Directory, Json(request): Json<LeaseRequest>) -> Reply<()> {
    Ok(Json(store.revoke(request.lease).await?))
}

async fn watch(
    State(store): Directory,
    Json(request): Json<WatchRequest>,
) -> Result<Response, Refusal> {
    let watch = store.watch(&request.prefix, request.from).await?;
    let body = Body::from_stream(lines(watch));
    Ok(([(http::header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Turns a watch into lines, with a beat at once (so that the caller knows it began) and whenever
/// nothing happened for a while.
fn lines(watch: Watch) -> impl Stream<Item = Result<Bytes, serde_json::Error>> + Send {
    let beginning = stream::once(async { line(&Line::Beat) });
    beginning.chain(stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        Some(match tokio::time::timeout(WATCH_BEAT, watch.next()).await {
            Err(_) => (line(&Line::Beat), Some(watch)),
            Ok(Some(Ok(event))) => (line(&Line::Event(event)), Some(watch)),
            Ok(Some(Err(error))) => (line(&Line::Fault(error.into())), None),
            Ok(None) => return None,
        })
    }))
}

fn line(line: &Line) -> Result<Bytes, serde_json::Error> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(Bytes::from(text))
}
