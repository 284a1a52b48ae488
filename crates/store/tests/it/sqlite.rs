//! The SQLite backend.

use futures_util::StreamExt as _;
use perch_store::{
    Error, Expected, Revision,
    testing::{Subject as _, suite},
};

use crate::support::{HISTORY, PATIENCE, Sqlite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_suite() {
    let count = suite(&mut Sqlite::new().await).await.unwrap();
    assert_eq!(count, 24);
}

#[tokio::test]
async fn a_watch_ends_when_its_store_is_closed() {
    let mut subject = Sqlite::new().await;
    let mut watch = subject.store().watch("", Revision(1)).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    subject.restart().await;
    let end = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(matches!(end, Some(Err(Error::Unavailable { .. }))), "{end:?}");
}

#[tokio::test]
async fn a_watcher_that_falls_behind_the_history_is_told_and_ends() {
    let subject = Sqlite::new().await;
    let store = subject.store();
    let mut slow = store.watch("", Revision(1)).await.unwrap();
    for n in 0..HISTORY * 2 {
        store.put("a", n.to_string().into(), Expected::Any).await.unwrap();
    }
    let end = slow.next().await;
    assert!(matches!(end, Some(Err(Error::Compacted { .. }))), "{end:?}");
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_quiet_watch_does_not_fall_behind_while_others_write() {
    let subject = Sqlite::new().await;
    let store = subject.store();
    let mut quiet = store.watch("quiet/", Revision(1)).await.unwrap();
    let waiting = tokio::spawn(async move { quiet.next().await });
    for n in 0..HISTORY * 3 {
        store.put("loud", n.to_string().into(), Expected::Any).await.unwrap();
    }
    store.put("quiet/a", "1".into(), Expected::Any).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(event.unwrap().unwrap().key, "quiet/a");
}
