//! A directory that an earlier release wrote opens in this one, with every document readable.
//!
//! `testkit/tests/it/fixtures.rs` writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perch_store::{SqliteStore, Store, list_docs, list_docs_under};
use perch_types::certificate_docs::{
    AcmeAccount, CertificateDoc, CertificateOrder, OrderWorker, ServedCertificate,
};
use perch_types::clock::Clock;
use perch_types::directory::{
    AppDoc, AppNameClaim, ConfigDoc, Document, EdgeDoc, HostDoc, HostnameClaim, LeaseDoc,
    MachineRecord, NetworkCounter, NetworkDoc, PlacementDoc, TokenDoc, Tombstone,
    VolumePlacementDoc, VolumeRecord,
};
use perch_types::ips::IpDoc;
use perch_types::network_policy::NetworkPolicy;
use perch_types::ports::PortClaim;
use perch_types::replays::ReplaySources;
use perch_types::secret_keys::SecretKeyDoc;
use perch_types::secrets::{SecretDoc, SecretsHead};
use perch_types::{MachineState, Timestamp};

/// Documents that no release has written yet: names of one's own come with their certificates, and
/// raw ports, edges of several servers and sources of replays with the release after.
const UNWRITTEN: [&str; 9] = [
    "AcmeAccount",
    "CertificateDoc",
    "CertificateOrder",
    "EdgeDoc",
    "HostnameClaim",
    "OrderWorker",
    "PortClaim",
    "ReplaySources",
    "ServedCertificate",
];

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

/// Reads the documents of a kind below a part of its prefix; returns how many there are.
async fn read<D: Document>(store: &dyn Store, rest: &str) -> usize {
    let found = list_docs_under::<D>(store, rest).await.unwrap();
    assert!(found.unreadable.is_empty(), "{}{rest}: {:?}", D::PREFIX, found.unreadable);
    found.documents.len()
}

/// Reads the documents of all kinds, by the names that they have in the source.
async fn read_all(store: &dyn Store) -> Vec<(&'static str, usize)> {
    let mut all = Vec::from(read_certificates(store).await);
    all.extend([
        ("AppDoc", read::<AppDoc>(store, "").await),
        ("AppNameClaim", read::<AppNameClaim>(store, "").await),
        ("HostnameClaim", read::<HostnameClaim>(store, "").await),
        ("NetworkDoc", read::<NetworkDoc>(store, "").await),
        ("NetworkCounter", read::<NetworkCounter>(store, "").await),
        ("ConfigDoc", read::<ConfigDoc>(store, "").await),
        ("PlacementDoc", read::<PlacementDoc>(store, "").await),
        ("LeaseDoc", read::<LeaseDoc>(store, "").await),
        ("VolumePlacementDoc", read::<VolumePlacementDoc>(store, "").await),
        ("VolumeRecord", read::<VolumeRecord>(store, "").await),
        ("Tombstone", read::<Tombstone>(store, "").await),
        ("TokenDoc", read::<TokenDoc>(store, "").await),
        ("HostDoc", read::<HostDoc>(store, "").await),
        ("EdgeDoc", read::<EdgeDoc>(store, "").await),
        ("MachineRecord", read::<MachineRecord>(store, "").await),
        ("IpDoc", read::<IpDoc>(store, "").await),
        ("PortClaim", read::<PortClaim>(store, "").await),
        ("ReplaySources", read::<ReplaySources>(store, "").await),
        ("NetworkPolicy", read::<NetworkPolicy>(store, "").await),
        ("SecretsHead", read::<SecretsHead>(store, "").await),
        // These two share their prefix.
        ("SecretDoc", read::<SecretDoc>(store, "personal/web/values/").await),
        ("SecretKeyDoc", read::<SecretKeyDoc>(store, "personal/web/keys/").await),
        // Known to the api alone, which reads it in a test of its own.
        ("DestroyPromise", store.list("promises/destroy/").await.unwrap().entries.len()),
    ]);
    all
}

async fn read_certificates(store: &dyn Store) -> [(&'static str, usize); 5] {
    [
        // These three share their prefix, and their keys have parts of their own.
        ("CertificateDoc", read::<CertificateDoc>(store, "").await),
        ("CertificateOrder", read::<CertificateOrder>(store, "").await),
        ("ServedCertificate", read::<ServedCertificate>(store, "").await),
        ("OrderWorker", read::<OrderWorker>(store, "").await),
        ("AcmeAccount", read::<AcmeAccount>(store, "").await),
    ]
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Returns the names of all documents in the sources of all crates.
fn declared() -> BTreeSet<String> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        let folder = entry.unwrap().path().join("src");
        if folder.is_dir() {
            files_below(&folder, &mut files).unwrap();
        }
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        names.extend(text.lines().filter_map(|line| {
            let made = line.strip_prefix("document!(").and_then(|rest| rest.split(',').next());
            let written = line.strip_prefix("impl Document for ");
            let written = written.and_then(|rest| rest.split([' ', '{']).next());
            made.or(written).map(str::to_owned)
        }));
    }
    names
}

#[tokio::test]
async fn every_document_is_in_a_directory_of_an_earlier_release_and_can_be_read() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut counts = BTreeMap::<String, usize>::new();
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.db");
        std::fs::copy(entry.unwrap().path(), &path).unwrap();
        let store = SqliteStore::open(path, Arc::new(Still)).unwrap();
        for (name, count) in read_all(&store).await {
            *counts.entry(name.to_owned()).or_default() += count;
        }
    }
    assert_eq!(counts.keys().cloned().collect::<BTreeSet<_>>(), declared(), "read them all here");
    let missing: Vec<&str> =
        counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name.as_str()).collect();
    assert_eq!(missing, UNWRITTEN, "no directory has one; see testkit/tests/it/fixtures.rs");
}
