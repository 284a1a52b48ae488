//! Volumes of the host in memory: every call of `types::host` about them, no disk behind it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Param, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use perch_store::{Expected, Store, delete_doc, put_doc_freeing};
use perch_types::directory::{Generation, VolumeRecord};
use perch_types::host::{CreateVolume, HostSnapshot, PoolRoom, VolumeCommand, VolumeSource};
use perch_types::volume::{GIB, VolumeSnapshot, VolumeState, VolumeUsage};
use perch_types::{ApiError, Code, HostId, MachineId, SnapshotId, Timestamp, VolumeId};

use crate::fake_host::{FakeHost, Refused};

/// Volumes and their snapshots.
#[derive(Debug)]
pub(crate) struct FakeVolumes {
    pub(crate) volumes: Mutex<BTreeMap<VolumeId, VolumeRecord>>,
    snapshots: Mutex<Vec<HostSnapshot>>,
    store: Arc<dyn Store>,
    counter: Mutex<u64>,
}

type Shared = State<Arc<FakeHost>>;
type Reply<T> = Result<Json<T>, Refused>;

impl FakeVolumes {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            volumes: Mutex::default(),
            snapshots: Mutex::default(),
            store,
            counter: Mutex::default(),
        }
    }

    fn now(&self) -> (Generation, Timestamp) {
        let mut counter = self.counter.lock().unwrap();
        *counter += 1;
        let ms = 1_700_000_000_000 + i64::try_from(*counter).unwrap();
        (Generation { incarnation: 1, counter: *counter }, Timestamp::from_unix_ms(ms))
    }

    /// Changes a volume and tells the directory.
    pub(crate) async fn change(
        &self,
        id: &VolumeId,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> VolumeRecord {
        let record = {
            let mut volumes = self.volumes.lock().unwrap();
            let record = volumes.get_mut(id).unwrap();
            change(record);
            (record.generation, record.updated_at) = self.now();
            record.clone()
        };
        let key = (record.org.clone(), record.app.clone(), record.id.clone());
        put_doc_freeing(self.store.as_ref(), &key, &record, Expected::Any).await.unwrap();
        record
    }

    /// Gives volumes to a machine, all or none.
    pub(crate) async fn attach(
        &self,
        machine: &MachineId,
        config: &perch_types::MachineConfig,
    ) -> Result<(), Refused> {
        let ids: Vec<VolumeId> =
            config.mounts.iter().map(|mount| mount.volume.parse().unwrap()).collect();
        for id in &ids {
            let attached = self.volumes.lock().unwrap()[id].attached.clone();
            if let Some(other) = attached.filter(|other| other != machine) {
                return Err(Refused(ApiError::volume_attached(id.as_str(), other.as_str())));
            }
        }
        for id in &ids {
            self.change(id, |record| record.attached = Some(machine.clone())).await;
        }
        Ok(())
    }

    /// Takes all volumes of a machine.
    pub(crate) async fn detach(&self, machine: &MachineId) {
        let mine: Vec<VolumeId> = {
            let volumes = self.volumes.lock().unwrap();
            let mine = volumes.values().filter(|one| one.attached.as_ref() == Some(machine));
            mine.map(|one| one.id.clone()).collect()
        };
        for id in mine {
            self.change(&id, |record| record.attached = None).await;
        }
    }

    /// Forgets what was destroyed, as a real host does after a day.
    pub(crate) async fn forget_destroyed(&self) {
        let gone: Vec<VolumeRecord> = {
            let mut volumes = self.volumes.lock().unwrap();
            let gone = volumes.values().filter(|one| one.state.is_going()).cloned().collect();
            volumes.retain(|_, one| !one.state.is_going());
            gone
        };
        for one in gone {
            let key = (one.org, one.app, one.id);
            delete_doc::<VolumeRecord>(self.store.as_ref(), &key, Expected::Any).await.unwrap();
        }
    }

    fn find(&self, id: &VolumeId) -> Result<VolumeRecord, Refused> {
        let found = self.volumes.lock().unwrap().get(id).cloned();
        found.ok_or_else(|| Refused(ApiError::volume_not_found(id.as_str())))
    }
}

pub(crate) fn routes() -> Router<Arc<FakeHost>> {
    Router::new()
        .route("/volumes", post(create).get(list))
        .route("/volumes/{id}", get(one))
        .route("/volumes/{id}/command", post(command))
        .route("/volumes/{id}/snapshots", get(snapshots))
        .route("/snapshots/{id}", get(snapshot))
        .route("/pool", get(pool))
}

async fn create(State(host): Shared, Json(asked): Json<CreateVolume>) -> Reply<VolumeRecord> {
    let volumes = &host.volumes;
    if asked.name == "no_room" {
        return Err(Refused(ApiError::new(Code::NoSpace, "the pool of volumes is full")));
    }
    if let VolumeSource::Volume(source) = &asked.source {
        volumes.find(source)?;
    }
    let blocks = u64::from(asked.size_gb) * GIB / 4096;
    let (generation, now) = volumes.now();
    let record = VolumeRecord {
        id: asked.id.clone(),
        org: asked.org,
        app: asked.app,
        app_id: asked.app_id,
        name: asked.name,
        host: HostId::from_bits(7),
        region: FakeHost::region(),
        generation,
        state: VolumeState::Created,
        size_gb: asked.size_gb,
        attached: None,
        usage: VolumeUsage {
            blocks,
            block_size: 4096,
            blocks_free: blocks - 10,
            blocks_avail: blocks - 20,
        },
        snapshot_retention: asked.snapshot_retention,
        auto_backup: asked.auto_backup,
        copies: false,
        snapshot_error: None,
        destroy_at: None,
        created_at: now,
        updated_at: now,
    };
    volumes.volumes.lock().unwrap().insert(asked.id.clone(), record);
    Ok(Json(volumes.change(&asked.id, |_| {}).await))
}

async fn list(State(host): Shared) -> Json<Vec<VolumeRecord>> {
    Json(host.volumes.volumes.lock().unwrap().values().cloned().collect())
}

/// There is room for ten.
async fn pool(State(host): Shared) -> Json<PoolRoom> {
    let volumes = host.volumes.volumes.lock().unwrap();
    let promised: u64 = volumes.values().map(|one| u64::from(one.size_gb)).sum();
    Json(PoolRoom { free_gb: 10_u64.saturating_sub(promised) })
}

async fn one(State(host): Shared, Param(id): Param<VolumeId>) -> Reply<VolumeRecord> {
    host.volumes.find(&id).map(Json)
}

async fn command(
    State(host): Shared,
    Param(id): Param<VolumeId>,
    Json(command): Json<VolumeCommand>,
) -> Reply<VolumeRecord> {
    let volumes = &host.volumes;
    let record = volumes.find(&id)?;
    if let (VolumeCommand::Destroy, Some(machine)) = (&command, &record.attached) {
        return Err(Refused(ApiError::volume_attached(id.as_str(), machine.as_str())));
    }
    if let VolumeCommand::Snapshot { id: snapshot } = &command {
        let snapshot = VolumeSnapshot {
            id: snapshot.clone(),
            size: record.usage.bytes_used(),
            volume_size: u64::from(record.size_gb) * GIB,
            digest: String::new(),
            created_at: record.updated_at,
            status: "created".to_owned(),
            retention_days: record.snapshot_retention,
        };
        host.volumes.snapshots.lock().unwrap().push(HostSnapshot {
            volume: id.clone(),
            org: record.org,
            app: record.app,
            size_gb: record.size_gb,
            snapshot,
        });
    }
    let changed = volumes
        .change(&id, |record| match command {
            VolumeCommand::Extend { size_gb } => record.size_gb = size_gb,
            VolumeCommand::Update { snapshot_retention, auto_backup } => {
                record.snapshot_retention = snapshot_retention.unwrap_or(record.snapshot_retention);
                record.auto_backup = auto_backup.unwrap_or(record.auto_backup);
            }
            VolumeCommand::Snapshot { .. } => {}
            VolumeCommand::Destroy => record.state = VolumeState::PendingDestroy,
        })
        .await;
    Ok(Json(changed))
}

async fn snapshots(State(host): Shared, Param(id): Param<VolumeId>) -> Reply<Vec<HostSnapshot>> {
    host.volumes.find(&id)?;
    let all = host.volumes.snapshots.lock().unwrap();
    Ok(Json(all.iter().filter(|one| one.volume == id).cloned().collect()))
}

async fn snapshot(State(host): Shared, Param(id): Param<SnapshotId>) -> Reply<HostSnapshot> {
    let all = host.volumes.snapshots.lock().unwrap();
    let found = all.iter().find(|one| one.snapshot.id == id).cloned();
    found.map(Json).ok_or_else(|| {
        Refused(ApiError::new(Code::SnapshotNotFound, format!("snapshot not found: {id}")))
    })
}
