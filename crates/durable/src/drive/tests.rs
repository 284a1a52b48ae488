//! The driver: commits, retries, parking, and a journal that does not write.

use std::{
    collections::VecDeque,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use super::*;
use crate::{Db, NewRun, Step, Table, testing::block_on};

const MACHINES: Table<String, String> = Table::new("machines");

/// Does what it is told, in order, and writes down what it was asked.
#[derive(Default)]
struct Script {
    results: VecDeque<Result<Value, StepError>>,
    undo_results: VecDeque<Result<(), StepError>>,
    asked: Vec<String>,
    now_ms: i64,
    unknown: Option<&'static str>,
    with_record: bool,
}

impl Executor for Script {
    fn knows(&self, step: &str) -> bool {
        self.unknown != Some(step)
    }

    fn run(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<Value, StepError>> + Send {
        self.asked.push(format!("{} {}", context.step, context.attempt));
        ready(self.results.pop_front().unwrap_or(Ok(Value::Null)))
    }

    fn undo(
        &mut self,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<(), StepError>> + Send {
        self.asked.push(format!("undo {} {}", context.step, context.attempt));
        ready(self.undo_results.pop_front().unwrap_or(Ok(())))
    }

    fn now_ms(&self) -> i64 {
        self.now_ms
    }

    fn pause(&mut self, pause_ms: u64) -> impl Future<Output = ()> + Send {
        self.now_ms += i64::try_from(pause_ms).unwrap();
        ready(())
    }

    fn retry(&self) -> Retry {
        Retry { window_ms: 1000, pause_ms: 100, pause_max_ms: 400 }
    }

    fn beside(&mut self, moment: Moment<'_>, run: &RunState) -> Option<Extra> {
        let (owner, text) = (run.owner.clone(), format!("{moment:?}"));
        let with_record = self.with_record;
        with_record.then(|| -> Extra { Box::new(move |tx| MACHINES.put(tx, &owner, &text)) })
    }
}

fn plan(point_of_no_return: Option<usize>) -> NewRun {
    NewRun {
        owner: "m1".to_owned(),
        kind: "create".to_owned(),
        input: Value::Null,
        steps: vec![Step::shared("a"), Step::shared("b"), Step::own("c"), Step::shared("d")],
        point_of_no_return,
    }
}

struct Bench {
    journal: Journal,
    commits: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
        let commits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&commits);
        db.on_commit(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        Self { journal: Journal::new(db), commits, _folder: folder }
    }

    fn drive(&self, script: &mut Script, point: Option<usize>) -> Result<Ended, Error> {
        let run = block_on(self.journal.begin_alone(plan(point), 0))?;
        block_on(drive(&self.journal, run, script)).map(|(ended, _)| ended)
    }
}

fn error(transient: bool) -> Result<Value, StepError> {
    Err(StepError { message: "no".to_owned(), transient })
}

#[test]
fn a_creation_with_one_costly_step_commits_three_times() {
    let bench = Bench::new();
    let mut script = Script { with_record: true, ..Script::default() };
    assert_eq!(bench.drive(&mut script, None).unwrap(), Ended::Done);
    assert_eq!(script.asked, ["a 1", "b 1", "c 1", "d 1"]);
    assert_eq!(bench.commits.load(Ordering::SeqCst), 3);
    let record = bench.journal.db().read(|snapshot| MACHINES.get(snapshot, &"m1".to_owned()));
    assert_eq!(record.unwrap().as_deref(), Some("End(Done)"), "the record ends with the run");
}

#[test]
fn a_run_without_a_way_back_is_decided_by_its_beginning() {
    let bench = Bench::new();
    let mut script = Script { results: [error(false)].into(), ..Script::default() };
    assert_eq!(bench.drive(&mut script, Some(0)).unwrap(), Ended::Done);
    assert_eq!(&script.asked[..3], ["a 1", "a 2", "b 1"]);
    assert_eq!(bench.commits.load(Ordering::SeqCst), 3, "begin, c, the end");

    // A crash after the beginning: nobody can call off what may have happened.
    drop(block_on(bench.journal.begin_alone(plan(Some(0)), 0)).unwrap());
    let mut run = bench.journal.unfinished().unwrap().runs.pop().unwrap();
    assert!(run.abandon("stop", 9).is_err());
    let (ended, _) = block_on(drive(&bench.journal, run, &mut Script::default())).unwrap();
    assert_eq!(ended, Ended::Done);
}

#[test]
fn a_transient_error_is_repeated_until_its_window_ends() {
    let bench = Bench::new();
    let mut script = Script { results: [error(true), error(true)].into(), ..Script::default() };
    assert_eq!(bench.drive(&mut script, None).unwrap(), Ended::Done);
    assert_eq!(&script.asked[..3], ["a 1", "a 2", "a 3"]);

    let mut script = Script { results: vec![error(true); 20].into(), ..Script::default() };
    assert!(matches!(bench.drive(&mut script, None).unwrap(), Ended::Undone(_)));
    // 100 + 200 + 400 ms, and no fourth pause fits into the second.
    assert_eq!(script.asked, ["a 1", "a 2", "a 3", "a 4", "undo a 1"]);
}

#[test]
fn a_permanent_error_undoes_at_once_and_journals_that_first() {
    let bench = Bench::new();
    let results = [Ok(Value::Null), Ok(Value::Null), error(false)].into();
    let mut script = Script { results, with_record: true, ..Script::default() };
    let Ended::Undone(failure) = bench.drive(&mut script, None).unwrap() else {
        panic!("not undone")
    };
    assert_eq!(failure.to_string(), "c: no");
    assert_eq!(script.asked, ["a 1", "b 1", "c 1", "undo c 1", "undo b 1", "undo a 1"]);
    assert_eq!(bench.commits.load(Ordering::SeqCst), 4, "begin, c, the decision, the end");
}

#[test]
fn past_the_point_of_no_return_every_error_is_repeated_and_then_parked() {
    let bench = Bench::new();
    let results = [Ok(Value::Null), Ok(Value::Null), error(false)].into();
    let mut script = Script { results, ..Script::default() };
    assert_eq!(bench.drive(&mut script, Some(2)).unwrap(), Ended::Done);
    assert_eq!(&script.asked[2..4], ["c 1", "c 2"]);

    let results = [vec![Ok(Value::Null); 2], vec![error(false); 4]].concat().into();
    let mut script = Script { results, ..Script::default() };
    let parked = bench.drive(&mut script, Some(2)).unwrap();
    assert_eq!(parked, Ended::Parked { why: "c: no".to_owned() });

    let mut run = bench.journal.unfinished().unwrap().runs.pop().unwrap();
    assert!(run.state().parked.is_some(), "it stays parked over a restart");
    run.unpark(9).unwrap();
    let (ended, _) = block_on(drive(&bench.journal, run, &mut Script::default())).unwrap();
    assert_eq!(ended, Ended::Done);
}

#[test]
fn an_undo_that_does_not_succeed_parks_the_run() {
    let bench = Bench::new();
    let undo_results = vec![Err(StepError::permanent("stuck")); 4].into();
    let mut script = Script { results: [error(false)].into(), undo_results, ..Script::default() };
    let parked = bench.drive(&mut script, None).unwrap();
    assert_eq!(parked, Ended::Parked { why: "undo of a: stuck".to_owned() });
}

#[test]
fn an_unknown_step_parks_the_run_and_is_never_skipped() {
    let bench = Bench::new();
    let mut script = Script { unknown: Some("b"), ..Script::default() };
    let Ended::Parked { why } = bench.drive(&mut script, None).unwrap() else {
        panic!("not parked")
    };
    assert!(why.contains("step b"), "{why}");
    assert_eq!(script.asked, ["a 1"]);
}

#[test]
fn a_journal_that_does_not_write_stops_the_run_before_the_effect() {
    let bench = Bench::new();
    let run = block_on(bench.journal.begin_alone(plan(None), 0)).unwrap();
    let fault = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    let broken = bench
        .journal
        .db()
        .write(move |tx| tx.check::<()>("break", Err(rusqlite::Error::SqliteFailure(fault, None))));
    broken.wait().unwrap_err();
    let mut script = Script::default();
    let driven = block_on(drive(&bench.journal, run, &mut script));
    assert!(matches!(driven, Err(Error::Stopped)), "{driven:?}");
    assert_eq!(script.asked, ["a 1", "b 1"], "c has an effect that must be on the disk first");
}

#[test]
fn a_drive_may_move_between_threads() {
    fn assert_send<T: Send>(_: &T) {}

    let bench = Bench::new();
    let run = block_on(bench.journal.begin_alone(plan(None), 0)).unwrap();
    let mut script = Script::default();
    let driving = drive(&bench.journal, run, &mut script);
    assert_send(&driving);
    drop(driving);
    assert_eq!(bench.journal.unfinished().unwrap().runs.len(), 1, "dropping it is a crash");
}
