//! The writable layer of the next boot is there.
//!
//! Never touches the layer of a boot that runs. May run twice: a layer that is to be empty is made
//! anew beside the old one and moved over it, one that is kept is left as it is.

use std::path::PathBuf;

use perch_types::machine_config::RootfsPersist;
use serde_json::Value;

use crate::effects::{Fault, LayerWish};
use crate::machine::containers;
use crate::machine::record::Version;
use crate::machine::run::Work;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    prepare(work, work.record.incoming(), work.input.fresh_root).await?;
    Ok(Value::Null)
}

async fn prepare(work: &Work, version: &Version, fresh: bool) -> Result<(), Fault> {
    let size_gb = version.config.rootfs_size_gb();
    let wish = LayerWish { size_gb, fresh, kept: is_kept(version) };
    let path = path(work, version);
    work.shared.effects.rootfs.prepare(&path, wish).await?;
    for (volume, size_mb) in containers::disks(&version.config) {
        let path = containers::disk_path(&path, volume);
        work.shared.effects.rootfs.prepare_volume(&path, size_mb).await?;
    }
    Ok(())
}

/// Makes the layer of a version that boots once more whole, if the server was restarted since: one
/// that is not kept was not meant to outlive that, and begins anew.
pub(super) async fn outlive(work: &Work, version: &Version) -> Result<(), Fault> {
    if work.shared.rebooted && !is_kept(version) {
        prepare(work, version, true).await?;
    }
    Ok(())
}

/// Removes the layer that the run made. One that is kept, or that a running version uses, stays.
pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    let record = &work.record;
    let is_used = record.boot.is_some() && record.incoming().upper == record.version.upper;
    if work.input.fresh_root && !is_used {
        let path = path(work, record.incoming());
        work.shared.effects.rootfs.remove(&path).await?;
        remove_volumes(work, record.incoming()).await?;
    }
    Ok(())
}

/// Removes what the containers of a version share, which ends with the boot.
pub(super) async fn remove_volumes(work: &Work, version: &Version) -> Result<(), Fault> {
    for (volume, _) in containers::disks(&version.config) {
        let path = containers::disk_path(&path(work, version), volume);
        work.shared.effects.rootfs.remove(&path).await?;
    }
    Ok(())
}

/// Removes layers that are not the incoming version's.
pub(super) async fn discard(work: &mut Work) -> Result<Value, Fault> {
    let keep = work.record.incoming().upper.clone();
    let folder = work.dir().state;
    for layer in work.shared.effects.rootfs.list(&folder).await? {
        // What containers share lies beside the layer and has its name.
        let name = layer.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| !name.starts_with(keep.as_str())) {
            work.shared.effects.rootfs.remove(&layer).await?;
        }
    }
    Ok(Value::Null)
}

/// Returns whether a version's layer may be needed by a later boot. One that is not takes space
/// that somebody else could use.
pub(super) fn is_kept(version: &Version) -> bool {
    match version.config.rootfs_persist() {
        RootfsPersist::Never => false,
        RootfsPersist::Restart | RootfsPersist::Always => true,
    }
}

/// Returns where a version's layer is.
pub(super) fn path(work: &Work, version: &Version) -> PathBuf {
    work.dir().state.join(&version.upper)
}
