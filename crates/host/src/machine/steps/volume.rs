//! The machine has the volumes that its next boot mounts, and no others.
//!
//! Never mounts one: the boot's monitor does, and its end lets go of it. A machine keeps its
//! volumes while it is stopped. May run twice: what it has it has.

use perch_types::{Code, VolumeId};
use serde_json::Value;

use crate::effects::Fault;
use crate::machine::record::Version;
use crate::machine::run::Work;
use crate::volumes::mounts_of;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let version = work.record.incoming().clone();
    let refused = |error| Fault { error, transient: false };
    work.shared.attach_volumes(&work.record.id, ids(&version)).await.map_err(refused)?;
    for mount in &version.config.mounts {
        let (Some(size_gb), Ok(id)) = (mount.size_gb, mount.volume.parse::<VolumeId>()) else {
            continue;
        };
        let record = work.shared.volumes.entry(&id).map_err(refused)?.known().row.record;
        if record.size_gb < size_gb {
            Box::pin(work.shared.extend_volume(&id, size_gb)).await.map_err(refused)?;
        }
    }
    Ok(Value::Null)
}

/// Gives back what only the version that is given up wanted.
pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    keep(work, &ids(&work.record.version)).await
}

/// Gives back what the incoming version does not mount.
pub(super) async fn discard(work: &mut Work) -> Result<(), Fault> {
    keep(work, &ids(work.record.incoming())).await
}

/// Gives everything back.
pub(super) async fn release(work: &mut Work) -> Result<(), Fault> {
    keep(work, &[]).await
}

/// Returns the volumes of a version as its boot mounts them.
pub(super) fn of(work: &Work, version: &Version) -> Vec<perch_runtime::Volume> {
    let disks = &work.shared.effects.volumes;
    mounts_of(&version.config)
        .map(|(id, path)| perch_runtime::Volume {
            image: disks.image(&id),
            target: path.to_owned(),
        })
        .collect()
}

fn ids(version: &Version) -> Vec<VolumeId> {
    mounts_of(&version.config).map(|(id, _)| id).collect()
}

async fn keep(work: &Work, ids: &[VolumeId]) -> Result<(), Fault> {
    let detached = work.shared.detach_volumes(&work.record.id, ids).await;
    detached.map_err(|error| Fault { transient: error.code == Code::NoSpace, error })
}
