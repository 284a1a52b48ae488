//! Volumes (contract 1.7 and 1.8).
//!
//! Never touches a disk: hosts do. This side writes down which host a volume is on, then asks.

mod admit;
mod answer;
pub(crate) mod change;
pub(crate) mod create;
pub(crate) mod mounts;
pub(crate) mod org;
pub(crate) mod read;
pub(crate) mod reconcile;
mod words;

use perch_store::{Versioned, get_doc};
use perch_types::directory::{AppDoc, VolumePlacementDoc, VolumeRecord};
use perch_types::{ApiError, Code, VolumeId};

use crate::config::{Host, Shared};
use crate::error::store as fault;
use crate::reply::Failure;

pub(crate) use admit::name;

/// A volume of an app, where it is placed, and that host unless it is not known here.
#[derive(Debug)]
struct Target {
    id: VolumeId,
    placement: Versioned<VolumePlacementDoc>,
    host: Option<Host>,
}

impl Target {
    /// Finds a volume of an app.
    async fn find(shared: &Shared, app: &AppDoc, id: &str) -> Result<Self, Failure> {
        let unknown = || Failure::from(ApiError::volume_not_found(id));
        let parsed: VolumeId = id.parse().map_err(|_| unknown())?;
        let key = (app.org.clone(), parsed.clone());
        let found = get_doc::<VolumePlacementDoc>(shared.store.as_ref(), &key).await;
        let placement = found.map_err(fault("read a volume's placement"))?;
        let placement = placement.filter(|found| {
            let placement = &found.document;
            placement.made && placement.app == app.name && placement.app_id == app.id
        });
        let placement = placement.ok_or_else(unknown)?;
        let host = shared.hosts.get(&placement.document.host).cloned();
        Ok(Self { id: parsed, placement, host })
    }

    fn host(&self) -> Result<&Host, Failure> {
        self.host.as_ref().ok_or_else(|| {
            let text = "the volume's host does not belong to this platform now";
            Failure::new(Code::Unavailable, text)
        })
    }
}

/// Turns a host's error into the answer.
fn of_host(error: perch_client::Error, id: &VolumeId) -> Failure {
    if error.is_not_found() && error.code() != Some(Code::SnapshotNotFound) {
        return ApiError::volume_not_found(id.as_str()).into();
    }
    error.into()
}

/// Returns once the view holds the volume at least at the answer's generation.
async fn follow(shared: &Shared, volume: &VolumeRecord) {
    let held = shared.view.wait_for(
        |view| match view.volume(&volume.id) {
            Some(known) => known.generation >= volume.generation,
            None => volume.state.is_going(),
        },
        shared.limits.view_timeout,
    );
    if held.await.is_none() {
        tracing::warn!(volume = %volume.id, "view does not hold the volume yet");
    }
}
