//! The driver: carries out what the pure core decides, journaling before each effect.
//!
//! Never goes on after a write that did not reach the disk, and never skips a step it does not
//! know: it parks the run.

use std::{fmt, future::Future};

use serde_json::Value;

use crate::{Action, Commit, Error, Failure, Journal, OpenRun, Outcome, RunState, Tx, next};

#[cfg(test)]
mod tests;

/// Why a step did not reach its goal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// Why, for people.
    pub message: String,
    /// Whether the same attempt may succeed a little later.
    pub transient: bool,
}

impl StepError {
    /// An error that a later attempt would meet again.
    #[must_use]
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: false }
    }

    /// An error that a later attempt may not meet.
    #[must_use]
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: true }
    }
}

/// How long and how often an attempt is repeated.
///
/// Before the point of no return transient errors are repeated; in an undo, and from the point of
/// no return on, every error is. When the window ends the run is undone, or parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How long after its first error an attempt may still be repeated.
    pub window_ms: u64,
    /// The first pause; doubled each time.
    pub pause_ms: u64,
    /// The longest pause.
    pub pause_max_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { window_ms: 60_000, pause_ms: 50, pause_max_ms: 5_000 }
    }
}

impl Retry {
    /// Decides whether to try again: the pause before it, or `None` to give up. `failed` counts
    /// the errors so far, from 1; `elapsed_ms` is the time since the first.
    #[must_use]
    pub fn pause(&self, failed: u32, elapsed_ms: u64) -> Option<u64> {
        let doubled = self.pause_ms.saturating_mul(1 << failed.saturating_sub(1).min(16));
        let pause = doubled.min(self.pause_max_ms);
        (elapsed_ms.saturating_add(pause) <= self.window_ms).then_some(pause)
    }
}

/// What a step is told.
#[derive(Debug, Clone, Copy)]
pub struct StepContext<'a> {
    /// The step's name.
    pub step: &'a str,
    /// The run: its owner, kind, input, and the outputs of the steps before.
    pub run: &'a RunState,
    /// How often it was tried in this process, from 1.
    pub attempt: u32,
}

/// What is about to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment<'a> {
    /// The start of a step with a commit of its own.
    Step(&'a str),
    /// The decision to undo the run.
    Undo(&'a Failure),
    /// The end of the run.
    End(&'a Outcome),
    /// The run needs an operator.
    Parked(&'a str),
}

/// What the caller writes in the same transaction as the journal. Called twice when the first
/// attempt met a full disk.
pub type Extra = Box<dyn FnMut(&Tx<'_>) -> Result<(), Error> + Send>;

/// Carries out the steps of one run.
///
/// A step and its undo may run twice, and an undo may come without its step having run.
pub trait Executor: Send {
    /// Returns whether a step of this name exists in this release. If not, the run is parked.
    fn knows(&self, step: &str) -> bool;

    /// Runs a step to its goal; returns what later steps may want to know (null for nothing).
    fn run(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<Value, StepError>> + Send;

    /// Takes away what the step made, if it made anything.
    fn undo(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<(), StepError>> + Send;

    /// Returns a clock's milliseconds; it must not jump.
    fn now_ms(&self) -> i64;

    /// Returns after a while.
    fn pause(&mut self, pause_ms: u64) -> impl Future<Output = ()> + Send;

    /// Returns how attempts are repeated.
    fn retry(&self) -> Retry {
        Retry::default()
    }

    /// Returns what is to be written in the same transaction as the journal, such as the record
    /// that the run is about.
    fn beside(&mut self, moment: Moment<'_>, run: &RunState) -> Option<Extra> {
        let _unused = (moment, run);
        None
    }
}

/// How a drive ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every step is done.
    Done,
    /// Every step that had started is undone.
    Undone(Failure),
    /// An operator has to look; [`OpenRun::unpark`] lets it try again.
    Parked {
        /// Why.
        why: String,
    },
}

/// Drives a run to its end, from wherever it stands. Returns the end and the final state.
///
/// Dropping the future is as good as a crash: the run goes on after [`Journal::open`].
///
/// # Errors
/// When the journal could not be written: the run stops where it is, to be recovered when the
/// file is opened again.
pub async fn drive<X: Executor>(
    journal: &Journal,
    run: OpenRun,
    executor: &mut X,
) -> Result<(Ended, RunState), Error> {
    let mut driver = Driver { journal, run, executor, undo_committed: false };
    // Undos that a commit already covers need no second.
    driver.undo_committed = driver.run.state().failure.is_some() && !driver.run.has_pending();
    let ended = loop {
        match next(driver.run.state()) {
            Action::Do(index) => driver.step(index).await?,
            Action::Undo(index) => driver.undo(index).await?,
            Action::Finished(outcome) => break driver.end(outcome).await?,
            Action::Stuck { why } => {
                driver.journal.flush(&mut driver.run).await?;
                break Ended::Parked { why };
            }
        }
    };
    Ok((ended, driver.run.into_state()))
}

struct Driver<'a, X> {
    journal: &'a Journal,
    run: OpenRun,
    executor: &'a mut X,
    /// Whether the decision to undo is on the disk. It must be before the first undo: else a
    /// crash would take for done what is half undone.
    undo_committed: bool,
}

/// What became of an attempt and its repetitions.
enum Attempt<T> {
    Reached(T),
    GivenUp(StepError),
}

impl<X: Executor> Driver<'_, X> {
    async fn step(&mut self, index: usize) -> Result<(), Error> {
        let Some(step) = self.run.state().steps.get(index) else {
            return Ok(());
        };
        let (name, commit) = (step.name.clone(), step.commit);
        if !self.executor.knows(&name) {
            return self.park(format!("this release does not know step {name}")).await;
        }
        // The commit of `begin` covers the first step.
        let is_covered = index == 0 || step.status != crate::Status::Waiting;
        self.run.step_started(&name, self.executor.now_ms())?;
        if commit == Commit::Own && !is_covered {
            self.flush(Moment::Step(&name)).await?;
        }
        let forward_only = self.run.state().is_past_return();
        match self.attempt_step(&name, forward_only).await {
            Attempt::Reached(output) => self.run.step_done(&name, output, self.executor.now_ms()),
            Attempt::GivenUp(error) if forward_only => {
                self.park(format!("{name}: {}", error.message)).await
            }
            Attempt::GivenUp(error) => {
                self.run.step_failed(&name, &error.message, self.executor.now_ms())
            }
        }
    }

    async fn undo(&mut self, index: usize) -> Result<(), Error> {
        let Some(step) = self.run.state().steps.get(index) else {
            return Ok(());
        };
        let name = step.name.clone();
        if !self.executor.knows(&name) {
            return self.park(format!("this release does not know step {name}")).await;
        }
        self.run.undo_started(&name, self.executor.now_ms())?;
        if !self.undo_committed {
            let failure = self.run.state().failure.clone();
            let failure = failure.unwrap_or_else(|| Failure { step: None, message: String::new() });
            self.flush(Moment::Undo(&failure)).await?;
            self.undo_committed = true;
        }
        match self.attempt_undo(&name).await {
            Attempt::Reached(()) => self.run.undo_done(&name, self.executor.now_ms()),
            Attempt::GivenUp(error) => {
                self.park(format!("undo of {name}: {}", error.message)).await
            }
        }
    }

    async fn end(&mut self, outcome: Outcome) -> Result<Ended, Error> {
        if self.run.state().finished.is_none() {
            self.run.finish(outcome.clone(), self.executor.now_ms())?;
            self.flush(Moment::End(&outcome)).await?;
        }
        Ok(match outcome {
            Outcome::Done => Ended::Done,
            Outcome::Undone { failure } => Ended::Undone(failure),
        })
    }

    async fn park(&mut self, why: String) -> Result<(), Error> {
        let event = crate::Event::Parked { why: why.clone() };
        self.run.record(event, self.executor.now_ms())?;
        self.flush(Moment::Parked(&why)).await
    }

    async fn flush(&mut self, moment: Moment<'_>) -> Result<(), Error> {
        match self.executor.beside(moment, self.run.state()) {
            Some(extra) => self.journal.flush_with(&mut self.run, extra).await,
            None => self.journal.flush(&mut self.run).await,
        }
    }

    async fn attempt_step(&mut self, step: &str, forward_only: bool) -> Attempt<Value> {
        let mut waiting = Waiting::new(self.executor.retry());
        loop {
            let attempt = waiting.failed + 1;
            let context = StepContext { step, run: self.run.state(), attempt };
            let error = match self.executor.run(context).await {
                Ok(output) => return Attempt::Reached(output),
                Err(error) => error,
            };
            let may_repeat = error.transient || forward_only;
            match waiting.next(self.executor.now_ms()).filter(|_| may_repeat) {
                Some(pause_ms) => self.executor.pause(pause_ms).await,
                None => return Attempt::GivenUp(error),
            }
        }
    }

    async fn attempt_undo(&mut self, step: &str) -> Attempt<()> {
        let mut waiting = Waiting::new(self.executor.retry());
        loop {
            let attempt = waiting.failed + 1;
            let context = StepContext { step, run: self.run.state(), attempt };
            let error = match self.executor.undo(context).await {
                Ok(()) => return Attempt::Reached(()),
                Err(error) => error,
            };
            match waiting.next(self.executor.now_ms()) {
                Some(pause_ms) => self.executor.pause(pause_ms).await,
                None => return Attempt::GivenUp(error),
            }
        }
    }
}

/// The errors of one attempt so far.
struct Waiting {
    retry: Retry,
    failed: u32,
    since_ms: Option<i64>,
}

impl Waiting {
    fn new(retry: Retry) -> Self {
        Self { retry, failed: 0, since_ms: None }
    }

    fn next(&mut self, now_ms: i64) -> Option<u64> {
        self.failed = self.failed.saturating_add(1);
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let elapsed_ms = u64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(0);
        self.retry.pause(self.failed, elapsed_ms)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => formatter.write_str("done"),
            Self::Undone(failure) => write!(formatter, "undone after {failure}"),
            Self::Parked { why } => write!(formatter, "parked: {why}"),
        }
    }
}
