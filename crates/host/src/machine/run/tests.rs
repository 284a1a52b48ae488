use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use perch_durable::testing::{World, everything};
use perch_durable::{Db, NewRun};
use perch_runtime::{Adopted, GuestStart, Runtime as _};
use perch_types::clock::Clock;
use perch_types::{HostId, InstanceId};

use super::*;
use crate::config::{Config, Limits};
use crate::effects::{Images as _, Networks as _, Rootfs as _};
use crate::fake::FakeServer;
use crate::machine::record::tests::record;
use crate::machine::record::{Version, upper_name};
use crate::network::NetworkConfig;
use crate::shared::{Begin, machine_network};

/// A clock that moves on each time it is looked at.
#[derive(Debug, Default)]
struct Turning(AtomicU64);

impl Clock for Turning {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000)
    }

    fn boot_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

fn config() -> Config {
    Config {
        id: HostId::from_bits(1),
        data_dir: "/data".into(),
        run_dir: "/run".into(),
        region: "ams".parse().unwrap(),
        cgroup: "perch".to_owned(),
        network: NetworkConfig::default(),
        uid_base: crate::config::UID_BASE_DEFAULT,
        monitor: PathBuf::new(),
        init: PathBuf::new(),
        registry: None,
        unpack: perch_oci::Privilege::InProcess,
        others: Vec::new(),
        limits: Limits::default(),
    }
}

/// One machine on a server, and what is to be done with it.
struct Machine {
    server: Mutex<FakeServer>,
    record: Record,
    input: Input,
    runs_before: bool,
}

/// What there is on the server: layers, interfaces, and the version that runs.
#[derive(Debug, PartialEq)]
struct Found {
    layers: BTreeSet<PathBuf>,
    attached: Vec<perch_types::MachineId>,
    runs: Option<InstanceId>,
}

impl Machine {
    fn new(intent: Intent, runs_before: bool) -> Self {
        let mut record = record();
        if runs_before {
            record.boots = 1;
            record.boot = Some(Boot { number: 1, stop_signal: 0 });
        }
        let mut input = Input { fresh_root: true, signal: 2, grace_ms: 10, ..Input::new(intent) };
        if let Intent::Update { .. } = intent {
            let instance = InstanceId::from_parts(1_700_000_000_001, 8);
            let upper = upper_name(&instance);
            record.next = Some(Version { instance, upper, ..record.version.clone() });
        }
        input.boot = record.new_boot();
        input.back = record.new_boot();
        Self { server: Mutex::default(), record, input, runs_before }
    }

    fn server(&self) -> FakeServer {
        self.server.lock().unwrap().clone()
    }

    fn shared(&self, db: &Db) -> Arc<Shared> {
        let effects = self.server().effects(Arc::new(Turning::default()));
        let begin = Begin {
            id: HostId::from_bits(1),
            incarnation: 1,
            counter: 0,
            rebooted: false,
            findings: Vec::new(),
        };
        Arc::new(Shared::new(config(), effects, db.clone(), begin))
    }

    fn work(&self, db: &Db) -> Work {
        Work {
            shared: self.shared(db),
            record: self.record.clone(),
            input: self.input,
            instance: None,
            image: None,
            secrets_version: None,
            fault: None,
            gate: None,
        }
    }
}

impl World for Machine {
    type Executor = Work;
    type Snapshot = Found;

    async fn fresh(&mut self) {
        let server = FakeServer::new();
        *self.server.lock().unwrap() = server.clone();
        if !self.runs_before {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("db"), &[]).unwrap();
        let mut work = self.work(&db);
        work.record.next = None;
        let upper = work.dir().state.join(&work.record.version.upper);
        server.prepare(&upper, 1, true).await.unwrap();
        let image = server.mount(&work.record.version.image).await.unwrap();
        work.image = Some(image);
        work.input.boot = 1;
        for step in [Step::Boot, Step::Network] {
            steps::run(&mut work, step).await.unwrap();
        }
        work.instance.unwrap().start(GuestStart::default()).await.unwrap();
    }

    fn plan(&self) -> NewRun {
        self.input.new_run(&self.record)
    }

    fn executor(&mut self, db: &Db) -> Work {
        self.work(db)
    }

    async fn snapshot(&mut self, db: &Db) -> Found {
        let server = self.server();
        let dir = self.work(db).dir();
        let runs = match server.runtime.adopt(&dir).await.unwrap() {
            Adopted::Running(instance) => Some(instance.info().instance.clone()),
            Adopted::Ended(_) | Adopted::Gone => None,
        };
        let attached = server.attached().await.unwrap();
        Found { layers: server.layers(), attached, runs }
    }
}

async fn survives(intent: Intent, runs_before: bool) {
    let mut machine = Machine::new(intent, runs_before);
    if let Err(broken) = everything(&mut machine).await {
        panic!("{intent:?}: {broken}");
    }
}

#[tokio::test]
async fn a_launch_survives_everything() {
    survives(Intent::Launch, false).await;
}

#[tokio::test]
async fn a_stop_survives_everything() {
    survives(Intent::Stop, true).await;
}

#[tokio::test]
async fn an_update_of_a_running_machine_survives_everything() {
    survives(Intent::Update { skip_launch: false }, true).await;
}

#[tokio::test]
async fn an_update_of_a_stopped_machine_survives_everything() {
    survives(Intent::Update { skip_launch: false }, false).await;
}

#[tokio::test]
async fn a_destruction_survives_everything() {
    survives(Intent::Destroy, true).await;
}

#[tokio::test]
async fn a_settling_survives_everything() {
    survives(Intent::Settle, true).await;
}

#[tokio::test]
async fn a_start_survives_everything() {
    survives(Intent::Start, false).await;
}

#[test]
fn a_machine_keeps_its_addresses() {
    let machine = Machine::new(Intent::Launch, false);
    let server = machine.server();
    let network = machine_network(&machine.record);
    let first = server.addresses(&network).unwrap();
    assert_eq!(server.addresses(&network).unwrap(), first);
}
