//! A directory that an earlier release wrote opens in this one, with every document readable.

use std::path::Path;
use std::sync::Arc;

use perch_store::{SqliteStore, Store, list_docs};
use perch_types::clock::Clock;
use perch_types::directory::{
    AppDoc, AppNameClaim, ConfigDoc, Document, HostDoc, MachineRecord, NetworkCounter, NetworkDoc,
    PlacementDoc, TokenDoc,
};
use perch_types::{MachineState, Timestamp};

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

async fn all<D: Document>(store: &dyn Store, count: usize) -> Vec<D> {
    let found = list_docs::<D>(store).await.unwrap();
    assert!(found.unreadable.is_empty(), "{}: {:?}", D::PREFIX, found.unreadable);
    assert_eq!(found.documents.len(), count, "{}", D::PREFIX);
    found.documents.into_iter().map(|(_, found)| found.document).collect()
}

#[tokio::test]
async fn a_directory_of_an_earlier_release_opens_with_all_its_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.db");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/directory-1.db");
    std::fs::copy(fixture, &path).unwrap();
    let store = SqliteStore::open(path, Arc::new(Still)).unwrap();
    let apps: Vec<AppDoc> = all(&store, 1).await;
    assert_eq!(apps[0].name.as_str(), "web");
    all::<AppNameClaim>(&store, 1).await;
    all::<NetworkDoc>(&store, 1).await;
    all::<NetworkCounter>(&store, 2).await;
    let configs: Vec<ConfigDoc> = all(&store, 5).await;
    assert!(configs.iter().any(|found| found.config.env.contains_key("VERSION")));
    all::<PlacementDoc>(&store, 4).await;
    let hosts: Vec<HostDoc> = all(&store, 1).await;
    assert_eq!(hosts[0].incarnation, 1);
    let tokens: Vec<TokenDoc> = all(&store, 1).await;
    assert!(tokens[0].operator && tokens[0].expires_at.is_none());
    let machines: Vec<MachineRecord> = all(&store, 4).await;
    let started = machines.iter().filter(|found| found.state == MachineState::Started).count();
    assert_eq!(started, 2, "{machines:#?}");
}
