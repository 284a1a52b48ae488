//! Promises that an earlier release wrote.

use std::path::Path;

use perch_store::SqliteStore;
use perch_types::clock::Clock;

use super::*;

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn a_promise_that_an_earlier_release_wrote_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.db");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/fixtures");
    std::fs::copy(fixtures.join("directory-2.db"), &path).unwrap();
    let store = SqliteStore::open(path, Arc::new(Still)).unwrap();
    let found = list_docs::<DestroyPromise>(&store).await.unwrap();
    assert!(found.unreadable.is_empty(), "{:?}", found.unreadable);
    assert!(!found.documents.is_empty());
}
