//! What stays on the disk: collections, expiry, and senders that go away.
//!
//! Never waits for real time to pass.

use std::collections::BTreeSet;
use std::time::Duration;

use perch_registry::Limits;
use perch_types::image::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::cloud::Cloud;

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

async fn push(cloud: &Cloud, bytes: &[u8]) -> u16 {
    let path = format!("/v2/app/blobs/uploads/?digest={}", digest_of(bytes));
    let sent = cloud.request("POST", &path).body(bytes.to_vec()).send().await;
    sent.expect("post").status().as_u16()
}

async fn has(cloud: &Cloud, bytes: &[u8]) -> bool {
    let path = format!("/v2/app/blobs/{}", digest_of(bytes));
    cloud.request("GET", &path).send().await.expect("get").status() == 200
}

#[tokio::test]
async fn a_collection_keeps_what_is_held_or_being_pushed() {
    let cloud = Cloud::start().await;
    for bytes in [&b"{}"[..], b"loose", b"asked"] {
        assert_eq!(push(&cloud, bytes).await, 201);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let config = json!({ "mediaType": "a/b", "digest": digest_of(b"{}"), "size": 2 });
    let manifest = |note: &str| {
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [],
            "annotations": { "note": note } })
        .to_string()
    };
    for (name, note) in [("v1", "old"), ("v1", "new")] {
        let request = cloud.request("PUT", &format!("/v2/app/manifests/{name}"));
        let sent = request.header("content-type", media_type).body(manifest(note)).send().await;
        assert_eq!(sent.expect("put").status(), 201);
    }
    let none = BTreeSet::new();
    assert_eq!(cloud.registry.gc(&none).await.expect("gc").blobs, 0, "all is fresh");
    cloud.clock.advance(Duration::from_hours(25));
    let path = format!("/v2/app/blobs/{}", digest_of(b"asked"));
    assert_eq!(cloud.request("HEAD", &path).send().await.expect("head").status(), 200);
    let old = digest_of(manifest("old").as_bytes());
    let report = cloud.registry.gc(&BTreeSet::from([old.clone()])).await.expect("gc");
    assert_eq!((report.manifests, report.blobs, report.bytes), (0, 1, 5));
    let report = cloud.registry.gc(&none).await.expect("gc");
    assert_eq!((report.manifests, report.blobs), (1, 1), "the manifest that lost its tag");
    assert!(has(&cloud, b"{}").await && has(&cloud, b"asked").await);
    assert!(!has(&cloud, b"loose").await);
    cloud.registry.delete_repository("app").await.expect("delete");
    cloud.clock.advance(Duration::from_hours(25));
    cloud.registry.gc(&none).await.expect("gc");
    assert_eq!(cloud.registry.usage().await.expect("usage").blobs, 0);
}

#[tokio::test]
async fn uploads_are_capped_and_expire() {
    let limits = Limits { uploads_max: 2, blob_bytes_max: 10, ..Limits::default() };
    let cloud = Cloud::with_limits(limits).await;
    let begin = || async {
        let sent = cloud.request("POST", "/v2/app/blobs/uploads/").send().await;
        sent.expect("post").status().as_u16()
    };
    assert_eq!([begin().await, begin().await, begin().await], [202, 202, 429]);
    cloud.clock.advance(Duration::from_hours(2));
    assert_eq!(begin().await, 202, "the resting ones made room");
    assert_eq!(push(&cloud, b"0123456789a").await, 413);
    assert_eq!(push(&cloud, b"0123456789").await, 201);
}

#[tokio::test]
async fn one_repository_does_not_take_all_uploads() {
    let limits = Limits { uploads_max: 3, repository_uploads_max: 2, ..Limits::default() };
    let cloud = Cloud::with_limits(limits).await;
    let mut codes = Vec::new();
    for (user, name) in [("alice", "app"), ("alice", "app"), ("alice", "app"), ("bob", "other")] {
        let path = format!("/v2/{name}/blobs/uploads/");
        let sent = cloud.request_as(user, "POST", &path).send().await;
        codes.push(sent.expect("post").status().as_u16());
    }
    assert_eq!(codes, [202, 202, 429, 202]);
    assert_eq!(cloud.registry.usage().await.expect("usage").uploads, 3);
}

#[tokio::test]
async fn a_deleted_repository_takes_those_below_along() {
    let cloud = Cloud::start().await;
    for name in ["app", "app/sub"] {
        let path = format!("/v2/{name}/blobs/uploads/?digest={}", digest_of(b"x"));
        let sent = cloud.request("POST", &path).body("x").send().await;
        assert_eq!(sent.expect("post").status(), 201);
    }
    cloud.registry.delete_repository("app").await.expect("delete");
    cloud.registry.delete_repository("app").await.expect("delete again");
    for name in ["app", "app/sub"] {
        let path = format!("/v2/{name}/blobs/{}", digest_of(b"x"));
        let got = cloud.request("GET", &path).send().await.expect("get");
        assert_eq!(got.status(), 404, "{name}");
    }
    assert_eq!(cloud.registry.usage().await.expect("usage").uploads, 0);
    assert!(push(&cloud, b"x").await == 201 && has(&cloud, b"x").await);
}

#[tokio::test]
async fn a_sender_that_goes_away_leaves_no_blob() {
    let cloud = Cloud::start().await;
    let digest = digest_of(&[7; 100]);
    let mut stream = tokio::net::TcpStream::connect(&cloud.address).await.expect("connect");
    let head = format!(
        "POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\n\
         authorization: Basic YWxpY2U6c2VjcmV0\r\ncontent-length: 100\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    stream.write_all(&[7; 50]).await.expect("half");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while cloud.registry.usage().await.expect("usage").uploads == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the upload begins");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    let again = push(&cloud, &[7; 100]).await;
    assert_eq!(again, 201);
    cloud.clock.advance(Duration::from_hours(2));
    cloud.registry.gc(&BTreeSet::new()).await.expect("gc");
    let usage = cloud.registry.usage().await.expect("usage");
    assert_eq!((usage.blobs, usage.blob_bytes, usage.uploads), (1, 100, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_blob_pushed_by_many_is_stored_once() {
    let cloud = Cloud::start().await;
    let bytes = vec![42; 3_000_000];
    let pushes = (0..8).map(|_| push(&cloud, &bytes));
    let all = futures_util::future::join_all(pushes).await;
    assert_eq!(all, [201; 8]);
    let usage = cloud.registry.usage().await.expect("usage");
    assert_eq!((usage.blobs, usage.uploads), (1, 0));
    assert!(has(&cloud, &bytes).await);
}
