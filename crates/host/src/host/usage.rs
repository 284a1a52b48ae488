//! What takes the disk: images, machines' root disks and logs, and what others keep on it.
//!
//! Never changes anything, and never follows a link.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use perch_types::api::{DiskUsage, DiskUse};
use perch_types::{ApiError, Code};

use super::Host;
use crate::effects::Fault;
use crate::layers::LAYER_PREFIX;

/// The most files of one kind that are looked at: an account must end.
const FILES_MAX: usize = 1_000_000;
/// Bytes of the blocks in which the kernel counts a file.
const BLOCK_BYTES: u64 = 512;

/// Files of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    files: u64,
    bytes: u64,
}

impl Host {
    /// Returns what takes the disk.
    ///
    /// # Errors
    /// When the disk or the images cannot be read.
    pub async fn usage(&self) -> Result<DiskUsage, ApiError> {
        let stored = self.shared.effects.images.list().await.map_err(|fault: Fault| fault.error)?;
        let named = self.shared.images_named();
        let unused = stored.iter().filter(|image| !named.contains(&image.digest));
        let images = DiskUse {
            kind: "images".to_owned(),
            count: Some(stored.len() as u64),
            bytes: stored.iter().map(|image| image.size_bytes).sum(),
            reclaimable_bytes: unused.map(|image| image.size_bytes).sum(),
        };
        let config = &self.shared.config;
        let (data, others) = (config.data_dir.clone(), config.others.clone());
        let (pool, count) = (config.pool.dir.clone(), self.shared.volumes.all().len() as u64);
        let measured = tokio::task::spawn_blocking(move || {
            let mut uses = measure(&data, &others);
            uses.push(volumes(&data, pool.as_deref(), count));
            uses
        })
        .await;
        let mut uses = vec![images];
        uses.extend(
            measured.map_err(|_| ApiError::new(Code::Internal, "the account was given up"))?,
        );
        let disk = rustix::fs::statvfs(&config.data_dir).map_err(|error| {
            let folder = config.data_dir.display();
            ApiError::new(Code::Internal, format!("ask for the size of {folder}: {error}"))
        })?;
        Ok(DiskUsage {
            host: self.shared.id.clone(),
            total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            uses,
        })
    }
}

fn measure(data: &Path, others: &[(String, PathBuf)]) -> Vec<DiskUse> {
    let machines = data.join("machines");
    let is_layer = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(LAYER_PREFIX))
    };
    let is_log = |path: &Path| path.parent().is_some_and(|folder| folder.ends_with("log"));
    let kind = |kind: &str, count, bytes| DiskUse {
        kind: kind.to_owned(),
        count,
        bytes,
        reclaimable_bytes: 0,
    };
    let (disks, logs) = (sum(&machines, &is_layer), sum(&machines, &is_log));
    let mut uses = vec![
        kind("machine disks", Some(disks.files), disks.bytes),
        kind("machine logs", None, logs.bytes),
    ];
    uses.extend(others.iter().map(|(name, path)| kind(name, None, sum(path, &|_| true).bytes)));
    uses
}

/// Returns what volumes take: the pool's own image, or the files in the operator's folder.
fn volumes(data: &Path, dir: Option<&Path>, count: u64) -> DiskUse {
    let own = data.join("volumes/pool.img");
    let bytes = match dir {
        Some(dir) => sum(dir, &|_| true).bytes,
        None => std::fs::symlink_metadata(own)
            .map_or(0, |found| found.blocks().saturating_mul(BLOCK_BYTES)),
    };
    DiskUse { kind: "volumes".to_owned(), count: Some(count), bytes, reclaimable_bytes: 0 }
}

/// Returns what files below a folder take; what goes away meanwhile is passed over.
fn sum(folder: &Path, counts: &dyn Fn(&Path) -> bool) -> Sum {
    let (mut sum, mut seen) = (Sum::default(), 0);
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        seen += 1;
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path()).take(FILES_MAX));
        } else if counts(&path) {
            sum.files += 1;
            sum.bytes = sum.bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        }
        if seen >= FILES_MAX {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_by_kind_and_holes_in_them_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let machine = folder.path().join("machines/1");
        std::fs::create_dir_all(machine.join("log")).unwrap();
        let layer = std::fs::File::create(machine.join(format!("{LAYER_PREFIX}a.img"))).unwrap();
        layer.set_len(1 << 30).unwrap();
        std::fs::write(machine.join("log/0"), vec![b'x'; 8192]).unwrap();
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("blob"), vec![b'x'; 8192]).unwrap();
        std::os::unix::fs::symlink("/", other.join("link")).unwrap();
        let uses = measure(folder.path(), &[("registry".to_owned(), other)]);
        let of = |kind: &str| uses.iter().find(|one| one.kind == kind).unwrap();
        assert_eq!(of("machine disks").count, Some(1));
        assert!(of("machine disks").bytes < 1 << 20);
        assert_eq!(of("machine logs").bytes, 8192);
        assert!((8192..65_536).contains(&of("registry").bytes), "{uses:?}");
    }
}
