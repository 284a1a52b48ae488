//! A state file that an earlier release wrote opens in this one, with all that was going on in it.
//!
//! `fixtures/state-1.db` is of a server that was killed while machines ran and one was updated,
//! `state-2.db` of one that had every kind of record. A change of what is stored may add to it
//! (with a default) and never needs another file; when there is a new form, its file comes beside
//! these (`testkit/tests/it/fixtures.rs` writes it).
#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test a fault is a failure")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_durable::{Frozen, Table};
use perch_host::effects::Disk;
use perch_host::fake::FakeServer;
use perch_host::network::NetworkConfig;
use perch_host::{Config, Host, Limits};
use perch_types::clock::Clock;
use perch_types::host::HostMachine;
use perch_types::machine_config::RestartPolicy;
use perch_types::volume::{GIB, VolumeState};
use perch_types::{HostId, MachineState, SnapshotId, Timestamp, VolumeId};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A day after the file was written.
#[derive(Debug)]
struct NextDay(Instant);

impl Clock for NextDay {
    fn now(&self) -> Timestamp {
        let since_ms = i64::try_from(self.0.elapsed().as_millis()).unwrap();
        Timestamp::from_unix_ms(1_795_834_800_000 + since_ms)
    }

    fn boot_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

fn config(folder: &Path) -> Config {
    Config {
        id: HostId::from_bits(1),
        data_dir: folder.join("data"),
        run_dir: folder.join("run"),
        region: "loc".parse().unwrap(),
        cgroup: "perch".to_owned(),
        network: NetworkConfig::default(),
        uid_base: perch_host::config::UID_BASE_DEFAULT,
        monitor: std::path::PathBuf::new(),
        init: std::path::PathBuf::new(),
        registry: None,
        machine_api: None,
        unpack: perch_oci::Privilege::InProcess,
        others: Vec::new(),
        pool: Default::default(),
        limits: Limits { disk_reserve_bytes: 0, ..Limits::default() },
    }
}

/// Puts a state where the agent finds it.
fn put(config: &Config, name: &str) {
    std::fs::create_dir_all(&config.data_dir).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::copy(fixture, config.data_dir.join("host.db")).unwrap();
}

async fn reaches(host: &Host, name: &str, state: MachineState) -> HostMachine {
    until(host, name, |machine| machine.state == state).await
}

async fn until(host: &Host, name: &str, holds: impl Fn(&HostMachine) -> bool) -> HostMachine {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = host.list().into_iter().find(|machine| machine.name == name);
        match found {
            Some(machine) if holds(&machine) => return machine,
            other if Instant::now() > deadline => panic!("{name}: {other:#?}"),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_an_earlier_release_opens_with_its_machines() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    put(&config, "state-1.db");
    let effects = FakeServer::new().effects(Arc::new(NextDay(Instant::now())));
    let host = Host::start_with(config, effects, None, Vec::new()).await.unwrap();
    assert_eq!(host.id().as_str(), "90e1b8ff492a");

    let runs = reaches(&host, "runs", MachineState::Started).await;
    assert_eq!(runs.config.env["COLOUR"], "green");
    assert_eq!(runs.config.services[0].internal_port, 8080);
    assert_eq!(runs.config.metadata["role"], "web");
    assert_eq!(runs.config.restart_policy(), RestartPolicy::Always);
    assert!(runs.cordoned);
    assert!(runs.events.iter().any(|event| event.kind == "launch"), "{:?}", runs.events);

    let rests = reaches(&host, "rests", MachineState::Stopped).await;
    assert_eq!(rests.config.stop_timeout().get(), Duration::from_secs(3));
    let exit = rests.events.iter().find(|event| event.kind == "exit").unwrap();
    assert_eq!(exit.request.as_ref().unwrap()["exit_event"]["requested_stop"], true);

    // The update that was under way is brought to its end.
    let updated = reaches(&host, "updated", MachineState::Started).await;
    assert_eq!(updated.config.env["VERSION"], "3");

    let prepared = reaches(&host, "prepared", MachineState::Stopped).await;
    assert!(prepared.config.auto_destroy);
    assert_eq!(host.list().len(), 4, "the destroyed one is no more");
    host.shutdown().await;
}

/// Puts the disks where they are that a state names.
fn put_disks(server: &FakeServer, file: &Path) {
    let volumes: Table<VolumeId, Value> = Table::new("volumes");
    let snapshots: Table<SnapshotId, Value> = Table::new("snapshots");
    let state = Frozen::open(file).unwrap();
    for (id, _) in volumes.list(&state.snapshot()).unwrap().records {
        server.put_disk(Disk::Volume(id), Some(GIB));
    }
    for (id, _) in snapshots.list(&state.snapshot()).unwrap().records {
        server.put_disk(Disk::Snapshot(id), Some(GIB));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_with_every_kind_of_record_opens_and_what_was_begun_is_brought_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    put(&config, "state-2.db");
    let server = FakeServer::new();
    put_disks(&server, &config.data_dir.join("host.db"));
    let effects = server.effects(Arc::new(NextDay(Instant::now())));
    let host = Host::start_with(config, effects, None, Vec::new()).await.unwrap();

    let runs = reaches(&host, "runs", MachineState::Started).await;
    assert!(runs.cordoned);
    assert_eq!(runs.config.env["COLOUR"], "green");
    assert_eq!(runs.config.files[0].guest_path, "/tmp/file");
    reaches(&host, "rests", MachineState::Stopped).await;
    // The server was restarted: what was frozen is lost.
    reaches(&host, "frozen", MachineState::Stopped).await;
    let crowded = reaches(&host, "crowded", MachineState::Stopped).await;
    assert_eq!(crowded.config.containers.len(), 2);
    until(&host, "standby", |machine| machine.config.standbys.len() == 1).await;
    let prepared = reaches(&host, "prepared", MachineState::Stopped).await;
    assert!(prepared.config.auto_destroy);
    assert!(host.list().iter().all(|machine| machine.name != "gone"));

    // It is updated, and the other is stopped, started and updated, as was asked before the kill.
    for name in ["updated", "stops"] {
        let is_third = |machine: &HostMachine| {
            let version = machine.config.env.get("VERSION").map(String::as_str);
            machine.state == MachineState::Started && version == Some("3")
        };
        until(&host, name, is_third).await;
    }

    let mounts = reaches(&host, "mounts", MachineState::Stopped).await;
    let deadline = Instant::now() + PATIENCE;
    let volumes = loop {
        let volumes = host.volumes();
        let is_grown = |name: &str| volumes.iter().any(|one| one.name == name && one.size_gb == 2);
        if is_grown("broken") {
            break volumes;
        }
        assert!(Instant::now() < deadline, "{volumes:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let named = |name: &str| volumes.iter().find(|one| one.name == name).unwrap();
    let data = named("data");
    assert_eq!((data.state, &data.attached), (VolumeState::Created, &Some(mounts.id)));
    let snapshots = host.snapshots(&data.id).unwrap();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].snapshot.status, "created");
    assert_eq!(named("broken").state, VolumeState::Created);
    assert_eq!(named("gone").state, VolumeState::PendingDestroy);
    host.shutdown().await;
}
