//! States that earlier releases wrote: whatever is in them can be read, and every table is in one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

use perch_durable::{Db, Journal};
use serde::de::DeserializeOwned;

use super::*;
use crate::machine::run::Input;
use crate::volumes::run::Intent;

/// Reads a table as this release does; returns how many records it has.
fn read<K, V>(table: Table<K, V>, snapshot: &Snapshot<'_>) -> usize
where
    K: Display + FromStr,
    V: Serialize + DeserializeOwned,
{
    let found = table.list(snapshot).unwrap();
    assert_eq!(found.unreadable, []);
    found.records.len()
}

/// Reads all tables, by the names that they have in the source.
fn read_all(snapshot: &Snapshot<'_>) -> BTreeMap<String, usize> {
    let read = [
        ("RECORDS", read(RECORDS, snapshot)),
        ("QUEUES", read(QUEUES, snapshot)),
        ("VOLUMES", read(VOLUMES, snapshot)),
        ("SNAPSHOTS", read(SNAPSHOTS, snapshot)),
        ("HOST", read(HOST, snapshot)),
        ("SLOTS", read(SLOTS, snapshot)),
        ("IMAGE_USES", read(IMAGE_USES, snapshot)),
    ];
    read.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Returns what the runs are for that a state left unfinished.
fn read_runs(db: &Db) -> BTreeSet<String> {
    let left = Journal::new(db.clone()).unfinished().unwrap();
    assert!(left.unreadable.is_empty(), "{:?}", left.unreadable);
    let mut kinds = BTreeSet::new();
    for run in left.runs {
        let run = run.state().clone();
        let fault = match run.owner.parse::<VolumeId>() {
            Ok(_) => serde_json::from_value::<Intent>(run.input.clone()).err(),
            Err(_) => serde_json::from_value::<Input>(run.input.clone()).err(),
        };
        assert!(fault.is_none(), "{run:?}: {fault:?}");
        kinds.insert(run.kind);
    }
    kinds
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Returns the names of all tables in the source of this crate.
fn declared() -> BTreeSet<String> {
    let mut files = Vec::new();
    files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files).unwrap();
    let mut names = BTreeSet::new();
    for file in files {
        let is_test = file.components().any(|part| {
            let name = part.as_os_str().to_string_lossy().into_owned();
            name == "tests" || name == "tests.rs"
        });
        if is_test {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let made = text.matches("Table::new(").count();
        let before = names.len();
        names.extend(text.lines().filter_map(|line| {
            let (name, kind) = line.split_once("const ")?.1.split_once(": ")?;
            kind.starts_with("Table<").then(|| name.to_owned())
        }));
        assert_eq!(names.len() - before, made, "tables of {}", file.display());
    }
    names
}

#[test]
fn every_table_is_in_a_state_of_an_earlier_release_and_can_be_read() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (mut counts, mut runs) = (BTreeMap::<String, usize>::new(), BTreeSet::new());
    for entry in fs::read_dir(fixtures).unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.db");
        fs::copy(entry.unwrap().path(), &path).unwrap();
        let db = Db::open(path, &[]).unwrap();
        let found = db.read(|snapshot| Ok::<_, Error>(read_all(snapshot))).unwrap();
        for (name, count) in found {
            *counts.entry(name).or_default() += count;
        }
        runs.extend(read_runs(&db));
    }
    assert_eq!(counts.keys().cloned().collect::<BTreeSet<_>>(), declared(), "read them all here");
    let missing: Vec<_> = counts.iter().filter(|(_, count)| **count == 0).collect();
    assert!(missing.is_empty(), "no state has one: {missing:?}; see testkit/tests/it/fixtures.rs");
    for kind in ["stop", "update", "volume extend"] {
        assert!(runs.contains(kind), "no state has a run of kind `{kind}`: {runs:?}");
    }
}
