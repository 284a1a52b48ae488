//! Starts a machine for the requests that wait for it, and holds them meanwhile.
//!
//! Never starts one twice at once, and never holds a request without a bound and a deadline.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_client::HostClient;
use perch_types::directory::{Generation, MachineRecord};
use perch_types::host::Command;
use perch_types::{Code, MachineId, MachineState};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Shared;
use crate::cause::Cause;
use crate::live::{AppKey, InFlight, Target};
use crate::pick::{self, Door, Pick};

/// How often a machine is started for one request: it may end right after its start.
const WAKES_MAX: u32 = 2;
/// How many machines one request is offered to.
const TRIES_MAX: usize = 16;
/// How long a machine that refused a request is left alone by it while nothing is heard of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How many starts are remembered until the watch has shown what came of them.
const STARTS_MAX: usize = 4096;

/// What became of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    /// The host took it; what the watch says up to this generation was before.
    Accepted(Generation),
    Refused,
}

/// A start that was asked for, under way or done.
#[derive(Debug, Clone)]
struct Start {
    outcome: watch::Receiver<Outcome>,
    since: Instant,
}

impl Start {
    /// Returns whether a look at `record` may join this start instead of asking for another.
    fn covers(&self, record: &MachineRecord, hold_max: Duration) -> bool {
        match *self.outcome.borrow() {
            Outcome::Pending => true,
            // The watch is behind the answer to the start. Not for ever: a host that lost what
            // it promised would else never be asked again.
            Outcome::Accepted(after) => {
                record.generation <= after && self.since.elapsed() < hold_max
            }
            Outcome::Refused => false,
        }
    }
}

type Starts = Arc<Mutex<HashMap<MachineId, Start>>>;

/// Starts under way and requests that are held.
#[derive(Debug)]
pub(crate) struct Wakes {
    host: HostClient,
    runtime: Handle,
    starts: Starts,
    held: AtomicUsize,
}

impl Wakes {
    pub(crate) fn new(host: HostClient, runtime: Handle) -> Self {
        Self { host, runtime, starts: Arc::default(), held: AtomicUsize::new(0) }
    }

    /// Starts a machine, or joins the start that is under way.
    fn start(&self, record: &MachineRecord, hold_max: Duration) -> watch::Receiver<Outcome> {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = starts.get(&record.id)
            && start.covers(record, hold_max)
        {
            return start.outcome.clone();
        }
        if starts.len() >= STARTS_MAX {
            starts.retain(|_, start| *start.outcome.borrow() == Outcome::Pending);
        }
        let (sender, outcome) = watch::channel(Outcome::Pending);
        let start = Start { outcome: outcome.clone(), since: Instant::now() };
        starts.insert(record.id.clone(), start);
        drop(starts);
        let (host, id, seen) = (self.host.clone(), record.id.clone(), record.generation);
        self.runtime.spawn(async move {
            sender.send_replace(ask(&host, &id, seen).await);
        });
        outcome
    }

    fn hold(&self, held_max: usize) -> Option<Held<'_>> {
        let held = Held(&self.held);
        (self.held.fetch_add(1, Ordering::Relaxed) < held_max).then_some(held)
    }
}

/// Asks the host to start a machine that was `seen` asleep.
async fn ask(host: &HostClient, id: &MachineId, seen: Generation) -> Outcome {
    match host.command(id, &Command::Start).await {
        Ok(accepted) => Outcome::Accepted(accepted.machine.generation.max(seen)),
        // Somebody else started it in between.
        Err(error) if error.code() == Some(Code::WrongState) => Outcome::Accepted(seen),
        Err(error) => {
            tracing::warn!(machine = %id, %error, "machine not woken");
            Outcome::Refused
        }
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
    pub(crate) app: &'a AppKey,
    pub(crate) door: Door,
    pub(crate) tried: &'a Tried,
    pub(crate) random: u64,
}

/// Machines that did not take a request although they were ready by what is known. That may be
/// old: the machine has just stopped. So each is left alone until its record changes, or for a
/// short while, and the request goes to another, or waits.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    refusals: Vec<(MachineId, Generation, Instant)>,
    first: Option<Instant>,
}

impl Tried {
    /// Notes that a machine refused; returns whether it makes sense to go on.
    pub(crate) fn note(&mut self, record: &MachineRecord, stale_max: Duration) -> bool {
        let now = Instant::now();
        let first = *self.first.get_or_insert(now);
        self.refusals.retain(|(id, ..)| *id != record.id);
        self.refusals.push((record.id.clone(), record.generation, now));
        now < first + stale_max && self.refusals.len() < TRIES_MAX
    }

    /// Returns until when a machine is left alone.
    fn rests(&self, record: &MachineRecord, now: Instant) -> Option<Instant> {
        let (.., at) = self
            .refusals
            .iter()
            .find(|(id, generation, _)| *id == record.id && *generation >= record.generation)?;
        Some(*at + RETRY_PAUSE).filter(|until| now < *until)
    }
}

/// Returns a machine that is ready for a request and in which the request is counted; starts one
/// and waits when none is.
pub(crate) async fn ready_machine(
    shared: &Shared,
    wanted: &Wanted<'_>,
) -> Result<(Arc<Target>, InFlight), Cause> {
    // Looked at without a subscription first: mostly one is ready.
    let first = look(shared, wanted)?;
    if let Look::Ready(target, in_flight) = first {
        return Ok((target, in_flight));
    }
    let mut wait = Wait::new(shared)?;
    loop {
        // The subscription is older than this look, so no change falls in between.
        match look(shared, wanted)? {
            Look::Ready(target, in_flight) => return Ok((target, in_flight)),
            Look::Asleep(target) => wait.wake(shared, &target.record)?,
            Look::Coming { is_started, again_at } => {
                (wait.is_started, wait.again_at) = (is_started, again_at);
            }
        }
        wait.turn().await?;
    }
}

/// What one look at an app's machines shows.
enum Look {
    Ready(Arc<Target>, InFlight),
    Asleep(Arc<Target>),
    Coming { is_started: bool, again_at: Option<Instant> },
}

fn look(shared: &Shared, wanted: &Wanted<'_>) -> Result<Look, Cause> {
    let Some(machines) = shared.live.machines_of(wanted.app) else {
        // Right after a restart of the server the host's first word may be a moment away.
        return match shared.live.is_known() {
            true => Err(Cause::NoMachine),
            false => Ok(Look::Coming { is_started: false, again_at: None }),
        };
    };
    let now = Instant::now();
    let resting: Vec<(usize, Instant)> = machines
        .iter()
        .enumerate()
        .filter_map(|(index, target)| Some((index, wanted.tried.rests(&target.record, now)?)))
        .collect();
    let left_alone: Vec<usize> = resting.iter().map(|(index, _)| *index).collect();
    let rested_at = resting.iter().map(|(_, until)| *until).min();
    loop {
        let picked = pick::pick(&machines, wanted.door, &left_alone, wanted.random, now);
        let target = |index: usize| machines.get(index).cloned().ok_or(Cause::NoMachine);
        return match picked {
            Pick::Ready(index) => {
                let target = target(index)?;
                let service = wanted.door.service(&target.record.services);
                // Another loop may have filled it since, or its gate was closed: then it is
                // picked anew.
                let Some(in_flight) = target.load.begin(service.and_then(pick::hard_limit)) else {
                    continue;
                };
                Ok(Look::Ready(target, in_flight))
            }
            Pick::Wake(index) => Ok(Look::Asleep(target(index)?)),
            Pick::Soon(until) => {
                let is_started =
                    machines.iter().any(|target| target.record.state == MachineState::Started);
                let again_at = [until, rested_at].into_iter().flatten().min();
                Ok(Look::Coming { is_started, again_at })
            }
            Pick::Full => Err(Cause::Full),
            // What refused is all there is that could run: it is tried again, or its host says
            // what became of it.
            Pick::NotStartable | Pick::Nothing if rested_at.is_some() => {
                Ok(Look::Coming { is_started: true, again_at: rested_at })
            }
            Pick::NotStartable => Err(Cause::NotStartable),
            Pick::Nothing => Err(Cause::NoMachine),
        };
    }
}

/// One request's wait for its app.
struct Wait<'a> {
    changes: watch::Receiver<u64>,
    deadline: Instant,
    hold_max: Duration,
    start: Option<watch::Receiver<Outcome>>,
    /// What the watch says of a machine up to here was before its start.
    after: Option<(MachineId, Generation)>,
    wakes: u32,
    is_started: bool,
    /// When another look is due although nothing has changed.
    again_at: Option<Instant>,
    _held: Held<'a>,
}

impl<'a> Wait<'a> {
    fn new(shared: &'a Shared) -> Result<Self, Cause> {
        let held = shared.wakes.hold(shared.limits.held_max).ok_or(Cause::QueueFull)?;
        Ok(Self {
            changes: shared.live.changes(),
            deadline: Instant::now() + shared.limits.hold,
            hold_max: shared.limits.hold,
            start: None,
            after: None,
            wakes: 0,
            is_started: false,
            again_at: None,
            _held: held,
        })
    }

    /// Starts a machine that sleeps, unless its sleep is only what the watch said before a start
    /// that was accepted.
    fn wake(&mut self, shared: &Shared, record: &MachineRecord) -> Result<(), Cause> {
        (self.is_started, self.again_at) = (false, None);
        let is_old_news = self
            .after
            .as_ref()
            .is_some_and(|(id, after)| *id == record.id && record.generation <= *after);
        if self.start.is_some() || is_old_news {
            return Ok(());
        }
        if self.wakes == WAKES_MAX {
            return Err(Cause::Exited);
        }
        self.wakes += 1;
        self.after = Some((record.id.clone(), record.generation));
        self.start = Some(shared.wakes.start(record, self.hold_max));
        Ok(())
    }

    /// Waits until something has changed that is worth another look.
    async fn turn(&mut self) -> Result<(), Cause> {
        tokio::select! {
            changed = self.changes.changed() => changed.map_err(|_| Cause::WakeFailed),
            outcome = settled(&mut self.start) => {
                self.start = None;
                match outcome {
                    Outcome::Accepted(after) => {
                        if let Some((_, known)) = &mut self.after {
                            *known = after;
                        }
                        Ok(())
                    }
                    Outcome::Pending | Outcome::Refused => Err(Cause::WakeFailed),
                }
            }
            () = sleep_until(self.again_at) => Ok(()),
            () = tokio::time::sleep_until(self.deadline) => Err(if self.is_started {
                Cause::NotListening
            } else {
                Cause::WakeFailed
            }),
        }
    }
}

/// Waits until a moment; for ever when there is none.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits until a start has an outcome; for ever when there is none.
async fn settled(start: &mut Option<watch::Receiver<Outcome>>) -> Outcome {
    match start {
        Some(receiver) => receiver
            .wait_for(|outcome| *outcome != Outcome::Pending)
            .await
            .map_or(Outcome::Refused, |outcome| *outcome),
        None => std::future::pending().await,
    }
}
