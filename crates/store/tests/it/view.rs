//! A view that follows the directory.

use std::{path::Path, sync::Arc};

use perch_store::testing::Subject as _;
use perch_store::{Expected, RemoteStore, Store, ViewFollower, put_doc};
use perch_types::directory::{AppDoc, Generation, MachineRecord};
use perch_types::{AppName, MachineId, OrgSlug};

use crate::support::{PATIENCE, Remote};

fn app(name: &str) -> (OrgSlug, AppName) {
    (OrgSlug::personal(), name.parse().unwrap())
}

async fn create(store: &dyn Store, name: &str) {
    let key = app(name);
    let document: AppDoc = serde_json::from_value(serde_json::json!({
        "id": name, "number": 1, "name": name, "org": "personal", "network": "default",
        "network_id": 1, "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap();
    put_doc(store, &key, &document, Expected::Any).await.unwrap();
}

async fn delete(store: &dyn Store, name: &str) {
    perch_store::delete_doc::<AppDoc>(store, &app(name), Expected::Any).await.unwrap();
}

async fn sees(view: &perch_store::ViewHandle, names: &[&str]) {
    let names: Vec<&str> = names.to_vec();
    let found = view.wait_for(
        |view| view.apps().map(|app| app.name.as_str()).eq(names.iter().copied()),
        PATIENCE,
    );
    assert!(found.await.is_some(), "{:?} instead of {names:?}", view.load());
}

async fn cache_has(path: &Path, text: &str) {
    let written = tokio::time::timeout(PATIENCE, async {
        while !std::fs::read_to_string(path).is_ok_and(|found| found.contains(text)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    written.await.unwrap();
}

#[tokio::test]
async fn a_view_follows_survives_the_directory_and_catches_up() {
    let mut remote = Remote::new().await;
    let store: Arc<dyn Store> = Arc::new(RemoteStore::new(remote.socket()));
    let cache = remote.folder.path().join("view.json");
    create(store.as_ref(), "first").await;
    let view = ViewFollower::start(Arc::clone(&store), &cache);
    sees(&view, &["first"]).await;
    assert!(view.is_live());
    create(store.as_ref(), "second").await;
    sees(&view, &["first", "second"]).await;
    cache_has(&cache, "apps/personal/second").await;

    remote.stop().await;
    let gone = async {
        while view.is_live() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    sees(&view, &["first", "second"]).await;
    // A follower that starts now knows what the copy knows.
    let late = ViewFollower::start(Arc::clone(&store), &cache);
    assert_eq!(late.load(), view.load());
    assert!(!late.is_live());

    remote.start().await;
    delete(store.as_ref(), "first").await;
    create(store.as_ref(), "third").await;
    sees(&view, &["second", "third"]).await;
    sees(&late, &["second", "third"]).await;
}

fn machine(state: &str, counter: u64) -> MachineRecord {
    let generation = Generation { incarnation: 1, counter };
    serde_json::from_value(serde_json::json!({
        "id": MachineId::from_bits(1), "org": "personal", "app": "web", "name": "one",
        "host": perch_types::HostId::from_bits(1), "region": "fra",
        "instance": perch_types::InstanceId::from_parts(1, 1), "generation": generation,
        "state": state, "ready": false, "private_ip": "fdaa:0:1::2", "private_ipv4": "10.209.0.2",
        "image": "web:1", "cpus": 1, "memory_mb": 256,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

#[tokio::test]
async fn a_machine_may_be_taken_straight_from_its_host_once_the_directory_knows_it() {
    let remote = Remote::new().await;
    let store = remote.store();
    let view = ViewFollower::start(Arc::clone(&store), remote.folder.path().join("view.json"));
    assert!(!view.take_known_machine(machine("started", 5)), "nobody knows whether it is gone");
    let first = machine("started", 5);
    let key = (first.org.clone(), first.app.clone(), first.id.clone());
    put_doc(store.as_ref(), &key, &first, Expected::Absent).await.unwrap();
    let holds = async |state: &str, counter: u64| {
        let wanted = machine(state, counter);
        let found = view.wait_for(|view| view.machine(&wanted.id) == Some(&wanted), PATIENCE);
        assert!(found.await.is_some(), "{:?}", view.load());
    };
    holds("started", 5).await;
    assert!(view.take_known_machine(machine("stopped", 7)));
    holds("stopped", 7).await;
    assert!(view.take_known_machine(machine("stopping", 6)), "it holds a newer one");
    holds("stopped", 7).await;
    // The directory may be behind, and says when it is gone.
    put_doc(store.as_ref(), &key, &machine("stopping", 6), Expected::Any).await.unwrap();
    perch_store::delete_doc::<MachineRecord>(store.as_ref(), &key, Expected::Any).await.unwrap();
    let gone = view.wait_for(|view| view.machine(&first.id).is_none(), PATIENCE);
    assert!(gone.await.is_some());
    assert!(!view.take_known_machine(machine("started", 8)));
    assert!(view.load().machine(&first.id).is_none());
}

#[tokio::test]
async fn a_document_that_does_not_parse_leaves_what_was_known_of_it() {
    let remote = Remote::new().await;
    let store = remote.store();
    let folder = remote.folder.path();
    create(store.as_ref(), "good").await;
    create(store.as_ref(), "spoilt").await;
    let view = ViewFollower::start(Arc::clone(&store), folder.join("view.json"));
    sees(&view, &["good", "spoilt"]).await;
    store.put("apps/personal/spoilt", "{}".into(), Expected::Any).await.unwrap();
    create(store.as_ref(), "after").await;
    sees(&view, &["after", "good", "spoilt"]).await;
}

#[tokio::test]
async fn a_copy_that_does_not_parse_is_left_out() {
    let remote = Remote::new().await;
    let cache = remote.folder.path().join("view.json");
    std::fs::write(&cache, "{\"format\":1,\"docu").unwrap();
    let store = remote.store();
    create(store.as_ref(), "web").await;
    let view = ViewFollower::start(store, &cache);
    sees(&view, &["web"]).await;
    cache_has(&cache, "apps/personal/web").await;
}

#[tokio::test]
async fn waiting_for_what_does_not_come_ends() {
    let remote = Remote::new().await;
    let view = ViewFollower::start(remote.store(), remote.folder.path().join("view.json"));
    let short = std::time::Duration::from_millis(50);
    assert!(view.wait_for(|view| view.apps().count() > 0, short).await.is_none());
}
