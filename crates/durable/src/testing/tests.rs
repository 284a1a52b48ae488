//! The harnesses pass a good run and fail every kind of bad one.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{
    Broken, World, a_crash_everywhere, a_failure_at_every_step, block_on, every_step_twice,
    everything,
};
use crate::{Db, Executor, NewRun, Step, StepContext, StepError};

type Things = Arc<Mutex<BTreeMap<String, i64>>>;

/// What is wrong with the toy run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Running `disk` twice makes two.
    Counts,
    /// Running `disk` twice is refused.
    RefusesSecond,
    /// Nobody takes the disk away.
    MissingUndo,
    /// The undo of `disk` fails if there is none.
    UndoTwiceFails,
    /// The undo of `disk` only works in the process that made it.
    UndoFromMemory,
    /// `boot` gets the address from memory, not from the journal.
    OutputInMemory,
    /// Nothing happens at all.
    Idle,
}

struct Toy {
    things: Things,
    fault: Fault,
    point_of_no_return: Option<usize>,
    is_own: bool,
}

impl Toy {
    fn new(fault: Fault) -> Self {
        Self { things: Arc::default(), fault, point_of_no_return: None, is_own: true }
    }
}

struct Process {
    things: Things,
    fault: Fault,
    made: bool,
    address: i64,
}

impl World for Toy {
    type Executor = Process;
    type Snapshot = BTreeMap<String, i64>;

    fn fresh(&mut self) -> impl Future<Output = ()> {
        self.things.lock().unwrap().clear();
        ready(())
    }

    fn plan(&self) -> NewRun {
        let step = |name: &str| {
            if self.is_own { Step::own(name) } else { Step::shared(name) }
        };
        NewRun {
            owner: "m1".to_owned(),
            kind: "create".to_owned(),
            input: json!({"size": 3}),
            steps: ["disk", "address", "boot", "publish"].map(step).into(),
            point_of_no_return: self.point_of_no_return,
        }
    }

    fn executor(&mut self, _: &Db) -> Process {
        let things = Arc::clone(&self.things);
        Process { things, fault: self.fault, made: false, address: 0 }
    }

    fn snapshot(&mut self, _: &Db) -> impl Future<Output = Self::Snapshot> {
        ready(self.things.lock().unwrap().clone())
    }
}

impl Process {
    fn act(&mut self, context: StepContext<'_>) -> Result<Value, StepError> {
        let mut things = self.things.lock().unwrap();
        if self.fault == Fault::Idle {
            return Ok(Value::Null);
        }
        let value = match context.step {
            "disk" if self.fault == Fault::Counts => things.get("disk").unwrap_or(&0) + 1,
            "disk" if self.fault == Fault::RefusesSecond && things.contains_key("disk") => {
                return Err(StepError::permanent("it exists"));
            }
            "disk" => {
                self.made = true;
                context.run.input["size"].as_i64().unwrap()
            }
            "address" => {
                self.address = 7;
                7
            }
            "boot" if self.fault == Fault::OutputInMemory => self.address,
            "boot" => context.run.output("address").unwrap(),
            _ => 1,
        };
        things.insert(context.step.to_owned(), value);
        Ok(json!(value))
    }
}

impl Executor for Process {
    fn knows(&self, step: &str) -> bool {
        ["disk", "address", "boot", "publish"].contains(&step)
    }

    fn run(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<Value, StepError>> + Send {
        ready(self.act(context))
    }

    fn undo(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<(), StepError>> + Send {
        let is_disk = context.step == "disk";
        if is_disk && self.fault == Fault::MissingUndo
            || is_disk && self.fault == Fault::UndoFromMemory && !self.made
        {
            return ready(Ok(()));
        }
        let removed = self.things.lock().unwrap().remove(context.step);
        if is_disk && self.fault == Fault::UndoTwiceFails && removed.is_none() {
            return ready(Err(StepError::permanent("there is none")));
        }
        ready(Ok(()))
    }

    fn now_ms(&self) -> i64 {
        unreachable!("the harness has its own clock")
    }

    fn pause(&mut self, _: u64) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

#[test]
fn a_good_run_passes_with_any_commits_and_any_point_of_no_return() {
    for (point_of_no_return, is_own) in [(None, false), (Some(0), false), (Some(2), true)] {
        let mut toy = Toy { point_of_no_return, is_own, ..Toy::new(Fault::None) };
        let runs = block_on(everything(&mut toy));
        let runs = runs.unwrap_or_else(|error| panic!("{point_of_no_return:?} {error}"));
        assert!(runs > 50, "{runs}");
    }
}

#[test]
fn a_step_that_may_not_run_twice_is_found() {
    let counts = block_on(every_step_twice(&mut Toy::new(Fault::Counts)));
    assert!(matches!(counts, Err(Broken::World { .. })), "{counts:?}");
    let refuses = block_on(every_step_twice(&mut Toy::new(Fault::RefusesSecond)));
    assert!(matches!(refuses, Err(Broken::Ended { .. })), "{refuses:?}");
    let counts = block_on(a_crash_everywhere(&mut Toy::new(Fault::Counts)));
    assert!(matches!(counts, Err(Broken::World { .. })), "{counts:?}");
}

#[test]
fn a_missing_undo_is_found() {
    let missing = block_on(a_failure_at_every_step(&mut Toy::new(Fault::MissingUndo)));
    assert!(matches!(missing, Err(Broken::World { .. })), "{missing:?}");
    let mut past = Toy::new(Fault::MissingUndo);
    past.point_of_no_return = Some(0);
    block_on(a_failure_at_every_step(&mut past)).unwrap();
}

#[test]
fn an_undo_that_may_not_run_twice_is_found() {
    let twice = block_on(a_failure_at_every_step(&mut Toy::new(Fault::UndoTwiceFails)));
    assert!(matches!(twice, Err(Broken::Ended { .. })), "{twice:?}");
}

#[test]
fn a_process_that_keeps_in_memory_what_belongs_in_the_journal_is_found() {
    for fault in [Fault::OutputInMemory, Fault::UndoFromMemory] {
        block_on(every_step_twice(&mut Toy::new(fault))).unwrap();
        block_on(a_failure_at_every_step(&mut Toy::new(fault))).unwrap();
        let crashed = block_on(a_crash_everywhere(&mut Toy::new(fault)));
        assert!(matches!(crashed, Err(Broken::World { .. })), "{fault:?} {crashed:?}");
    }
}

#[test]
fn a_run_that_changes_nothing_is_refused() {
    let blind = block_on(everything(&mut Toy::new(Fault::Idle)));
    assert!(matches!(blind, Err(Broken::Blind)), "{blind:?}");
}
