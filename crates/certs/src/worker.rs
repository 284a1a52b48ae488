//! Carries orders out: one task an order, which holds the order's lease.
//!
//! Never decides what comes next: `order` does. Each step is written down before it is done, in a
//! transaction that only happens while the lease is held and nobody else changed the order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use perch_store::{Event as Change, LeaseId, Store, turning};
use perch_types::Timestamp;
use perch_types::certificate_docs::{CertificateOrder, PREFIX, order_key};
use perch_types::clock::Clock;
use perch_types::pulse::Pulse;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::dns::Dns;
use crate::edge_key::EdgeKey;
use crate::error::{Error, chain, store as fault};
use crate::issuer::Issuer;
use crate::order::{self, Limits};
use crate::view::CertificateView;

mod run;

/// How long orders stay with a worker that is not heard of any more, in seconds.
const LEASE_S: u32 = 30;
/// How often it is heard of.
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// The longest pause without a look at what is due: the wall clock may jump.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long an order is left alone whose task broke off, or that another server has, in
/// milliseconds.
const BROKEN_PAUSE_MS: u64 = 5_000;
/// How long news of an order may take whose task ended, in milliseconds.
const NEWS_PAUSE_MS: u64 = 20;
/// The pause before the directory is followed anew.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

/// What a worker needs.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The directory.
    pub store: Arc<dyn Store>,
    /// Who issues certificates.
    pub issuer: Arc<dyn Issuer>,
    /// What this server's edge serves.
    pub view: CertificateView,
    /// The key of the edges.
    pub key: Arc<EdgeKey>,
    /// Asks DNS.
    pub dns: Arc<dyn Dns>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Whether the edge answers with TLS at the public port.
    pub tls: bool,
    /// Limits of orders.
    pub limits: Limits,
    /// This server's name.
    pub host: String,
}

/// A running worker; it ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    task: JoinHandle<()>,
    awake: Arc<Notify>,
    pulse: Pulse,
}

impl Worker {
    /// Starts a worker. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(config: WorkerConfig) -> Self {
        let awake = Arc::new(Notify::new());
        let context = Arc::new(Context { config, placed: Mutex::default() });
        let pulse = Pulse::default();
        let task = tokio::spawn(work(context, Arc::clone(&awake), pulse.clone()));
        Self { task, awake, pulse }
    }

    /// Returns its signs of life.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Has it look now at what is due.
    pub fn wake(&self) {
        self.awake.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the tasks of a worker share.
struct Context {
    config: WorkerConfig,
    /// When this server placed orders, in seconds since 1970.
    placed: Mutex<Vec<i64>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("config", &self.config).finish_non_exhaustive()
    }
}

async fn work(context: Arc<Context>, awake: Arc<Notify>, pulse: Pulse) {
    loop {
        if let Err(error) = turning(&pulse, follow(&context, &awake)).await {
            tracing::warn!(error = chain(&error), "orders of certificates not followed");
        }
        tokio::time::sleep(FOLLOW_PAUSE).await;
    }
}

/// Why a task of an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The order has to wait for something.
    Waits,
    /// Another server has it.
    Elsewhere,
}

/// What is known of orders.
#[derive(Debug, Default)]
struct Known {
    /// When something is to be done about each, by the key of its document.
    due: BTreeMap<String, Timestamp>,
    /// Those that a task works on.
    running: BTreeSet<String>,
    /// Those whose task broke off, and until when they are left alone by the boot clock.
    resting: BTreeMap<String, u64>,
}

impl Known {
    fn apply(&mut self, key: String, value: Option<&[u8]>) {
        if order_key(&key).is_none() {
            return;
        }
        match value.map(serde_json::from_slice::<CertificateOrder>) {
            Some(Ok(order)) => {
                self.due.insert(key, order::wake_at(&order));
            }
            Some(Err(error)) => tracing::error!(key, %error, "unreadable document"),
            None => {
                self.resting.remove(&key);
                self.due.remove(&key);
            }
        }
    }

    /// Returns one that is due, and how long it takes until the next is.
    fn next(&mut self, now: Timestamp, boot_ms: u64) -> (Option<String>, Duration) {
        self.resting.retain(|_, until| *until > boot_ms);
        let mut pause = LOOK_EVERY;
        for (key, due) in &self.due {
            if self.running.contains(key) {
                continue;
            }
            let mut wait = due.unix_ms().saturating_sub(now.unix_ms()).max(0).unsigned_abs();
            if let Some(until) = self.resting.get(key) {
                wait = wait.max(until.saturating_sub(boot_ms));
            }
            if wait == 0 {
                return (Some(key.clone()), Duration::ZERO);
            }
            pause = pause.min(Duration::from_millis(wait));
        }
        (None, pause)
    }
}

/// Lists, then follows and does what is due until something breaks.
async fn follow(context: &Arc<Context>, awake: &Notify) -> Result<(), Error> {
    let config = &context.config;
    let lease = config.store.grant(LEASE_S).await.map_err(fault("take a lease"))?;
    let listing = config.store.list(PREFIX).await.map_err(fault("list orders"))?;
    let changes = config.store.watch(PREFIX, listing.revision.next()).await;
    let mut changes = changes.map_err(fault("follow orders"))?;
    let mut known = Known::default();
    for entry in listing.entries {
        known.apply(entry.key, Some(&entry.value));
    }
    let mut tasks: JoinSet<(String, Result<Ended, Error>)> = JoinSet::new();
    let mut beat = tokio::time::interval(LEASE_EVERY);
    loop {
        let pause = begin(context, &mut known, &mut tasks, lease);
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Change { key, value, .. })) => known.apply(key, value.as_deref()),
                Some(Err(error)) => return Err(fault("follow orders")(error)),
                None => return Ok(()),
            },
            Some(ended) = tasks.join_next() => {
                ended_as(ended, &mut known, config.clock.boot_ms())?;
            }
            _ = beat.tick() => {
                config.store.keep_alive(lease).await.map_err(fault("keep a lease"))?;
            }
            () = awake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Begins tasks for what is due; returns how long to wait for more.
fn begin(
    context: &Arc<Context>,
    known: &mut Known,
    tasks: &mut JoinSet<(String, Result<Ended, Error>)>,
    lease: LeaseId,
) -> Duration {
    let clock = &context.config.clock;
    loop {
        if tasks.len() >= context.config.limits.server_at_once_max {
            return LOOK_EVERY;
        }
        match known.next(clock.now(), clock.boot_ms()) {
            (Some(key), _) => {
                known.running.insert(key.clone());
                let context = Arc::clone(context);
                tasks.spawn(async move {
                    let ended = run::carry_out(&context, &key, lease).await;
                    (key, ended)
                });
            }
            (None, pause) => return pause,
        }
    }
}

/// Takes note of a task's end. That the lease is gone is told to whoever holds it.
fn ended_as(
    ended: Result<(String, Result<Ended, Error>), tokio::task::JoinError>,
    known: &mut Known,
    boot_ms: u64,
) -> Result<(), Error> {
    let (key, outcome) = match ended {
        Ok(ended) => ended,
        Err(error) => {
            // Whose it was is not told; all are looked at again, and those that run refuse.
            tracing::error!(%error, "task of an order broke off");
            known.running.clear();
            return Ok(());
        }
    };
    known.running.remove(&key);
    let pause = match outcome {
        // What it changed comes by the watch, and may be on its way: a moment is enough.
        Ok(Ended::Waits) => NEWS_PAUSE_MS,
        Ok(Ended::Elsewhere) => BROKEN_PAUSE_MS,
        Err(error @ Error::Store { source: perch_store::Error::NoSuchLease { .. }, .. }) => {
            return Err(error);
        }
        Err(error) => {
            tracing::warn!(key, error = chain(&error), "order broke off");
            BROKEN_PAUSE_MS
        }
    };
    known.resting.insert(key, boot_ms.saturating_add(pause));
    Ok(())
}
