//! A disk without room: what frees space or tells what is goes on, nothing else does.

use std::sync::Arc;

use bytes::Bytes;
use perch_store::{Error, Expected, Op, Purpose, RemoteStore, Store as _, VALUE_BYTES_MAX, rpc};
use perch_testkit::SmallDisk;
use perch_types::Code;
use tempfile::TempDir;
use tokio::net::UnixListener;

use crate::support;

fn refused(result: Result<perch_store::Revision, Error>) {
    let error = result.expect_err("an ordinary write on a full disk");
    assert_eq!(error.code(), Code::NoSpace, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_what_frees_and_tells_goes_on_for_long() {
    let test = "on_a_full_disk_what_frees_and_tells_goes_on_for_long";
    let Some(disk) = SmallDisk::mount(test).unwrap() else {
        return;
    };
    let store = support::open(&disk.path().join("store.db"), &Arc::default()).await;
    let sockets = TempDir::new().unwrap();
    let socket = sockets.path().join("store.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(support::serve(listener, rpc::router(Arc::clone(&store))));
    let remote = RemoteStore::new(&socket);
    for key in ["apps/o/web", "placements/o/m"] {
        remote.put(key, "{}".into(), Expected::Absent).await.unwrap();
    }
    let filler = disk.fill().unwrap();
    let large = || Bytes::from(vec![b'x'; VALUE_BYTES_MAX]);
    refused(remote.put("apps/o/new", large(), Expected::Absent).await);

    // Many times what the reserve holds: what hosts tell of machines that come and go.
    let record = vec![b'r'; perch_types::directory::MACHINE_RECORD_BYTES_MAX];
    for n in 0..1500 {
        let op = Op::put("machines/o/web/m", record.clone());
        let told = store.txn_for(Purpose::Freeing, vec![], vec![op]).await;
        told.unwrap_or_else(|error| panic!("record {n}: {error:?}"));
    }
    let ops = vec![Op::put("tombstones/o/app", "{}"), Op::delete("apps/o/web")];
    remote.txn_for(Purpose::Freeing, vec![], ops).await.unwrap();
    remote.delete("placements/o/m", Expected::Any).await.unwrap();
    let lease = remote.grant(10).await.unwrap();
    remote.revoke(lease).await.unwrap();
    assert!(remote.get("apps/o/web").await.unwrap().is_none());
    refused(remote.put("apps/o/new", large(), Expected::Absent).await);

    std::fs::remove_file(filler).unwrap();
    remote.put("apps/o/new", large(), Expected::Absent).await.unwrap();
    server.abort();
}
