//! The serving side: one router for the api's socket, one for the host's.
//!
//! Never decides who may connect: whoever binds the sockets checks their peers. What only a host
//! may ask is not on the api's.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use perch_types::keys::{
    AppRef, DIGESTS, Digests, DigestsRequest, FOR_HOST, HostKey, HostKeyRequest, MAKE,
    MAKE_SECRET_KEY, MadeSecretKey, MakeSecretKey, PREFIX, ROTATE, Rotated, SecretKeyUsed,
    USE_SECRET_KEY, UseSecretKey,
};
use perch_types::secrets::AppKey;
use perch_types::{ApiError, Code, HostId};

use crate::keys::Keys;

/// The largest body in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

type Body<T> = Result<Json<T>, JsonRejection>;
type Reply<T> = Result<Json<T>, Refusal>;

struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(ApiError::new(Code::InvalidRequest, rejection.body_text()))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(self.0)).into_response()
    }
}

/// Returns the routes of the api's socket.
pub fn for_api(keys: Keys) -> Router {
    Router::new()
        .route(&format!("{PREFIX}{MAKE}"), post(make))
        .route(&format!("{PREFIX}{DIGESTS}"), post(digests))
        .route(&format!("{PREFIX}{MAKE_SECRET_KEY}"), post(make_secret_key))
        .route(&format!("{PREFIX}{USE_SECRET_KEY}"), post(use_secret_key))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(keys)
}

/// Returns the routes of the socket of one host: whoever connects there is that host.
pub fn for_host(keys: Keys, host: HostId) -> Router {
    Router::new()
        .route(&format!("{PREFIX}{FOR_HOST}"), post(key_for_host))
        .route(&format!("{PREFIX}{ROTATE}"), post(rotate))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(OfHost { keys, host }))
}

struct OfHost {
    keys: Keys,
    host: HostId,
}

async fn make(State(keys): State<Keys>, body: Body<AppRef>) -> Reply<AppKey> {
    let Json(of) = body?;
    Ok(Json(keys.make(&of)?))
}

async fn digests(State(keys): State<Keys>, body: Body<DigestsRequest>) -> Reply<Digests> {
    let Json(request) = body?;
    Ok(Json(keys.digests(&request)?))
}

async fn make_secret_key(
    State(keys): State<Keys>,
    body: Body<MakeSecretKey>,
) -> Reply<MadeSecretKey> {
    let Json(request) = body?;
    Ok(Json(keys.make_secret_key(&request)?))
}

async fn use_secret_key(
    State(keys): State<Keys>,
    body: Body<UseSecretKey>,
) -> Reply<SecretKeyUsed> {
    let Json(request) = body?;
    Ok(Json(keys.use_secret_key(&request)?))
}

async fn key_for_host(State(of): State<Arc<OfHost>>, body: Body<HostKeyRequest>) -> Reply<HostKey> {
    let Json(request) = body?;
    Ok(Json(of.keys.for_host(&of.host, &request).await?))
}

async fn rotate(State(of): State<Arc<OfHost>>) -> Reply<Rotated> {
    Ok(Json(of.keys.rotate().await?))
}
