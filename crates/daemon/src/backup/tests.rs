use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perch_durable::{Db, Table};
use tempfile::TempDir;

use super::*;
use crate::clock::SystemClock;

const NOTES: Table<String, String> = Table::new("notes");
const PUSHED: &str = "front/registry/blobs/0123";

/// A server's folder, as small as one can be.
struct Server {
    folder: TempDir,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Self { folder };
        let data = server.config("data").data_dir;
        for below in ["host/machines/1", "front/registry/blobs"] {
            fs::create_dir_all(data.join(below)).unwrap();
        }
        identity::host_id(&data).unwrap();
        identity::admin(&data, "http://127.0.0.1:1", None).unwrap();
        fs::write(data.join(PUSHED), "a layer").unwrap();
        fs::write(data.join("host/machines/1/root.img"), "a disk").unwrap();
        drop(Db::open(data.join("host/host.db"), &[]).unwrap());
        server
    }

    fn config(&self, name: &str) -> Config {
        let user = rustix::process::geteuid().as_raw().to_string();
        let keys_user = user.clone();
        Config { data_dir: self.folder.path().join(name), user, keys_user, ..Config::default() }
    }

    fn backup(&self) -> PathBuf {
        backup(&self.config("data"), self.folder.path(), &SystemClock).unwrap().path
    }

    fn restore(&self, archive: &Path) -> Result<Header> {
        restore(&self.config("other"), archive, Arc::new(SystemClock))
    }

    fn refused(&self, bytes: &[u8]) -> String {
        let path = self.folder.path().join("bad.tar");
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", self.restore(&path).unwrap_err());
        let other = self.config("other").data_dir;
        let left: Vec<_> =
            fs::read_dir(other).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let is_lock = |path: &PathBuf| path.ends_with(identity::LOCK_FILE);
        assert!(left.iter().all(is_lock), "{error}: {left:?}");
        error
    }
}

fn names(archive: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(File::open(archive).unwrap());
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[test]
fn a_state_comes_back_as_it_was_while_its_owner_wrote_on() {
    let server = Server::new();
    let data = server.config("data").data_dir;
    let db = Db::open(data.join("host/host.db"), &[]).unwrap();
    let note = |key: &'static str| {
        db.write(move |tx| NOTES.put(tx, &key.to_owned(), &"yes".to_owned())).wait().unwrap();
    };
    note("before");
    let archive = server.backup();
    note("after");
    assert_eq!(fs::metadata(&archive).unwrap().mode() & 0o777, 0o600);
    assert!(!data.join(COPIES).exists());
    let names = names(&archive);
    assert_eq!(names.first().map(String::as_str), Some(HEADER));
    assert!(!names.iter().any(|name| name.contains("machines")), "{names:?}");

    let header = server.restore(&archive).unwrap();
    let other = server.config("other").data_dir;
    assert_eq!(header.host, identity::host_id(&data).unwrap());
    assert_eq!(identity::host_id(&other).unwrap(), header.host);
    for same in ["admin.json", PUSHED] {
        assert_eq!(fs::read(data.join(same)).unwrap(), fs::read(other.join(same)).unwrap());
    }
    assert_eq!(fs::metadata(other.join("admin.json")).unwrap().mode() & 0o777, 0o600);
    let restored = Db::open(other.join("host/host.db"), &[]).unwrap();
    let found = restored.read(|snapshot| NOTES.list(snapshot)).unwrap().records;
    assert_eq!(found.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), ["before"]);
    ensure_restored(&other).unwrap();
}

#[test]
fn nothing_is_restored_over_a_state_and_nothing_starts_in_the_middle() {
    let server = Server::new();
    let archive = server.backup();
    server.restore(&archive).unwrap();
    let error = format!("{:#}", server.restore(&archive).unwrap_err());
    assert!(error.contains("not empty") && error.contains("perchd remove"), "{error}");

    // Killed before anything had its place: the next one begins anew.
    let other = server.config("other").data_dir;
    fs::remove_dir_all(&other).unwrap();
    fs::create_dir_all(other.join("restoring/front")).unwrap();
    let error = ensure_restored(&other).unwrap_err().to_string();
    assert!(error.contains("did not end"), "{error}");
    server.restore(&archive).unwrap();
    ensure_restored(&other).unwrap();
    assert!(other.join(PUSHED).is_file());
}

#[test]
fn a_backup_is_never_written_over_another_and_needs_a_server() {
    let server = Server::new();
    let archive = server.backup();
    let error = backup(&server.config("data"), &archive, &SystemClock).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    let nobody = server.config("nowhere");
    let error = backup(&nobody, server.folder.path(), &SystemClock).unwrap_err().to_string();
    assert!(error.contains("no server"), "{error}");
}

#[test]
fn archives_that_are_cut_off_or_changed_are_refused_and_leave_nothing() {
    let server = Server::new();
    let good = fs::read(server.backup()).unwrap();
    for length in [0, 1, 511, 600, 2_000, good.len() / 2, good.len() - 2_048] {
        server.refused(&good[..length]);
    }
    let find = |text: &[u8]| good.windows(text.len()).position(|part| part == text).unwrap();
    for (at, told) in [
        (find(b"a layer"), "was changed"),
        (find(b"SQLite format 3"), "was changed"),
        (find(b"\"format\""), "no backup"),
        (find(b"\"perch\"") + 1, "missing field"),
        (find(b"\"size_bytes\"") + 14, "manifest was changed"),
        (find(b"\"sha256\"") + 10, "manifest was changed"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let error = server.refused(&bad);
        assert!(error.contains(told), "{at}: {error}");
    }
    let error = server.refused(b"no archive at all");
    assert!(error.contains("bad.tar"), "{error}");
}

#[test]
fn an_archive_with_foreign_entries_is_refused() {
    let server = Server::new();
    let header = serde_json::to_vec(&Header {
        format: FORMAT,
        perch: "0".to_owned(),
        host: identity::host_id(&server.config("data").data_dir).unwrap(),
        created_at: SystemClock.now(),
    })
    .unwrap();
    let newer = br#"{"format": 99, "perch": "7.0.0"}"#.to_vec();
    let cases: [(&[u8], &str, tar::EntryType, &str); 4] = [
        (&newer, "state/x", tar::EntryType::Regular, "7.0.0"),
        (&header, "elsewhere/x", tar::EntryType::Regular, "does not belong"),
        (&header, "state/x", tar::EntryType::Symlink, "not a file"),
        (&header, "state/../../x", tar::EntryType::Regular, "outside"),
    ];
    for (header, path, kind, told) in cases {
        let mut archive = Archive(tar::Builder::new(Vec::new()));
        archive.add_bytes(HEADER, header).unwrap();
        let mut entry = entry_header(1);
        entry.set_entry_type(kind);
        // By hand, because the builder would not write such a path.
        entry.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        entry.set_cksum();
        archive.0.append(&entry, &b"x"[..]).unwrap();
        let error = server.refused(&archive.0.into_inner().unwrap());
        assert!(error.contains(told), "{path}: {error}");
    }
}

#[test]
fn a_state_of_a_newer_release_is_refused_plainly() {
    let server = Server::new();
    let path = server.config("data").data_dir.join("host/host.db");
    let newer = ["CREATE TABLE of_later (id INTEGER)"; 1];
    drop(Db::open(&path, &newer).unwrap());
    let error = format!("{:#}", server.restore(&server.backup()).unwrap_err());
    assert!(error.contains("newer release"), "{error}");
    let other = server.config("other").data_dir;
    assert!(!other.join("host-id").exists());
    assert_eq!(fs::metadata(other).unwrap().permissions().mode() & 0o777, 0o711);
}
