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
    let version = work.record.incoming();
    prepare(work, version, work.input.fresh_root).await?;
    prepare_shared(work, version).await?;
    work.layer = Some(version.upper.clone());
    Ok(Value::Null)
}

async fn prepare(work: &Work, version: &Version, fresh: bool) -> Result<(), Fault> {
    let size_gb = version.config.rootfs_size_gb();
    let wish = LayerWish { size_gb, fresh, kept: is_kept(version) };
    work.shared.effects.rootfs.prepare(&path(work, version), wish).await
}

/// Makes anew what the containers of a version share, which never outlives a boot.
async fn prepare_shared(work: &Work, version: &Version) -> Result<(), Fault> {
    let path = path(work, version);
    for (volume, size_mb) in containers::disks(&version.config) {
        let path = containers::disk_path(&path, volume);
        work.shared.effects.rootfs.prepare_volume(&path, size_mb).await?;
    }
    Ok(())
}

/// Makes sure that a layer can be booted from which no step of this process made for the boot: one
/// of an earlier boot, or of an earlier process. A layer that is not kept may be torn where the
/// server itself was restarted, and begins anew then. Nothing may run on it.
pub(super) async fn take(work: &mut Work, version: &Version) -> Result<(), Fault> {
    let made = work.layer.take();
    if made.as_ref() == Some(&version.upper) {
        return Ok(());
    }
    if work.shared.rebooted && !is_kept(version) {
        prepare(work, version, true).await?;
    }
    prepare_shared(work, version).await
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
