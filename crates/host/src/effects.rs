//! What a machine's steps do to the world, as small traits.
//!
//! Never decides anything. The whole crate can be driven with other implementations, without root.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use perch_runtime::Runtime;
use perch_types::clock::Clock;
use perch_types::error::chain;
use perch_types::image::{Digest, ImageConfig, ImageRef};
use perch_types::network_policy::Allowed;
use perch_types::volume::VolumeUsage;
use perch_types::{ApiError, Code, MachineId, SnapshotId, VolumeId};

use crate::holds::{Hold, IsNamed};
use crate::network::{ListenSocket, Listener, MachineNetwork};
use crate::policies::Policies;
use crate::secrets::Secrets;

/// Why an effect was not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Fault {
    /// What the API says of it.
    pub error: ApiError,
    /// Whether the same attempt may succeed a little later.
    pub transient: bool,
}

impl Fault {
    /// Makes a fault that a later attempt would meet again.
    #[must_use]
    pub fn permanent(code: Code, text: impl Into<String>) -> Self {
        Self { error: ApiError::new(code, text), transient: false }
    }

    /// Makes a fault that a later attempt may not meet.
    #[must_use]
    pub fn transient(code: Code, text: impl Into<String>) -> Self {
        Self { error: ApiError::new(code, text), transient: true }
    }
}

/// An image whose root tree can be read on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedImage {
    /// The root tree.
    pub root: PathBuf,
    /// How its program is run.
    pub config: ImageConfig,
}

/// What a reference means now, and a hold of it for as long as no machine names it yet.
#[derive(Debug)]
pub struct Resolved {
    /// The image.
    pub image: ImageRef,
    /// Keeps it on the host, if it is there, until this is dropped.
    pub hold: Hold,
}

/// An image on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Which.
    pub digest: Digest,
    /// What it takes.
    pub size_bytes: u64,
}

/// Images on this host.
#[async_trait]
pub trait Images: Send + Sync + fmt::Debug {
    /// Finds out which image a reference means now; changes nothing on the host that matters.
    async fn resolve(&self, reference: &str) -> Result<Resolved, Fault>;

    /// Makes an image's root tree readable, pulling it if it is not here.
    async fn mount(&self, image: &ImageRef) -> Result<MountedImage, Fault>;

    /// Returns an image's configuration as its registry has it.
    async fn config_json(&self, image: &ImageRef) -> Result<String, Fault>;

    /// Unmounts the trees of images that nobody holds and no machine names.
    async fn unmount_unused(&self, is_named: IsNamed<'_>) -> Result<(), Fault>;

    /// Lists the images on the disk.
    async fn list(&self) -> Result<Vec<CachedImage>, Fault>;

    /// Deletes an image from the disk unless somebody holds it or a machine names it; returns
    /// whether it did.
    async fn remove(&self, digest: &Digest, is_named: IsNamed<'_>) -> Result<bool, Fault>;
}

/// What a writable layer is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerWish {
    /// Its size in GiB.
    pub size_gb: u32,
    /// Whether it is made anew in place of one that is there.
    pub fresh: bool,
    /// Whether a later boot may need it, so that it has to survive a loss of power.
    pub kept: bool,
}

/// Machines' writable layers.
#[async_trait]
pub trait Rootfs: Send + Sync + fmt::Debug {
    /// Makes an empty layer at `path`. One that is there and is not to be fresh is not touched: a
    /// boot may run on it.
    async fn prepare(&self, path: &Path, wish: LayerWish) -> Result<(), Fault>;

    /// Makes a layer whole that was in use when the server went down. For one that no boot runs
    /// on any more; waits a while for the last one to let go of it.
    async fn repair(&self, path: &Path) -> Result<(), Fault>;

    /// Makes an empty file system of a size in MiB at `path`, in place of what is there.
    async fn prepare_volume(&self, path: &Path, size_mb: u64) -> Result<(), Fault>;

    /// Lists the layers in a machine's folder.
    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, Fault>;

    /// Removes a file or folder, whether it is there or not.
    async fn remove(&self, path: &Path) -> Result<(), Fault>;
}

/// Asks who listens inside a machine.
pub trait Listeners: Send + fmt::Debug {
    /// Returns the TCP sockets that accept connections.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn listeners(&mut self) -> Result<Vec<Listener>, Fault>;

    /// Returns the same sockets with their inodes.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn sockets(&mut self) -> Result<Vec<ListenSocket>, Fault>;
}

/// Machines' networking.
#[async_trait]
pub trait Networks: Send + Sync + fmt::Debug {
    /// Returns how many address slots there are.
    fn slots(&self) -> u32;

    /// Returns the addresses a machine has.
    ///
    /// # Errors
    /// When its slot is beyond the pool.
    fn addresses(&self, machine: &MachineNetwork) -> Result<(Ipv6Addr, Ipv4Addr), Fault>;

    /// Returns the resolvers' addresses as machines see them.
    fn resolvers(&self) -> Vec<IpAddr>;

    /// Returns the address that machines' requests to the internet come from, if it is public.
    fn public_address(&self) -> Option<IpAddr>;

    /// Closes a network namespace in which nothing runs yet but for what is allowed.
    async fn confine(&self, namespace: OwnedFd, allowed: Allowed) -> Result<(), Fault>;

    /// Connects a machine that does not run yet.
    async fn attach(&self, namespace: OwnedFd, machine: MachineNetwork) -> Result<(), Fault>;

    /// Removes a machine's interface, whether it is there or not.
    async fn detach(&self, machine: &MachineId) -> Result<(), Fault>;

    /// Lists the machines that have an interface.
    async fn attached(&self) -> Result<Vec<MachineId>, Fault>;

    /// Opens a view of who listens inside a network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn listeners(&self, namespace: OwnedFd) -> Result<Box<dyn Listeners>, Fault>;

    /// Makes a TCP socket inside a network namespace, connected to nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn tcp_socket(&self, namespace: OwnedFd) -> Result<OwnedFd, Fault>;

    /// Removes everything of every machine, and the host's own part.
    async fn teardown(&self) -> Result<(), Fault>;
}

/// A disk in the pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disk {
    /// A volume's.
    Volume(VolumeId),
    /// A snapshot's.
    Snapshot(SnapshotId),
}

/// How much the pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the pool.
    pub total_bytes: u64,
    /// Bytes of it that can still be written.
    pub free_bytes: u64,
    /// Bytes of those that its volumes may still write before each is full.
    pub promised_bytes: u64,
    /// Whether a copy shares the blocks of what it was made of.
    pub shares_blocks: bool,
}

/// The disks of volumes and snapshots.
#[async_trait]
pub trait VolumeDisks: Send + Sync + fmt::Debug {
    /// Returns how many bytes a volume shares with no other disk: its copy shares them, and to
    /// write them anew takes as many.
    async fn own_bytes(&self, volume: &VolumeId) -> Result<u64, Fault>;

    /// Returns the image file that a machine mounts as a volume.
    fn image(&self, volume: &VolumeId) -> PathBuf;

    /// Returns a folder on the disk that the pool takes its blocks of.
    fn folder(&self) -> PathBuf;

    /// Returns whether a disk's image is there; makes nothing.
    async fn is_there(&self, disk: &Disk) -> Result<bool, Fault>;

    /// Returns how much the pool holds, making it the first time.
    async fn room(&self) -> Result<Room, Fault>;

    /// Makes an empty volume, in place of what is there.
    async fn make(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault>;

    /// Makes a disk of another as that is at one moment, in place of what is there; a volume that
    /// is mounted is written to before and after, not meanwhile. Returns how full it was.
    async fn copy(&self, from: &Disk, to: &Disk) -> Result<VolumeUsage, Fault>;

    /// Makes a volume that large, mounted or not; it never becomes smaller.
    async fn grow(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault>;

    /// Returns how full a volume is; nothing when no machine has it mounted.
    async fn usage(&self, volume: &VolumeId) -> Result<Option<VolumeUsage>, Fault>;

    /// Lets writing to a volume go on that a copy which did not end may have stopped.
    async fn thaw(&self, volume: &VolumeId) -> Result<(), Fault>;

    /// Removes a disk, whether it is there or not.
    async fn remove(&self, disk: &Disk) -> Result<(), Fault>;

    /// Returns what is worth knowing about the pool, one finding a line.
    fn findings(&self) -> Vec<String>;

    /// Removes the pool with everything in it.
    async fn teardown(&self) -> Result<(), Fault>;
}

/// All effects of a host.
#[derive(Debug, Clone)]
pub struct Effects {
    /// Images.
    pub images: Arc<dyn Images>,
    /// Writable layers.
    pub rootfs: Arc<dyn Rootfs>,
    /// Networking.
    pub networks: Arc<dyn Networks>,
    /// Disks of volumes.
    pub volumes: Arc<dyn VolumeDisks>,
    /// Apps' secrets.
    pub secrets: Arc<dyn Secrets>,
    /// Apps' network policies.
    pub policies: Arc<dyn Policies>,
    /// Cages.
    pub runtime: Arc<dyn Runtime>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl From<perch_runtime::Error> for Fault {
    fn from(error: perch_runtime::Error) -> Self {
        use perch_runtime::Error::{Silent, Stranger, Timeout};
        // Of a monitor that is not understood a later release of the agent may make something.
        let transient = matches!(error, Timeout { .. } | Silent { .. } | Stranger { .. });
        Self { error: ApiError::new(error.code(), chain(&error)), transient }
    }
}

impl From<crate::network::Error> for Fault {
    fn from(error: crate::network::Error) -> Self {
        Self::permanent(Code::Internal, chain(&error))
    }
}
