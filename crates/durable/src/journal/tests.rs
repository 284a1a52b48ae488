//! Runs on the disk.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{Action, Table, next, testing::block_on};

const MACHINES: Table<String, String> = Table::new("machines");

fn plan(owner: &str) -> NewRun {
    NewRun {
        owner: owner.to_owned(),
        kind: "create".to_owned(),
        input: json!({"image": "web"}),
        steps: vec![Step::own("disk"), Step::shared("net"), Step::own("boot")],
        point_of_no_return: None,
    }
}

fn open(folder: &TempDir) -> Journal {
    Journal::new(Db::open(folder.path().join("host.db"), &[]).unwrap())
}

#[test]
fn a_run_and_its_record_begin_together_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    let begin = |owner: &'static str, refuse: bool| {
        journal
            .db()
            .write(move |tx| {
                MACHINES.put(tx, &owner.to_owned(), &"created".to_owned())?;
                let run = Journal::begin(tx, plan(owner), 1)?;
                if refuse { Err(Error::NoSuchRun { run: run.state().id }) } else { Ok(run) }
            })
            .wait()
    };
    begin("m1", false).unwrap();
    begin("m2", true).unwrap_err();
    let twice = begin("m1", false);
    assert!(matches!(twice, Err(Error::OwnerBusy { .. })), "{twice:?}");
    let recovered = journal.unfinished().unwrap();
    let owners: Vec<_> = recovered.runs.iter().map(|run| run.state().owner.clone()).collect();
    assert_eq!(owners, ["m1"]);
    let machines = journal.db().read(|snapshot| MACHINES.list(snapshot)).unwrap().records;
    assert_eq!(machines.len(), 1);
}

#[test]
fn a_crash_keeps_what_was_flushed_and_takes_the_rest_for_perhaps_started() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    let mut run = block_on(journal.begin_alone(plan("m1"), 1)).unwrap();
    run.step_started("disk", 2).unwrap();
    run.step_done("disk", json!("/dev/loop1"), 3).unwrap();
    block_on(journal.flush(&mut run)).unwrap();
    run.step_started("net", 4).unwrap();
    run.step_done("net", json!("fdaa::3"), 5).unwrap();
    let id = run.state().id;
    drop((run, journal));

    let journal = open(&folder);
    let run = journal.open(id).unwrap();
    assert_eq!(run.state().output::<String>("disk").as_deref(), Some("/dev/loop1"));
    assert_eq!(run.state().output::<String>("net"), None, "no commit covered its end");
    assert_eq!(next(run.state()), Action::Do(1));
    assert_eq!(run.state().steps[1].status, crate::Status::Started);
    assert_eq!(run.state().steps[2].status, crate::Status::Waiting);
    assert_eq!((run.state().began_ms, &run.state().input["image"]), (1, &json!("web")));
}

#[test]
fn what_may_have_started_before_two_crashes_is_still_undone() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    let id = block_on(journal.begin_alone(plan("m1"), 1)).unwrap().state().id;
    let mut run = journal.open(id).unwrap();
    run.abandon("no longer wanted", 2).unwrap();
    block_on(journal.flush(&mut run)).unwrap();
    let again = journal.open(id).unwrap();
    assert_eq!(next(again.state()), Action::Undo(1), "net may have started before the first");
    assert_eq!(again.state(), run.state());
}

#[test]
fn a_run_is_written_by_one_hand_only() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    let mut first = block_on(journal.begin_alone(plan("m1"), 1)).unwrap();
    let mut second = journal.open(first.state().id).unwrap();
    first.step_started("disk", 2).unwrap();
    block_on(journal.flush(&mut first)).unwrap();
    assert!(block_on(journal.flush(&mut second)).is_err(), "its place in the journal is taken");
}

#[test]
fn runs_of_another_release_are_reported_and_left_as_they_are() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    for owner in ["good", "event", "steps"] {
        drop(block_on(journal.begin_alone(plan(owner), 1)).unwrap());
    }
    let spoil = journal.db().write(|tx| -> Result<(), Error> {
        let done = tx.sql().execute_batch(
            "INSERT INTO run_events VALUES (2, 0, 5, '{\"event\":\"paused\"}');
             UPDATE runs SET steps = '[{\"title\":\"x\"}]' WHERE owner = 'steps';",
        );
        tx.check("spoil", done)
    });
    spoil.wait().unwrap();
    let recovered = journal.unfinished().unwrap();
    assert_eq!(recovered.runs.len(), 1);
    let owners: Vec<_> = recovered.unreadable.iter().map(|run| run.owner.as_str()).collect();
    assert_eq!(owners, ["event", "steps"]);
    assert!(recovered.unreadable.iter().all(|run| matches!(run.error, Error::Decode { .. })));
}

#[test]
fn history_is_kept_up_to_its_limit_and_forgotten_on_request() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder);
    let mut last = RunId(0);
    for _ in 0..HISTORY_PER_OWNER_MAX + 3 {
        let mut run = block_on(journal.begin_alone(plan("m1"), 1)).unwrap();
        run.abandon("test", 2).unwrap();
        let failure = run.state().failure.clone().unwrap();
        run.finish(Outcome::Undone { failure }, 3).unwrap();
        block_on(journal.flush(&mut run)).unwrap();
        last = run.state().id;
    }
    drop(block_on(journal.begin_alone(plan("m1"), 1)).unwrap());
    let history =
        |owner: &str| journal.db().read(|snapshot| Journal::history(snapshot, owner)).unwrap();
    assert_eq!(history("m1").len(), HISTORY_PER_OWNER_MAX as usize);
    assert_eq!(history("m1")[0].id, last);
    let events = journal.db().read(|snapshot| -> Result<i64, Error> {
        let count = "SELECT count(DISTINCT run) FROM run_events";
        Ok(snapshot.sql().query_row(count, [], |row| row.get(0)).unwrap())
    });
    assert_eq!(events.unwrap(), i64::from(HISTORY_PER_OWNER_MAX), "events go with their run");
    journal.db().write(|tx| Journal::forget(tx, "m1")).wait().unwrap();
    assert_eq!(history("m1").len(), 0);
    assert_eq!(journal.unfinished().unwrap().runs.len(), 1, "an unfinished run stays");
}
