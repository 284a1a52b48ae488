//! How a command becomes a run: the record changes and the journal begins in one commit.
//!
//! Never answers: the caller does, once the commit is done.

use perch_durable::Journal;
use perch_types::ApiError;
use perch_types::host;

use super::Actor;
use super::queue::put_end_first;
use crate::machine::plan::Intent;
use crate::machine::record::{Desired, Instant, Record, Source, Version};
use crate::machine::restart::History;
use crate::machine::run::Input;
use crate::machine::state::{Admission, State, admit};
use crate::schema::{self, Asker, Queued, RECORDS};

/// SIGKILL.
const KILL: i32 = 9;
/// How many failures of other machines are remembered.
const STOOD_IN_MAX: usize = 16;
/// How long what could not be journaled is put off, in milliseconds.
pub(super) const PUT_OFF_MS: u64 = 1_000;

/// Why a machine is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody asked for it.
    Start,
    /// Somebody asked for it to be stopped and started.
    Restart,
    /// It had ended by itself.
    Automatic,
    /// Its schedule has this run.
    Schedule(i64),
    /// It takes the place of another, which failed by this event.
    StandIn(String),
}

/// What an update wants besides its version.
struct Wish {
    /// Do not start what does not run.
    skip_launch: bool,
    /// The edge sends it nothing from now on.
    cordoned: bool,
}

/// How a boot that runs is to end.
struct Ending {
    signal: i32,
    /// How long the program may take.
    grace_ms: u64,
    /// Whether a start follows at once.
    restarting: bool,
    asker: Asker,
}

/// Notes that a machine is to stop or to be suspended, and why if nobody asked for it.
fn note_end(record: &mut Record, kind: &str, asker: Asker, at: Instant) {
    match asker {
        Asker::User => {
            record.note(kind, Source::User, at);
        }
        Asker::Autostop => {
            let event = record.note(kind, Source::Platform, at);
            event.request = Some(serde_json::json!({"reason": "autostop"}));
        }
    }
}

impl Actor {
    /// Begins what waits, if anything does.
    pub(super) async fn begin_next(&mut self) {
        while self.run.is_none() && self.parked.is_none() && self.queue_boot_ms.is_none() {
            let halfway = self.record.state == State::Restarting && self.record.boot.is_none();
            if halfway && !self.is_ended_by_next() {
                if let Err(error) = self.begin_start(Why::Restart).await {
                    tracing::warn!(machine = %self.record.id, %error, "restart was put off");
                    self.record.state = State::Starting;
                    self.put_off();
                }
                continue;
            }
            let Some(queued) = self.queued.pop_front() else {
                return;
            };
            // What was true when it was accepted may not be any more.
            match admit(self.record.state, &[], (&queued.command).into()) {
                Admission::Accept => {
                    if let Err(error) = self.begin(queued.clone()).await {
                        tracing::warn!(machine = %self.record.id, %error, "command was put off");
                        self.put_back(queued);
                    }
                }
                Admission::AlreadySo | Admission::Refuse(..) => {
                    if let Err(error) = self.write_queue().await {
                        // The next commit writes what waits again.
                        tracing::warn!(machine = %self.record.id, %error, "queue is not written");
                    }
                }
            }
        }
    }

    /// Has a command that was accepted wait again: there may be no room for it now. An end behind
    /// it does not wait for that, because it frees space.
    fn put_back(&mut self, queued: Queued) {
        self.queued.push_front(queued);
        if !put_end_first(&mut self.queued) {
            self.queue_boot_ms = Some(self.boot_ms_after(PUT_OFF_MS));
        }
    }

    /// Returns whether the command that waits first makes a start pointless: the second half of a
    /// restart could be long on a full disk.
    fn is_ended_by_next(&self) -> bool {
        let next = self.queued.front().map(|queued| &queued.command);
        matches!(next, Some(host::Command::Stop { .. } | host::Command::Destroy { force: true }))
    }

    async fn write_queue(&self) -> Result<(), ApiError> {
        let (id, rows) = (self.record.id.clone(), self.queued.iter().cloned().collect());
        self.shared
            .db
            .write_reserved(move |tx| schema::put_queue(tx, &id, &rows))
            .await
            .map_err(|error| self.shared.db_error(&error))
    }

    /// Begins a command now.
    pub(super) async fn begin(&mut self, queued: Queued) -> Result<(), ApiError> {
        let asker = queued.asker;
        match queued.command {
            host::Command::Start if self.record.is_frozen() => self.begin_resume().await,
            host::Command::Start => self.begin_start(Why::Start).await,
            host::Command::Suspend => self.begin_suspend(Some(queued.asker)).await,
            host::Command::Stop { signal, timeout } => {
                let config = &self.record.version.config;
                let signal = signal.unwrap_or_else(|| config.stop_signal()).number();
                let timeout = timeout.map_or_else(
                    || config.stop_timeout(),
                    |timeout| timeout.min(perch_types::machine_config::STOP_TIMEOUT_MAX),
                );
                let grace_ms = u64::try_from(timeout.get().as_millis()).unwrap_or(u64::MAX);
                self.begin_stop(Ending { signal, grace_ms, restarting: false, asker }).await
            }
            host::Command::Restart { force, signal, timeout } => {
                let config = &self.record.version.config;
                let signal = signal.unwrap_or_else(|| config.stop_signal()).number();
                let timeout = timeout.unwrap_or_else(|| config.stop_timeout());
                let grace_ms = u64::try_from(timeout.get().as_millis()).unwrap_or(u64::MAX);
                if self.record.boot.is_none() {
                    return self.begin_start(Why::Restart).await;
                }
                let (signal, grace_ms) = if force { (KILL, 0) } else { (signal, grace_ms) };
                self.begin_stop(Ending { signal, grace_ms, restarting: true, asker }).await
            }
            host::Command::Update {
                instance,
                epoch,
                config,
                config_digest,
                skip_launch,
                cordoned,
                secrets,
            } => {
                let Some(image) = queued.image else {
                    // The one who asked saw to it; no later attempt would find one.
                    tracing::error!(machine = %self.record.id, "image of an update is missing");
                    return self.write_queue().await;
                };
                let others = queued.others;
                let upper = self.record.upper_for(&config, (&image, &others), &instance);
                let config = *config;
                let next = Version {
                    instance,
                    epoch,
                    config,
                    config_digest,
                    image,
                    others,
                    upper,
                    secrets,
                };
                self.begin_update(next, Wish { skip_launch, cordoned }).await
            }
            host::Command::Destroy { .. } => self.begin_destroy(true).await,
            host::Command::SetCordoned { cordoned } => {
                let mut record = self.record.clone();
                record.cordoned = cordoned;
                record.updated_at = self.shared.effects.clock.now();
                self.commit(record, None).await
            }
            host::Command::SetLabels { change, .. } => {
                let mut record = self.record.clone();
                change.apply(&mut record.version.config.metadata);
                record.updated_at = self.shared.effects.clock.now();
                self.commit(record, None).await
            }
            host::Command::Signal { .. } => Ok(()),
        }
    }

    /// Begins to run a machine that does not.
    pub(super) async fn begin_start(&mut self, why: Why) -> Result<(), ApiError> {
        let mut record = self.record.clone();
        let after_exit = matches!(why, Why::Restart | Why::Automatic);
        let restarting = record.state == State::Restarting || after_exit;
        let asked = matches!(why, Why::Start | Why::Restart);
        if !restarting {
            record.history = History::default();
        }
        match why {
            Why::Schedule(slot_ms) => record.schedule_ms = Some(slot_ms),
            Why::StandIn(event) => record.stood_in.push(event),
            Why::Start | Why::Restart | Why::Automatic => {}
        }
        let surplus = record.stood_in.len().saturating_sub(STOOD_IN_MAX);
        record.stood_in.drain(..surplus);
        record.state = State::Starting;
        record.desired = Desired::Running;
        record.restart_boot_ms = None;
        record.failure = None;
        let fresh_root = record.begins_fresh(restarting);
        let boot = record.new_boot();
        let input = Input { fresh_root, boot, asked, ..Input::new(Intent::Start) };
        self.commit(record, Some(input)).await
    }

    /// Begins to freeze a machine that runs. From now on nothing starts it by itself.
    pub(super) async fn begin_suspend(&mut self, asker: Option<Asker>) -> Result<(), ApiError> {
        let mut record = self.record.clone();
        record.state = State::Suspending;
        record.desired = Desired::Stopped;
        record.failure = None;
        let at = self.shared.instant();
        match asker {
            Some(asker) => note_end(&mut record, "suspend", asker, at),
            None => {
                record.note("suspend", Source::Platform, at);
            }
        }
        let asked = asker == Some(Asker::User);
        self.commit(record, Some(Input { asked, ..Input::new(Intent::Suspend) })).await
    }

    /// Begins to let a suspended machine go on.
    async fn begin_resume(&mut self) -> Result<(), ApiError> {
        let mut record = self.record.clone();
        record.state = State::Starting;
        record.desired = Desired::Running;
        record.failure = None;
        record.history = History::default();
        record.updated_at = self.shared.effects.clock.now();
        self.commit(record, Some(Input::new(Intent::Resume))).await
    }

    /// Begins a start that nobody asked for; a fault is met again by the next timer.
    pub(super) async fn begin_automatic_start(&mut self) {
        if let Err(error) = self.begin_start(Why::Automatic).await {
            tracing::warn!(machine = %self.record.id, %error, "automatic start was put off");
            self.put_off();
        }
    }

    fn put_off(&mut self) {
        self.record.restart_boot_ms = Some(self.boot_ms_after(PUT_OFF_MS));
    }

    async fn begin_stop(&mut self, ending: Ending) -> Result<(), ApiError> {
        let Ending { signal, grace_ms, restarting, asker } = ending;
        let mut record = self.record.clone();
        record.restart_boot_ms = None;
        record.failure = None;
        if !restarting {
            record.desired = Desired::Stopped;
        }
        if record.boot.is_none() {
            record.state = State::Stopped;
            record.note("stop", Source::User, self.shared.instant());
            return self.commit(record, None).await;
        }
        // What is frozen cannot end politely: what it had in memory is dropped.
        let (signal, grace_ms) = if record.is_frozen() { (KILL, 0) } else { (signal, grace_ms) };
        record.state = if restarting { State::Restarting } else { State::Stopping };
        let kind = if restarting { "restart" } else { "stop" };
        note_end(&mut record, kind, asker, self.shared.instant());
        let asked = asker == Asker::User;
        let input = Input { signal, grace_ms, restarting, asked, ..Input::new(Intent::Stop) };
        self.commit(record, Some(input)).await
    }

    async fn begin_update(
        &mut self,
        next: Version,
        Wish { skip_launch, cordoned }: Wish,
    ) -> Result<(), ApiError> {
        let mut record = self.record.clone();
        record.cordoned |= cordoned;
        let runs = record.boot.is_some();
        let config = &record.version.config;
        let frozen = record.is_frozen();
        let signal = if frozen { KILL } else { config.stop_signal().number() };
        let grace = config.stop_timeout().get();
        let fresh_root = next.upper != record.version.upper;
        let now = self.shared.effects.clock.now();
        let schedule = next.config.schedule;
        record.schedule_ms = schedule.map(|schedule| schedule.slot(&record.id, now).current_ms);
        record.stood_in = self.shared.failures_of(&next.config.standbys);
        record.next = Some(next);
        record.state = State::Replacing;
        record.failure = None;
        record.restart_boot_ms = None;
        record.history = History::default();
        record.note("update", Source::User, self.shared.instant());
        let mut input = Input {
            fresh_root,
            signal,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            ..Input::new(Intent::Update { skip_launch })
        };
        let boots = !skip_launch || (runs && !frozen);
        if boots {
            input.boot = record.new_boot();
        }
        if runs && boots {
            input.back = record.new_boot();
        }
        self.commit(record, Some(input)).await
    }

    pub(super) async fn begin_destroy(&mut self, asked: bool) -> Result<(), ApiError> {
        let mut record = self.record.clone();
        record.state = State::Destroying;
        record.desired = Desired::Gone;
        record.restart_boot_ms = None;
        record.updated_at = self.shared.effects.clock.now();
        let input = Input { signal: KILL, asked, ..Input::new(Intent::Destroy) };
        self.commit(record, Some(input)).await
    }

    /// Writes the record, what waits, and the run's beginning, in one commit; then goes on.
    pub(super) async fn commit(
        &mut self,
        record: Record,
        input: Option<Input>,
    ) -> Result<(), ApiError> {
        let new_run = input.map(|input| input.new_run(&record));
        let at_ms = i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX);
        let rows: Vec<Queued> = self.queued.iter().cloned().collect();
        let written = record.clone();
        let frees_space = input.is_none_or(|input| {
            matches!(input.intent, Intent::Stop | Intent::Settle | Intent::Destroy)
        });
        let work = move |tx: &perch_durable::Tx<'_>| {
            RECORDS.put(tx, &written.id, &written)?;
            schema::put_queue(tx, &written.id, &rows)?;
            match &new_run {
                Some(run) => Journal::begin(tx, run.clone(), at_ms).map(Some),
                None => Ok(None),
            }
        };
        let db = &self.shared.db;
        let begun: Result<_, perch_durable::Error> = if frees_space {
            db.write_reserved(work).await
        } else {
            db.write(move |tx| work(tx)).await
        };
        let open = begun.map_err(|error| self.shared.db_error(&error))?;
        self.record = record;
        if let (Some(open), Some(input)) = (open, input) {
            self.start_run(open, input);
        }
        self.publish();
        Ok(())
    }
}
