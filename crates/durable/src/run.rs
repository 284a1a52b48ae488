//! The pure core of journaled work: what a run is, what its events do to it, what comes next.
//!
//! Never does I/O and never reads a clock: the same functions decide in normal life, after a
//! crash and in the harnesses.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

#[cfg(test)]
mod tests;

/// How many steps a run may have.
pub const RUN_STEPS_MAX: usize = 64;
/// How large a run's input may be, as JSON.
pub const RUN_INPUT_BYTES_MAX: usize = 256 * 1024;
/// How long the name of a step may be.
const NAME_BYTES_MAX: usize = 256;

/// The number of a run in its file; ever larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub i64);

impl fmt::Display for RunId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "run {}", self.0)
    }
}

/// How the start of a step reaches the disk.
///
/// The commit of `begin` covers the first step, of whatever kind. It, and that of every step marked
/// [`Commit::Own`], also covers the [`Commit::Shared`] steps that follow: after a crash all of them
/// count as perhaps started. They are then run again, or undone, even if they never ran. So a
/// creation whose only `Own` step is the boot commits three times: begin, boot, end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// A commit before its effect, which also keeps the outputs of the steps before it. For a step
    /// whose undo is costly or whose predecessors' outputs cannot be derived again.
    Own,
    /// Covered by the commit before. For a step that is cheap to run again and to undo.
    Shared,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name, unique in the run and stable across releases.
    pub name: String,
    /// How its start reaches the disk.
    pub commit: Commit,
}

impl Step {
    /// A step whose start has a commit of its own.
    #[must_use]
    pub fn own(name: impl Into<String>) -> Self {
        Self { name: name.into(), commit: Commit::Own }
    }

    /// A step whose start is covered by the commit before.
    #[must_use]
    pub fn shared(name: impl Into<String>) -> Self {
        Self { name: name.into(), commit: Commit::Shared }
    }
}

/// A run that is to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// Whose it is, such as a machine id. An owner has one unfinished run at a time.
    pub owner: String,
    /// What it does.
    pub kind: String,
    /// What its steps need to know. Never a secret.
    pub input: Value,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The index of the first step that cannot be undone: once it started, the run only goes
    /// forward. `None`: every step has an undo. Its step always gets a commit of its own, unless it
    /// is the first: then the run is decided by its beginning.
    pub point_of_no_return: Option<usize>,
}

/// What a step or a run did not survive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step, or `None` when the run was abandoned from outside.
    pub step: Option<String>,
    /// Why, for people.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some(step) => write!(formatter, "{step}: {}", self.message),
            None => formatter.write_str(&self.message),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step was done.
    Done,
    /// Every step that had started was undone.
    Undone {
        /// Why.
        failure: Failure,
    },
}

/// What happened to a run. The journal is a list of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A step is about to have its first effect.
    StepStarted {
        /// Its name.
        step: String,
    },
    /// A step reached its goal.
    StepDone {
        /// Its name.
        step: String,
        /// What later steps may want to know.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        output: Value,
    },
    /// A step before the point of no return is given up: the run is undone.
    StepFailed {
        /// Its name.
        step: String,
        /// Why.
        message: String,
    },
    /// A step is about to be undone.
    UndoStarted {
        /// Its name.
        step: String,
    },
    /// A step left nothing behind.
    UndoDone {
        /// Its name.
        step: String,
    },
    /// Somebody wants the run undone.
    Abandoned {
        /// Why.
        message: String,
    },
    /// The run cannot go on by itself.
    Parked {
        /// Why.
        why: String,
    },
    /// An operator lets it try again.
    Unparked,
    /// The run ended.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not started.
    Waiting,
    /// Started, or perhaps started before a crash.
    Started,
    /// Done.
    Done,
    /// Its undo started.
    Undoing,
    /// Undone.
    Undone,
}

/// A step of a run and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    /// Its name.
    pub name: String,
    /// How its start reaches the disk.
    pub commit: Commit,
    /// Where it stands.
    pub status: Status,
    /// Its output, null before it is done. Lost by a crash before the next commit: then the step
    /// runs again.
    pub output: Value,
}

/// A run and where it stands: the fold of its events.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    /// Its number.
    pub id: RunId,
    /// Whose it is.
    pub owner: String,
    /// What it does.
    pub kind: String,
    /// What its steps need to know.
    pub input: Value,
    /// Its steps, in order.
    pub steps: Vec<StepState>,
    /// The index of the first step that cannot be undone.
    pub point_of_no_return: Option<usize>,
    /// When it began.
    pub began_ms: i64,
    /// Why it is being undone.
    pub failure: Option<Failure>,
    /// Why it needs an operator.
    pub parked: Option<String>,
    /// How it ended.
    pub finished: Option<Outcome>,
}

/// A plan or an event that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRun {
    /// The plan has no steps, or too many.
    #[error("plan has {count} steps, allowed are 1 to {RUN_STEPS_MAX}")]
    StepCount {
        /// How many.
        count: usize,
    },
    /// Two steps share a name, or a name is empty or too long.
    #[error("step name {name:?} is empty, too long or used twice")]
    StepName {
        /// The name.
        name: String,
    },
    /// The point of no return is behind the last step.
    #[error("point of no return {index} is behind the last step")]
    PointOfNoReturn {
        /// The index.
        index: usize,
    },
    /// The input is too large.
    #[error("input has {bytes} bytes, allowed are {RUN_INPUT_BYTES_MAX}")]
    InputSize {
        /// Its size.
        bytes: usize,
    },
    /// An event names a step that the run does not have.
    #[error("event names step {step:?}, which the plan does not have")]
    UnknownStep {
        /// The name.
        step: String,
    },
    /// An event does not fit where the run stands.
    #[error("event {event} does not fit: step {step:?} is {status}")]
    OutOfPlace {
        /// Which event.
        event: &'static str,
        /// Its step, or empty.
        step: String,
        /// Where that stands, or the run.
        status: String,
    },
}

impl NewRun {
    /// Checks the rules of a plan and sets the commit of the point of no return.
    pub(crate) fn validated(mut self) -> Result<Self, InvalidRun> {
        let count = self.steps.len();
        if count == 0 || count > RUN_STEPS_MAX {
            return Err(InvalidRun::StepCount { count });
        }
        let mut names = BTreeSet::new();
        for step in &self.steps {
            let fits = !step.name.is_empty() && step.name.len() <= NAME_BYTES_MAX;
            if !fits || !names.insert(step.name.as_str()) {
                return Err(InvalidRun::StepName { name: step.name.clone() });
            }
        }
        if let Some(index) = self.point_of_no_return {
            let step = self.steps.get_mut(index).ok_or(InvalidRun::PointOfNoReturn { index })?;
            step.commit = Commit::Own;
        }
        Ok(self)
    }

    pub(crate) fn into_state(self, id: RunId, began_ms: i64) -> RunState {
        let waiting = |step: Step| StepState {
            name: step.name,
            commit: step.commit,
            status: Status::Waiting,
            output: Value::Null,
        };
        RunState {
            id,
            owner: self.owner,
            kind: self.kind,
            input: self.input,
            steps: self.steps.into_iter().map(waiting).collect(),
            point_of_no_return: self.point_of_no_return,
            began_ms,
            failure: None,
            parked: None,
            finished: None,
        }
    }
}

impl RunState {
    /// Returns what a done step left for later ones, or `None` if it is not done or of another
    /// shape.
    #[must_use]
    pub fn output<T: DeserializeOwned>(&self, step: &str) -> Option<T> {
        let step = self.steps.iter().find(|candidate| candidate.name == step)?;
        match step.status {
            Status::Done => T::deserialize(&step.output).ok(),
            Status::Waiting | Status::Started | Status::Undoing | Status::Undone => None,
        }
    }

    /// Returns whether the run can only go forward.
    #[must_use]
    pub fn is_past_return(&self) -> bool {
        self.point_of_no_return.is_some_and(|index| {
            self.steps.iter().skip(index).any(|step| step.status != Status::Waiting)
        })
    }

    /// Changes the state by one event.
    ///
    /// # Errors
    /// When the event does not fit: a fault in the program that wrote it, or another release's
    /// rules. Nothing is changed then.
    pub fn apply(&mut self, event: &Event) -> Result<(), InvalidRun> {
        if self.finished.is_some() {
            return Err(out_of_place("any", "", "finished"));
        }
        match event {
            Event::StepStarted { step } => {
                let from = [Status::Waiting, Status::Started];
                // A shared step may have started before its forerunners were known to be done; a
                // step with a commit of its own, such as the point of no return, never.
                let is_shared = self
                    .steps
                    .iter()
                    .any(|state| state.name == *step && state.commit == Commit::Shared);
                let before: &[Status] =
                    if is_shared { &[Status::Started, Status::Done] } else { &[Status::Done] };
                self.advance("step_started", step, &from, before)?.status = Status::Started;
            }
            Event::StepDone { step, output } => {
                let state = self.advance("step_done", step, &[Status::Started], &[Status::Done])?;
                state.status = Status::Done;
                state.output = output.clone();
            }
            Event::StepFailed { step, message } => {
                let from = [Status::Waiting, Status::Started];
                let index = self.find("step_failed", step, &from)?;
                if self.point_of_no_return.is_some_and(|point| index >= point) {
                    return Err(out_of_place("step_failed", step, "past the point of no return"));
                }
                self.failure = Some(Failure { step: Some(step.clone()), message: message.clone() });
            }
            Event::UndoStarted { step } => {
                if self.failure.is_none() {
                    return Err(out_of_place("undo_started", step, "in a run that goes forward"));
                }
                let from = [Status::Started, Status::Done, Status::Undoing];
                let index = self.find("undo_started", step, &from)?;
                self.set(index, Status::Undoing);
            }
            Event::UndoDone { step } => {
                let index = self.find("undo_done", step, &[Status::Undoing])?;
                self.set(index, Status::Undone);
            }
            Event::Abandoned { message } => {
                if self.is_past_return() {
                    return Err(out_of_place("abandoned", "", "past the point of no return"));
                }
                let failure = Failure { step: None, message: message.clone() };
                self.failure.get_or_insert(failure);
            }
            Event::Parked { why } => self.parked = Some(why.clone()),
            Event::Unparked => self.parked = None,
            Event::Finished { outcome } => self.finished = Some(outcome.clone()),
        }
        Ok(())
    }

    /// Returns the steps that may have started before a crash without a commit of their own: the
    /// shared ones that follow the last committed one (see [`Commit`]).
    pub(crate) fn perhaps_started(&self) -> Vec<String> {
        if self.failure.is_some() || self.finished.is_some() {
            return Vec::new();
        }
        let last = self.steps.iter().rposition(|step| step.status != Status::Waiting);
        let first = last.map_or(0, |index| index + 1);
        let covered = |index: usize, step: &StepState| match step.commit {
            Commit::Shared => true,
            // The commit of `begin` covers the first step.
            Commit::Own => index == 0,
        };
        let steps = self.steps.iter().enumerate().skip(first);
        steps
            .take_while(|(index, step)| covered(*index, step))
            .map(|(_, s)| s.name.clone())
            .collect()
    }

    fn find(&self, event: &'static str, name: &str, from: &[Status]) -> Result<usize, InvalidRun> {
        let (index, step) = self
            .steps
            .iter()
            .enumerate()
            .find(|(_, step)| step.name == name)
            .ok_or_else(|| InvalidRun::UnknownStep { step: name.to_owned() })?;
        if from.contains(&step.status) {
            Ok(index)
        } else {
            Err(out_of_place(event, name, &format!("{:?}", step.status)))
        }
    }

    fn advance(
        &mut self,
        event: &'static str,
        name: &str,
        from: &[Status],
        before: &[Status],
    ) -> Result<&mut StepState, InvalidRun> {
        if self.failure.is_some() {
            return Err(out_of_place(event, name, "in a run that is being undone"));
        }
        let index = self.find(event, name, from)?;
        if !self.steps.iter().take(index).all(|step| before.contains(&step.status)) {
            return Err(out_of_place(event, name, "behind a step that is not so far"));
        }
        self.steps.get_mut(index).ok_or_else(|| InvalidRun::UnknownStep { step: name.to_owned() })
    }

    fn set(&mut self, index: usize, status: Status) {
        if let Some(step) = self.steps.get_mut(index) {
            step.status = status;
        }
    }
}

fn out_of_place(event: &'static str, step: &str, status: &str) -> InvalidRun {
    InvalidRun::OutOfPlace { event, step: step.to_owned(), status: status.to_owned() }
}

/// What a run does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run the step with this index (perhaps again).
    Do(usize),
    /// Undo the step with this index (perhaps again).
    Undo(usize),
    /// Nothing: write the end, if it is not written.
    Finished(Outcome),
    /// Nothing: an operator has to look.
    Stuck {
        /// Why.
        why: String,
    },
}

/// Decides what a run does next.
#[must_use]
pub fn next(state: &RunState) -> Action {
    if let Some(outcome) = &state.finished {
        return Action::Finished(outcome.clone());
    }
    if let Some(why) = &state.parked {
        return Action::Stuck { why: why.clone() };
    }
    match &state.failure {
        Some(failure) => next_undo(state, failure),
        None => next_step(state),
    }
}

fn next_step(state: &RunState) -> Action {
    for (index, step) in state.steps.iter().enumerate() {
        match step.status {
            Status::Done => {}
            Status::Waiting | Status::Started => return Action::Do(index),
            Status::Undoing | Status::Undone => {
                let why = format!("step {} was undone in a run that goes forward", step.name);
                return Action::Stuck { why };
            }
        }
    }
    Action::Finished(Outcome::Done)
}

fn next_undo(state: &RunState, failure: &Failure) -> Action {
    let rest = state.steps.iter().rposition(|step| match step.status {
        Status::Started | Status::Done | Status::Undoing => true,
        Status::Waiting | Status::Undone => false,
    });
    match rest {
        Some(index) => Action::Undo(index),
        None => Action::Finished(Outcome::Undone { failure: failure.clone() }),
    }
}
