//! How the agent starts: its file, its effects, and what an earlier agent left.
//!
//! Never stops a machine that runs; what belongs to no machine is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use perch_durable::{Db, OpenRun};
use perch_oci::{Client, ClientConfig, Credentials, Endpoint, ImageStore, StoreConfig};
use perch_runtime::{MachineDir, SandboxRuntime, sandbox};
use perch_types::Timestamp;
use perch_types::error::chain;
use perch_types::image::PLATFORM_REGISTRY;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::{Clock, Creating, Host, HostId, MachineId, Origin, Store};
use crate::config::{Config, PlatformRegistry};
use crate::effects::Effects;
use crate::error::Error;
use crate::images::StoredImages;
use crate::layers::{Cloning, Layers};
use crate::machine::record::Record;
use crate::machine::state::State;
use crate::mounts::Mounts;
use crate::networks::KernelNetworks;
use crate::policies::KeptPolicies;
use crate::schema::{self, HOST, HostRow, ONLY, QUEUES, RECORDS};
use crate::secrets::{AppKeys, SealedSecrets};
use crate::shared::{Begin, Shared};
use crate::volumes::pool::{Pool, PoolConfig};

/// The host's own file in its data folder.
const STATE_FILE: &str = "host.db";
/// How far apart the generations of two starts of the agent are, in bits.
const STARTS_SHIFT: u32 = 32;

/// What the agent needs from the daemon.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The directory.
    pub store: Arc<dyn Store>,
    /// Gives the keys of apps.
    pub keys: Arc<dyn AppKeys>,
}

impl Host {
    /// Starts the agent with real machines.
    ///
    /// # Errors
    /// When a folder, the state file, the network or the image store cannot be used.
    pub async fn start(mut config: Config, deps: Deps) -> Result<Self, Error> {
        make_folders(&config)?;
        config.monitor = keep_binary(&config.data_dir, &config.monitor)?;
        config.init = keep_binary(&config.data_dir, &config.init)?;
        let mut findings = Vec::new();
        let layers = Layers::open(&config.data_dir.join("templates"))
            .map_err(|source| Error::Layers { source })?;
        findings.push(match layers.probe().map_err(|source| Error::Layers { source })? {
            Some(Cloning::Reflink) => "layers: cloned by reflink".to_owned(),
            Some(Cloning::SparseCopy) => {
                "layers: copied, the file system has no reflink".to_owned()
            }
            // Whoever is to free space needs the agent.
            None => "layers: cloned or copied, the disk is too full to tell".to_owned(),
        });
        let mounts = Mounts::open(&config.run_dir.join("images"))
            .map_err(|source| Error::Mounts { source })?;
        let pool = PoolConfig { guard: config.monitor.clone(), ..config.pool.clone() };
        let pool = Pool::open(&config.data_dir.join("volumes"), pool)
            .map_err(|source| Error::Pool { source })?;
        let networks = KernelNetworks::open(config.network.clone())
            .await
            .map_err(|source| Error::Network { source })?;
        let images = images(&config, mounts).await?;
        let runtime = SandboxRuntime::new(sandbox::Config {
            monitor: config.monitor.clone(),
            init: config.init.clone(),
            cgroup: config.cgroup.clone(),
        });
        let secrets = SealedSecrets::open(
            config.data_dir.join("secrets"),
            Arc::clone(&deps.store),
            deps.keys,
            Arc::clone(&deps.clock),
        )?;
        let policies = KeptPolicies::open(
            config.data_dir.join("policies"),
            Arc::clone(&deps.store),
            Arc::clone(&deps.clock),
        )?;
        let effects = Effects {
            images: Arc::new(images),
            rootfs: Arc::new(layers),
            networks: Arc::new(networks),
            volumes: Arc::new(pool),
            secrets: Arc::new(secrets),
            policies: Arc::new(policies),
            runtime: Arc::new(runtime),
            clock: deps.clock,
        };
        Self::start_with(config, effects, Some(deps.store), findings).await
    }

    /// Starts the agent with effects of the caller's. Without a directory nothing is published.
    ///
    /// # Errors
    /// When a folder or the state file cannot be used.
    pub async fn start_with(
        config: Config,
        effects: Effects,
        store: Option<Arc<dyn Store>>,
        findings: Vec<String>,
    ) -> Result<Self, Error> {
        Self::start_telling(config, effects, store, findings, || {}).await
    }

    /// As [`Host::start_with`]. `committed` is called after every commit of the state file, before
    /// anybody hears of it: a test can end the process there.
    ///
    /// # Errors
    /// As [`Host::start_with`].
    pub async fn start_telling(
        config: Config,
        effects: Effects,
        store: Option<Arc<dyn Store>>,
        findings: Vec<String>,
        committed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        make_folders(&config)?;
        let db = Db::open(config.data_dir.join(STATE_FILE), &[])
            .map_err(|source| Error::State { source })?;
        db.on_commit(committed);
        let server_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default();
        let (row, rebooted) = begin(&db, config.id.clone(), server_boot).await?;
        let counter = row.starts << STARTS_SHIFT;
        let begin = Begin { id: row.id, incarnation: row.incarnation, counter, rebooted, findings };
        let shared = Arc::new(Shared::new(config, effects, db, begin));
        let host = Self {
            shared: Arc::clone(&shared),
            creating: Creating::default(),
            loops: Arc::new(Mutex::new(JoinSet::new())),
        };
        let known = host.recover().await?;
        host.remove_leaks(&known).await;
        host.start_loops(store).await;
        Ok(host)
    }

    async fn start_loops(&self, store: Option<Arc<dyn Store>>) {
        let mut loops = self.loops.lock().await;
        loops.spawn(crate::tend::tend(Arc::clone(&self.shared)));
        loops.spawn(crate::volumes::tend::tend(Arc::clone(&self.shared)));
        loops.spawn(crate::autostop::run(Arc::clone(&self.shared)));
        if let Some(store) = store {
            loops.spawn(crate::publish::publish(Arc::clone(&self.shared), store));
        }
    }

    /// Starts the tasks of all machines, each with what it was doing.
    async fn recover(&self) -> Result<BTreeSet<MachineId>, Error> {
        let shared = &self.shared;
        let state = |source| Error::State { source };
        let records = shared.db.read(|snapshot| RECORDS.list(snapshot)).map_err(state)?;
        let queues = shared.db.read(|snapshot| QUEUES.list(snapshot)).map_err(state)?;
        let recovered = shared.journal.unfinished().map_err(state)?;
        let mut runs: BTreeMap<String, OpenRun> =
            recovered.runs.into_iter().map(|run| (run.state().owner.clone(), run)).collect();
        shared.recover_volumes(&mut runs).await?;
        let mut queues: BTreeMap<MachineId, _> = queues.records.into_iter().collect();
        // One record that cannot be read takes down nothing but its own machine, and nothing of
        // that machine is removed.
        let mut known: BTreeSet<MachineId> = BTreeSet::new();
        for unreadable in records.unreadable {
            tracing::error!(
                machine = unreadable.key,
                reason = unreadable.reason,
                "record cannot be read"
            );
            known.extend(unreadable.key.parse());
            shared.has_unreadable.store(true, Ordering::Release);
        }
        for run in recovered.unreadable {
            tracing::error!(machine = run.owner, error = %chain(&run.error), "run cannot be read");
        }
        for (id, mut record) in records.records {
            let run = runs.remove(id.as_str()).map(Box::new);
            let queued = queues.remove(&id).unwrap_or_default();
            known.insert(id.clone());
            self.fit_slot(&mut record).await;
            if let Err(error) = self.spawn(record, queued, Origin::Recovered(run)) {
                tracing::error!(machine = %id, %error, "machine cannot be taken up");
                shared.has_unreadable.store(true, Ordering::Release);
            }
        }
        Ok(known)
    }

    /// Gives a machine another slot when the pool has its own no more: it was made smaller while
    /// no machine ran, and without an address nobody could do anything with the machine.
    async fn fit_slot(&self, record: &mut Record) {
        let (shared, before) = (&self.shared, record.slot);
        let slots = shared.effects.networks.slots();
        if before < slots {
            return;
        }
        if record.state == State::Destroyed {
            // It has none, and is only shown for a while.
            record.slot = 0;
            return;
        }
        let (boot_ms, mut moved) = (shared.effects.clock.boot_ms(), record.clone());
        let written: Result<Option<Record>, perch_durable::Error> = shared
            .db
            .write(move |tx| {
                let Ok(slot) = schema::take_slot(tx, slots, boot_ms)? else {
                    return Ok(None);
                };
                schema::release_slot(tx, moved.slot, boot_ms)?;
                moved.slot = slot;
                RECORDS.put(tx, &moved.id, &moved)?;
                Ok(Some(moved))
            })
            .await;
        match written {
            Ok(Some(moved)) => {
                tracing::warn!(machine = %moved.id, before, now = moved.slot,
                    "machine has another private IPv4 address: the pool is smaller");
                *record = moved;
            }
            Ok(None) => tracing::error!(machine = %record.id, slots, "pool has no address left"),
            Err(error) => {
                tracing::error!(machine = %record.id, error = %chain(&error), "address not changed");
            }
        }
    }
}

/// Returns whether a machine may run on a host, by the notes that boots have in its run folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn has_boots(run_dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(run_dir.join("machines")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse::<MachineId>().ok());
        if id.is_some_and(|id| MachineDir::below(run_dir, run_dir, &id).boot_file().exists()) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn images(config: &Config, mounts: Mounts) -> Result<StoredImages, Error> {
    let source = |source| Error::Images { source };
    let mut client = ClientConfig::default();
    if let Some(PlatformRegistry { endpoint, user, password }) = &config.registry {
        let endpoint = Endpoint {
            base_url: endpoint.clone(),
            credentials: Some(Credentials { user: user.clone(), password: password.clone() }),
        };
        client.endpoints.insert(PLATFORM_REGISTRY.to_owned(), endpoint);
    }
    let store = ImageStore::open(StoreConfig {
        root: config.data_dir.join("images"),
        client: client.clone(),
        limits: perch_oci::Limits::default(),
        privilege: config.unpack.clone(),
    })
    .await
    .map_err(source)?;
    let client = Client::new(client).map_err(source)?;
    Ok(StoredImages::new(store, client, mounts))
}

/// Reads what the host is, or makes it up the first time; returns it and whether the server was
/// restarted since.
async fn begin(db: &Db, id: HostId, server_boot: String) -> Result<(HostRow, bool), Error> {
    // On a full disk the agent has to start all the same: machines are stopped and destroyed by it.
    let begun: Result<_, perch_durable::Error> = db
        .write_reserved(move |tx| {
            let only = ONLY.to_owned();
            let mut row = HOST.get(tx, &only)?.unwrap_or_else(|| HostRow {
                id: id.clone(),
                incarnation: 0,
                starts: 0,
                server_boot: server_boot.clone(),
            });
            let rebooted = row.server_boot != server_boot;
            row.starts = row.starts.saturating_add(1);
            row.server_boot.clone_from(&server_boot);
            HOST.put(tx, &only, &row)?;
            Ok((row, rebooted))
        })
        .await;
    begun.map_err(|source| Error::State { source })
}

/// Prepares a state file that came out of a backup: the agent begins as after a restart of the
/// server, and with an incarnation that nobody has seen, because what it said after the backup was
/// taken is known to others. Seconds since 1970 also tell two restorations of one backup apart.
///
/// # Errors
/// When the file cannot be used, or a newer release wrote it.
pub async fn take_restored_state(data_dir: &Path, now: Timestamp) -> Result<(), Error> {
    let path = data_dir.join(STATE_FILE);
    if !path.is_file() {
        return Ok(());
    }
    let state = |source| Error::State { source };
    let db = Db::open(path, &[]).map_err(state)?;
    let written: Result<(), perch_durable::Error> = db
        .write(move |tx| {
            let only = ONLY.to_owned();
            let Some(mut row) = HOST.get(tx, &only)? else {
                return Ok(());
            };
            let seconds = u64::try_from(now.unix_s()).unwrap_or_default();
            row.incarnation = row.incarnation.saturating_add(1).max(seconds);
            row.server_boot = String::new();
            HOST.put(tx, &only, &row)
        })
        .await;
    written.map_err(state)
}

fn make_folders(config: &Config) -> Result<(), Error> {
    for path in [
        config.data_dir.clone(),
        config.data_dir.join("machines"),
        config.run_dir.clone(),
        config.run_dir.join("machines"),
    ] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&path)
            .map_err(|source| Error::Folder { path, source })?;
    }
    Ok(())
}

/// Keeps a copy of a binary under its digest, so that a machine that runs keeps the one it
/// started with while the package is upgraded. Without room for it the package's own is used.
fn keep_binary(data_dir: &Path, binary: &Path) -> Result<PathBuf, Error> {
    let fault = |source: io::Error| Error::Binary { path: binary.to_owned(), source };
    let bytes = fs::read(binary).map_err(fault)?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = binary.file_name().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    let folder = data_dir.join("bin").join(digest);
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|kept| kept == bytes) {
        return Ok(path);
    }
    let new = path.with_extension("new");
    let kept = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&new, &bytes))
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, &path));
    match kept {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            // Half of it would take room that somebody needs.
            drop(fs::remove_file(&new));
            tracing::warn!(binary = %binary.display(), "no room for a copy of the binary");
            Ok(binary.to_owned())
        }
        Err(error) => Err(fault(error)),
    }
}
