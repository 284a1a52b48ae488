//! What a boot left is removed; at the end of a machine, its files too.
//!
//! Never removes the log while the machine can still be asked about. May run twice: what is gone
//! is gone.

use serde_json::Value;

use super::rootfs;
use crate::effects::Fault;
use crate::machine::run::Work;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    work.instance = None;
    work.shared.effects.runtime.clean(&work.dir()).await?;
    rootfs::remove_volumes(work, &work.record.version).await?;
    if !rootfs::is_kept(&work.record.version) {
        let path = rootfs::path(work, &work.record.version);
        work.shared.effects.rootfs.remove(&path).await?;
    }
    Ok(Value::Null)
}

/// Removes the writable layers; the log stays until the record goes.
pub(super) async fn erase(work: &mut Work) -> Result<Value, Fault> {
    for upper in [Some(&work.record.version), work.record.next.as_ref()].into_iter().flatten() {
        let path = rootfs::path(work, upper);
        work.shared.effects.rootfs.remove(&path).await?;
        rootfs::remove_volumes(work, upper).await?;
    }
    Ok(Value::Null)
}
