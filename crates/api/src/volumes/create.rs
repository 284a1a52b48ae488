//! Makes a volume: admit, place, write it down, ask the host.
//!
//! Never leaves a half: until the host said that it has the volume nobody is told of it, and the
//! reconciler takes it back.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_store::{Expected, Txn, compare, delete_doc, put_doc_freeing, put_op};
use perch_types::api::HostStatus;
use perch_types::directory::{AppDoc, VolumePlacementDoc, VolumeRecord};
use perch_types::error::chain;
use perch_types::host::{CreateVolume, VolumeSource};
use perch_types::volume::{CreateVolumeRequest, SIZE_GB_DEFAULT, Volume};
use perch_types::{Code, HostId, SnapshotId, VolumeId};

use super::admit::{self, New, Of};
use super::read::of_app;
use super::{Target, answer, follow, of_host};
use crate::body::Json;
use crate::config::{Host, Shared};
use crate::documents;
use crate::error::store as fault;
use crate::machines::create::candidates;
use crate::names;
use crate::place::{Candidate, Want, place};
use crate::reply::Failure;
use crate::routes::OfApp;

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(asked): Json<CreateVolumeRequest>,
) -> Result<JsonReply<Volume>, Failure> {
    let new = admit::create(&asked)?;
    let (source, host, least_gb) = source(&shared, &app, &new.of).await?;
    let mut hosts = candidates(&shared).await?;
    if let Some(host) = &host {
        hosts.retain(|candidate| candidate.id == *host);
    }
    let chosen = choose(&shared, &app, (&asked, &new), &hosts)?;
    let volume = CreateVolume {
        id: names::volume_id()?,
        org: app.org.clone(),
        app: app.name.clone(),
        app_id: app.id.clone(),
        name: new.name,
        size_gb: new.size_gb.or(least_gb).unwrap_or(SIZE_GB_DEFAULT),
        source,
        snapshot_retention: new.snapshot_retention,
        auto_backup: new.auto_backup,
    };
    // Finished whatever becomes of the caller, so that nothing is left half-made.
    let made = tokio::spawn(write_and_ask(Arc::clone(&shared), app, volume, chosen));
    match made.await {
        Ok(made) => Ok(JsonReply(answer::volume(made?, HostStatus::Ok))),
        Err(error) => {
            tracing::error!(%error, "creation of a volume ended early");
            Err(Failure::new(Code::Internal, "the platform has a fault"))
        }
    }
}

/// Returns what the host is told, which host has the source, and its size.
async fn source(
    shared: &Shared,
    app: &AppDoc,
    of: &Of,
) -> Result<(VolumeSource, Option<HostId>, Option<u32>), Failure> {
    match of {
        Of::Nothing => Ok((VolumeSource::Empty, None, None)),
        Of::Volume(id) => {
            let gone = |failure: Failure| match failure.code() {
                Code::VolumeNotFound => no_such_source(shared, app, id),
                _ => failure,
            };
            let target = Target::find(shared, app, id.as_str()).await.map_err(gone)?;
            let record = target.host()?.client.volume(id).await;
            let record = record.map_err(|error| gone(of_host(error, id)))?;
            Ok((VolumeSource::Volume(id.clone()), Some(record.host), Some(record.size_gb)))
        }
        Of::Snapshot(id) => {
            let (host, size_gb) = snapshot(shared, app, id).await?;
            Ok((VolumeSource::Snapshot(id.clone()), Some(host), Some(size_gb)))
        }
    }
}

/// Finds a snapshot of the app on the hosts.
async fn snapshot(
    shared: &Shared,
    app: &AppDoc,
    id: &SnapshotId,
) -> Result<(HostId, u32), Failure> {
    let mut silent = false;
    for host in shared.hosts.values() {
        match host.client.snapshot(id).await {
            Ok(found) if found.org == app.org && found.app == app.name => {
                return Ok((host.id.clone(), found.size_gb));
            }
            Ok(_) => {}
            Err(error) => silent |= error.code().is_none(),
        }
    }
    if silent {
        return Err(Failure::new(Code::Unavailable, "a host does not answer")
            .with_hint("try again in a moment"));
    }
    Err(no_such_snapshot(id))
}

/// Refuses a body that names a volume which the app has not: the body is wrong, not its path.
fn no_such_source(shared: &Shared, app: &AppDoc, id: &VolumeId) -> Failure {
    let view = shared.view.load();
    let usable = of_app(&view, app).filter(|record| record.state.is_usable());
    let known: Vec<String> = usable.map(|record| record.id.to_string()).collect();
    Failure::unknown_reference("source_volume_id", ("volume", id.as_str()), &known)
}

/// The same of a snapshot; hosts alone know them, so none is listed.
fn no_such_snapshot(id: &SnapshotId) -> Failure {
    let text = format!("snapshot_id: the app has no snapshot `{id}`");
    Failure::new(Code::InvalidValue, text)
        .with_hint("`perch volumes snapshots list` shows those of a volume")
}

/// Chooses a host: one without such a volume if that was asked for and there is one.
fn choose(
    shared: &Shared,
    app: &AppDoc,
    (asked, new): (&CreateVolumeRequest, &New),
    hosts: &[Candidate],
) -> Result<Candidate, Failure> {
    let want = Want { region: asked.region.as_deref(), memory_mb: new.memory_mb };
    let of_app = asked.unique_zone_app_wide == Some(true);
    let of_name = asked.require_unique_zone == Some(true);
    if of_app || of_name {
        let view = shared.view.load();
        let is_alone = |host: &&Candidate| {
            !view.volumes().any(|volume| {
                volume.host == host.id
                    && volume.org == app.org
                    && volume.app == app.name
                    && (of_app || volume.name == new.name)
            })
        };
        let alone: Vec<Candidate> = hosts.iter().filter(is_alone).cloned().collect();
        if let Ok(chosen) = place(&alone, &shared.regions, want) {
            return Ok(chosen.clone());
        }
    }
    place(hosts, &shared.regions, want).cloned()
}

async fn write_and_ask(
    shared: Arc<Shared>,
    app: Arc<AppDoc>,
    volume: CreateVolume,
    chosen: Candidate,
) -> Result<VolumeRecord, Failure> {
    let Some(host) = shared.hosts.get(&chosen.id).cloned() else {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    };
    let mut placement = VolumePlacementDoc {
        app: app.name.clone(),
        app_id: app.id.clone(),
        host: chosen.id,
        region: chosen.region,
        made: false,
        going: false,
        created_at: shared.clock.now(),
    };
    let key = (app.org.clone(), volume.id.clone());
    let store = shared.store.as_ref();
    let mut compares: Vec<_> =
        compare::<VolumePlacementDoc>(&key, Expected::Absent).into_iter().collect();
    // An app that was deleted in between must not get a volume that nobody would destroy.
    compares.push(documents::still(store, &app).await?);
    let put = put_op(&key, &placement).map_err(fault("write a volume's placement"))?;
    let written = store.txn(compares, vec![put]).await.and_then(Txn::or_conflict);
    let revision = written.map_err(fault("write a volume's placement"))?;
    match ask(&host, &volume).await {
        Ok(made) => {
            placement.made = true;
            let expected = Expected::Revision(revision);
            match put_doc_freeing(store, &key, &placement, expected).await {
                // The reconciler was faster.
                Ok(_) | Err(perch_store::Error::Conflict { .. }) => {}
                Err(error) => return Err(fault("write a volume's placement")(error).into()),
            }
            follow(&shared, &made).await;
            Ok(made)
        }
        Err(error) => {
            // Only a refusal is certain; otherwise the reconciler finds out.
            if error.code().is_some_and(|code| code.status() < 500 || code == Code::NoSpace) {
                let expected = Expected::Revision(revision);
                let deleted = delete_doc::<VolumePlacementDoc>(store, &key, expected).await;
                if let Err(error) = deleted {
                    tracing::warn!(error = chain(&error), "refused volume not taken back yet");
                }
            }
            // What it is to be made of may have gone since it was looked for.
            Err(match (&volume.source, error.code()) {
                (VolumeSource::Volume(id), Some(Code::VolumeNotFound)) => {
                    no_such_source(&shared, &app, id)
                }
                (VolumeSource::Snapshot(id), Some(Code::SnapshotNotFound)) => no_such_snapshot(id),
                _ => of_host(error, &volume.id),
            })
        }
    }
}

async fn ask(host: &Host, volume: &CreateVolume) -> Result<VolumeRecord, perch_client::Error> {
    host.client.create_volume(volume).await
}
