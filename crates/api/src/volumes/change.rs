//! Changes of a volume: its host is asked, and does them.
//!
//! Never decides whether a volume may grow or go: its host knows who has it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use perch_store::{Expected, put_doc_freeing};
use perch_types::Code;
use perch_types::api::HostStatus;
use perch_types::directory::{VolumePlacementDoc, VolumeRecord};
use perch_types::host::VolumeCommand;
use perch_types::volume::{ExtendVolumeRequest, ExtendVolumeResponse, UpdateVolumeRequest, Volume};

use super::{Target, admit, answer, follow, of_host};
use crate::body::Json;
use crate::config::Shared;
use crate::error::store as fault;
use crate::names;
use crate::reply::Failure;
use crate::routes::OfApp;

type Ids = Path<(String, String)>;

pub(crate) async fn update(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Ids,
    Json(asked): Json<UpdateVolumeRequest>,
) -> Result<JsonReply<Volume>, Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let command = VolumeCommand::Update {
        snapshot_retention: admit::update(&asked)?,
        auto_backup: asked.auto_backup_enabled,
    };
    let record = tell(&shared, &target, command).await?;
    Ok(JsonReply(answer::volume(record, HostStatus::Ok)))
}

pub(crate) async fn extend(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Ids,
    Json(asked): Json<ExtendVolumeRequest>,
) -> Result<JsonReply<ExtendVolumeResponse>, Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let missing = || Failure::new(Code::InvalidRequest, "size_gb: is missing");
    let size_gb = admit::size(asked.size_gb.ok_or_else(missing)?)?;
    let record = tell(&shared, &target, VolumeCommand::Extend { size_gb }).await?;
    let volume = answer::volume(record, HostStatus::Ok);
    Ok(JsonReply(ExtendVolumeResponse { volume, needs_restart: false }))
}

/// Makes a snapshot; the answer has no body (contract 1.8).
pub(crate) async fn snapshot(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Ids,
) -> Result<(), Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let command = VolumeCommand::Snapshot { id: names::snapshot_id()? };
    tell(&shared, &target, command).await.map(drop)
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Ids,
) -> Result<JsonReply<Volume>, Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let record = target.host()?.client.volume_command(&target.id, &VolumeCommand::Destroy).await;
    let record = record.map_err(|error| of_host(error, &target.id))?;
    let going = VolumePlacementDoc { going: true, ..target.placement.document.clone() };
    let key = (app.org.clone(), target.id.clone());
    let expected = Expected::Revision(target.placement.revision);
    match put_doc_freeing(shared.store.as_ref(), &key, &going, expected).await {
        // Another deletion, or the reconciler, was faster; the host was told all the same.
        Ok(_) | Err(perch_store::Error::Conflict { .. }) => {}
        Err(error) => return Err(fault("write a volume's placement")(error).into()),
    }
    follow(&shared, &record).await;
    Ok(JsonReply(answer::volume(record, HostStatus::Ok)))
}

async fn tell(
    shared: &Shared,
    target: &Target,
    command: VolumeCommand,
) -> Result<VolumeRecord, Failure> {
    let record = target.host()?.client.volume_command(&target.id, &command).await;
    let record = record.map_err(|error| of_host(error, &target.id))?;
    follow(shared, &record).await;
    Ok(record)
}
