//! The pool: an XFS file system with an image file for every volume and every snapshot.
//!
//! Never makes itself twice or by halves: its own image is formatted beside its place and moved
//! there. Never follows what a tenant wrote: a volume's file system is frozen, grown and measured
//! as a whole, its tree is not looked at.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use perch_runtime::clock;
use perch_runtime::loopback::{FREE_TIMEOUT_MS, Loop};
use perch_runtime::volume::{Held, own_bytes};
use perch_types::error::chain;
use perch_types::volume::{GIB, VolumeUsage};
use perch_types::{ApiError, Code, VolumeId};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::effects::{Disk, Fault, Room, VolumeDisks};
use crate::layers::{self, Cloning, copy, private, remove};

mod guard;

use guard::Guard;

/// Bytes of a file system's log, the pool's and a volume's: the least that XFS takes.
const LOG: &str = "size=64m";
/// Folders of the pool.
const VOLUMES: &str = "volumes";
const SNAPSHOTS: &str = "snapshots";
/// The pause between two attempts to unmount what is busy.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(10);
/// What a program says of a full disk where nobody translates it.
const NO_SPACE: &str = "No space left on device";
/// Characters that the name of an XFS file system holds.
const LABEL_BYTES_MAX: usize = 12;

/// Where the pool is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolConfig {
    /// A folder of the operator's, on a file system that is mounted there; a file in the host's
    /// own folder when unset.
    pub dir: Option<PathBuf>,
    /// The size of that file in bytes; 0 is as large as the disk that it is on.
    pub size_bytes: u64,
    /// Free bytes of the pool, and of the disk below it, at which nothing new is made.
    pub reserve_bytes: u64,
    /// The binary that thaws a volume when the agent dies in the middle of a snapshot.
    pub guard: PathBuf,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    folder: PathBuf,
    config: PoolConfig,
    opened: Mutex<Option<Opened>>,
}

#[derive(Debug, Clone)]
struct Opened {
    root: PathBuf,
    /// Nothing until it was found out, for which the pool must not be full.
    cloning: Option<Cloning>,
}

/// What can go wrong with the pool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a path.
    #[error("{operation} {}", path.display())]
    Path {
        /// A verb.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The format program did not succeed.
    #[error("format {}: {complaint}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it wrote.
        complaint: String,
    },
    /// A volume's file system, or a loop device.
    #[error("use a volume's disk")]
    Disk {
        /// Why.
        source: perch_runtime::Error,
    },
    /// A file of the pool.
    #[error("use a file of the pool")]
    File {
        /// Why.
        source: layers::Error,
    },
}

impl Error {
    fn path<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Path { operation, path, source: source.into() }
    }

    fn io(&self) -> Option<&io::Error> {
        use perch_runtime::Error as Runtime;
        match self {
            Self::Path { source, .. }
            | Self::File { source: layers::Error::File { source, .. } }
            | Self::Disk {
                source: Runtime::File { source, .. } | Runtime::System { source, .. },
            } => Some(source),
            Self::Format { .. } | Self::Disk { .. } | Self::File { .. } => None,
        }
    }

    /// Returns whether there is no room left.
    fn is_full(&self) -> bool {
        if let Self::Format { complaint, .. } = self {
            return complaint.contains(NO_SPACE);
        }
        let kind = self.io().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<perch_runtime::Error> for Error {
    fn from(source: perch_runtime::Error) -> Self {
        Self::Disk { source }
    }
}

impl From<layers::Error> for Error {
    fn from(source: layers::Error) -> Self {
        Self::File { source }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let kind = error.io().map(io::Error::kind);
        let code = if error.is_full() { Code::NoSpace } else { Code::Internal };
        // Somebody else holds the image for a moment.
        let transient = matches!(
            kind,
            Some(io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut)
        );
        Self { error: ApiError::new(code, chain(&error)), transient }
    }
}

impl Pool {
    /// Keeps a pool in a folder. One that was made before is mounted, a new one is made when it
    /// is needed.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, config: PoolConfig) -> Result<Self, Error> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(folder).map_err(Error::path("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(Error::path("find", folder))?;
        let pool = Self { folder, config, opened: Mutex::default() };
        if pool.config.dir.is_some() || pool.image_file().exists() {
            // Machines without volumes run without it: the fault is a finding, and met again.
            if let Err(error) = pool.opened() {
                tracing::error!(error = %chain(&error), "volumes cannot be used");
            }
        }
        Ok(pool)
    }

    fn image_file(&self) -> PathBuf {
        self.folder.join("pool.img")
    }

    /// Returns whether there is a pool, mounted or not.
    fn is_made(&self) -> bool {
        self.config.dir.is_some() || self.lock().is_some() || self.image_file().exists()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where the disks are, and finds out how they are copied there.
    fn opened(&self) -> Result<Opened, Error> {
        let mut known = self.lock();
        let mut opened = self.found(&mut known)?;
        if opened.cloning.is_none() {
            opened.cloning = probe(&opened.root)?;
            *known = Some(opened.clone());
        }
        Ok(opened)
    }

    /// Returns where the disks are. Writes nothing to a pool that was used before, so that one
    /// that is full can be made emptier.
    fn root(&self) -> Result<PathBuf, Error> {
        Ok(self.found(&mut self.lock())?.root)
    }

    fn found(&self, known: &mut Option<Opened>) -> Result<Opened, Error> {
        if let Some(opened) = known {
            return Ok(opened.clone());
        }
        let root = match &self.config.dir {
            Some(dir) => dir.clone(),
            None => self.mount_own()?,
        };
        for name in [VOLUMES, SNAPSHOTS] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Error::path("create", &path))?;
        }
        Ok(known.insert(Opened { root, cloning: None }).clone())
    }

    /// Mounts the pool's own image, making it the first time and larger if it is to be.
    fn mount_own(&self) -> Result<PathBuf, Error> {
        let (image, point) = (self.image_file(), self.folder.join("pool"));
        let disk = disk_of(&self.folder)?;
        let wanted = match self.config.size_bytes {
            0 => disk.total_bytes / GIB * GIB,
            bytes => bytes,
        };
        if !image.exists() {
            make_image(&image, wanted.max(GIB), None, &["-m", "reflink=1"])?;
        }
        fs::create_dir_all(&point).map_err(Error::path("create", &point))?;
        if !is_mounted(&point)? {
            let (device, _held) = Loop::attach(&image, FREE_TIMEOUT_MS)?;
            let flags =
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
            rustix::mount::mount(device.path(), &point, "xfs", flags, c"nouuid,discard")
                .map_err(Error::path("mount the pool on", &point))?;
        }
        let size = fs::metadata(&image).map_err(Error::path("read", &image))?.len();
        if self.config.size_bytes > size
            && let Some(held) = Held::mounted(&image)?
        {
            held.grow(self.config.size_bytes)?;
        }
        Ok(point)
    }

    fn path(root: &Path, disk: &Disk) -> PathBuf {
        match disk {
            Disk::Volume(id) => root.join(VOLUMES).join(format!("{id}.img")),
            Disk::Snapshot(id) => root.join(SNAPSHOTS).join(format!("{id}.img")),
        }
    }

    fn room_now(&self) -> Result<Room, Error> {
        let opened = self.opened()?;
        let mut room = disk_of(&opened.root)?;
        if self.config.dir.is_none() {
            // The pool's file has holes: it holds no more than the disk below it.
            room.free_bytes = room.free_bytes.min(disk_of(&self.folder)?.free_bytes);
        }
        room.free_bytes = room.free_bytes.saturating_sub(self.config.reserve_bytes);
        room.promised_bytes = promised(&opened.root.join(VOLUMES))?;
        room.shares_blocks = opened.cloning == Some(Cloning::Reflink);
        Ok(room)
    }

    fn make_now(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Error> {
        let path = Self::path(&self.root()?, &Disk::Volume(volume.clone()));
        let label: String =
            volume.as_str().trim_start_matches("vol_").chars().take(LABEL_BYTES_MAX).collect();
        make_image(&path, bytes, Some(&label), &[])?;
        Ok(Held::any(&path)?.usage()?)
    }

    fn copy_now(&self, from: &Disk, to: &Disk) -> Result<VolumeUsage, Error> {
        let root = self.root()?;
        let (source, target) = (Self::path(&root, from), Self::path(&root, to));
        let new = target.with_extension("new");
        remove(&new)?;
        let held = match from {
            Disk::Volume(_) => Some(Held::any(&source)?),
            Disk::Snapshot(_) => None,
        };
        let usage = match &held {
            Some(held) => {
                held.sync()?;
                let _guard = Guard::start(&self.config.guard, &source);
                let frozen = held.freeze().map_err(Error::from);
                let copied = frozen.and_then(|()| Ok(copy(&source, &new)?));
                // Whatever happened, writing goes on.
                held.thaw()?;
                copied?;
                held.usage()?
            }
            None => {
                copy(&source, &new)?;
                VolumeUsage::default()
            }
        };
        settle(&new, &target)?;
        Ok(usage)
    }

    fn grow_now(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Error> {
        let path = Self::path(&self.root()?, &Disk::Volume(volume.clone()));
        let held = Held::any(&path)?;
        held.grow(bytes)?;
        Ok(held.usage()?)
    }

    fn is_there_now(&self, disk: &Disk) -> Result<bool, Error> {
        if !self.is_made() {
            return Ok(false);
        }
        let path = Self::path(&self.root()?, disk);
        path.try_exists().map_err(Error::path("look for", &path))
    }

    fn remove_now(&self, disk: &Disk) -> Result<(), Error> {
        // What is to be removed is no reason to make a pool.
        if !self.is_made() {
            return Ok(());
        }
        let root = self.root()?;
        let path = Self::path(&root, disk);
        remove(&path.with_extension("new"))?;
        remove(&path)?;
        sync_folder(&path)
    }

    fn teardown_now(&self) -> Result<(), Error> {
        let mut known = self.lock();
        let root = match (known.take(), &self.config.dir) {
            (_, Some(dir)) => dir.clone(),
            (..) => self.folder.join("pool"),
        };
        if self.config.dir.is_some() {
            for name in [VOLUMES, SNAPSHOTS] {
                remove(&root.join(name))?;
            }
            return Ok(());
        }
        if root.exists() && is_mounted(&root)? {
            unmount(&root)?;
        }
        remove(&self.folder)?;
        Ok(())
    }
}

/// Makes the image of a file system beside its place, formats it and moves it there.
fn make_image(path: &Path, bytes: u64, label: Option<&str>, more: &[&str]) -> Result<(), Error> {
    let new = path.with_extension("new");
    remove(&new)?;
    let file = private(&new).map_err(Error::path("create", &new))?;
    let sized = file.set_len(bytes).map_err(Error::path("size", &new));
    let made = sized.and_then(|()| format(&new, label, more)).and_then(|()| settle(&new, path));
    if made.is_err() {
        // The disk may be full of just this.
        remove(&new)?;
    }
    made
}

fn format(path: &Path, label: Option<&str>, more: &[&str]) -> Result<(), Error> {
    let label = label.map(|label| ["-L", label]);
    let output = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-K", "-l", LOG])
        .args(label.iter().flatten())
        .args(more)
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .map_err(Error::path("run mkfs.xfs (package xfsprogs) for", path))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Format { path: path.to_owned(), complaint })
}

/// Brings a new file to the disk and moves it to its place.
fn settle(new: &Path, path: &Path) -> Result<(), Error> {
    let file = File::open(new).map_err(Error::path("open", new))?;
    file.sync_all().map_err(Error::path("sync", new))?;
    fs::rename(new, path).map_err(Error::path("move into place", path))?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    let opened = File::open(folder).map_err(Error::path("open", folder))?;
    opened.sync_all().map_err(Error::path("sync", folder))
}

/// Returns what the volumes in a folder may still write: all that is not there for each alone.
fn promised(folder: &Path) -> Result<u64, Error> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(folder).map_err(Error::path("list", folder))? {
        let path = entry.map_err(Error::path("list", folder))?.path();
        if path.extension().is_none_or(|extension| extension != "img") {
            continue;
        }
        let size = match fs::metadata(&path) {
            Ok(found) => found.len(),
            // It was removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::path("read", &path)(error)),
        };
        let own = match own_bytes(&path) {
            Err(perch_runtime::Error::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            own => own?,
        };
        sum = sum.saturating_add(size.saturating_sub(own));
    }
    Ok(sum)
}

/// Finds out how files are copied in a folder; nothing when it is too full for that.
fn probe(root: &Path) -> Result<Option<Cloning>, Error> {
    let (from, to) = (root.join("probe.from"), root.join("probe.to"));
    let written = fs::write(&from, [1; 4096]).map_err(Error::path("write", &from));
    let found = written.and_then(|()| Ok(copy(&from, &to)?));
    for path in [&from, &to] {
        remove(path)?;
    }
    match found {
        Err(error) if error.is_full() => Ok(None),
        other => other.map(Some),
    }
}

fn disk_of(path: &Path) -> Result<Room, Error> {
    let found = rustix::fs::statvfs(path).map_err(Error::path("measure", path))?;
    Ok(Room {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        promised_bytes: 0,
        shares_blocks: false,
    })
}

/// Returns whether something is mounted on a folder: it has another device than the one above.
fn is_mounted(point: &Path) -> Result<bool, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| {
        fs::metadata(path).map(|found| found.dev()).map_err(Error::path("read", path))
    };
    Ok(device(point)? != device(point.parent().unwrap_or(point))?)
}

/// All of it waits for the disk, so it is done where it is asked for, off the threads that
/// answer.
fn here<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Fault> {
    Ok(tokio::task::block_in_place(work)?)
}

/// Unmounts the pool. The loop device of a volume lets go of its file a moment after it was freed.
fn unmount(root: &Path) -> Result<(), Error> {
    let until_ms = clock::boot_ms().saturating_add(FREE_TIMEOUT_MS);
    loop {
        match rustix::mount::unmount(root, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) if clock::boot_ms() < until_ms => {
                clock::pause(UNMOUNT_PAUSE);
            }
            done => return done.map_err(Error::path("unmount", root)),
        }
    }
}

#[async_trait]
impl VolumeDisks for Pool {
    fn image(&self, volume: &VolumeId) -> PathBuf {
        let root = self.config.dir.clone().unwrap_or_else(|| self.folder.join("pool"));
        Self::path(&root, &Disk::Volume(volume.clone()))
    }

    fn folder(&self) -> PathBuf {
        self.config.dir.clone().unwrap_or_else(|| self.folder.clone())
    }

    async fn is_there(&self, disk: &Disk) -> Result<bool, Fault> {
        here(|| self.is_there_now(disk))
    }

    async fn room(&self) -> Result<Room, Fault> {
        here(|| self.room_now())
    }

    async fn own_bytes(&self, volume: &VolumeId) -> Result<u64, Fault> {
        here(|| Ok(own_bytes(&self.image(volume))?))
    }

    async fn make(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault> {
        here(|| self.make_now(volume, bytes))
    }

    async fn copy(&self, from: &Disk, to: &Disk) -> Result<VolumeUsage, Fault> {
        here(|| self.copy_now(from, to))
    }

    async fn grow(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault> {
        here(|| self.grow_now(volume, bytes))
    }

    async fn usage(&self, volume: &VolumeId) -> Result<Option<VolumeUsage>, Fault> {
        here(|| {
            let held = Held::mounted(&self.image(volume))?;
            Ok(held.map(|held| held.usage()).transpose()?)
        })
    }

    async fn thaw(&self, volume: &VolumeId) -> Result<(), Fault> {
        here(|| {
            let image = self.image(volume);
            if let Some(held) = image.exists().then(|| Held::mounted(&image)).transpose()?.flatten()
            {
                held.thaw()?;
            }
            Ok(())
        })
    }

    async fn remove(&self, disk: &Disk) -> Result<(), Fault> {
        here(|| self.remove_now(disk))
    }

    fn findings(&self) -> Vec<String> {
        let finding = match (self.lock().as_ref(), &self.config.dir) {
            (Some(Opened { cloning: Some(Cloning::Reflink), root }), _) => {
                format!("volumes: in {}, snapshots share their blocks", root.display())
            }
            (Some(Opened { cloning: None, root }), _) => format!(
                "volumes: {} is full, nothing is made there until something was removed",
                root.display()
            ),
            (Some(Opened { cloning: Some(Cloning::SparseCopy), root }), _) => format!(
                "volumes: in {}, whose file system has no reflink: a snapshot copies the whole \
                 volume while writing to it is stopped",
                root.display()
            ),
            (None, Some(dir)) => format!("volumes: {} cannot be used", dir.display()),
            (None, None) if self.image_file().exists() => {
                "volumes: the pool cannot be mounted".to_owned()
            }
            (None, None) => "volumes: the pool is made with the first volume".to_owned(),
        };
        vec![finding]
    }

    async fn teardown(&self) -> Result<(), Fault> {
        here(|| self.teardown_now())
    }
}

#[cfg(test)]
mod tests;
