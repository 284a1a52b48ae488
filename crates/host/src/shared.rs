//! What all machines of a host share.
//!
//! Never changes a machine: each has a task of its own for that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use perch_durable::{Db, Journal};
use perch_runtime::MachineDir;
use perch_types::clock::Clock;
use perch_types::directory::Generation;
use perch_types::error::chain;
use perch_types::host::WatchEvent;
use perch_types::{ApiError, Code, HostId, MachineId, Timestamp};
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::drains::Drains;
use crate::effects::{Effects, Fault};
use crate::heartbeat::Heartbeats;
use crate::loads::Loads;
use crate::logs::FOLLOWERS_MAX;
use crate::machine::actor::Handle;
use crate::machine::guest::Surroundings;
use crate::machine::record::{Instant, Place, Record};
use crate::network::MachineNetwork;
use crate::volumes::Book;

/// How many times of a step are kept.
const STEP_TIMES_MAX: usize = 256;
/// Changes that may wait for a watcher; one that is slower is cut off.
pub const WATCH_QUEUE_MAX: usize = 1024;

/// What all machines of a host share.
#[derive(Debug)]
pub struct Shared {
    /// How it is set up.
    pub config: Config,
    /// What it does to the world.
    pub effects: Effects,
    /// Its file.
    pub db: Db,
    /// The journal in it.
    pub journal: Journal,
    /// Its id.
    pub id: HostId,
    /// Given by the directory; 0 until it was reached.
    pub incarnation: Arc<AtomicU64>,
    /// Orders what it says; grows over restarts.
    pub counter: Arc<AtomicU64>,
    /// Whether the server was restarted since the last start of the agent.
    pub rebooted: bool,
    /// Its machines.
    pub machines: RwLock<BTreeMap<MachineId, Handle>>,
    /// Its volumes.
    pub volumes: Book,
    /// What changes.
    pub changes: broadcast::Sender<Arc<WatchEvent>>,
    /// Who sends requests, and which machines are drained.
    pub drains: Drains,
    /// Requests under way.
    pub loads: Loads,
    /// Places for logs that are followed.
    pub followers: Arc<Semaphore>,
    /// Something is to be published.
    pub dirty: Notify,
    /// Loops that should go on.
    pub heartbeats: Heartbeats,
    /// Ends all tasks.
    pub stopping: CancellationToken,
    /// The tasks of machines and of what is done to volumes.
    pub tasks: TaskTracker,
    /// Whether something was left that housekeeping should look at soon.
    pub untidy: AtomicBool,
    /// Whether there are machines that could not be read: nobody knows which images they name.
    pub has_unreadable: AtomicBool,
    /// Whether the file takes no more writes.
    pub broken: AtomicBool,
    /// How long the newest steps took.
    pub step_times: Mutex<BTreeMap<&'static str, VecDeque<f64>>>,
    /// What the agent found out about the server.
    pub findings: Vec<String>,
}

/// With what an agent begins.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) id: HostId,
    pub(crate) incarnation: u64,
    pub(crate) counter: u64,
    pub(crate) rebooted: bool,
    pub(crate) findings: Vec<String>,
}

/// Gives changed records their generation and time. Holds nothing of the agent's, so that it can
/// go into a transaction.
#[derive(Debug, Clone)]
pub struct Stamps {
    incarnation: Arc<AtomicU64>,
    counter: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl Stamps {
    /// Returns a generation newer than any before, and now.
    #[must_use]
    pub fn stamp(&self) -> (Generation, Timestamp) {
        let generation = Generation {
            incarnation: self.incarnation.load(Ordering::Acquire),
            counter: self.counter.fetch_add(1, Ordering::AcqRel) + 1,
        };
        (generation, self.clock.now())
    }
}

impl Shared {
    pub(crate) fn new(config: Config, effects: Effects, db: Db, begin: Begin) -> Self {
        let (changes, _) = broadcast::channel(WATCH_QUEUE_MAX);
        Self {
            config,
            effects,
            journal: Journal::new(db.clone()),
            db,
            id: begin.id,
            incarnation: Arc::new(AtomicU64::new(begin.incarnation)),
            counter: Arc::new(AtomicU64::new(begin.counter)),
            rebooted: begin.rebooted,
            machines: RwLock::default(),
            volumes: Book::default(),
            changes,
            drains: Drains::default(),
            loads: Loads::default(),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            dirty: Notify::new(),
            heartbeats: Heartbeats::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            // An agent before may have ended in the middle of it.
            untidy: AtomicBool::new(true),
            has_unreadable: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            step_times: Mutex::default(),
            findings: begin.findings,
        }
    }

    /// Returns where a machine keeps its files.
    #[must_use]
    pub fn machine_dir(&self, id: &MachineId) -> MachineDir {
        MachineDir::below(&self.config.data_dir, &self.config.run_dir, id)
    }

    /// Returns where a machine is, as its program sees it.
    ///
    /// # Errors
    /// When its slot is beyond the pool.
    pub fn surroundings(&self, record: &Record) -> Result<Surroundings, Fault> {
        let (private_ip, private_ipv4) =
            self.effects.networks.addresses(&machine_network(record))?;
        Ok(Surroundings {
            region: self.config.region.clone(),
            private_ip,
            private_ipv4,
            public_ip: self.effects.networks.public_address(),
            resolvers: self.effects.networks.resolvers(),
        })
    }

    /// Returns where a machine is, as others see it.
    ///
    /// # Errors
    /// When its slot is beyond the pool.
    pub fn place(&self, record: &Record) -> Result<Place, Fault> {
        let (private_ip, private_ipv4) =
            self.effects.networks.addresses(&machine_network(record))?;
        let region = self.config.region.clone();
        Ok(Place { host: self.id.clone(), region, private_ip, private_ipv4 })
    }

    /// Returns a generation newer than any before.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        self.stamps().stamp().0
    }

    /// Returns what gives changed records their generation and time.
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        Stamps {
            incarnation: Arc::clone(&self.incarnation),
            counter: Arc::clone(&self.counter),
            clock: Arc::clone(&self.effects.clock),
        }
    }

    /// Returns now, with randomness for an event's id.
    #[must_use]
    pub fn instant(&self) -> Instant {
        Instant { now: self.effects.clock.now(), random: random() }
    }

    /// Returns the handle of a machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, id: &MachineId) -> Result<Handle, ApiError> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.get(id).cloned().ok_or_else(|| ApiError::machine_not_found(id.as_str()))
    }

    /// Returns all machines.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().cloned().collect()
    }

    /// Waits for ever when the agent is ending: what does not succeed then says nothing of the
    /// machine or volume and must not be journaled. The run is dropped with its task.
    pub async fn unless_ending(&self) {
        if self.stopping.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes how long a step took.
    pub fn note_step(&self, step: &'static str, took_ms: f64) {
        let mut all = self.step_times.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(step).or_default();
        if times.len() >= STEP_TIMES_MAX {
            times.pop_front();
        }
        times.push_back(took_ms);
    }

    /// Tells watchers and the directory of a change.
    pub fn announce(&self, event: WatchEvent) {
        // Nobody may be watching.
        let _watchers = self.changes.send(Arc::new(event));
        self.dirty.notify_one();
    }

    /// Turns a fault of the file into an answer, noting whether it is broken.
    #[must_use]
    pub fn db_error(&self, error: &perch_durable::Error) -> ApiError {
        let full = matches!(error, perch_durable::Error::Full);
        if self.db.is_stopped() && !self.broken.swap(true, Ordering::AcqRel) {
            tracing::error!(error = %chain(error), "state file takes no more writes");
        }
        let code = if full { Code::NoSpace } else { Code::Internal };
        ApiError::new(code, chain(error))
    }
}

/// Returns what a machine's networking is made from.
#[must_use]
pub(crate) fn machine_network(record: &Record) -> MachineNetwork {
    MachineNetwork { machine: record.id.clone(), network_id: record.network_id, slot: record.slot }
}

/// Returns random bits for ids.
#[must_use]
pub(crate) fn random() -> u128 {
    let mut bytes = [0; 16];
    // The kernel's generator has no way to fail once the server is up; an id that repeats would
    // still be told apart by its time.
    let _unlikely = getrandom::fill(&mut bytes);
    u128::from_ne_bytes(bytes)
}
