//! One run of a machine: what its steps share, and what the record becomes at its end.
//!
//! Never decides which steps there are (see `plan`) and never answers anybody: the actor does.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use perch_durable::{
    Error as DurableError, Executor, Extra, Moment, NewRun, Outcome, RunState, StepContext,
    StepError, Tx,
};
use perch_runtime::{Adopted, ExitReason, ExitStatus, Instance, MachineDir};
use perch_types::{ApiError, Code, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::ahead::Ahead;
use super::plan::{Intent, Step, journaled, plan, point_of_no_return};
use super::record::{Boot, Desired, Exiting, Instant, Record, Source};
use super::state::State;
use super::steps;
use crate::effects::{Fault, MountedImage};
use crate::shared::Shared;

/// What a run's steps need to know beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it is for.
    pub intent: Intent,
    /// Whether the writable layer begins empty.
    #[serde(default)]
    pub fresh_root: bool,
    /// The number of the boot that it makes, 0 for none.
    #[serde(default)]
    pub boot: u64,
    /// The number of the boot with which an update goes back, 0 for none.
    #[serde(default)]
    pub back: u64,
    /// The signal of a stop.
    #[serde(default)]
    pub signal: i32,
    /// How long the program may take to end.
    #[serde(default)]
    pub grace_ms: u64,
    /// Whether a start follows at once.
    #[serde(default)]
    pub restarting: bool,
    /// Whether somebody asked for it.
    #[serde(default)]
    pub asked: bool,
}

impl Input {
    /// Makes the input of a run that boots and stops nothing.
    #[must_use]
    pub const fn new(intent: Intent) -> Self {
        Self {
            intent,
            fresh_root: false,
            boot: 0,
            back: 0,
            signal: 0,
            grace_ms: 0,
            restarting: false,
            asked: true,
        }
    }

    /// Returns the run for the journal.
    #[must_use]
    pub fn new_run(&self, record: &Record) -> NewRun {
        let steps = plan(record, self.intent);
        NewRun {
            owner: record.id.to_string(),
            kind: self.intent.kind().to_owned(),
            input: serde_json::to_value(self).unwrap_or_default(),
            point_of_no_return: point_of_no_return(self.intent, &steps),
            steps: steps.into_iter().map(|step| journaled(self.intent, step)).collect(),
        }
    }
}

/// What the step `execute` left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Executed {
    /// The program runs.
    Started,
    /// There is no such program, or it may not be executed; the machine has ended.
    NotExecutable,
}

/// What the step `thaw` left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thawed {
    /// The program goes on.
    GoesOn,
    /// There is nothing that could.
    Lost,
}

/// What the step `execute` left, with what it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ExecuteForm")]
pub struct ExecuteOutput {
    /// What became of the program.
    pub executed: Executed,
    /// The version of the app's secrets that it was given, if it was given any.
    pub secrets_version: Option<u64>,
}

/// The shapes of [`ExecuteOutput`] in a journal: there were no secrets at first.
#[derive(Deserialize)]
#[serde(untagged)]
enum ExecuteForm {
    Older(Executed),
    Whole {
        executed: Executed,
        #[serde(default)]
        secrets_version: Option<u64>,
    },
}

impl From<ExecuteForm> for ExecuteOutput {
    fn from(form: ExecuteForm) -> Self {
        match form {
            ExecuteForm::Older(executed) => Self { executed, secrets_version: None },
            ExecuteForm::Whole { executed, secrets_version } => Self { executed, secrets_version },
        }
    }
}

/// What the step `stop` left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// How the boot ended; nothing when none ran.
    pub exit: Option<ExitStatus>,
}

/// What a run has in its hands.
#[derive(Debug)]
pub struct Work {
    /// The host.
    pub shared: Arc<Shared>,
    /// The machine as it was committed last.
    pub record: Record,
    /// What the steps need to know.
    pub input: Input,
    /// The boot that runs, if it is known to.
    pub instance: Option<Arc<dyn Instance>>,
    /// The image, once its step ran in this process.
    pub image: Option<MountedImage>,
    /// The further images of one with containers, once their step ran in this process.
    pub others: Vec<MountedImage>,
    /// The writable layer that its step made in this process, until a boot has taken it.
    pub layer: Option<String>,
    /// What is read of the directory for the boot that is being made.
    pub ahead: Option<Ahead>,
    /// The version of the app's secrets that the program at hand was given.
    pub secrets_version: Option<u64>,
    /// Why it is given up, with its code.
    pub fault: Option<ApiError>,
    /// Asks the machine's task to say that no request may be sent any more.
    pub gate: Option<mpsc::Sender<CloseGate>>,
    /// Whether a command waits that ends the machine's boot, whatever comes of the run.
    pub is_to_end: Arc<AtomicBool>,
}

/// The gate is to be closed; the answer is the counter of the record that says so.
pub type CloseGate = oneshot::Sender<u64>;

/// What is known of the boot that should run.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Arc<dyn Instance>),
    /// It ended, or none ran.
    Ended(Option<ExitStatus>),
}

impl Work {
    /// Returns where the machine keeps its files.
    #[must_use]
    pub fn dir(&self) -> MachineDir {
        self.shared.machine_dir(&self.record.id)
    }

    /// Finds the boot that runs: the one at hand, else by its monitor.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn find(&mut self) -> Result<Found, Fault> {
        if let Some(instance) = &self.instance {
            return Ok(Found::Running(Arc::clone(instance)));
        }
        let found = self.shared.effects.runtime.adopt(&self.dir()).await?;
        Ok(match found {
            Adopted::Running(instance) => {
                let instance: Arc<dyn Instance> = Arc::from(instance);
                self.instance = Some(Arc::clone(&instance));
                Found::Running(instance)
            }
            Adopted::Ended(exit) => Found::Ended(Some(exit)),
            Adopted::Gone => Found::Ended(None),
        })
    }

    /// Has it published that no request may be sent to the machine any more; returns the counter
    /// of the record that says so, nothing when nobody is there to publish.
    pub async fn close_gate(&self) -> Option<u64> {
        let (reply, answer) = oneshot::channel();
        self.gate.as_ref()?.send(reply).await.ok()?;
        answer.await.ok()
    }

    fn instant(&self) -> Instant {
        self.shared.instant()
    }

    /// Returns the record as it is at the run's end.
    fn ended(&self, outcome: &Outcome, run: &RunState) -> Record {
        let at = self.instant();
        let mut record = self.record.clone();
        record.updated_at = at.now;
        match outcome {
            Outcome::Done => self.done(&mut record, run, at),
            Outcome::Undone { failure } => {
                // Nobody gave it up but the one who now wants something else.
                let abandoned = failure.step.is_none();
                let fault = self.fault.clone();
                let fault =
                    fault.unwrap_or_else(|| ApiError::new(Code::Internal, failure.message.clone()));
                self.undone(&mut record, abandoned, at);
                if !abandoned {
                    record.note_failure(&fault, at);
                }
                record.failure = (!abandoned).then_some(fault);
            }
        }
        record
    }

    fn done(&self, record: &mut Record, run: &RunState, at: Instant) {
        let stopped: Option<Stopped> = run.output(Step::Stop.name());
        let exit = stopped.and_then(|stopped| stopped.exit);
        match self.input.intent {
            Intent::Launch | Intent::Start => self.booted(record, run, at),
            Intent::Prepare => record.state = State::Stopped,
            Intent::Suspend => {
                record.state = State::Suspended;
                if let Some(boot) = &mut record.boot {
                    boot.frozen = true;
                }
                record.note("suspend", Source::Platform, at);
            }
            Intent::Resume => self.resumed(record, run, at),
            Intent::Settle => record.boot = None,
            Intent::Stop => {
                record.state =
                    if self.input.restarting { State::Restarting } else { State::Stopped };
                self.note_stopped(record, exit.as_ref(), at);
                record.boot = None;
            }
            Intent::Update { .. } => {
                let ran = record.boot.is_some();
                if ran {
                    self.note_stopped(record, exit.as_ref(), at);
                    record.boot = None;
                }
                if let Some(next) = record.next.take() {
                    record.version = next;
                }
                record.given_up = None;
                record.failure = None;
                record.state = State::Created;
                record.note("launch", Source::User, at);
                if run.steps.iter().any(|step| step.name == Step::Execute.name()) {
                    self.booted(record, run, at);
                } else {
                    record.state = State::Stopped;
                }
            }
            Intent::Destroy => {
                record.state = State::Destroyed;
                if record.boot.is_some() {
                    self.note_stopped(record, exit.as_ref(), at);
                    record.boot = None;
                }
                record.note("destroy", self.source(), at);
            }
        }
    }

    fn undone(&self, record: &mut Record, abandoned: bool, at: Instant) {
        let failed = if abandoned { State::Stopped } else { State::Failed };
        match self.input.intent {
            Intent::Launch | Intent::Prepare | Intent::Start => {
                record.state = failed;
                record.boot = None;
                record.desired = Desired::Stopped;
                record.restart_boot_ms = None;
            }
            Intent::Update { .. } => {
                record.given_up = record.next.take().map(|next| next.instance);
                if let Some(boot) = &mut record.boot {
                    // The old version runs again, under a new number if it had been stopped.
                    let went_back = self.instance.as_ref().map(|instance| instance.info().boot);
                    if let Some(number) = went_back.filter(|number| *number != boot.number) {
                        *boot = Boot::new(number);
                        record.secrets_version = self.secrets_version.or(record.secrets_version);
                        record.state = State::Started;
                        record.note("start", Source::Platform, at);
                    }
                    let frozen = record.is_frozen();
                    record.state = if frozen { State::Suspended } else { State::Started };
                } else {
                    record.state = State::Stopped;
                    record.desired = Desired::Stopped;
                }
            }
            // It runs on; the next look at it finds out if it does not.
            Intent::Suspend => {
                if let Some(boot) = &mut record.boot {
                    boot.frozen = false;
                }
                record.state = State::Started;
                record.desired = Desired::Running;
            }
            // What it has in memory is still there, for the next start.
            Intent::Resume => {
                record.state = State::Suspended;
                record.desired = Desired::Stopped;
            }
            // These only go forward.
            Intent::Stop | Intent::Settle | Intent::Destroy => {
                record.state = failed;
            }
        }
    }

    fn booted(&self, record: &mut Record, run: &RunState, at: Instant) {
        record.boot = Some(Boot::new(self.input.boot));
        record.failure = None;
        record.restart_boot_ms = None;
        record.desired = Desired::Running;
        let left: Option<ExecuteOutput> = run.output(Step::Execute.name());
        record.secrets_version =
            left.and_then(|left| left.secrets_version).or(record.secrets_version);
        match left.map(|left| left.executed) {
            Some(Executed::NotExecutable) => record.state = State::Starting,
            Some(Executed::Started) | None => {
                record.state = State::Started;
                record.note("start", self.source(), at);
            }
        }
    }

    fn resumed(&self, record: &mut Record, run: &RunState, at: Instant) {
        record.failure = None;
        match run.output(Step::Thaw.name()) {
            Some(Thawed::Lost) => {
                let exit = lost_exit(record);
                record.note_exit(&exit, Exiting { asked: false, restarting: true }, at);
                record.boot = None;
                // A start follows at once.
                record.state = State::Restarting;
            }
            Some(Thawed::GoesOn) | None => {
                if let Some(boot) = &mut record.boot {
                    boot.frozen = false;
                }
                record.state = State::Started;
                record.note("start", self.source(), at);
            }
        }
    }

    fn note_stopped(&self, record: &mut Record, exit: Option<&ExitStatus>, at: Instant) {
        let lost = lost_exit(record);
        if let Some(boot) = &mut record.boot {
            boot.stop_signal = self.input.signal;
        }
        let how = Exiting { asked: true, restarting: self.input.restarting };
        record.note_exit(exit.unwrap_or(&lost), how, at);
    }

    fn source(&self) -> Source {
        if self.input.asked { Source::User } else { Source::Platform }
    }
}

/// Returns the exit of a boot that is gone without a status.
#[must_use]
pub fn lost_exit(record: &Record) -> ExitStatus {
    ExitStatus {
        instance: record.version.instance.clone(),
        boot: record.boot.as_ref().map_or(0, |boot| boot.number),
        code: 137,
        signal: Some(9),
        oom_killed: false,
        forks_refused: false,
        requested_stop: false,
        reason: ExitReason::MonitorLost,
        message: String::new(),
        process: None,
        container: None,
        started_unix_ms: 0,
        ended_unix_ms: 0,
    }
}

impl From<Fault> for StepError {
    fn from(fault: Fault) -> Self {
        Self { message: fault.error.error, transient: fault.transient }
    }
}

impl Executor for Work {
    fn knows(&self, step: &str) -> bool {
        Step::named(step).is_some()
    }

    async fn run(&mut self, context: StepContext<'_>) -> Result<Value, StepError> {
        let Some(step) = Step::named(context.step) else {
            return Err(StepError::permanent(format!("no step {}", context.step)));
        };
        let began = std::time::Instant::now();
        let result = steps::run(self, step).await;
        self.shared.note_step(step.name(), began.elapsed().as_secs_f64() * 1e3);
        if result.is_err() {
            self.shared.unless_ending().await;
        }
        result.map_err(|fault| {
            self.fault = Some(fault.error.clone());
            fault.into()
        })
    }

    async fn undo(&mut self, context: StepContext<'_>) -> Result<(), StepError> {
        let Some(step) = Step::named(context.step) else {
            return Err(StepError::permanent(format!("no step {}", context.step)));
        };
        let result = steps::undo(self, step).await;
        if result.is_err() {
            self.shared.unless_ending().await;
        }
        result.map_err(StepError::from)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX)
    }

    async fn pause(&mut self, pause_ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
    }

    fn beside(&mut self, moment: Moment<'_>, run: &RunState) -> Option<Extra> {
        match moment {
            Moment::End(outcome) => {
                let record = self.ended(outcome, run);
                self.record = record.clone();
                let boot_ms = self.shared.effects.clock.boot_ms();
                Some(Box::new(move |tx| write_end(tx, &record, boot_ms)))
            }
            Moment::Step(_) | Moment::Undo(_) | Moment::Parked(_) => None,
        }
    }
}

/// Writes the record of a run that ended; a machine that is no more gives its slot back.
fn write_end(tx: &Tx<'_>, record: &Record, boot_ms: u64) -> Result<(), DurableError> {
    if record.state == State::Destroyed {
        crate::schema::release_slot(tx, record.slot, boot_ms)?;
    }
    crate::schema::RECORDS.put(tx, &record.id, record)
}

/// Returns the milliseconds since 1970 of a moment.
#[must_use]
pub fn unix_ms(moment: Timestamp) -> u64 {
    u64::try_from(moment.unix_ms()).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests;
