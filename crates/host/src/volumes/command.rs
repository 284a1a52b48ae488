//! What is asked of volumes: admitted here, then carried out as a run.
//!
//! Never begins a second thing with a volume before the first has ended.

use std::sync::Arc;

use perch_types::directory::VolumeRecord;
use perch_types::host::{CreateVolume, HostSnapshot, PoolRoom, VolumeCommand, VolumeSource};
use perch_types::volume::{DESTROY_DELAY_MS, GIB, SIZE_GB_MAX, SNAPSHOTS_MAX, VolumeState};
use perch_types::{ApiError, Code, SnapshotId, Timestamp, VolumeId};

use super::drive::{ANSWER_TIMEOUT, Start, turn_of};
use super::record::{SnapshotRow, VolumeRow};
use super::run::Intent;
use super::{Admission, Entry, change};
use crate::Host;
use crate::effects::Room;
use crate::schema::VOLUMES;
use crate::shared::Shared;

impl Host {
    /// Makes a volume. The same request again gets the same answer.
    ///
    /// # Errors
    /// When there is no room or what it is to be made of is not there; nothing is left then.
    pub async fn create_volume(&self, asked: CreateVolume) -> Result<VolumeRecord, ApiError> {
        self.shared.create_volume(asked).await
    }

    /// Returns all volumes, by id.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeRecord> {
        self.shared.volumes.all().into_iter().map(|known| known.row.record).collect()
    }

    /// Returns what the pool of volumes has left.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub async fn pool_room(&self) -> Result<PoolRoom, ApiError> {
        let room = self.shared.effects.volumes.room().await.map_err(|fault| fault.error)?;
        let left = (room.total_bytes / GIB).saturating_sub(self.shared.promised_gb());
        Ok(PoolRoom { free_gb: if room.free_bytes == 0 { 0 } else { left } })
    }

    /// Returns a volume with how full it is now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn volume(&self, id: &VolumeId) -> Result<VolumeRecord, ApiError> {
        let mut record = self.shared.volumes.entry(id)?.known().row.record;
        // One that cannot be measured now is as full as it was.
        if record.attached.is_some()
            && let Ok(Some(usage)) = self.shared.effects.volumes.usage(id).await
        {
            record.usage = usage;
        }
        Ok(record)
    }

    /// Returns the snapshots of a volume, newest first.
    ///
    /// # Errors
    /// When there is no such volume.
    pub fn snapshots(&self, id: &VolumeId) -> Result<Vec<HostSnapshot>, ApiError> {
        let known = self.shared.volumes.entry(id)?.known();
        Ok(known.snapshots.iter().rev().map(|one| one.of(&known.row.record)).collect())
    }

    /// Returns a snapshot.
    ///
    /// # Errors
    /// When there is none.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<HostSnapshot, ApiError> {
        let (volume, snapshot) = self.shared.volumes.snapshot(id).ok_or_else(|| no_snapshot(id))?;
        Ok(snapshot.of(&volume.record))
    }

    /// Does what is asked of a volume.
    ///
    /// # Errors
    /// When it is refused, or does not succeed.
    pub async fn volume_command(
        &self,
        id: &VolumeId,
        command: VolumeCommand,
    ) -> Result<VolumeRecord, ApiError> {
        let shared = &self.shared;
        match command {
            VolumeCommand::Extend { size_gb } => shared.extend_volume(id, size_gb).await,
            VolumeCommand::Update { snapshot_retention, auto_backup } => {
                shared
                    .write_volume(id, move |row| {
                        let record = &mut row.record;
                        record.snapshot_retention =
                            snapshot_retention.unwrap_or(record.snapshot_retention);
                        record.auto_backup = auto_backup.unwrap_or(record.auto_backup);
                        record.snapshot_error.take_if(|_| !record.auto_backup);
                    })
                    .await
            }
            VolumeCommand::Snapshot { id: snapshot } => {
                shared.snapshot_volume(id, snapshot, false).await
            }
            VolumeCommand::Destroy => shared.destroy_volume(id).await,
        }
    }
}

fn no_snapshot(id: &SnapshotId) -> ApiError {
    ApiError::new(Code::SnapshotNotFound, format!("snapshot not found: {id}"))
}

fn lost_snapshot(id: &SnapshotId) -> ApiError {
    let text = format!("snapshot {id} is missing: its host does not have its image");
    ApiError::new(Code::WrongState, text).with_hint(format!(
        "the server's operator puts `snapshots/{id}.img` back into the pool, which is noticed \
         within a minute"
    ))
}

impl Shared {
    pub(super) async fn create_volume(
        self: &Arc<Self>,
        asked: CreateVolume,
    ) -> Result<VolumeRecord, ApiError> {
        if let Ok(entry) = self.volumes.entry(&asked.id) {
            return Ok(entry.known().row.record);
        }
        // What it is made of stays until it is made.
        let source = self.source_of(&asked)?;
        let mut turns = Vec::new();
        if let Some(entry) = &source {
            turns.push(turn_of(entry).await?);
        }
        let mut admission = self.admission().await?;
        // While this waited it may have been made, or what it is made of may have gone.
        if let Ok(entry) = self.volumes.entry(&asked.id) {
            return Ok(entry.known().row.record);
        }
        self.source_of(&asked)?;
        let (count, max) = (self.volumes.all().len(), self.config.limits.volumes_max);
        if count >= max {
            return Err(ApiError::new(
                Code::InsufficientCapacity,
                format!("host has {count} volumes, the limit is {max}"),
            ));
        }
        // Whatever a source had for itself alone is shared from then on.
        let shared_bytes = match &asked.source {
            VolumeSource::Volume(source) => self.own_bytes(source).await?,
            VolumeSource::Empty | VolumeSource::Snapshot(_) => 0,
        };
        let room = self.room_for(&mut admission, u64::from(asked.size_gb), shared_bytes).await?;
        let intent = match asked.source.clone() {
            VolumeSource::Empty => Intent::Create,
            VolumeSource::Snapshot(snapshot) => Intent::Restore { snapshot },
            VolumeSource::Volume(source) => Intent::Fork { source },
        };
        let (generation, now) = self.stamps().stamp();
        let record = VolumeRecord {
            id: asked.id,
            org: asked.org,
            app: asked.app,
            app_id: asked.app_id,
            name: asked.name,
            host: self.id.clone(),
            region: self.config.region.clone(),
            generation,
            state: VolumeState::Creating,
            size_gb: asked.size_gb,
            attached: None,
            usage: Default::default(),
            snapshot_retention: asked.snapshot_retention,
            auto_backup: asked.auto_backup,
            copies: !room.shares_blocks,
            snapshot_error: None,
            destroy_at: None,
            created_at: now,
            updated_at: now,
        };
        let row = VolumeRow { record, backed_up_unix_ms: now.unix_ms() };
        // Nobody else sees it yet, so its first turn is free.
        let entry = Arc::new(Entry::of(&row));
        turns.extend(entry.try_turn());
        let admission = Some(admission);
        self.run_volume(Start { entry, turns, intent, snapshot: None, admission }).await
    }

    /// Returns the volume that a new one is made of.
    fn source_of(&self, asked: &CreateVolume) -> Result<Option<Arc<Entry>>, ApiError> {
        let (row, least_gb) = match &asked.source {
            VolumeSource::Empty => return Ok(None),
            VolumeSource::Volume(id) => {
                let row = self.volumes.entry(id)?.known().row;
                if !row.record.state.is_usable() {
                    return Err(wrong_state(&row.record));
                }
                let size = row.record.size_gb;
                (row, size)
            }
            VolumeSource::Snapshot(id) => {
                let found = self.volumes.snapshot(id).filter(|(_, found)| found.is_whole);
                let (row, found) = found.ok_or_else(|| no_snapshot(id))?;
                if found.is_lost {
                    return Err(lost_snapshot(id));
                }
                (row, found.size_gb)
            }
        };
        if asked.size_gb < least_gb {
            return Err(ApiError::new(
                Code::InvalidValue,
                format!("size_gb: {} is less than the source's {least_gb}", asked.size_gb),
            ));
        }
        self.volumes.entry(&row.record.id).map(Some)
    }

    /// Waits until nobody else is between the look at the pool's room and its promise.
    async fn admission(&self) -> Result<Admission, ApiError> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.volumes.admission()).await.map_err(|_| {
            ApiError::new(Code::Unavailable, "the pool of volumes does not answer")
                .with_hint("try again in a moment")
        })
    }

    async fn own_bytes(&self, volume: &VolumeId) -> Result<u64, ApiError> {
        self.effects.volumes.own_bytes(volume).await.map_err(|fault| fault.error)
    }

    /// Returns what volumes may hold together.
    fn promised_gb(&self) -> u64 {
        self.volumes.all().iter().map(|known| u64::from(known.row.record.size_gb)).sum()
    }

    /// Refuses what the pool has no room for: a volume of so many more GiB, or a copy of which so
    /// many bytes may have to be written anew. What volumes may hold together never exceeds the
    /// pool, and what they may still write is free in it and on the disk below, so that one that
    /// fills up does so alone and none meets an end before its own.
    async fn room_for(
        &self,
        admission: &mut Admission,
        more_gb: u64,
        shared_bytes: u64,
    ) -> Result<Room, ApiError> {
        let room = self.effects.volumes.room().await.map_err(|fault| fault.error)?;
        let hint = "destroy volumes, or give the pool more room (`perchd config`, `volumes`)";
        if room.free_bytes == 0 {
            return Err(ApiError::new(Code::NoSpace, "the pool of volumes is full").with_hint(hint));
        }
        let promised_gb = self.promised_gb();
        let wanted = promised_gb.saturating_add(more_gb).saturating_mul(GIB);
        let refused = |text| ApiError::new(Code::InsufficientCapacity, text).with_hint(hint);
        if wanted > room.total_bytes {
            return Err(refused(format!(
                "the pool of volumes holds {} GiB, {promised_gb} GiB are promised, {more_gb} GiB \
                 more are asked for",
                room.total_bytes / GIB
            )));
        }
        let more_bytes = more_gb.saturating_mul(GIB).saturating_add(shared_bytes);
        let promised_bytes = room.promised_bytes.saturating_add(self.volumes.admitted_bytes());
        if promised_bytes.saturating_add(more_bytes) > room.free_bytes {
            return Err(refused(format!(
                "the pool of volumes has {} MiB free, of which its volumes may still write {} MiB; \
                 this takes {} MiB more",
                room.free_bytes >> 20,
                promised_bytes >> 20,
                more_bytes >> 20
            )));
        }
        admission.take(more_bytes);
        self.note_room(&room);
        Ok(room)
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// When there is no room, or it would become smaller.
    pub(crate) async fn extend_volume(
        self: &Arc<Self>,
        id: &VolumeId,
        size_gb: u32,
    ) -> Result<VolumeRecord, ApiError> {
        let entry = self.volumes.entry(id)?;
        let turns = vec![turn_of(&entry).await?];
        let known = entry.known();
        let record = &known.row.record;
        if !record.state.is_usable() {
            return Err(wrong_state(record));
        }
        if size_gb < record.size_gb || size_gb > SIZE_GB_MAX {
            return Err(ApiError::new(
                Code::InvalidValue,
                format!("size_gb: {size_gb} is not {} to {SIZE_GB_MAX}", record.size_gb),
            )
            .with_hint("a volume never becomes smaller: copy what it has to a new one"));
        }
        if size_gb == record.size_gb && record.state == VolumeState::Created {
            return Ok(record.clone());
        }
        let mut admission = self.admission().await?;
        self.room_for(&mut admission, u64::from(size_gb - record.size_gb), 0).await?;
        let (intent, admission) = (Intent::Extend { size_gb }, Some(admission));
        self.run_volume(Start { entry, turns, intent, snapshot: None, admission }).await
    }

    /// Makes a snapshot. The same id again is the same snapshot.
    ///
    /// # Errors
    /// When there is no room or the volume is going.
    pub(crate) async fn snapshot_volume(
        self: &Arc<Self>,
        id: &VolumeId,
        snapshot: SnapshotId,
        is_daily: bool,
    ) -> Result<VolumeRecord, ApiError> {
        let entry = self.volumes.entry(id)?;
        let turns = vec![turn_of(&entry).await?];
        let known = entry.known();
        let record = &known.row.record;
        if known.snapshots.iter().any(|one| one.id == snapshot) {
            return Ok(record.clone());
        }
        if !record.state.is_usable() {
            return Err(wrong_state(record));
        }
        if known.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(ApiError::new(
                Code::RateLimited,
                format!("volume {id} has {SNAPSHOTS_MAX} snapshots, which is the limit"),
            )
            .with_hint("the oldest go by themselves: see `snapshot_retention`"));
        }
        let mut admission = self.admission().await?;
        self.room_for(&mut admission, 0, self.own_bytes(id).await?).await?;
        let row = SnapshotRow {
            id: snapshot.clone(),
            volume: id.clone(),
            size_gb: record.size_gb,
            usage: record.usage,
            created_at: self.effects.clock.now(),
            retention_days: record.snapshot_retention,
            is_whole: false,
            is_lost: false,
        };
        let (intent, snapshot) = (Intent::Snapshot { snapshot, is_daily }, Some(row));
        let admission = Some(admission);
        self.run_volume(Start { entry, turns, intent, snapshot, admission }).await
    }

    pub(super) async fn destroy_volume(
        self: &Arc<Self>,
        id: &VolumeId,
    ) -> Result<VolumeRecord, ApiError> {
        let entry = self.volumes.entry(id)?;
        let _turn = turn_of(&entry).await?;
        let id = id.clone();
        let due = self.effects.clock.now();
        let due = Timestamp::from_unix_ms(due.unix_ms().saturating_add(DESTROY_DELAY_MS));
        let stamps = self.stamps();
        let written: Result<_, perch_durable::Error> = self
            .db
            .write_reserved(move |tx| {
                let Some(row) = VOLUMES.get(tx, &id)? else {
                    return Ok(Err(ApiError::volume_not_found(id.as_str())));
                };
                if row.record.state.is_going() {
                    return Ok(Ok(row));
                }
                if let Some(machine) = &row.record.attached {
                    let refusal = ApiError::volume_attached(id.as_str(), machine.as_str());
                    return Ok(Err(refusal.with_hint("destroy the machine first")));
                }
                let changed = change(tx, &id, stamps.stamp(), |row| {
                    row.record.state = VolumeState::PendingDestroy;
                    row.record.destroy_at = Some(due);
                })?;
                Ok(Ok(changed.unwrap_or(row)))
            })
            .await;
        let row = written.map_err(|error| self.db_error(&error))??;
        self.took(vec![row.clone()]);
        Ok(row.record)
    }

    /// Changes a volume's record and nothing else.
    pub(super) async fn write_volume(
        self: &Arc<Self>,
        id: &VolumeId,
        work: impl FnOnce(&mut VolumeRow) + Send + 'static,
    ) -> Result<VolumeRecord, ApiError> {
        let (stamps, own) = (self.stamps(), id.clone());
        let written: Result<_, perch_durable::Error> =
            self.db.write(move |tx| change(tx, &own, stamps.stamp(), work)).await;
        let row = written.map_err(|error| self.db_error(&error))?;
        let row = row.ok_or_else(|| ApiError::volume_not_found(id.as_str()))?;
        self.took(vec![row.clone()]);
        Ok(row.record)
    }
}

/// Returns why a volume takes no command.
fn wrong_state(record: &VolumeRecord) -> ApiError {
    ApiError::volume_state(record.id.as_str(), record.state)
}
