//! Typed records.

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;
use crate::Db;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Machine {
    state: String,
}

const MACHINES: Table<String, Machine> = Table::new("machines");
const RAW: Table<String, serde_json::Value> = Table::new("machines");
const NUMBERS: Table<u32, u32> = Table::new("numbers");

fn machine(state: &str) -> Machine {
    Machine { state: state.to_owned() }
}

#[test]
fn records_are_put_read_listed_and_deleted() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    db.write(|tx| -> Result<(), Error> {
        for key in ["b/2", "a/1", "b/1", "b%", "ba"] {
            MACHINES.put(tx, &key.to_owned(), &machine("created"))?;
        }
        MACHINES.put(tx, &"a/1".to_owned(), &machine("started"))?;
        NUMBERS.put(tx, &7, &8)?;
        assert_eq!(NUMBERS.get(tx, &7)?, Some(8), "a transaction reads what it wrote");
        Ok(())
    })
    .wait()
    .unwrap();
    let keys = |prefix: &str| {
        let listed = db.read(|snapshot| MACHINES.list_prefix(snapshot, prefix)).unwrap();
        listed.records.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(keys(""), ["a/1", "b%", "b/1", "b/2", "ba"]);
    assert_eq!(keys("b/"), ["b/1", "b/2"]);
    assert_eq!(keys("c"), [""; 0]);
    let found = db.read(|snapshot| MACHINES.get(snapshot, &"a/1".to_owned())).unwrap();
    assert_eq!(found, Some(machine("started")));
    let delete = |key: &str| {
        let key = key.to_owned();
        db.write(move |tx| MACHINES.delete(tx, &key)).wait().unwrap()
    };
    assert!(delete("a/1"));
    assert!(!delete("a/1"));
}

#[test]
fn a_record_that_does_not_parse_is_reported_beside_the_others() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    db.write(|tx| -> Result<(), Error> {
        MACHINES.put(tx, &"good".to_owned(), &machine("started"))?;
        RAW.put(tx, &"poison".to_owned(), &serde_json::json!({"state": 7}))
    })
    .wait()
    .unwrap();
    let listed = db.read(|snapshot| MACHINES.list(snapshot)).unwrap();
    assert_eq!(listed.records, [("good".to_owned(), machine("started"))]);
    assert_eq!(listed.unreadable.len(), 1);
    assert_eq!(listed.unreadable[0].key, "poison");
    let read = db.read(|snapshot| MACHINES.get(snapshot, &"poison".to_owned()));
    assert!(matches!(read, Err(Error::Decode { what: "machines", .. })));
}
