//! Carries orders out: one task an order, which holds the order's lease.
//!
//! Never decides what comes next: `order` does. Each step is written down before it is done, in a
//! transaction that only happens while the lease is held and nobody else changed the order.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use perch_store::{Event as Change, LeaseId, Revision, Store, turning};
use perch_types::certificate_docs::{CertificateOrder, PREFIX, order_key};
use perch_types::clock::Clock;
use perch_types::error::chain;
use perch_types::pulse::Pulse;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::dns::Dns;
use crate::domains::Domains;
use crate::edge_key::EdgeKey;
use crate::error::{Error, store as fault};
use crate::issuer::Issuer;
use crate::order::{Limits, is_renewal, wake_at};
use crate::view::CertificateView;

mod known;
mod run;
mod tasks;
mod wall;

use self::known::Known;
use self::tasks::{Outcome, Tasks};
use self::wall::Wall;

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
    /// The platform's zone of challenges, where it has one: what [`CertificateView::texts`] says is
    /// told there.
    pub zone: Option<String>,
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
        let context =
            Arc::new(Context { config, placed: Mutex::default(), domains: Mutex::default() });
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
    /// What was issued under each registered domain.
    domains: Mutex<Domains>,
}

impl Context {
    fn domains(&self) -> MutexGuard<'_, Domains> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("config", &self.config).finish_non_exhaustive()
    }
}

async fn work(context: Arc<Context>, awake: Arc<Notify>, pulse: Pulse) {
    // One for the whole life: what a round before had is this one's, as the server is the same.
    let mut lease = None;
    loop {
        if let Err(error) = turning(&pulse, follow(&context, &awake, &mut lease)).await {
            tracing::warn!(error = chain(&error), "orders of certificates not followed");
            if is_lease_gone(&error) {
                lease = None;
            }
        }
        tokio::time::sleep(FOLLOW_PAUSE).await;
    }
}

const fn is_lease_gone(error: &Error) -> bool {
    matches!(error, Error::Store { source: perch_store::Error::NoSuchLease { .. }, .. })
}

/// Returns the lease that is held, known to go on, or a new one.
async fn hold(store: &dyn Store, held: &mut Option<LeaseId>) -> Result<LeaseId, Error> {
    if let Some(lease) = *held {
        store.keep_alive(lease).await.map_err(fault("keep a lease"))?;
        return Ok(lease);
    }
    let lease = store.grant(LEASE_S).await.map_err(fault("take a lease"))?;
    *held = Some(lease);
    Ok(lease)
}

/// Why a task of an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The order has to wait for something.
    Waits,
    /// Another server has it.
    Elsewhere,
}

/// Takes note of a change; one that cannot be read changes nothing.
fn take(context: &Context, known: &mut Known, key: String, value: Option<&[u8]>) {
    let Some((org, _, hostname)) = order_key(&key) else { return };
    match value.map(serde_json::from_slice::<CertificateOrder>) {
        Some(Ok(order)) => {
            context.domains().put((org, hostname.as_str()), &order);
            known.put(key, wake_at(&order, context.config.clock.now()), is_renewal(&order));
        }
        Some(Err(error)) => tracing::error!(key, %error, "unreadable document"),
        None => {
            context.domains().ended(&hostname);
            known.remove(&key);
        }
    }
}

/// Takes note of all orders there are, and returns as of when.
async fn list(context: &Context, known: &mut Known) -> Result<Revision, Error> {
    let listing = context.config.store.list(PREFIX).await.map_err(fault("list orders"))?;
    for entry in listing.entries {
        take(context, known, entry.key, Some(&entry.value));
    }
    Ok(listing.revision)
}

/// Lists, then follows and does what is due until something breaks.
async fn follow(
    context: &Arc<Context>,
    awake: &Notify,
    held: &mut Option<LeaseId>,
) -> Result<(), Error> {
    let config = &context.config;
    let lease = hold(config.store.as_ref(), held).await?;
    let (mut known, mut tasks, mut wall) = (Known::default(), Tasks::default(), Wall::default());
    context.domains().clear();
    let revision = list(context, &mut known).await?;
    let changes = config.store.watch(PREFIX, revision.next()).await;
    let mut changes = changes.map_err(fault("follow orders"))?;
    let mut beat = tokio::time::interval(LEASE_EVERY);
    loop {
        if wall.is_set_back(config.clock.now(), config.clock.boot_ms()) {
            // What was written down by it before is due otherwise now.
            list(context, &mut known).await?;
        }
        let pause = begin(context, &mut known, &mut tasks, lease);
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Change { key, value, .. })) => {
                    take(context, &mut known, key, value.as_deref());
                }
                Some(Err(error)) => return Err(fault("follow orders")(error)),
                None => return Ok(()),
            },
            Some(ended) = tasks.next() => {
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
fn begin(context: &Arc<Context>, known: &mut Known, tasks: &mut Tasks, lease: LeaseId) -> Duration {
    let clock = &context.config.clock;
    loop {
        if tasks.count() >= context.config.limits.server_at_once_max {
            return LOOK_EVERY;
        }
        match known.next(clock.now(), clock.boot_ms()) {
            (Some(key), _) => {
                known.begins(&key);
                let (context, of) = (Arc::clone(context), key.clone());
                let task = async move { run::carry_out(&context, &of, lease).await };
                tasks.begin(key, task);
            }
            (None, pause) => return pause,
        }
    }
}

/// Takes note of a task's end. That the lease is gone is told to whoever holds it.
fn ended_as(
    (key, outcome): (String, Outcome),
    known: &mut Known,
    boot_ms: u64,
) -> Result<(), Error> {
    let pause = match outcome {
        // What it changed comes by the watch, and may be on its way: a moment is enough.
        Ok(Ok(Ended::Waits)) => NEWS_PAUSE_MS,
        Ok(Ok(Ended::Elsewhere)) => BROKEN_PAUSE_MS,
        Ok(Err(error)) if is_lease_gone(&error) => return Err(error),
        Ok(Err(error)) => {
            tracing::warn!(key, error = chain(&error), "order broke off");
            BROKEN_PAUSE_MS
        }
        Err(error) => {
            tracing::error!(key, %error, "task of an order broke off");
            BROKEN_PAUSE_MS
        }
    };
    known.rests(key, boot_ms.saturating_add(pause));
    Ok(())
}
