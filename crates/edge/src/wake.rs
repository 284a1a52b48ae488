//! Starts a machine for the requests that wait for it, and holds them meanwhile.
//!
//! Never starts one twice at once, and never holds a request without a bound and a deadline.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_client::HostClient;
use perch_types::host::Command;
use perch_types::{AppName, Code, MachineId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Shared;
use crate::cause::Cause;
use crate::live::Target;
use crate::pick::{self, Pick};

/// How long a request is held while its app starts.
const HOLD_MAX: Duration = Duration::from_secs(30);
/// How many requests one edge holds at once, all apps together.
const HELD_MAX: usize = 10_000;
/// How often a machine is started for one request: it may end right after its start.
const WAKES_MAX: u32 = 2;

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Pending,
    Accepted,
    Refused,
}

/// Starts under way and requests that are held.
#[derive(Debug)]
pub(crate) struct Wakes {
    host: HostClient,
    runtime: Handle,
    starts: Arc<Mutex<HashMap<MachineId, watch::Receiver<Outcome>>>>,
    held: AtomicUsize,
}

impl Wakes {
    pub(crate) fn new(host: HostClient, runtime: Handle) -> Self {
        Self {
            host,
            runtime,
            starts: Arc::default(),
            held: AtomicUsize::new(0),
        }
    }

    /// Starts a machine, or joins the start that is under way.
    fn start(&self, id: &MachineId) -> watch::Receiver<Outcome> {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = starts.get(id) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(Outcome::Pending);
        starts.insert(id.clone(), receiver.clone());
        drop(starts);
        let (host, id, starts) = (self.host.clone(), id.clone(), Arc::clone(&self.starts));
        self.runtime.spawn(async move {
            let outcome = match host.command(&id, &Command::Start).await {
                Ok(_) => Outcome::Accepted,
                // Somebody else started it in between.
                Err(error) if error.code() == Some(Code::WrongState) => Outcome::Accepted,
                Err(error) => {
                    tracing::warn!(machine = %id, %error, "machine not woken");
                    Outcome::Refused
                }
            };
            starts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            sender.send_replace(outcome);
        });
        receiver
    }

    fn hold(&self) -> Option<Held<'_>> {
        if self.held.fetch_add(1, Ordering::Relaxed) < HELD_MAX {
            return Some(Held(&self.held));
        }
        self.held.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

/// A place among the requests that are held.
#[derive(Debug)]
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request asks for, and what was already tried for it.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) app: &'a AppName,
    pub(crate) port: u16,
    /// Machines that refused this request.
    pub(crate) tried: &'a [MachineId],
    pub(crate) random: u64,
}

/// Returns a machine that is ready for a request; starts one and waits when none is.
pub(crate) async fn ready_machine(
    shared: &Shared,
    wanted: &Wanted<'_>,
) -> Result<Arc<Target>, Cause> {
    // Subscribed before the first look, so that no change falls in between.
    let mut changes = shared.live.changes();
    let mut wait = None;
    loop {
        let machines = shared
            .live
            .machines_of(wanted.app)
            .ok_or(Cause::NoMachine)?;
        let tried: Vec<usize> = machines
            .iter()
            .enumerate()
            .filter(|(_, target)| wanted.tried.contains(&target.record.id))
            .map(|(index, _)| index)
            .collect();
        let picked = pick::pick(&machines, wanted.port, &tried, wanted.random);
        let wake = match picked {
            Pick::Ready(index) => return machines.get(index).cloned().ok_or(Cause::NoMachine),
            Pick::Full => return Err(Cause::Full),
            Pick::NotStartable => return Err(Cause::NotStartable),
            Pick::Nothing if wanted.tried.is_empty() => return Err(Cause::NoMachine),
            Pick::Nothing => return Err(Cause::Upstream),
            Pick::Soon => None,
            Pick::Wake(index) => machines.get(index).map(|target| target.record.id.clone()),
        };
        if wait.is_none() {
            wait = Some(Wait::new(shared)?);
        }
        if let Some(wait) = wait.as_mut() {
            wait.turn(shared, wake, &mut changes).await?;
        }
    }
}

/// One request's wait for its app.
struct Wait<'a> {
    deadline: Instant,
    start: Option<watch::Receiver<Outcome>>,
    wakes: u32,
    _held: Held<'a>,
}

impl<'a> Wait<'a> {
    fn new(shared: &'a Shared) -> Result<Self, Cause> {
        let held = shared.wakes.hold().ok_or(Cause::QueueFull)?;
        Ok(Self {
            deadline: Instant::now() + HOLD_MAX,
            start: None,
            wakes: 0,
            _held: held,
        })
    }

    /// Starts `wake` if it is given, then waits until something has changed.
    async fn turn(
        &mut self,
        shared: &Shared,
        wake: Option<MachineId>,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<(), Cause> {
        if let (Some(id), None) = (wake, &self.start) {
            if self.wakes == WAKES_MAX {
                return Err(Cause::Exited);
            }
            self.wakes += 1;
            self.start = Some(shared.wakes.start(&id));
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| Cause::WakeFailed),
            outcome = settled(&mut self.start) => match outcome {
                Outcome::Accepted => {
                    // Its states arrive by the watch; a new start is possible only after them.
                    self.start = None;
                    changes.changed().await.map_err(|_| Cause::WakeFailed)
                }
                Outcome::Pending | Outcome::Refused => Err(Cause::WakeFailed),
            },
            () = tokio::time::sleep_until(self.deadline) => Err(Cause::NotListening),
        }
    }
}

/// Waits until a start has an outcome; for ever when there is none.
async fn settled(start: &mut Option<watch::Receiver<Outcome>>) -> Outcome {
    match start {
        Some(receiver) => receiver
            .wait_for(|outcome| *outcome != Outcome::Pending)
            .await
            .map_or(Outcome::Refused, |outcome| outcome.clone()),
        None => std::future::pending().await,
    }
}
