//! Machines' writable layers: image files of ext4, cloned from a formatted template.
//!
//! Never mounts one: the monitor of a boot does, in a namespace of its own. Never writes to one
//! that is mounted: whoever has it holds its lock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use perch_runtime::loopback::FREE_TIMEOUT_MS;
use perch_runtime::process::try_lock;
use perch_types::Code;
use perch_types::error::chain;
use rustix::fs::SeekFrom;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::effects::{Fault, LayerWish, Rootfs};

/// The largest layer in GiB.
const SIZE_GB_MAX: u32 = 1024;
/// The smallest volume that containers share, in MiB: less holds no file system.
const VOLUME_MB_MIN: u64 = 4;
/// What the names of layers begin with.
pub(crate) const LAYER_PREFIX: &str = "root-";
const GIB: u64 = 1024 * 1024 * 1024;
/// One inode for so many bytes: enough for a tree of small files.
const BYTES_PER_INODE: u32 = 16_384;
/// Layers that are given back to the disk at once; one more is waited for by who removes it.
const REMOVALS_MAX: u32 = 32;
/// How often a layer that is still in use is looked at again.
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Where an ext4 file system says how it was left, and the two bits that matter.
const EXT4_STATE_AT: u64 = 1024 + 0x3a;
const EXT4_UNMOUNTED: u16 = 1;
const EXT4_FAULTY: u16 = 2;

/// Writable layers as files.
#[derive(Debug)]
pub struct Layers {
    templates: PathBuf,
    /// Removed layers whose blocks the disk has not taken back yet.
    gone: PathBuf,
    gone_count: AtomicU64,
    /// Places for those that are being taken back.
    removals: Arc<Semaphore>,
    /// Held while a template is made.
    making: Mutex<()>,
}

/// How a file is copied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloning {
    /// The file system shares the blocks.
    Reflink,
    /// The blocks that hold data are copied.
    SparseCopy,
}

/// What can go wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file.
    #[error("{operation} {}", path.display())]
    File {
        /// A verb.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The repair program did not succeed.
    #[error("repair {}: {complaint}", path.display())]
    Repair {
        /// Which file.
        path: PathBuf,
        /// What it wrote.
        complaint: String,
    },
    /// The format program did not succeed.
    #[error("format {}: {complaint}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it wrote.
        complaint: String,
    },
}

impl Error {
    fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::File { operation, path, source: source.into() }
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let code = if error.is_full() { Code::NoSpace } else { Code::Internal };
        Self::permanent(code, chain(&error))
    }
}

impl Layers {
    /// Keeps templates in a folder, which is made, and removes what a crash left of removed layers.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let gone = folder.join("gone");
        if let Err(error) = remove(&gone) {
            // It costs room until the next start, which is no reason to have no host.
            tracing::warn!(error = %chain(&error), "removed layers stay for now");
        }
        fs::create_dir_all(&gone).map_err(Error::file("create", &gone))?;
        Ok(Self {
            templates: folder.to_owned(),
            gone,
            gone_count: AtomicU64::new(0),
            removals: Arc::new(Semaphore::new(REMOVALS_MAX as usize)),
            making: Mutex::new(()),
        })
    }

    /// Finds out how files are copied here; nothing when the disk is too full to tell.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn probe(&self) -> Result<Option<Cloning>, Error> {
        let (from, to) = (self.templates.join("probe.from"), self.templates.join("probe.to"));
        let result = fs::write(&from, [1; 4096])
            .map_err(Error::file("write", &from))
            .and_then(|()| copy(&from, &to));
        for path in [&from, &to] {
            remove(path)?;
        }
        match result {
            Err(error) if error.is_full() => Ok(None),
            result => result.map(Some),
        }
    }

    /// Removes a layer. Its blocks go back behind the caller's back: a disk that discards takes
    /// tens of milliseconds for them, in which a machine would count as not stopped yet.
    fn remove_now(&self, path: &Path) -> Result<(), Error> {
        let Ok(place) = Arc::clone(&self.removals).try_acquire_owned() else {
            return remove(path);
        };
        let gone = self.gone.join(self.gone_count.fetch_add(1, Ordering::Relaxed).to_string());
        if fs::rename(path, &gone).is_err() {
            // It is not there, or the folder is not, or the disk is full: then here and now.
            return remove(path);
        }
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = remove(&gone) {
                tracing::warn!(%error, "removed layer still takes room");
            }
            drop(place);
        }));
        Ok(())
    }

    fn prepare_now(&self, path: &Path, wish: LayerWish) -> Result<(), Error> {
        if !wish.fresh && path.exists() {
            return Ok(());
        }
        let template = self.template(wish.size_gb)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        // Beside the target, so that a crash leaves the target as it was.
        let new = path.with_extension("new");
        let placed = copy(&template, &new)
            // Before its name: else the name alone may survive a loss of power.
            .and_then(|_| if wish.kept { sync(&new) } else { Ok(()) })
            .and_then(|()| fs::rename(&new, path).map_err(Error::file("move into place", path)))
            .and_then(|()| match path.parent() {
                Some(parent) if wish.kept => sync(parent),
                Some(_) | None => Ok(()),
            });
        if placed.is_err() {
            // The disk may be full of just this.
            remove(&new)?;
        }
        placed
    }

    /// Makes an empty file system of any size. It is small and not a template of others.
    fn prepare_volume_now(path: &Path, size_mb: u64) -> Result<(), Error> {
        let new = path.with_extension("new");
        remove(&new)?;
        let file = private(&new).map_err(Error::file("create", &new))?;
        let bytes = size_mb.clamp(VOLUME_MB_MIN, u64::from(SIZE_GB_MAX) * 1024) << 20;
        let placed = file.set_len(bytes).map_err(Error::file("size", &new)).and_then(|()| {
            format(&new)?;
            fs::rename(&new, path).map_err(Error::file("move into place", path))
        });
        if placed.is_err() {
            // The disk may be full of just this.
            remove(&new)?;
        }
        placed
    }

    /// Returns the template of a size, formatting it the first time.
    fn template(&self, size_gb: u32) -> Result<PathBuf, Error> {
        let size_gb = size_gb.clamp(1, SIZE_GB_MAX);
        let path = self.templates.join(format!("ext4-{size_gb}g.img"));
        if path.exists() {
            return Ok(path);
        }
        let _making = self.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if path.exists() {
            return Ok(path);
        }
        let new = path.with_extension("new");
        remove(&new)?;
        let file = private(&new).map_err(Error::file("create", &new))?;
        file.set_len(u64::from(size_gb) * GIB).map_err(Error::file("size", &new))?;
        format(&new)?;
        file.sync_all().map_err(Error::file("sync", &new))?;
        fs::rename(&new, &path).map_err(Error::file("move into place", &path))?;
        Ok(path)
    }
}

/// Formats without a journal, because most layers never outlive a crash of the server, and one that
/// does is repaired; and without what a resize or a rescue would need.
fn format(path: &Path) -> Result<(), Error> {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-i", &BYTES_PER_INODE.to_string()])
        .args(["-O", "^has_journal,^resize_inode,sparse_super2"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0,num_backup_sb=0"])
        .arg(path)
        .output()
        .map_err(Error::file("run mkfs.ext4 (package e2fsprogs) for", path))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Format { path: path.to_owned(), complaint })
}

/// Puts a file or folder on the disk.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("sync", path))
}

/// Repairs a layer that was in use when the server went down: without a journal nothing else makes
/// it whole. One that was unmounted is left alone. The caller holds the lock of `file`.
fn repair(file: &File, path: &Path) -> Result<(), Error> {
    let mut state = [0; 2];
    file.read_exact_at(&mut state, EXT4_STATE_AT).map_err(Error::file("read", path))?;
    if u16::from_le_bytes(state) & (EXT4_UNMOUNTED | EXT4_FAULTY) == EXT4_UNMOUNTED {
        return Ok(());
    }
    tracing::info!(layer = %path.display(), "layer was not unmounted and is repaired");
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(path)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(Error::file("run e2fsck (package e2fsprogs) for", path))?;
    match output.status.code() {
        // 1 and 2: it had faults, and has none any more.
        Some(0..=2) => Ok(()),
        _ => {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Error::Repair { path: path.to_owned(), complaint })
        }
    }
}

pub(crate) fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Copies a file with its holes.
///
/// # Errors
/// When a file cannot be opened or the disk is full.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Cloning, Error> {
    let source = File::open(from).map_err(Error::file("open", from))?;
    let target = private(to).map_err(Error::file("create", to))?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => return Ok(Cloning::Reflink),
        Err(
            rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::XDEV
            | rustix::io::Errno::INVAL
            | rustix::io::Errno::NOTTY
            | rustix::io::Errno::NOSYS,
        ) => {}
        Err(error) => return Err(Error::file("clone", to)(error)),
    }
    let size = source.metadata().map_err(Error::file("read", from))?.len();
    target.set_len(size).map_err(Error::file("size", to))?;
    copy_data(&source, &target).map_err(Error::file("copy", to))?;
    Ok(Cloning::SparseCopy)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(begin))?;
        let (mut read_at, mut write_at) = (begin, begin);
        while read_at < end {
            let left = usize::try_from(end - read_at).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(
                source,
                Some(&mut read_at),
                target,
                Some(&mut write_at),
                left,
            )?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("list", folder)(error)),
    };
    let mut layers = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(LAYER_PREFIX) {
            layers.push(path);
        }
    }
    Ok(layers)
}

/// Removes a file or folder, whether it is there or not.
///
/// # Errors
/// When it stays.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// All take well under a millisecond but for the first of a size, one that has to be kept or
/// repaired, so they are done where they are asked for, off the threads that answer.
#[async_trait]
impl Rootfs for Layers {
    async fn prepare(&self, path: &Path, wish: LayerWish) -> Result<(), Fault> {
        match tokio::task::block_in_place(|| self.prepare_now(path, wish)) {
            // What is being given back may be just what is missing.
            Err(error) if error.is_full() => {
                drop(self.removals.acquire_many(REMOVALS_MAX).await);
                Ok(tokio::task::block_in_place(|| self.prepare_now(path, wish))?)
            }
            prepared => Ok(prepared?),
        }
    }

    async fn repair(&self, path: &Path) -> Result<(), Fault> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        // The loop device of a boot holds the lock for as long as the layer is mounted.
        let deadline = Instant::now() + Duration::from_millis(FREE_TIMEOUT_MS);
        while !try_lock(&file).map_err(Error::file("lock", path))? {
            if Instant::now() > deadline {
                let text = format!("repair {}: a boot still has it", path.display());
                return Err(Fault::transient(Code::Internal, text));
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Ok(tokio::task::block_in_place(|| repair(&file, path))?)
    }

    async fn prepare_volume(&self, path: &Path, size_mb: u64) -> Result<(), Fault> {
        Ok(tokio::task::block_in_place(|| Self::prepare_volume_now(path, size_mb))?)
    }

    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, Fault> {
        Ok(list(folder)?)
    }

    async fn remove(&self, path: &Path) -> Result<(), Fault> {
        Ok(tokio::task::block_in_place(|| {
            // A crash may have come between the copy and its place.
            remove(&path.with_extension("new"))?;
            self.remove_now(path)
        })?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn wish(fresh: bool) -> LayerWish {
        LayerWish { size_gb: 2, fresh, kept: true }
    }

    fn state(path: &Path) -> u16 {
        let mut state = [0; 2];
        File::open(path).unwrap().read_exact_at(&mut state, EXT4_STATE_AT).unwrap();
        u16::from_le_bytes(state)
    }

    /// Leaves a layer as it is when the power fails, or while it is mounted.
    fn leave_unclean(path: &Path) {
        let set = ["-w", "-R", "set_super_value state 0", path.to_str().unwrap()];
        let output = Command::new("debugfs").args(set).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(state(path), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_is_repaired_once_nobody_has_it_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let layers = Layers::open(&folder.path().join("templates")).unwrap();
        let path = folder.path().join("machine/root-1.img");
        layers.prepare(&path, wish(true)).await.unwrap();
        leave_unclean(&path);
        // As the loop device of a boot that runs: an update prepares the layer under it.
        let mounted = File::open(&path).unwrap();
        assert!(try_lock(&mounted).unwrap());
        layers.prepare(&path, wish(false)).await.unwrap();
        assert_eq!(state(&path), 0, "it was repaired under a boot");
        let repaired = layers.repair(&path);
        tokio::pin!(repaired);
        let early = tokio::time::timeout(LOCK_PAUSE * 10, &mut repaired).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(state(&path), 0, "it was repaired under a boot");
        drop(mounted);
        repaired.await.unwrap();
        assert_eq!(state(&path), EXT4_UNMOUNTED);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removed_layer_is_gone_at_once_and_its_blocks_a_moment_later() {
        let folder = tempfile::tempdir().unwrap();
        let templates = folder.path().join("templates");
        let layers = Layers::open(&templates).unwrap();
        let path = folder.path().join("machine/root-1.img");
        layers.prepare(&path, wish(true)).await.unwrap();
        layers.remove(&path).await.unwrap();
        assert!(!path.exists());
        layers.remove(&path).await.unwrap();
        let all = layers.removals.acquire_many(REMOVALS_MAX).await.unwrap();
        assert_eq!(fs::read_dir(templates.join("gone")).unwrap().count(), 0);
        // Nobody is waited for when all places are taken.
        fs::write(&path, "a layer").unwrap();
        layers.remove(&path).await.unwrap();
        assert!(!path.exists());
        // Nor is one taken for removed when somebody has tidied up.
        drop(all);
        fs::remove_dir_all(templates.join("gone")).unwrap();
        fs::write(&path, "a layer").unwrap();
        layers.remove(&path).await.unwrap();
        assert!(!path.exists());
        fs::create_dir(templates.join("gone")).unwrap();
        // What a crash leaves goes with the next start.
        fs::write(templates.join("gone/7"), "a layer").unwrap();
        let _again = Layers::open(&templates).unwrap();
        assert_eq!(fs::read_dir(templates.join("gone")).unwrap().count(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_is_a_sparse_copy_of_its_template_and_is_kept_or_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let layers = Layers::open(&folder.path().join("templates")).unwrap();
        let path = folder.path().join("machine/root-1.img");
        layers.prepare(&path, wish(true)).await.unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 2 * GIB);
        assert!(found.blocks() * 512 < 4 * 1024 * 1024, "{}", found.blocks());
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 0x38).unwrap();
        assert_eq!(magic, [0x53, 0xef]);

        file.write_all_at(b"mine", GIB).unwrap();
        layers.prepare(&path, wish(false)).await.unwrap();
        layers.repair(&path).await.unwrap();
        let mut kept = [0; 4];
        File::open(&path).unwrap().read_exact_at(&mut kept, GIB).unwrap();
        assert_eq!(&kept, b"mine");
        layers.prepare(&path, wish(true)).await.unwrap();
        File::open(&path).unwrap().read_exact_at(&mut kept, GIB).unwrap();
        assert_eq!(kept, [0; 4]);

        assert_eq!(state(&path), EXT4_UNMOUNTED);

        layers.remove(&path).await.unwrap();
        layers.remove(&path).await.unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn holes_stay_holes_and_data_is_data() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = private(&from).unwrap();
        file.set_len(64 * 1024 * 1024).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 100_000], 33_000_000).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1024 * 1024);
    }
}
