//! The client of another process's store.

use futures_util::StreamExt as _;
use perch_store::{Error, Expected, RemoteStore, Revision, Store as _, testing::suite};

use crate::support::{PATIENCE, Remote};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_suite() {
    let count = suite(&mut Remote::new().await).await.unwrap();
    assert_eq!(count, 24);
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_one_that_is_back_is_found() {
    let mut remote = Remote::new().await;
    let store = RemoteStore::new(remote.socket());
    store.put("a", "1".into(), Expected::Any).await.unwrap();
    let mut watch = store.watch("", Revision(2)).await.unwrap();
    remote.stop().await;
    let gone = store.get("a").await;
    assert!(matches!(gone, Err(Error::Unavailable { operation: "get", .. })), "{gone:?}");
    let broken = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
    assert!(matches!(broken, Some(Err(Error::Unavailable { .. }))), "{broken:?}");
    assert!(watch.next().await.is_none());
    remote.start().await;
    assert!(store.get("a").await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_no_directory_is_an_error() {
    let folder = tempfile::TempDir::new().unwrap();
    let socket = folder.path().join("other.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let other = tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await });
    let store = RemoteStore::new(&socket);
    let error = store.list("").await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("404")));
    other.abort();
}
