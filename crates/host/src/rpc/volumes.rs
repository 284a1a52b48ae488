//! What is asked of volumes.
//!
//! Never gives up what was begun because the caller hangs up.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use perch_types::directory::VolumeRecord;
use perch_types::host::{CreateVolume, HostSnapshot, PoolRoom, VolumeCommand};
use perch_types::{ApiError, Code, SnapshotId, VolumeId};

use super::{Answer, Refusal, body, internal};
use crate::Host;

pub(super) fn routes() -> Router<Host> {
    Router::new()
        .route("/volumes", post(create).get(list))
        .route("/volumes/{id}", get(one))
        .route("/volumes/{id}/command", post(command))
        .route("/volumes/{id}/snapshots", get(snapshots))
        .route("/snapshots/{id}", get(snapshot))
        .route("/pool", get(pool))
}

fn volume_id(text: &str) -> Result<VolumeId, Refusal> {
    text.parse().map_err(|_| Refusal(ApiError::volume_not_found(text)))
}

async fn create(
    State(host): State<Host>,
    asked: Result<Json<CreateVolume>, JsonRejection>,
) -> Answer<VolumeRecord> {
    let asked = body(asked)?;
    let created = tokio::spawn(async move { host.create_volume(asked).await }).await;
    Ok(Json(created.map_err(|_| internal())??))
}

async fn list(State(host): State<Host>) -> Json<Vec<VolumeRecord>> {
    Json(host.volumes())
}

async fn pool(State(host): State<Host>) -> Answer<PoolRoom> {
    Ok(Json(host.pool_room().await?))
}

async fn one(State(host): State<Host>, Path(id): Path<String>) -> Answer<VolumeRecord> {
    Ok(Json(host.volume(&volume_id(&id)?).await?))
}

async fn command(
    State(host): State<Host>,
    Path(id): Path<String>,
    asked: Result<Json<VolumeCommand>, JsonRejection>,
) -> Answer<VolumeRecord> {
    let (id, asked) = (volume_id(&id)?, body(asked)?);
    let done = tokio::spawn(async move { host.volume_command(&id, asked).await }).await;
    Ok(Json(done.map_err(|_| internal())??))
}

async fn snapshots(State(host): State<Host>, Path(id): Path<String>) -> Answer<Vec<HostSnapshot>> {
    Ok(Json(host.snapshots(&volume_id(&id)?)?))
}

async fn snapshot(State(host): State<Host>, Path(id): Path<String>) -> Answer<HostSnapshot> {
    let parsed: SnapshotId = id.parse().map_err(|_| {
        Refusal(ApiError::new(Code::SnapshotNotFound, format!("snapshot not found: {id}")))
    })?;
    Ok(Json(host.snapshot(&parsed)?))
}
