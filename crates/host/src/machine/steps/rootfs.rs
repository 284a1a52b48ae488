//! The writable layer of the next boot is there.
//!
//! Never touches the layer of a boot that runs. May run twice: a layer that is to be empty is made
//! anew beside the old one and moved over it, one that is kept is left as it is.

use std::path::{Path, PathBuf};

use perch_types::Code;
use serde_json::Value;

use crate::effects::Fault;
use crate::machine::record::Version;
use crate::machine::run::Work;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let version = work.record.incoming();
    let (path, size_gb) = (path(work, version), version.config.rootfs_size_gb());
    work.shared.effects.rootfs.prepare(&path, size_gb, work.input.fresh_root).await?;
    Ok(Value::Null)
}

/// Removes the layer that the run made, unless it is the current version's: that one is made anew
/// by the next start or holds what is to be kept.
pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    let record = &work.record;
    if record.next.as_ref().is_some_and(|next| next.upper != record.version.upper) {
        let path = path(work, record.incoming());
        work.shared.effects.rootfs.remove(&path).await?;
    }
    Ok(())
}

/// Removes layers that are not the incoming version's.
pub(super) async fn discard(work: &mut Work) -> Result<Value, Fault> {
    let keep = work.record.incoming().upper.clone();
    let folder = work.dir().state;
    let layers = list(&folder)
        .map_err(|error| Fault::transient(Code::Internal, format!("list {}: {error}", folder.display())))?;
    for layer in layers {
        if layer.file_name().is_none_or(|name| name != keep.as_str()) {
            work.shared.effects.rootfs.remove(&layer).await?;
        }
    }
    Ok(Value::Null)
}

/// Returns where a version's layer is.
pub(super) fn path(work: &Work, version: &Version) -> PathBuf {
    work.dir().state.join(&version.upper)
}

fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut layers = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("root-") {
            layers.push(path);
        }
    }
    Ok(layers)
}
