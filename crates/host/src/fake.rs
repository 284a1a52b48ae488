//! Effects that happen in memory only, for tests of what is above them without root.
//!
//! Never touches a kernel feature. Clones share one server, as an agent before and after its
//! restart do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use perch_runtime::FakeRuntime;
use perch_types::address::private_ip;
use perch_types::clock::Clock;
use perch_types::image::{Digest, ImageConfig, ImageRef, Reference};
use perch_types::network_policy::Allowed;
use perch_types::volume::{GIB, VolumeUsage};
use perch_types::{Code, MachineId, VolumeId};
use tokio::sync::watch;

use crate::effects::{
    CachedImage, Disk, Effects, Fault, Images, LayerWish, Listeners, MountedImage, Networks,
    Resolved, Room, Rootfs, VolumeDisks,
};
use crate::holds::{Hold, IsNamed};
use crate::network::{ListenSocket, Listener, MachineNetwork, Pool, RESOLVER_V6};
use crate::policies::NoPolicies;
use crate::secrets::NoSecrets;

/// What there is on a server.
#[derive(Debug, Default)]
struct State {
    layers: BTreeSet<PathBuf>,
    repaired: Vec<PathBuf>,
    prepared: Vec<PathBuf>,
    removals: u64,
    attached: BTreeMap<MachineId, u32>,
    addresses: Option<Pool>,
    listeners: Vec<Listener>,
    unknown_images: BTreeSet<String>,
    disks: BTreeMap<Disk, u64>,
    frozen: BTreeSet<Disk>,
    /// Disks that were made, copied to, grown or removed, in that order.
    touched: Vec<Disk>,
    used_percent: u64,
    pool_folder: PathBuf,
    /// Why nobody can look for a disk.
    unseen: Option<Fault>,
    pool_bytes: Option<u64>,
    free_bytes: Option<u64>,
    copies_blocks: bool,
}

/// A server that is none.
#[derive(Debug, Clone, Default)]
pub struct FakeServer {
    state: Arc<Mutex<State>>,
    disks_held: watch::Sender<bool>,
    /// Its machines.
    pub runtime: FakeRuntime,
}

impl FakeServer {
    /// Makes an empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns its effects.
    #[must_use]
    pub fn effects(&self, clock: Arc<dyn Clock>) -> Effects {
        Effects {
            images: Arc::new(self.clone()),
            rootfs: Arc::new(self.clone()),
            networks: Arc::new(self.clone()),
            volumes: Arc::new(self.clone()),
            secrets: Arc::new(NoSecrets),
            policies: Arc::new(NoPolicies),
            runtime: Arc::new(self.runtime.clone()),
            clock,
        }
    }

    /// Gives machines addresses of another pool.
    pub fn set_addresses(&self, pool: Pool) {
        self.state().addresses = Some(pool);
    }

    /// Sets who listens inside every machine.
    pub fn listen(&self, listeners: &[Listener]) {
        self.state().listeners = listeners.to_vec();
    }

    /// Makes a reference one that no registry knows.
    pub fn forget_image(&self, reference: &str) {
        self.state().unknown_images.insert(reference.to_owned());
    }

    /// Returns the disks of volumes and snapshots with their sizes in bytes, and which are frozen.
    #[must_use]
    pub fn disks(&self) -> (BTreeMap<Disk, u64>, BTreeSet<Disk>) {
        let state = self.state();
        (state.disks.clone(), state.frozen.clone())
    }

    /// Puts a disk of so many bytes where somebody may have lost it, or takes it away.
    pub fn put_disk(&self, disk: Disk, bytes: Option<u64>) {
        let mut state = self.state();
        match bytes {
            Some(bytes) => state.disks.insert(disk, bytes),
            None => state.disks.remove(&disk),
        };
    }

    /// Lets nobody look for a disk, or everybody again.
    pub fn hide_disks(&self, why: Option<Fault>) {
        self.state().unseen = why;
    }

    /// Has whatever is being done to a disk take until this is told to let go.
    pub fn hold_disks(&self, held: bool) {
        self.disks_held.send_replace(held);
    }

    /// Returns how often somebody began to make, copy to, grow or remove a disk.
    #[must_use]
    pub fn touches(&self, disk: &Disk) -> usize {
        self.state().touched.iter().filter(|touched| *touched == disk).count()
    }

    async fn touch(&self, disk: &Disk) {
        self.state().touched.push(disk.clone());
        let mut held = self.disks_held.subscribe();
        // An error means that nobody can hold it any more.
        held.wait_for(|held| !*held).await.map(drop).ok();
    }

    /// Gives the pool so many bytes, of which so many can still be written.
    pub fn set_pool(&self, bytes: u64, free_bytes: u64) {
        let mut state = self.state();
        (state.pool_bytes, state.free_bytes) = (Some(bytes), Some(free_bytes));
    }

    /// Has the pool be on the disk of a folder.
    pub fn set_pool_folder(&self, folder: &Path) {
        folder.clone_into(&mut self.state().pool_folder);
    }

    /// Has copies of disks share nothing with what they were made of from now on.
    pub fn copy_blocks(&self) {
        self.state().copies_blocks = true;
    }

    /// Makes all volumes that full.
    pub fn fill(&self, percent: u64) {
        self.state().used_percent = percent;
    }

    /// Returns the layers that were looked at for repair, in order.
    #[must_use]
    pub fn repaired(&self) -> Vec<PathBuf> {
        self.state().repaired.clone()
    }

    /// Returns how often a file or folder was removed.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.state().removals
    }

    /// Returns the layers that were made or made anew since this was asked last.
    #[must_use]
    pub fn take_prepared(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.state().prepared)
    }

    /// Returns the layers there are.
    #[must_use]
    pub fn layers(&self) -> BTreeSet<PathBuf> {
        self.state().layers.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Images for FakeServer {
    async fn resolve(&self, reference: &str) -> Result<Resolved, Fault> {
        if self.state().unknown_images.contains(reference) {
            return Err(Fault::permanent(Code::ImageUnknown, format!("find image `{reference}`")));
        }
        let parsed: Reference = reference
            .parse()
            .map_err(|error| Fault::permanent(Code::InvalidValue, format!("image: {error}")))?;
        let mut bytes = [0; 32];
        for (byte, from) in bytes.iter_mut().zip(reference.bytes()) {
            *byte = from;
        }
        let digest = Some(Digest::from_sha256(&bytes));
        let image = ImageRef { digest, ..ImageRef::from(&parsed) };
        Ok(Resolved { image, hold: Hold::default() })
    }

    async fn mount(&self, image: &ImageRef) -> Result<MountedImage, Fault> {
        let name = image.digest.as_ref().map_or("none", Digest::hex);
        let config = ImageConfig { cmd: vec!["serve".to_owned()], ..ImageConfig::default() };
        Ok(MountedImage { root: Path::new("/images").join(name), config })
    }

    async fn config_json(&self, image: &ImageRef) -> Result<String, Fault> {
        Ok(serde_json::json!({ "repository": image.repository }).to_string())
    }

    async fn unmount_unused(&self, _is_named: IsNamed<'_>) -> Result<(), Fault> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<CachedImage>, Fault> {
        Ok(Vec::new())
    }

    async fn remove(&self, _digest: &Digest, _is_named: IsNamed<'_>) -> Result<bool, Fault> {
        Ok(false)
    }
}

#[async_trait]
impl Rootfs for FakeServer {
    async fn prepare(&self, path: &Path, _wish: LayerWish) -> Result<(), Fault> {
        let mut state = self.state();
        state.layers.insert(path.to_owned());
        state.prepared.push(path.to_owned());
        Ok(())
    }

    async fn repair(&self, path: &Path) -> Result<(), Fault> {
        // Layers are in the folder of their machine.
        let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let machine = folder.and_then(|name| name.parse::<MachineId>().ok());
        if machine.is_some_and(|machine| self.runtime.runs(&machine)) {
            return Err(Fault::permanent(Code::Internal, "repair a layer that is mounted"));
        }
        self.state().repaired.push(path.to_owned());
        Ok(())
    }

    async fn prepare_volume(&self, path: &Path, _size_mb: u64) -> Result<(), Fault> {
        self.prepare(path, LayerWish { size_gb: 0, fresh: true, kept: false }).await
    }

    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, Fault> {
        let state = self.state();
        Ok(state.layers.iter().filter(|path| path.starts_with(folder)).cloned().collect())
    }

    async fn remove(&self, path: &Path) -> Result<(), Fault> {
        let mut state = self.state();
        state.removals += 1;
        state.layers.retain(|layer| !layer.starts_with(path));
        Ok(())
    }
}

#[async_trait]
impl Networks for FakeServer {
    fn slots(&self) -> u32 {
        self.state().addresses.unwrap_or_default().slots()
    }

    fn addresses(&self, machine: &MachineNetwork) -> Result<(Ipv6Addr, Ipv4Addr), Fault> {
        let pool = self.state().addresses.unwrap_or_default();
        let v4 = pool
            .address(machine.slot)
            .ok_or_else(|| Fault::permanent(Code::Internal, "no such slot"))?;
        Ok((private_ip(machine.network_id, &machine.machine), v4))
    }

    fn resolvers(&self) -> Vec<IpAddr> {
        vec![RESOLVER_V6.into()]
    }

    fn public_address(&self) -> Option<IpAddr> {
        None
    }

    async fn confine(&self, _namespace: OwnedFd, _allowed: Allowed) -> Result<(), Fault> {
        Ok(())
    }

    async fn attach(&self, _namespace: OwnedFd, machine: MachineNetwork) -> Result<(), Fault> {
        self.state().attached.insert(machine.machine, machine.slot);
        Ok(())
    }

    async fn detach(&self, machine: &MachineId) -> Result<(), Fault> {
        self.state().attached.remove(machine);
        Ok(())
    }

    async fn attached(&self) -> Result<Vec<MachineId>, Fault> {
        Ok(self.state().attached.keys().cloned().collect())
    }

    fn listeners(&self, _namespace: OwnedFd) -> Result<Box<dyn Listeners>, Fault> {
        Ok(Box::new(self.clone()))
    }

    fn tcp_socket(&self, _namespace: OwnedFd) -> Result<OwnedFd, Fault> {
        crate::network::tcp_socket()
            .map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
    }

    async fn teardown(&self) -> Result<(), Fault> {
        self.state().attached.clear();
        Ok(())
    }
}

impl Listeners for FakeServer {
    fn sockets(&mut self) -> Result<Vec<ListenSocket>, Fault> {
        let listeners = self.state().listeners.clone();
        let numbered = listeners.into_iter().zip(1..);
        Ok(numbered.map(|(listener, inode)| ListenSocket { listener, inode }).collect())
    }

    fn listeners(&mut self) -> Result<Vec<Listener>, Fault> {
        Ok(self.state().listeners.clone())
    }
}

/// Bytes of the pool of a server that is none.
const POOL_BYTES: u64 = 1000 * GIB;
/// Blocks of a volume there.
const BLOCK_BYTES: u64 = 4096;

impl State {
    fn usage(&self, bytes: u64) -> VolumeUsage {
        let blocks = bytes / BLOCK_BYTES;
        let free = blocks - blocks * self.used_percent.min(100) / 100;
        VolumeUsage { blocks, block_size: BLOCK_BYTES, blocks_free: free, blocks_avail: free }
    }
}

#[async_trait]
impl VolumeDisks for FakeServer {
    fn image(&self, volume: &VolumeId) -> PathBuf {
        Path::new("/pool/volumes").join(volume.as_str())
    }

    fn folder(&self) -> PathBuf {
        self.state().pool_folder.clone()
    }

    async fn is_there(&self, disk: &Disk) -> Result<bool, Fault> {
        let state = self.state();
        match &state.unseen {
            Some(fault) => Err(fault.clone()),
            None => Ok(state.disks.contains_key(disk)),
        }
    }

    async fn room(&self) -> Result<Room, Fault> {
        let state = self.state();
        let total_bytes = state.pool_bytes.unwrap_or(POOL_BYTES);
        let volumes = state.disks.iter().filter(|(disk, _)| matches!(disk, Disk::Volume(_)));
        Ok(Room {
            total_bytes,
            free_bytes: state.free_bytes.unwrap_or(total_bytes),
            // As if nothing had been written.
            promised_bytes: volumes.map(|(_, bytes)| bytes).sum(),
            shares_blocks: !state.copies_blocks,
        })
    }

    async fn own_bytes(&self, _volume: &VolumeId) -> Result<u64, Fault> {
        Ok(0)
    }

    async fn make(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault> {
        let disk = Disk::Volume(volume.clone());
        self.touch(&disk).await;
        let mut state = self.state();
        state.disks.insert(disk, bytes);
        Ok(state.usage(bytes))
    }

    async fn copy(&self, from: &Disk, to: &Disk) -> Result<VolumeUsage, Fault> {
        self.state().frozen.insert(from.clone());
        // A crash finds it frozen.
        tokio::task::yield_now().await;
        self.touch(to).await;
        let mut state = self.state();
        if !state.frozen.remove(from) {
            return Err(Fault::permanent(Code::Internal, "somebody wrote to what was copied"));
        }
        let bytes = state.disks.get(from).copied();
        let bytes = bytes.ok_or_else(|| Fault::permanent(Code::Internal, "no such disk"))?;
        state.disks.insert(to.clone(), bytes);
        Ok(state.usage(bytes))
    }

    async fn grow(&self, volume: &VolumeId, bytes: u64) -> Result<VolumeUsage, Fault> {
        let disk = Disk::Volume(volume.clone());
        self.touch(&disk).await;
        let mut state = self.state();
        let disk = state.disks.get_mut(&disk);
        let disk = disk.ok_or_else(|| Fault::permanent(Code::Internal, "no such disk"))?;
        *disk = bytes.max(*disk);
        let bytes = *disk;
        Ok(state.usage(bytes))
    }

    async fn usage(&self, volume: &VolumeId) -> Result<Option<VolumeUsage>, Fault> {
        let state = self.state();
        let bytes = state.disks.get(&Disk::Volume(volume.clone())).copied();
        Ok(bytes.map(|bytes| state.usage(bytes)))
    }

    async fn thaw(&self, volume: &VolumeId) -> Result<(), Fault> {
        self.state().frozen.remove(&Disk::Volume(volume.clone()));
        Ok(())
    }

    async fn remove(&self, disk: &Disk) -> Result<(), Fault> {
        self.touch(disk).await;
        self.state().disks.remove(disk);
        Ok(())
    }

    fn findings(&self) -> Vec<String> {
        Vec::new()
    }

    async fn teardown(&self) -> Result<(), Fault> {
        self.state().disks.clear();
        Ok(())
    }
}
