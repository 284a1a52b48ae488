//! The task that owns a machine.
//!
//! Never shares its record: others see what it publishes. Facts come before commands, one run is
//! under way at a time, and everything that is answered was committed first.

mod begin;
mod fact;
mod note;
mod queue;
mod recover;
mod timers;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_durable::{Ended, OpenRun, RunId, drive};
use perch_runtime::Instance;
use perch_types::host::{self, Accepted, HostMachine, WatchEvent};
use perch_types::image::Digest;
use perch_types::{ApiError, Code, MachineId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use recover::Origin;
use timers::Due;

use super::plan::Intent;
use super::ready;
use super::record::{Readiness, Record, host_machine};
use super::run::{CloseGate, Input, Work};
use super::state::{Admission, Command, Fact, State, admit};
use super::suspend;
use crate::schema::{Asker, Queued};
use crate::shared::Shared;

/// Commands that may wait for the task of a machine.
const INBOX_MAX: usize = 16;
/// Facts that may wait for it.
const FACTS_MAX: usize = 16;
/// Lines for its log that may wait for it.
const NOTES_MAX: usize = 4;
/// How long a destroyed machine can still be asked about.
pub const DESTROYED_KEPT: Duration = Duration::from_secs(600);
/// What others see of a machine.
#[derive(Debug, Clone)]
pub struct Published {
    /// The machine.
    pub machine: HostMachine,
    /// SHA-256 of its configuration.
    pub config_digest: String,
    /// Its boot, if it runs.
    pub instance: Option<Arc<dyn Instance>>,
    /// The images that it, an update under way or one that waits needs.
    pub images: Vec<Digest>,
    /// Since when it has been in this state and as ready, by the boot clock.
    pub since_boot_ms: u64,
}

/// A way to reach a machine's task.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Which machine.
    pub id: MachineId,
    inbox: mpsc::Sender<Message>,
    facts: mpsc::Sender<Fact>,
    notes: mpsc::Sender<String>,
    published: watch::Receiver<Arc<Published>>,
}

#[derive(Debug)]
struct Message {
    queued: Queued,
    reply: oneshot::Sender<Result<Accepted, ApiError>>,
}

impl Handle {
    /// Returns what the machine is now.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.borrow())
    }

    /// Returns a receiver of everything that it will be.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }

    /// Returns the images that it needs; none once it is destroyed.
    #[must_use]
    pub fn images(&self) -> Vec<Digest> {
        let published = self.published.borrow();
        let is_there = published.machine.state != State::Destroyed;
        if is_there { published.images.clone() } else { Vec::new() }
    }

    /// Tells the machine's task a fact that will be told again; one that is busy misses it.
    pub(crate) fn tell(&self, fact: Fact) {
        drop(self.facts.try_send(fact));
    }

    /// Has a line written into the machine's log; a task that is busy may lose it.
    pub(crate) fn write_down(&self, text: String) {
        drop(self.notes.try_send(text));
    }

    /// Gives the machine a command; returns once it is journaled.
    ///
    /// # Errors
    /// When it is refused or could not be journaled.
    pub async fn command(&self, queued: Queued) -> Result<Accepted, ApiError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ApiError::new(Code::Unavailable, "the machine's task is ending; try again");
        self.inbox.send(Message { queued, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Running {
    id: RunId,
    intent: Intent,
    /// Tells the run that a command waits which ends the machine's boot.
    is_to_end: Arc<AtomicBool>,
    /// Only ever reached through the task's own exclusive hold, so the lock is never taken.
    future: Mutex<Pin<Box<dyn Future<Output = Finished> + Send>>>,
}

struct Finished {
    result: Result<Ended, perch_durable::Error>,
    work: Work,
}

/// Ends a task with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The task's state.
pub struct Actor {
    shared: Arc<Shared>,
    record: Record,
    queued: VecDeque<Queued>,
    instance: Option<Arc<dyn Instance>>,
    readiness: Readiness,
    run: Option<Running>,
    parked: Option<RunId>,
    /// When the parked run tries again, by the boot clock.
    unpark_boot_ms: u64,
    /// The end of the boot, which could not be journaled yet, and when that is tried again.
    unwritten: Option<(Fact, u64)>,
    /// When the command that waits first is tried again, by the boot clock.
    queue_boot_ms: Option<u64>,
    /// Whether no request may be sent to the boot that runs.
    gate_closed: bool,
    gate: mpsc::Receiver<CloseGate>,
    gate_sender: mpsc::Sender<CloseGate>,
    facts: mpsc::Receiver<Fact>,
    fact_sender: mpsc::Sender<Fact>,
    notes: mpsc::Receiver<String>,
    inbox: mpsc::Receiver<Message>,
    published: watch::Sender<Arc<Published>>,
    watchers: Vec<Task>,
    /// Follows the end of the boot with this number: once a boot, because each costs a place at
    /// its monitor, however often it is frozen.
    exit_watcher: Option<(u64, Task)>,
    /// When the boot is looked for again whose monitor could not be asked, by the boot clock.
    adopt_boot_ms: Option<u64>,
    /// When a destroyed machine is forgotten, by the boot clock.
    forget_boot_ms: Option<u64>,
    /// When this task began, by the boot clock.
    began_boot_ms: u64,
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Actor").field("id", &self.record.id).finish_non_exhaustive()
    }
}

/// What woke the task.
enum Wake {
    Fact(Fact),
    RunEnded(Box<Finished>),
    CloseGate(CloseGate),
    Message(Message),
    Note(String),
    Due(Due),
    Stopping,
}

impl Actor {
    /// Starts the task of a machine.
    ///
    /// # Errors
    /// When the machine has no valid address.
    pub fn spawn(
        shared: &Arc<Shared>,
        record: Record,
        queued: Vec<Queued>,
        origin: Origin,
    ) -> Result<Handle, ApiError> {
        let place = shared.place(&record).map_err(|fault| fault.error)?;
        let readiness = Readiness::default();
        let machine = host_machine(&record, &readiness, shared.next_generation(), &place);
        let config_digest = record.version.config_digest.clone();
        let images = images(&record, &queued);
        let since_boot_ms = shared.effects.clock.boot_ms();
        let first = Published { machine, config_digest, instance: None, images, since_boot_ms };
        let (published, follow) = watch::channel(Arc::new(first));
        let (inbox_sender, inbox) = mpsc::channel(INBOX_MAX);
        let (fact_sender, facts) = mpsc::channel(FACTS_MAX);
        let (gate_sender, gate) = mpsc::channel(1);
        let (note_sender, notes) = mpsc::channel(NOTES_MAX);
        let handle = Handle {
            id: record.id.clone(),
            inbox: inbox_sender,
            facts: fact_sender.clone(),
            notes: note_sender,
            published: follow,
        };
        let actor = Self {
            shared: Arc::clone(shared),
            record,
            queued: queued.into(),
            instance: None,
            readiness,
            run: None,
            parked: None,
            unpark_boot_ms: 0,
            unwritten: None,
            queue_boot_ms: None,
            gate_closed: false,
            gate,
            gate_sender,
            facts,
            fact_sender,
            notes,
            inbox,
            published,
            watchers: Vec::new(),
            exit_watcher: None,
            adopt_boot_ms: None,
            forget_boot_ms: None,
            began_boot_ms: since_boot_ms,
        };
        shared.tasks.spawn(actor.serve(origin));
        Ok(handle)
    }

    async fn serve(mut self, origin: Origin) {
        self.publish();
        self.recover(origin).await;
        loop {
            if self.run.is_none() {
                self.begin_next().await;
            }
            match self.wake().await {
                Wake::Fact(fact) => self.fact(fact).await,
                Wake::RunEnded(finished) => Box::pin(self.run_ended(*finished)).await,
                Wake::CloseGate(reply) => self.close_gate(reply),
                Wake::Message(message) => self.message(message).await,
                Wake::Note(text) => self.note(text).await,
                Wake::Due(due) => {
                    if self.due(due).await {
                        break;
                    }
                }
                Wake::Stopping => break,
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let stopping = self.shared.stopping.clone();
        let timer = self.until_due();
        let idle = self.run.is_none() && self.parked.is_none();
        let running = async {
            match &mut self.run {
                Some(run) => {
                    let future = run.future.get_mut().unwrap_or_else(PoisonError::into_inner);
                    future.as_mut().await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => Wake::Stopping,
            finished = running => Wake::RunEnded(Box::new(finished)),
            Some(reply) = self.gate.recv() => Wake::CloseGate(reply),
            // While a run is under way it waits for exits itself.
            Some(fact) = self.facts.recv(), if idle => Wake::Fact(fact),
            Some(message) = self.inbox.recv() => Wake::Message(message),
            // A run may begin a boot, whose monitor writes the log.
            Some(text) = self.notes.recv(), if idle => Wake::Note(text),
            due = sleep_or_never(timer) => Wake::Due(due),
        }
    }

    async fn message(&mut self, message: Message) {
        let Message { queued, reply } = message;
        let answer = self.command(queued).await;
        // Whoever asked may be gone; the command is carried out anyway.
        drop(reply.send(answer));
    }

    async fn command(&mut self, queued: Queued) -> Result<Accepted, ApiError> {
        let previous_state = self.record.state;
        let kinds: Vec<Command> = self.queued.iter().map(|one| (&one.command).into()).collect();
        self.check(&queued.command)?;
        let admission = match &queued.command {
            host::Command::Update { instance, .. } if *instance == self.record.version.instance => {
                Admission::AlreadySo
            }
            command => admit(self.record.state, &kinds, command.into()),
        };
        let is_at_rest = self.run.is_none() && self.parked.is_none() && kinds.is_empty();
        let runs = self.record.state == State::Started;
        if queued.asker == Asker::Autostop && !(is_at_rest && runs) {
            return Err(ApiError::new(Code::WrongState, "the machine is not at rest"));
        }
        let admission = match suspend::refusal(&queued.command, &self.record.version.config) {
            Some(reason) if admission == Admission::Accept => {
                Admission::Refuse(reason, Code::PreconditionFailed)
            }
            Some(_) | None => admission,
        };
        match admission {
            Admission::Refuse(reason, code) => return Err(ApiError::new(code, reason)),
            Admission::AlreadySo => {}
            Admission::Accept => self.accept(queued).await?,
        }
        Ok(Accepted { previous_state, machine: self.published.borrow().machine.clone() })
    }

    async fn accept(&mut self, queued: Queued) -> Result<(), ApiError> {
        if let host::Command::Signal { signal } = queued.command {
            let Some(instance) = &self.instance else {
                return Err(ApiError::new(Code::WrongState, "no program runs"));
            };
            return instance
                .signal(signal)
                .await
                .map_err(|error| crate::effects::Fault::from(error).error);
        }
        self.make_way(&queued.command).await;
        let is_end = fact::is_end(&queued);
        if self.run.is_none() && self.parked.is_none() && self.queued.is_empty() {
            return self.begin(queued).await;
        }
        self.enqueue(queued).await?;
        if is_end && let Some(run) = &self.run {
            run.is_to_end.store(true, Ordering::Release);
        }
        if is_end && self.queue_boot_ms.take().is_some() {
            queue::put_end_first(&mut self.queued);
        }
        Ok(())
    }

    /// Cuts short what the command makes pointless.
    async fn make_way(&mut self, command: &host::Command) {
        let Some(run) = &self.run else {
            return self.hasten(command).await;
        };
        let is_forced = matches!(command, host::Command::Destroy { force: true });
        let is_end = is_forced || matches!(command, host::Command::Stop { .. });
        let gives_way = match run.intent {
            Intent::Launch | Intent::Prepare | Intent::Start => is_end,
            Intent::Suspend => is_end || matches!(command, host::Command::Start),
            // Of what goes on a stop has the program end by itself.
            Intent::Resume => is_forced,
            Intent::Stop | Intent::Settle | Intent::Update { .. } | Intent::Destroy => false,
        };
        if gives_way {
            let id = run.id;
            // As good as a crash: the run is opened again from the journal, to be undone.
            self.run = None;
            self.abandon(id, "another command took its place").await;
        } else if run.intent == Intent::Stop
            && matches!(command, host::Command::Destroy { .. })
            && let Some(instance) = &self.instance
        {
            // The run's own wait says whether it worked.
            drop(instance.kill().await);
        }
    }

    async fn run_ended(&mut self, finished: Finished) {
        let Some(run) = self.run.take() else { return };
        let Finished { result, work } = finished;
        let machine = self.record.id.clone();
        match result {
            Ok(ended) => {
                if let Ended::Undone(failure) = &ended {
                    tracing::warn!(%machine, run = run.intent.kind(), %failure, "run was undone");
                }
                if let Ended::Parked { why } = &ended {
                    tracing::error!(%machine, run = run.intent.kind(), why, "run cannot go on");
                    self.park(run.id);
                    self.record.failure = Some(ApiError::new(Code::Internal, why.clone()));
                    return self.publish();
                }
                tracing::debug!(%machine, run = run.intent.kind(), "run ended");
                self.record = work.record;
                let is_unknown = work.instance.is_none() && self.record.boot.is_some();
                self.take_instance(work.instance);
                self.publish();
                if is_unknown {
                    // Undone before it touched the boot that an earlier agent began.
                    self.adopt().await;
                }
            }
            Err(error) => {
                let text = self.shared.db_error(&error);
                tracing::error!(%machine, error = %text, "journal could not be written");
                // Nothing more may happen to this machine until it can be.
                self.park(run.id);
            }
        }
    }

    /// Keeps the boot that runs and follows its end and its readiness.
    fn take_instance(&mut self, instance: Option<Arc<dyn Instance>>) {
        self.watchers.clear();
        self.adopt_boot_ms = None;
        self.gate_closed = false;
        let containers = std::mem::take(&mut self.readiness).containers;
        self.instance = instance.filter(|_| self.record.boot.is_some());
        let Some(instance) = &self.instance else {
            self.exit_watcher = None;
            return;
        };
        let boot = instance.info().boot;
        if self.exit_watcher.as_ref().is_none_or(|(of, _)| *of != boot) {
            let follow = fact::follow_exit(Arc::clone(instance), self.fact_sender.clone());
            self.exit_watcher = Some((boot, Task(tokio::spawn(follow))));
        }
        let probe = ready::Probe::new(&self.shared, &self.record, instance);
        self.readiness = probe.first();
        // Its sockets are there while it is frozen, and nobody answers.
        if self.record.is_frozen() {
            if !containers.is_empty() {
                self.readiness.containers = containers;
            }
            return;
        }
        self.watchers.push(Task(tokio::spawn(probe.follow(self.fact_sender.clone()))));
    }

    /// Publishes that the boot gets no more requests, before the run that asks for it ends it. What
    /// was published when the run began has said so for a boot that is not to serve meanwhile: those
    /// who send requests close the gate and tell of its end with that record.
    fn close_gate(&mut self, reply: CloseGate) {
        if reply.is_closed() {
            // The run was given up.
            return;
        }
        self.gate_closed = true;
        // What asks the boot how it is holds its network's namespace, whose end takes the interface
        // with it. Nobody wants to know any more.
        self.watchers.clear();
        let is_said = {
            let published = self.published.borrow();
            !published.machine.ready && published.machine.state.is_ending()
        };
        if !is_said {
            self.publish();
        }
        let _heard = reply.send(self.published.borrow().machine.generation.counter);
    }

    fn start_run(&mut self, open: OpenRun, input: Input) {
        let id = open.state().id;
        if matches!(input.intent, Intent::Stop | Intent::Settle | Intent::Destroy) {
            self.watchers.clear();
        }
        let is_to_end = Arc::new(AtomicBool::new(self.queued.iter().any(fact::is_end)));
        let mut work = Work {
            shared: Arc::clone(&self.shared),
            record: self.record.clone(),
            input,
            instance: self.instance.clone(),
            image: None,
            others: Vec::new(),
            layer: None,
            ahead: None,
            secrets_version: None,
            fault: None,
            gate: Some(self.gate_sender.clone()),
            is_to_end: Arc::clone(&is_to_end),
        };
        let journal = self.shared.journal.clone();
        let future: Pin<Box<dyn Future<Output = Finished> + Send>> = Box::pin(async move {
            let began = std::time::Instant::now();
            let result = drive(&journal, open, &mut work).await.map(|(ended, _)| ended);
            work.shared
                .note_step(work.input.intent.run_name(), began.elapsed().as_secs_f64() * 1e3);
            Finished { result, work }
        });
        self.run =
            Some(Running { id, intent: input.intent, is_to_end, future: Mutex::new(future) });
    }

    /// Tells others what the machine is now.
    fn publish(&mut self) {
        let place = match self.shared.place(&self.record) {
            Ok(place) => place,
            Err(fault) => {
                tracing::error!(machine = %self.record.id, error = %fault, "machine has no address");
                return;
            }
        };
        let generation = self.shared.next_generation();
        let mut machine = host_machine(&self.record, &self.readiness, generation, &place);
        machine.ready &= !self.gate_closed;
        self.show_labels(&mut machine);
        let event = if machine.state == State::Destroyed {
            let kept_ms = u64::try_from(DESTROYED_KEPT.as_millis()).unwrap_or(u64::MAX);
            let until = self.shared.effects.clock.boot_ms().saturating_add(kept_ms);
            self.forget_boot_ms.get_or_insert(until);
            self.shared.untidy.store(true, Ordering::Release);
            WatchEvent::Removed { id: machine.id.clone() }
        } else {
            WatchEvent::Changed { machine: Box::new(machine.record(place.host)) }
        };
        let instance = self.instance.clone();
        let config_digest = self.record.version.config_digest.clone();
        let images = images(&self.record, self.queued.make_contiguous());
        let since_boot_ms = {
            let before = self.published.borrow();
            let is_as_before = before.machine.state == machine.state
                && before.machine.ready == machine.ready
                && before.machine.instance == machine.instance;
            if is_as_before { before.since_boot_ms } else { self.shared.effects.clock.boot_ms() }
        };
        let published = Published { machine, config_digest, instance, images, since_boot_ms };
        self.published.send_replace(Arc::new(published));
        self.shared.announce(event);
    }
}

/// Returns the images that a machine needs now or will by what waits.
fn images(record: &Record, queued: &[Queued]) -> Vec<Digest> {
    let own = [Some(&record.version), record.next.as_ref()];
    let own = own.into_iter().flatten();
    let own = own.flat_map(|version| std::iter::once(&version.image).chain(&version.others));
    let coming = queued.iter().flat_map(|one| one.image.iter().chain(&one.others));
    own.chain(coming).filter_map(|image| image.digest.clone()).collect()
}

async fn sleep_or_never(timer: Option<(Duration, Due)>) -> Due {
    match timer {
        // What is due already is not put off by commands that keep coming: each would begin the
        // sleep anew.
        Some((left, due)) if left.is_zero() => due,
        Some((left, due)) => {
            tokio::time::sleep(left).await;
            due
        }
        None => std::future::pending().await,
    }
}
