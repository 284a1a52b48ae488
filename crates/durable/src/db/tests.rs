//! The file: what it refuses, what it keeps, what it does on a full or broken disk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use perch_testkit::SmallDisk;
use tempfile::TempDir;

use super::*;
use crate::{Table, testing::block_on};

const NOTES: Table<String, String> = Table::new("notes");

fn note(db: &Db, key: &str, text: &str) -> Pending<(), Error> {
    let (key, text) = (key.to_owned(), text.to_owned());
    db.write(move |tx| NOTES.put(tx, &key, &text))
}

fn noted(db: &Db, key: &str) -> Option<String> {
    db.read(|snapshot| NOTES.get(snapshot, &key.to_owned())).unwrap()
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let db = Db::open(&path, &[]).unwrap();
    note(&db, "a", "one").wait().unwrap();
    block_on(note(&db, "b", "two")).unwrap();
    drop(db);
    let db = Db::open(&path, &[]).unwrap();
    assert_eq!(noted(&db, "a").as_deref(), Some("one"));
    assert_eq!(noted(&db, "b").as_deref(), Some("two"));
    let mode = |name: &str| {
        let found = std::fs::metadata(folder.path().join(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    assert_eq!((mode("host.db"), mode("host.db-wal")), (0o600, 0o600));
}

#[test]
fn the_settings_are_those_that_keep_data_safe() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    let settings = db.write(|tx| -> Result<_, Error> {
        let number = |name| tx.sql().pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let mode: String =
            tx.sql().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        let numbers =
            ["synchronous", "foreign_keys", "trusted_schema"].map(|name| number(name).unwrap());
        Ok((mode, numbers))
    });
    assert_eq!(settings.wait().unwrap(), ("wal".to_owned(), [2, 1, 0]));
}

#[test]
fn a_second_opening_is_refused_until_the_first_ends() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let first = Db::open(&path, &[]).unwrap();
    assert!(matches!(Db::open(&path, &[]), Err(Error::InUse { .. })));
    drop(first);
    Db::open(&path, &[]).unwrap();
}

#[test]
fn migrations_apply_once_and_a_newer_file_is_refused_untouched() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let all = ["CREATE TABLE one (n INTEGER)", "CREATE TABLE two (n INTEGER)"];
    drop(Db::open(&path, &all[..1]).unwrap());
    drop(Db::open(&path, &all).unwrap());
    drop(Db::open(&path, &all).unwrap());
    let older = Db::open(&path, &all[..1]);
    assert!(
        matches!(older, Err(Error::NewerSchema { schema: "application", found: 2, known: 1, .. })),
        "{older:?}"
    );
    let text = older.unwrap_err().to_string();
    assert!(text.contains("version 2") && text.contains("up to 1"), "{text}");

    let db = Db::open(&path, &all).unwrap();
    db.write(|tx| {
        let set = tx.sql().execute_batch("UPDATE durable_schema SET version = 99");
        tx.check("set", set)
    })
    .wait()
    .unwrap();
    drop(db);
    let newer = Db::open(&path, &all);
    assert!(matches!(newer, Err(Error::NewerSchema { schema: "own", found: 99, .. })));
}

#[test]
fn a_migration_that_does_not_apply_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let broken = Db::open(&path, &["CREATE TABLE one (n INTEGER); CREATE TABEL two (n)"]);
    assert!(matches!(broken, Err(Error::Migrate { version: 1, .. })), "{broken:?}");
    drop(Db::open(&path, &["CREATE TABLE one (n INTEGER)"]).unwrap());
}

/// Holds the writer thread until it is let go, so that what comes meanwhile shares a commit.
fn hold(db: &Db) -> SyncSender<()> {
    let (go, wait) = sync_channel::<()>(1);
    let (began, is_begun) = sync_channel::<()>(1);
    drop(db.write(move |_| -> Result<(), Error> {
        began.send(()).unwrap();
        wait.recv().unwrap();
        Ok(())
    }));
    is_begun.recv().unwrap();
    go
}

#[test]
fn works_that_share_a_commit_keep_or_lose_their_own_changes_only() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&commits);
    db.on_commit(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let go = hold(&db);
    let good = note(&db, "good", "yes");
    let refused = db.write(|tx| {
        NOTES.put(tx, &"refused".to_owned(), &"no".to_owned())?;
        Err::<(), _>(Error::NoSuchRun { run: crate::RunId(1) })
    });
    let panicked = db.write(|tx| -> Result<(), Error> {
        NOTES.put(tx, &"panicked".to_owned(), &"no".to_owned())?;
        panic!("as told");
    });
    let after = note(&db, "after", "yes");
    go.send(()).unwrap();
    good.wait().unwrap();
    assert!(matches!(refused.wait(), Err(Error::NoSuchRun { .. })));
    assert!(matches!(panicked.wait(), Err(Error::Panicked)));
    after.wait().unwrap();
    assert_eq!(commits.load(Ordering::SeqCst), 2, "the held one and one for the four");
    let names = db.read(|snapshot| NOTES.list(snapshot)).unwrap().records;
    assert_eq!(names.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), ["after", "good"]);
}

#[test]
fn more_writes_than_the_queue_holds_are_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    let go = hold(&db);
    let waiting: Vec<_> = (0..WRITE_QUEUE_MAX).map(|n| note(&db, &n.to_string(), "")).collect();
    let refused = note(&db, "one more", "").wait();
    assert!(matches!(refused, Err(Error::QueueFull { limit: WRITE_QUEUE_MAX })));
    go.send(()).unwrap();
    for pending in waiting {
        pending.wait().unwrap();
    }
}

#[test]
fn after_a_fault_of_the_disk_no_more_writes_are_taken() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    let go = hold(&db);
    let neighbour = note(&db, "neighbour", "lost");
    let hit = db.write(|tx| {
        let fault = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
        tx.check::<()>("write", Err(rusqlite::Error::SqliteFailure(fault, None)))
    });
    go.send(()).unwrap();
    assert!(matches!(hit.wait(), Err(Error::Sql { .. })));
    assert!(matches!(neighbour.wait(), Err(Error::Commit { .. })));
    assert!(matches!(note(&db, "later", "").wait(), Err(Error::Stopped)));
    assert!(db.is_stopped());
    assert_eq!(noted(&db, "neighbour"), None, "reads go on, and see only what happened");
}

#[test]
fn readers_cannot_write() {
    let folder = TempDir::new().unwrap();
    let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
    let written = db.read(|snapshot| {
        let result = snapshot.sql().execute("DELETE FROM records", []);
        result.map_err(|source| Error::sql("delete", source))
    });
    assert!(matches!(written, Err(Error::Sql { .. })));
}

#[test]
fn on_a_full_disk_only_work_that_frees_space_goes_on_until_there_is_room() {
    let Some(disk) = SmallDisk::mount("on_a_full_disk").unwrap() else {
        return;
    };
    let db = Db::open(disk.path().join("host.db"), &[]).unwrap();
    note(&db, "before", "kept").wait().unwrap();
    let reserve = disk.path().join("host.db.reserve");
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), RESERVE_BYTES);
    // Somebody else fills the disk to the last byte.
    let filler = disk.path().join("filler");
    let zeros = vec![0_u8; 64 * 1024];
    let mut file = File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
    drop(file);
    let big = "x".repeat(256 * 1024);
    let refused = note(&db, "big", &big).wait();
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    assert!(db.is_full());
    // The reserve went to those who need it; fill what it left, but for a little.
    let mut file = File::create(disk.path().join("filler2")).unwrap();
    for _ in 0..50 {
        std::io::Write::write_all(&mut file, &zeros).unwrap();
    }
    assert!(matches!(note(&db, "more", "no").wait(), Err(Error::Full)));
    let stop = db.write_reserved(|tx| NOTES.put(tx, &"stop".to_owned(), &"done".to_owned()));
    stop.wait().unwrap();
    assert_eq!(noted(&db, "stop").as_deref(), Some("done"));

    std::fs::remove_file(&filler).unwrap();
    note(&db, "again", "yes").wait().unwrap();
    assert!(!db.is_full());
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), RESERVE_BYTES);
    assert_eq!(noted(&db, "before").as_deref(), Some("kept"));
    assert_eq!(noted(&db, "big"), None);
}

#[test]
fn work_that_frees_space_survives_being_the_first_to_meet_the_full_disk() {
    let Some(disk) = SmallDisk::mount("work_that_frees_space").unwrap() else {
        return;
    };
    let db = Db::open(disk.path().join("host.db"), &[]).unwrap();
    let mut file = File::create(disk.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let big = "x".repeat(256 * 1024);
    let stop = db.write_reserved(move |tx| NOTES.put(tx, &"stop".to_owned(), &big));
    stop.wait().unwrap();
    assert!(noted(&db, "stop").is_some());
    assert!(db.is_full());
}

/// A process that ends on a full disk comes back: only so can somebody free space.
#[test]
fn a_file_opens_on_a_full_disk_and_takes_work_that_frees_space() {
    let Some(disk) = SmallDisk::mount("a_file_opens_on_a_full_disk").unwrap() else {
        return;
    };
    let path = disk.path().join("host.db");
    let db = Db::open(&path, &[]).unwrap();
    note(&db, "before", "kept").wait().unwrap();
    drop(db);
    let filler = disk.fill().unwrap();
    for round in ["first", "second"] {
        let db = Db::open(&path, &[]).unwrap();
        assert_eq!(noted(&db, "before").as_deref(), Some("kept"));
        assert!(db.is_full(), "{round}");
        assert!(matches!(note(&db, "more", "no").wait(), Err(Error::Full)), "{round}");
        let stop = db.write_reserved(|tx| NOTES.put(tx, &"stop".to_owned(), &"done".to_owned()));
        stop.wait().unwrap();
    }
    std::fs::remove_file(&filler).unwrap();
    let db = Db::open(&path, &[]).unwrap();
    assert!(!db.is_full());
    note(&db, "again", "yes").wait().unwrap();
    let reserve = disk.path().join("host.db.reserve");
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), RESERVE_BYTES);
}

#[test]
fn a_copy_is_of_one_moment_though_the_owner_writes_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let db = Db::open(&path, &[]).unwrap();
    note(&db, "before", "yes").wait().unwrap();
    let frozen = Frozen::open(&path).unwrap();
    for n in 0..100 {
        note(&db, &format!("after {n}"), &"x".repeat(10_000)).wait().unwrap();
    }
    let copy = folder.path().join("copy.db");
    frozen.copy_to(&copy).unwrap();
    assert!(matches!(frozen.copy_to(&copy), Err(Error::Open { .. })), "never over another file");
    drop(frozen);
    note(&db, "last", "yes").wait().unwrap();
    let copied = Db::open(&copy, &[]).unwrap();
    let names = copied.read(|snapshot| NOTES.list(snapshot)).unwrap().records;
    assert_eq!(names, [("before".to_owned(), "yes".to_owned())]);
    assert!(noted(&db, "last").is_some());
}

#[test]
fn a_damaged_file_is_not_copied_in_silence() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("host.db");
    let db = Db::open(&path, &[]).unwrap();
    for n in 0..100 {
        note(&db, &n.to_string(), &"x".repeat(1000)).wait().unwrap();
    }
    drop(db);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[length - 4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let copied = Frozen::open(&path).unwrap().copy_to(folder.path().join("copy.db"));
    assert!(matches!(copied, Err(Error::Damaged { .. } | Error::Sql { .. })), "{copied:?}");
}
