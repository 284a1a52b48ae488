//! Measures committed writes a second: the journal beside bare SQLite, one writer and many.
//!
//! Never part of a server: `bench/run journal` starts it.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::path::Path;
use std::time::{Duration, Instant};

use perch_durable::testing::block_on;
use perch_durable::{Db, Error, Journal, NewRun, Outcome, Step};
use rusqlite::Connection;
use serde_json::json;

/// How long each is measured.
const LASTS: Duration = Duration::from_secs(3);
/// How often each is measured, in turns.
const TURNS: usize = 5;
/// Writers at once; machines that are busy at the same time.
const MANY: usize = 32;
/// Bytes of a row of bare SQLite: about an event of the journal.
const ROW: &str = r#"{"event":"step_done","step":"rootfs","output":{"device":"/dev/loop12"}}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    println!("\n| writes a second, each on the disk | median | min | max |\n|---|---|---|---|");
    let mut taken = [const { Vec::new() }; 3];
    for turn in 0..TURNS {
        taken[0].push(bare(&folder.path().join(format!("bare-{turn}")))?);
        taken[1].push(journal(&folder.path().join(format!("one-{turn}")), 1)?);
        taken[2].push(journal(&folder.path().join(format!("many-{turn}")), MANY)?);
    }
    let names = ["bare SQLite, one row a commit", "journal, 1 run", "journal, 32 runs at once"];
    for (name, mut rates) in names.into_iter().zip(taken) {
        rates.sort_by(f64::total_cmp);
        let (first, median) = (rates[0], rates[TURNS / 2]);
        println!("| {name} | {median:.0} | {first:.0} | {:.0} |", rates[TURNS - 1]);
    }
    Ok(())
}

/// Commits of one row each, with the same settings.
fn bare(path: &Path) -> Result<f64, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch("CREATE TABLE events (id INTEGER PRIMARY KEY, event TEXT)")?;
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < LASTS {
        connection.prepare_cached("INSERT INTO events (event) VALUES (?)")?.execute([ROW])?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// Commits of runs of five steps: the begin, each step, the end.
fn journal(path: &Path, writers: usize) -> Result<f64, Error> {
    let journal = Journal::new(Db::open(path, &[])?);
    let began = Instant::now();
    let count: Result<u32, Error> = std::thread::scope(|scope| {
        let work = |writer: usize| {
            let journal = journal.clone();
            scope.spawn(move || write_runs(&journal, &format!("machine-{writer}"), began))
        };
        let threads: Vec<_> = (0..writers).map(work).collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(0)));
        counts.sum()
    });
    Ok(f64::from(count?) / began.elapsed().as_secs_f64())
}

fn write_runs(journal: &Journal, owner: &str, began: Instant) -> Result<u32, Error> {
    const STEPS: [&str; 5] = ["image", "rootfs", "boot", "network", "execute"];
    let mut count = 0;
    while began.elapsed() < LASTS {
        let plan = NewRun {
            owner: owner.to_owned(),
            kind: "start".to_owned(),
            input: json!({"intent": "start"}),
            steps: STEPS.into_iter().map(Step::own).collect(),
            point_of_no_return: None,
        };
        let mut run = block_on(journal.begin_alone(plan, 0))?;
        for step in STEPS {
            run.step_started(step, 0)?;
            block_on(journal.flush(&mut run))?;
            run.step_done(step, json!({"device": "/dev/loop12"}), 0)?;
        }
        run.finish(Outcome::Done, 0)?;
        block_on(journal.flush(&mut run))?;
        count += 7;
    }
    Ok(count)
}
