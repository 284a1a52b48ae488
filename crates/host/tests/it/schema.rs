//! A state file that an earlier release wrote opens in this one, with all that was going on in it.
//!
//! `fixtures/state-1.db` is of a server that was killed while machines ran and one was updated. A
//! change of what is stored may add to it (with a default) and never needs another file; when
//! there is a new form, its file comes beside this one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test a fault is a failure")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_host::fake::FakeServer;
use perch_host::network::NetworkConfig;
use perch_host::{Config, Host, Limits};
use perch_types::clock::Clock;
use perch_types::host::HostMachine;
use perch_types::machine_config::RestartPolicy;
use perch_types::{HostId, MachineState, Timestamp};

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

async fn reaches(host: &Host, name: &str, state: MachineState) -> HostMachine {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = host.list().into_iter().find(|machine| machine.name == name);
        match found {
            Some(machine) if machine.state == state => return machine,
            other if Instant::now() > deadline => panic!("{name}: {other:#?}"),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_an_earlier_release_opens_with_its_machines() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    std::fs::create_dir_all(&config.data_dir).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-1.db");
    std::fs::copy(fixture, config.data_dir.join("host.db")).unwrap();
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
