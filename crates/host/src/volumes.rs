//! Volumes: disks that outlive machines, their snapshots, and who has which.
//!
//! Never touches a disk itself: the pool does (`effects::VolumeDisks`). Every change is journaled
//! like a machine's: the record and the run's beginning in one commit, its end and the record in
//! another. One volume does one thing at a time: the task that drives a run has the turns of all
//! volumes that it touches, until it ends.
//!
//! `record` is what is kept, `run` the steps, `command` what is asked for, `tend` what happens by
//! itself, `lost` what is told of images that are not there, `pool` the disk.

pub mod command;
mod drive;
mod lost;
pub mod pool;
pub mod record;
mod recover;
pub mod run;
pub mod tend;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use perch_durable::Tx;
use perch_types::directory::{Generation, VolumeRecord};
use perch_types::{ApiError, MachineConfig, MachineId, SnapshotId, Timestamp, VolumeId};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::effects::Room;
use crate::schema::VOLUMES;
use crate::shared::{Shared, Stamps};

use record::{SnapshotRow, VolumeRow};

/// Volumes of a host, as they were committed last.
#[derive(Debug, Default)]
pub struct Book {
    volumes: RwLock<BTreeMap<VolumeId, Arc<Entry>>>,
    /// Held from the look at the pool's room until what was admitted is known.
    admission: Arc<Mutex<()>>,
    /// Bytes that were admitted, for which the pool's files do not stand yet.
    admitted: Arc<AtomicU64>,
    /// Bytes of the disk of the host's own files that volumes may still write.
    kept: AtomicU64,
    /// Whether that disk had less free when it was looked at last.
    is_short: AtomicBool,
}

/// Room of the pool that was given to a run. Its volume counts with its whole size as soon as it is
/// known; what its disk may write is counted here until the disk itself tells.
#[derive(Debug)]
pub(crate) struct Admission {
    turn: Option<Turn>,
    bytes: u64,
    admitted: Arc<AtomicU64>,
}

impl Admission {
    /// Takes so many bytes.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.admitted.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Lets the next one look: what was admitted is known.
    pub(crate) fn is_known(&mut self) {
        self.turn = None;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.admitted.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// One volume.
#[derive(Debug)]
pub(crate) struct Entry {
    turn: Arc<Mutex<()>>,
    known: RwLock<Known>,
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The volume.
    pub row: VolumeRow,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotRow>,
}

/// The right to do something to a volume. Whoever drives a run has it until the run's end.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Entry {
    fn of(row: &VolumeRow) -> Self {
        let known = Known { row: row.clone(), snapshots: Vec::new() };
        Self { turn: Arc::default(), known: RwLock::new(known) }
    }

    /// Waits until nobody else does something to it.
    pub(crate) async fn turn(&self) -> Turn {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Returns the turn unless somebody has it.
    pub(crate) fn try_turn(&self) -> Option<Turn> {
        Arc::clone(&self.turn).try_lock_owned().ok()
    }

    /// Returns what is known.
    pub(crate) fn known(&self) -> Known {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Book {
    /// Returns a volume.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn entry(&self, id: &VolumeId) -> Result<Arc<Entry>, ApiError> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.get(id).cloned().ok_or_else(|| ApiError::volume_not_found(id.as_str()))
    }

    /// Returns all volumes, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.values().map(|entry| entry.known()).collect()
    }

    /// Returns a snapshot and its volume.
    #[must_use]
    pub fn snapshot(&self, id: &SnapshotId) -> Option<(VolumeRow, SnapshotRow)> {
        self.all().into_iter().find_map(|known| {
            let found = known.snapshots.into_iter().find(|snapshot| snapshot.id == *id)?;
            Some((known.row, found))
        })
    }

    /// Takes a new volume that was committed, whose turn its maker has.
    pub(crate) fn put_new(&self, entry: &Arc<Entry>) {
        let id = entry.known().row.record.id;
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        volumes.entry(id).or_insert_with(|| Arc::clone(entry));
    }

    /// Waits until nobody else is between the look at the pool's room and its promise.
    pub(crate) async fn admission(&self) -> Admission {
        let turn = Some(Arc::clone(&self.admission).lock_owned().await);
        Admission { turn, bytes: 0, admitted: Arc::clone(&self.admitted) }
    }

    /// Returns the bytes that were admitted and for which no disk stands yet.
    pub(crate) fn admitted_bytes(&self) -> u64 {
        self.admitted.load(Ordering::Acquire)
    }

    /// Returns the bytes of the disk of the host's own files that nothing else may take, because
    /// volumes may still write them.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    /// Takes a row that was committed, unless a newer one is known.
    pub(crate) fn put(&self, row: VolumeRow) {
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let entry =
            volumes.entry(row.record.id.clone()).or_insert_with(|| Arc::new(Entry::of(&row)));
        let mut known = entry.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.row.record.generation <= row.record.generation {
            known.row = row;
        }
    }

    /// Takes a snapshot that was committed, in place of what was known of it.
    pub(crate) fn put_snapshot(&self, snapshot: SnapshotRow) {
        let Ok(entry) = self.entry(&snapshot.volume) else { return };
        let mut known = entry.known.write().unwrap_or_else(PoisonError::into_inner);
        known.snapshots.retain(|one| one.id != snapshot.id);
        known.snapshots.push(snapshot);
        known.snapshots.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    }

    /// Forgets a snapshot.
    pub(crate) fn forget_snapshot(&self, volume: &VolumeId, id: &SnapshotId) {
        let Ok(entry) = self.entry(volume) else { return };
        let mut known = entry.known.write().unwrap_or_else(PoisonError::into_inner);
        known.snapshots.retain(|one| one.id != *id);
    }

    /// Forgets a volume.
    pub(crate) fn forget(&self, id: &VolumeId) {
        self.volumes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Returns the volumes that a configuration mounts, each with where; what is no id is left out.
pub fn mounts_of(config: &MachineConfig) -> impl Iterator<Item = (VolumeId, &str)> {
    config.mounts.iter().filter_map(|mount| Some((mount.volume.parse().ok()?, &*mount.path)))
}

/// Changes a row in a transaction.
///
/// # Errors
/// On a fault of the file.
pub(crate) fn change(
    tx: &Tx<'_>,
    id: &VolumeId,
    (generation, now): (Generation, Timestamp),
    change: impl FnOnce(&mut VolumeRow),
) -> Result<Option<VolumeRow>, perch_durable::Error> {
    let Some(mut row) = VOLUMES.get(tx, id)? else {
        return Ok(None);
    };
    change(&mut row);
    row.record.generation = generation;
    row.record.updated_at = now;
    VOLUMES.put(tx, id, &row)?;
    Ok(Some(row))
}

/// Finds out whether a machine may have all of these volumes.
///
/// # Errors
/// On a fault of the file; the inner one names the volume that it may not have.
pub(crate) fn check_attachable(
    tx: &perch_durable::Snapshot<'_>,
    ids: &[VolumeId],
    machine: &MachineId,
) -> Result<Result<(), ApiError>, perch_durable::Error> {
    for id in ids {
        let refusal = match VOLUMES.get(tx, id)? {
            Some(row) => row.refusal(machine),
            None => Some(ApiError::volume_not_found(id.as_str())),
        };
        if let Some(refusal) = refusal {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(()))
}

/// Gives volumes to a machine, in a transaction that has checked that it may have them.
///
/// # Errors
/// On a fault of the file.
pub(crate) fn attach(
    tx: &Tx<'_>,
    ids: &[VolumeId],
    machine: &MachineId,
    stamps: &Stamps,
) -> Result<Vec<VolumeRow>, perch_durable::Error> {
    let mut rows = Vec::new();
    for id in ids {
        let stamp = stamps.stamp();
        rows.extend(change(tx, id, stamp, |row| row.record.attached = Some(machine.clone()))?);
    }
    Ok(rows)
}

/// Returns whether two folders are on one disk.
fn share_a_disk(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| rustix::fs::stat(path).ok().map(|found| found.st_dev);
    device(one).is_some_and(|found| Some(found) == device(other))
}

impl Shared {
    /// Looks at how much volumes may still write. A pool that was never needed is not made for it.
    pub(crate) async fn look_at_room(&self) {
        if self.volumes.all().is_empty() {
            return self.volumes.kept.store(0, Ordering::Release);
        }
        match self.effects.volumes.room().await {
            Ok(room) => self.note_room(&room),
            Err(fault) => tracing::debug!(%fault, "pool of volumes cannot be measured"),
        }
    }

    /// Notes how much of the disk of the host's own files volumes may still write.
    pub(crate) fn note_room(&self, room: &Room) {
        let data = &self.config.data_dir;
        let is_theirs = share_a_disk(data, &self.effects.volumes.folder());
        let promised = room.promised_bytes.saturating_add(self.volumes.admitted_bytes());
        let kept = if is_theirs { promised } else { 0 };
        self.volumes.kept.store(kept, Ordering::Release);
        let free = crate::host::free_bytes(data).unwrap_or(u64::MAX);
        let is_short = free < kept;
        let was_short = self.volumes.is_short.swap(is_short, Ordering::AcqRel);
        if is_short && !was_short {
            tracing::warn!(
                free_mib = free >> 20,
                kept_mib = kept >> 20,
                "disk has less free than volumes may still write: one that finds none stops"
            );
        }
    }

    /// Returns the free bytes of the disk of the host's own files below which nothing new is made.
    pub(crate) fn disk_floor_bytes(&self) -> u64 {
        self.config.limits.disk_reserve_bytes.saturating_add(self.volumes.kept_bytes())
    }

    /// Takes rows that were committed and has them published.
    pub(crate) fn took(&self, rows: Vec<VolumeRow>) {
        for row in rows {
            self.volumes.put(row);
        }
        self.dirty.notify_one();
    }

    /// Gives volumes to a machine, if it may have all of them.
    ///
    /// # Errors
    /// When another machine has one, or it cannot be used.
    pub(crate) async fn attach_volumes(
        self: &Arc<Self>,
        machine: &MachineId,
        ids: Vec<VolumeId>,
    ) -> Result<(), ApiError> {
        let has = |known: &Known| {
            let record = &known.row.record;
            record.attached.as_ref() == Some(machine) && record.state.is_usable()
        };
        let all_there =
            ids.iter().all(|id| self.volumes.entry(id).is_ok_and(|entry| has(&entry.known())));
        if all_there {
            return Ok(());
        }
        let (stamps, machine) = (self.stamps(), machine.clone());
        let written: Result<_, perch_durable::Error> = self
            .db
            .write(move |tx| match check_attachable(tx, &ids, &machine)? {
                Ok(()) => attach(tx, &ids, &machine, &stamps).map(Ok),
                Err(refusal) => Ok(Err(refusal)),
            })
            .await;
        self.took(written.map_err(|error| self.db_error(&error))??);
        Ok(())
    }

    /// Takes from a machine all volumes but those that it keeps, with how full they were last.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) async fn detach_volumes(
        self: &Arc<Self>,
        machine: &MachineId,
        keep: &[VolumeId],
    ) -> Result<(), ApiError> {
        let mine = |record: &VolumeRecord| {
            record.attached.as_ref() == Some(machine) && !keep.contains(&record.id)
        };
        let gone: Vec<VolumeId> = self
            .volumes
            .all()
            .into_iter()
            .filter(|known| mine(&known.row.record))
            .map(|known| known.row.record.id)
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let (stamps, machine) = (self.stamps(), machine.clone());
        let written: Result<_, perch_durable::Error> = self
            .db
            .write_reserved(move |tx| {
                let mut rows = Vec::new();
                for id in &gone {
                    let leave = |row: &mut VolumeRow| {
                        row.record.attached.take_if(|other| *other == machine);
                    };
                    rows.extend(change(tx, id, stamps.stamp(), leave)?);
                }
                Ok(rows)
            })
            .await;
        self.took(written.map_err(|error| self.db_error(&error))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
