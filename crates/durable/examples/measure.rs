//! Measures journal writes on the disk of a folder: `measure [FOLDER]`.
//!
//! Never part of the product.
#![forbid(unsafe_code)]

use std::{error::Error, path::PathBuf, time::Instant};

use perch_durable::{Db, Journal, NewRun, Step, Table, testing::block_on};

const WRITES: u32 = 5_000;
const WIDTH: u32 = 32;
const RECORDS: Table<u32, String> = Table::new("measure");

#[expect(clippy::print_stdout, reason = "it is a tool for people")]
fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("perch-measure-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let db = Db::open(folder.join("host.db"), &[])?;

    let began = Instant::now();
    for n in 0..WRITES {
        db.write(move |tx| RECORDS.put(tx, &n, &"x".repeat(200))).wait()?;
    }
    println!("serial writes/s: {:.0}", f64::from(WRITES) / began.elapsed().as_secs_f64());

    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WIDTH {
            scope.spawn(|| {
                for n in 0..WRITES / 4 {
                    let written = db.write(move |tx| RECORDS.put(tx, &n, &"y".repeat(200)));
                    assert!(written.wait().is_ok(), "a write did not succeed");
                }
            });
        }
    });
    let writes = f64::from(WIDTH * (WRITES / 4));
    println!("{WIDTH}-wide writes/s: {:.0}", writes / began.elapsed().as_secs_f64());

    let journal = Journal::new(db.clone());
    let mut micros = Vec::new();
    for n in 0..1000 {
        let run = NewRun {
            owner: format!("m{n}"),
            kind: "create".to_owned(),
            input: serde_json::Value::Null,
            steps: vec![Step::shared("a"), Step::shared("b"), Step::own("c"), Step::shared("d")],
            point_of_no_return: None,
        };
        let began = Instant::now();
        let mut run = block_on(journal.begin_alone(run, 0))?;
        for step in ["a", "b", "c", "d"] {
            run.step_started(step, 0)?;
            if step == "c" {
                block_on(journal.flush(&mut run))?;
            }
            run.step_done(step, serde_json::Value::Null, 0)?;
        }
        run.finish(perch_durable::Outcome::Done, 0)?;
        block_on(journal.flush(&mut run))?;
        micros.push(began.elapsed().as_micros());
    }
    micros.sort_unstable();
    println!("run of 4 steps and 3 commits: p50 {} us, p99 {} us", micros[500], micros[990]);
    drop((journal, db));
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
