//! Starts a machine for the requests that wait for it, and holds them meanwhile.
//!
//! Never starts one twice at once, and never holds a request without a bound and a deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_client::HostClient;
use perch_types::directory::{Generation, MachineRecord};
use perch_types::{MachineId, MachineState};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::cause::Cause;
use crate::direction::Direction;
use crate::live::{AppKey, InFlight, Target};
use crate::metrics::{AppMetrics, Gauge};
use crate::peer::Asks;
use crate::pick::{self, Ask, Door, Pick};
use crate::room::{Connected, Queued};
use crate::{Limits, Shared};

mod start;

use start::{ASKS_MAX, Start, ask};

/// How often a machine is started for one request: it may end right after its start.
const WAKES_MAX: u32 = 2;
/// How many machines refuse to start for one request before it is given up.
const REFUSALS_MAX: usize = 8;
/// How long a start that was refused is not asked for again while nothing is heard of the machine.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How many machines one request is offered to.
const TRIES_MAX: usize = 16;
/// How long a machine that refused a request is left alone by it while nothing is heard of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How many requests of an app are held once half of all places are taken: others need them too.
const HELD_APP_CROWDED_MAX: usize = 64;
/// How many starts are remembered until the watch has shown what came of them.
const STARTS_MAX: usize = 4096;

/// What became of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pending,
    /// The host took it; what the watch says up to this generation was before.
    Accepted(Generation),
    /// It did not; what the watch says up to this generation was before.
    Refused(Generation),
}

type Starts = Arc<Mutex<HashMap<MachineId, Start>>>;

/// Starts under way and requests that are held.
#[derive(Debug)]
pub(crate) struct Wakes {
    host: HostClient,
    runtime: Handle,
    starts: Starts,
    asks: Arc<Semaphore>,
    held: Gauge,
}

impl Wakes {
    pub(crate) fn new(host: HostClient, runtime: Handle) -> Self {
        let asks = Arc::new(Semaphore::new(ASKS_MAX));
        Self { host, runtime, starts: Arc::default(), asks, held: Gauge::default() }
    }

    /// Starts a machine, or joins the start that is under way.
    pub(crate) fn start(&self, target: &Target, hold_max: Duration) -> watch::Receiver<Outcome> {
        let record = &target.record;
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
        let (load, asks) = (Arc::clone(&target.load), Arc::clone(&self.asks));
        self.runtime.spawn(async move {
            let outcome = ask(&host, &asks, (&id, seen), hold_max).await;
            if matches!(outcome, Outcome::Refused(_)) {
                // Others that sleep come first from now on.
                load.health.start_refused(Instant::now());
            }
            sender.send_replace(outcome);
        });
        outcome
    }

    /// Returns how many requests are held.
    pub(crate) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Takes a place among the requests that are held, of all apps and of its own.
    fn hold(&self, app: Option<Arc<AppMetrics>>, limits: &Limits) -> Option<Held<'_>> {
        let is_under = |before: u64, most| usize::try_from(before).is_ok_and(|it| it < most);
        let before = self.held.enter();
        let of_all = is_under(before, limits.held_max);
        let is_roomy = is_under(before, limits.held_max / 2);
        let share = if is_roomy { usize::MAX } else { HELD_APP_CROWDED_MAX };
        let share = limits.held_app_max.min(share);
        let of_app = app.as_ref().is_none_or(|app| is_under(app.held.enter(), share));
        let held = Held { all: &self.held, app };
        (of_all && of_app).then_some(held)
    }
}

/// A place among the requests that are held.
#[derive(Debug)]
struct Held<'a> {
    all: &'a Gauge,
    /// Nothing of an app that is not known yet.
    app: Option<Arc<AppMetrics>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.leave();
        if let Some(app) = &self.app {
            app.held.leave();
        }
    }
}

/// What a request asks for, and what was already tried for it.
#[derive(Debug)]
pub(crate) struct Wanted<'a, C> {
    pub(crate) app: &'a AppKey,
    /// Where it came in.
    pub(crate) door: Door,
    pub(crate) asks: &'a C,
    pub(crate) direction: &'a Direction,
    pub(crate) tried: &'a Tried,
    pub(crate) random: u64,
    /// Its session, where a session stays with a machine.
    pub(crate) sticky: Option<u64>,
}

/// A machine with a place for a request, taken.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) target: Arc<Target>,
    pub(crate) in_flight: InFlight,
    /// The place of the client's connection, where connections are what counts and it had none
    /// there.
    pub(crate) connected: Option<Connected>,
    /// How long the request waited, if a machine was started for it.
    pub(crate) woke: Option<Duration>,
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
    pub(crate) fn rests(&self, record: &MachineRecord, now: Instant) -> Option<Instant> {
        let (.., at) = self
            .refusals
            .iter()
            .find(|(id, generation, _)| *id == record.id && *generation >= record.generation)?;
        Some(*at + RETRY_PAUSE).filter(|until| now < *until)
    }
}

/// Returns a machine that is ready for a request at this moment and in which the request is counted;
/// nothing when one would have to be waited for, or there is none.
pub(crate) fn ready_at_once<C: Asks>(shared: &Shared, wanted: &Wanted<'_, C>) -> Option<Place> {
    match look(shared, wanted, &[]) {
        Ok(Look::Ready(place)) => Some(place),
        Ok(Look::Full(_) | Look::Asleep(_) | Look::Coming { .. }) | Err(_) => None,
    }
}

/// Returns a machine that is ready for a request and in which the request is counted; starts one
/// and waits when none is.
pub(crate) async fn ready_machine<C: Asks>(
    shared: &Shared,
    wanted: &Wanted<'_, C>,
) -> Result<Place, Cause> {
    // Looked at without a subscription first: mostly one is ready.
    let first = look(shared, wanted, &[])?;
    if let Look::Ready(place) = first {
        return Ok(place);
    }
    let mut wait = Wait::new(shared, wanted.app)?;
    loop {
        // The subscription is older than this look, so no change falls in between.
        match look(shared, wanted, &wait.refused)? {
            Look::Ready(mut place) => {
                if wait.wakes > 0 {
                    let took = wait.began.elapsed();
                    place.target.load.app.woken(took);
                    place.woke = Some(took);
                }
                return Ok(place);
            }
            Look::Full(machines) => {
                if wait.queue(shared, &machines)? {
                    // A place that became free before it stood in the queue was not told.
                    continue;
                }
            }
            Look::Asleep(target) => {
                wait.queue = None;
                wait.wake(shared, &target)?;
            }
            Look::Coming { is_started, again_at } => {
                wait.queue = None;
                (wait.is_started, wait.again_at) = (is_started, again_at);
            }
        }
        wait.turn(shared, wanted.app).await?;
    }
}

/// What one look at an app's machines shows.
enum Look {
    Ready(Place),
    Full(Arc<[Arc<Target>]>),
    Asleep(Arc<Target>),
    Coming { is_started: bool, again_at: Option<Instant> },
}

/// A machine that would not start, and its record then.
type RefusedStart = (MachineId, Generation);

/// Looks once; a machine that refused to start is left alone until its record changes.
fn look<C: Asks>(
    shared: &Shared,
    wanted: &Wanted<'_, C>,
    refused: &[RefusedStart],
) -> Result<Look, Cause> {
    let Some(machines) = shared.live.machines_of(wanted.app) else {
        // Right after a restart of the server the host's first word may be a moment away.
        return match shared.live.is_known() {
            true => Err(Cause::NoMachine),
            false => Ok(Look::Coming { is_started: false, again_at: None }),
        };
    };
    let now = Instant::now();
    let (left_alone, rested_at) = left_alone(&machines, wanted.tried, refused, now);
    let ask = Ask {
        door: wanted.door,
        left_alone: &left_alone,
        direction: wanted.direction,
        stay: machines.iter().position(|target| wanted.asks.stays_with(target)),
        random: wanted.random,
        sticky: wanted.sticky,
        now,
        here: Some(&shared.region),
    };
    loop {
        let target = |index: usize| machines.get(index).cloned().ok_or(Cause::NoMachine);
        return match pick::pick(&machines, &ask) {
            Pick::Ready(index) => {
                // Another loop may have filled it since, or its gate was closed: then it is
                // picked anew.
                let Some(place) = take(target(index)?, wanted) else {
                    continue;
                };
                Ok(Look::Ready(place))
            }
            Pick::ReadyAndWake(index, helper) => {
                let Some(place) = take(target(index)?, wanted) else {
                    continue;
                };
                // Whoever comes when it is there has it; nobody waits for it.
                drop(shared.wakes.start(target(helper)?.as_ref(), shared.limits.hold));
                Ok(Look::Ready(place))
            }
            Pick::Wake(index) => Ok(Look::Asleep(target(index)?)),
            Pick::Soon(until) => {
                let is_started =
                    machines.iter().any(|target| target.record.state == MachineState::Started);
                let again_at = [until, rested_at].into_iter().flatten().min();
                Ok(Look::Coming { is_started, again_at })
            }
            Pick::Full => Ok(Look::Full(machines)),
            // What refused is all there is that could run: it is tried again, or its host says
            // what became of it.
            Pick::NotStartable | Pick::Nothing | Pick::Unknown | Pick::Elsewhere
                if rested_at.is_some() =>
            {
                Ok(Look::Coming { is_started: true, again_at: rested_at })
            }
            Pick::NotStartable | Pick::Nothing | Pick::Unknown | Pick::Elsewhere
                if !refused.is_empty() =>
            {
                Err(Cause::WakeFailed)
            }
            Pick::NotStartable => Err(Cause::NotStartable),
            Pick::Nothing => Err(Cause::NoMachine),
            Pick::Unknown => Err(Cause::InstanceUnknown),
            Pick::Elsewhere => Err(Cause::RegionEmpty),
        };
    }
}

/// Returns which machines are left alone: those that did not take the request, with the moment when
/// the first of them is asked again, and those that would not start for it.
fn left_alone(
    machines: &[Arc<Target>],
    tried: &Tried,
    refused: &[RefusedStart],
    now: Instant,
) -> (Vec<usize>, Option<Instant>) {
    let (mut left_alone, mut rested_at) = (Vec::new(), None);
    for (index, target) in machines.iter().enumerate() {
        let record = &target.record;
        let rests = tried.rests(record, now);
        rested_at = [rested_at, rests].into_iter().flatten().min();
        let would_not_start =
            refused.iter().any(|(id, seen)| *id == record.id && record.generation <= *seen);
        if rests.is_some() || would_not_start {
            left_alone.push(index);
        }
    }
    (left_alone, rested_at)
}

/// Counts a request in a machine, and its connection where that is what counts; nothing when there
/// is no room any more.
fn take<C: Asks>(target: Arc<Target>, wanted: &Wanted<'_, C>) -> Option<Place> {
    let service = wanted.door.service(&target.record.services);
    let hard = service.and_then(pick::hard_limit);
    if service.is_none_or(|service| !wanted.door.counts_connections(service)) {
        let in_flight = target.load.begin(hard)?;
        return Some(Place { target, in_flight, connected: None, woke: None });
    }
    let connected = match wanted.asks.stays_with(&target) {
        true => None,
        false => Some(Connected::begin(&target.load, hard)?),
    };
    let in_flight = target.load.begin(None)?;
    Some(Place { target, in_flight, connected, woke: None })
}

/// One request's wait for its app.
struct Wait<'a> {
    changes: watch::Receiver<u64>,
    began: Instant,
    deadline: Instant,
    hold_max: Duration,
    start: Option<watch::Receiver<Outcome>>,
    /// What the watch says of a machine up to here was before its start.
    after: Option<(MachineId, Generation)>,
    /// Machines that would not start for it.
    refused: Vec<RefusedStart>,
    wakes: u32,
    is_started: bool,
    /// When another look is due although nothing has changed.
    again_at: Option<Instant>,
    queue: Option<Standing>,
    _held: Held<'a>,
}

/// A place in the queue for machines that are full.
struct Standing {
    queued: Queued,
    deadline: Instant,
    /// Whether the machines were looked at since it was taken.
    was_looked: bool,
}

impl<'a> Wait<'a> {
    fn new(shared: &'a Shared, app: &AppKey) -> Result<Self, Cause> {
        let metrics = shared.live.metrics_of(app);
        let held = shared.wakes.hold(metrics, &shared.limits).ok_or(Cause::QueueFull)?;
        let began = Instant::now();
        Ok(Self {
            changes: shared.live.changes_of(app),
            began,
            deadline: began + shared.limits.hold,
            hold_max: shared.limits.hold,
            start: None,
            after: None,
            refused: Vec::new(),
            wakes: 0,
            is_started: false,
            again_at: None,
            queue: None,
            _held: held,
        })
    }

    /// Queues up for a place in machines that are all full; returns whether they have to be looked
    /// at once more before the wait.
    fn queue(&mut self, shared: &Shared, machines: &[Arc<Target>]) -> Result<bool, Cause> {
        (self.is_started, self.again_at) = (true, None);
        match &mut self.queue {
            Some(standing) if standing.was_looked => {
                standing.queued.join_again(machines);
                standing.was_looked = false;
                Ok(true)
            }
            Some(standing) => {
                standing.was_looked = true;
                Ok(false)
            }
            None => {
                let queued = Queued::join(machines, shared.limits.queue_max);
                self.queue = Some(Standing {
                    queued: queued.ok_or(Cause::Full)?,
                    deadline: Instant::now() + shared.limits.queue,
                    was_looked: false,
                });
                Ok(true)
            }
        }
    }

    /// Starts a machine that sleeps, unless its sleep is only what the watch said before a start
    /// that was accepted.
    fn wake(&mut self, shared: &Shared, target: &Target) -> Result<(), Cause> {
        let record = &target.record;
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
        self.start = Some(shared.wakes.start(target, self.hold_max));
        Ok(())
    }

    /// Notes that the machine would not start; another may, unless too many would not.
    fn refuse(&mut self, seen: Generation) -> Result<(), Cause> {
        let Some((id, _)) = self.after.take() else {
            return Err(Cause::WakeFailed);
        };
        self.refused.push((id, seen));
        // It was not started.
        self.wakes = self.wakes.saturating_sub(1);
        if self.refused.len() < REFUSALS_MAX { Ok(()) } else { Err(Cause::WakeFailed) }
    }

    /// Waits until something has changed that is worth another look.
    async fn turn(&mut self, shared: &Shared, app: &AppKey) -> Result<(), Cause> {
        tokio::select! {
            changed = self.changes.changed() => {
                if changed.is_err() {
                    // All of the app is gone, or comes anew.
                    self.changes = shared.live.changes_of(app);
                }
                Ok(())
            }
            outcome = settled(&mut self.start) => {
                self.start = None;
                match outcome {
                    Outcome::Accepted(after) => {
                        if let Some((_, known)) = &mut self.after {
                            *known = after;
                        }
                        Ok(())
                    }
                    Outcome::Refused(seen) => self.refuse(seen),
                    // Its task ended without a word: the next look asks anew.
                    Outcome::Pending => {
                        self.after = None;
                        Ok(())
                    }
                }
            }
            () = sleep_until(self.again_at) => Ok(()),
            is_over = stand(&mut self.queue) => if is_over { Err(Cause::Full) } else { Ok(()) },
            () = tokio::time::sleep_until(self.deadline) => Err(if self.queue.is_some() {
                Cause::Full
            } else if self.is_started {
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

/// Waits in the queue until a place may be free, or the time for it is over; for ever when there
/// is none.
async fn stand(queue: &mut Option<Standing>) -> bool {
    match queue {
        Some(standing) => {
            tokio::time::timeout_at(standing.deadline, standing.queued.turn()).await.is_err()
        }
        None => std::future::pending().await,
    }
}

/// Waits until a start has an outcome; for ever when there is none.
async fn settled(start: &mut Option<watch::Receiver<Outcome>>) -> Outcome {
    match start {
        Some(receiver) => receiver
            .wait_for(|outcome| *outcome != Outcome::Pending)
            .await
            .map_or(Outcome::Pending, |outcome| *outcome),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn apps_that_hold_half_of_all_places_leave_the_others_to_the_rest() {
        let wakes = Wakes::new(HostClient::new("/nowhere"), Handle::current());
        let limits = Limits { held_max: 300, held_app_max: 200, ..Limits::default() };
        let [big, other] = [(); 2].map(|()| Arc::new(AppMetrics::default()));
        let hold = |app: &Arc<AppMetrics>| wakes.hold(Some(Arc::clone(app)), &limits);
        let held: Vec<_> = (0..150).map(|_| hold(&big).unwrap()).collect();
        assert!(hold(&big).is_none(), "it has more than its share of the other half");
        let others: Vec<_> = (0..HELD_APP_CROWDED_MAX).map(|_| hold(&other).unwrap()).collect();
        assert!(hold(&other).is_none());
        drop(others);
        drop(held);
        assert_eq!((wakes.held(), big.held.get(), other.held.get()), (0, 0, 0));
        let _again: Vec<_> = (0..150).map(|_| hold(&big).unwrap()).collect();
    }
}
