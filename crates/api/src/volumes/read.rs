//! Reads volumes: one from its host, lists from the view.
//!
//! Never hides a host that is away: `host_status` says so.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use perch_types::ApiError;
use perch_types::api::HostStatus;
use perch_types::directory::{AppDoc, VolumeRecord};
use perch_types::error::chain;
use perch_types::view::View;
use perch_types::volume::{Volume, VolumeSnapshot};

use super::{Target, answer, of_host};
use crate::body::Parameters;
use crate::config::Shared;
use crate::reply::Failure;
use crate::routes::OfApp;

/// Returns the volumes of an app that the view has.
pub(crate) fn of_app<'a>(
    view: &'a View,
    app: &'a AppDoc,
) -> impl Iterator<Item = &'a VolumeRecord> {
    // A volume of an app that was deleted may outlive it by a day, and another app has its name.
    view.volumes().filter(|volume| volume.org == app.org && volume.app_id == app.id)
}

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Result<JsonReply<Vec<Volume>>, Failure> {
    let is_summary = parameters.flag("summary")?;
    let view = shared.view.load();
    let mut records: Vec<VolumeRecord> = of_app(&view, &app).cloned().collect();
    records.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    let volumes = records.into_iter().map(|record| {
        let status = status(&shared, &record);
        answer::volume(if is_summary { answer::summary(record) } else { record }, status)
    });
    Ok(JsonReply(volumes.collect()))
}

/// Returns whether the host of a volume belongs to the platform now.
pub(super) fn status(shared: &Shared, record: &VolumeRecord) -> HostStatus {
    if shared.hosts.contains_key(&record.host) { HostStatus::Ok } else { HostStatus::Unknown }
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Path<(String, String)>,
) -> Result<JsonReply<Volume>, Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let asked = match &target.host {
        Some(host) => host.client.volume(&target.id).await.map_err(Some),
        None => Err(None),
    };
    let record = match asked {
        Ok(record) => return Ok(JsonReply(answer::volume(record, HostStatus::Ok))),
        Err(Some(error)) if error.code().is_some() => return Err(of_host(error, &target.id)),
        Err(error) => {
            if let Some(error) = error {
                tracing::warn!(error = chain(&error), "volume answered without its host");
            }
            shared.view.load().volume(&target.id).cloned()
        }
    };
    let record = record.ok_or_else(|| ApiError::volume_not_found(&id))?;
    Ok(JsonReply(answer::volume(record, HostStatus::Unreachable)))
}

pub(crate) async fn snapshots(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Path<(String, String)>,
) -> Result<JsonReply<Vec<VolumeSnapshot>>, Failure> {
    let target = Target::find(&shared, &app, &id).await?;
    let found = target.host()?.client.snapshots(&target.id).await;
    let found = found.map_err(|error| of_host(error, &target.id))?;
    Ok(JsonReply(found.into_iter().map(|one| one.snapshot).collect()))
}
