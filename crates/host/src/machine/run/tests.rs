use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use perch_durable::testing::{World, everything};
use perch_durable::{Db, NewRun};
use perch_runtime::{Adopted, GuestStart, Runtime as _};
use perch_types::clock::Clock;
use perch_types::machine_config::{
    MountConfig, RootfsConfig, RootfsPersist, StorageType, TempDir, VolumeConfig,
};
use perch_types::{HostId, InstanceId, VolumeId};

use super::*;
use crate::config::{Config, Limits};
use crate::effects::{Images as _, LayerWish, Networks as _, Rootfs as _};
use crate::fake::FakeServer;
use crate::machine::containers::disk_path;
use crate::machine::plan::plan;
use crate::machine::plan::tests::plans;
use crate::machine::record::tests::record;
use crate::machine::record::{Version, upper_name};
use crate::network::NetworkConfig;
use crate::schema::{RECORDS, VOLUMES};
use crate::shared::{Begin, machine_network};
use crate::volumes::record::VolumeRow;
use crate::volumes::record::tests::row;

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
        machine_api: None,
        unpack: perch_oci::Privilege::InProcess,
        others: Vec::new(),
        pool: Default::default(),
        limits: Limits::default(),
    }
}

/// Returns what the tasks of an agent share, on a server that is none.
pub(crate) fn shared_of(server: &FakeServer, db: &Db) -> Arc<Shared> {
    shared_at(server, db, Arc::new(Turning::default()))
}

/// The same with clocks of the caller's.
pub(crate) fn shared_at(server: &FakeServer, db: &Db, clock: Arc<dyn Clock>) -> Arc<Shared> {
    let effects = server.effects(clock);
    let begin = Begin {
        id: HostId::from_bits(1),
        incarnation: 1,
        counter: 0,
        rebooted: false,
        findings: Vec::new(),
    };
    Arc::new(Shared::new(config(), effects, db.clone(), begin))
}

/// One machine on a server, and what is to be done with it.
struct Machine {
    server: Mutex<FakeServer>,
    record: Record,
    input: Input,
    runs_before: bool,
    /// Volumes as they are before the run.
    volumes: Vec<VolumeRow>,
    /// A run that goes back may have lost what stood still in memory, and nobody wanted that to
    /// run: a boot that is frozen counts as none.
    may_lose_memory: bool,
}

/// What there is on the server: layers, interfaces, and the version that runs.
#[derive(Debug, PartialEq)]
struct Found {
    layers: BTreeSet<PathBuf>,
    attached: Vec<perch_types::MachineId>,
    runs: Option<InstanceId>,
    frozen: bool,
    volumes: Vec<VolumeId>,
}

impl Machine {
    fn new(intent: Intent, runs_before: bool) -> Self {
        let mut record = record();
        if runs_before {
            record.boots = 1;
            record.boot = Some(Boot::new(1));
        }
        let mut input = Input { fresh_root: true, signal: 2, grace_ms: 10, ..Input::new(intent) };
        if let Intent::Update { .. } = intent {
            let instance = InstanceId::from_parts(1_700_000_000_001, 8);
            let upper = upper_name(&instance);
            record.next = Some(Version { instance, upper, ..record.version.clone() });
        }
        input.boot = record.new_boot();
        input.back = record.new_boot();
        Self {
            server: Mutex::default(),
            record,
            input,
            runs_before,
            volumes: Vec::new(),
            may_lose_memory: false,
        }
    }

    /// Returns one that stands as a plan's does.
    fn planned(record: &Record, intent: Intent) -> Self {
        let machine = if record.is_frozen() {
            Self::suspended(intent)
        } else {
            Self::new(intent, record.boot.is_some())
        };
        let steps = plan(&machine.record, intent);
        assert_eq!(steps, plan(record, intent), "{intent:?}");
        let may_lose_memory = record.is_frozen() && steps.contains(&Step::Execute);
        let machine = Self { may_lose_memory, ..machine };
        // What leaves a boot alone is seen by its volumes.
        let leaves = |step: &Step| matches!(step, Step::Image | Step::Volume | Step::Discard);
        if steps.iter().all(leaves) { machine.with_volumes() } else { machine }
    }

    /// Has the version that runs mount volume 1, and the one that an update brings volume 2.
    fn with_volumes(mut self) -> Self {
        let mount = |bits| MountConfig {
            volume: VolumeId::from_bits(bits).to_string(),
            path: "/data".to_owned(),
            ..MountConfig::default()
        };
        self.record.version.config.mounts = vec![mount(1)];
        if let Some(next) = &mut self.record.next {
            next.config.mounts = vec![mount(2)];
        }
        self.volumes = vec![row(1), row(2)];
        let has = !matches!(self.input.intent, Intent::Launch | Intent::Prepare);
        self.volumes[0].record.attached = has.then(|| self.record.id.clone());
        self
    }

    /// Writes the volumes into a file that does not have them yet, and reads them.
    fn seed(&self, shared: &Shared) {
        if self.volumes.is_empty() {
            return;
        }
        let rows = self.volumes.clone();
        let seeded: Result<Vec<VolumeRow>, perch_durable::Error> = shared
            .db
            .write(move |tx| {
                let mut found = Vec::new();
                for row in rows {
                    let known = VOLUMES.get(tx, &row.record.id)?;
                    VOLUMES.put(tx, &row.record.id, known.as_ref().unwrap_or(&row))?;
                    found.push(known.unwrap_or(row));
                }
                Ok(found)
            })
            .wait();
        for row in seeded.unwrap() {
            shared.volumes.put(row);
        }
    }

    fn suspended(intent: Intent) -> Self {
        let mut machine = Self::new(intent, true);
        machine.record.boot = Some(Boot { frozen: true, ..Boot::new(1) });
        machine
    }

    fn is_prepared(&self, db: &Db) -> bool {
        let found = db.read(|snapshot| RECORDS.get(snapshot, &self.record.id)).unwrap();
        found.is_some_and(|found| found.state == State::Stopped)
    }

    fn server(&self) -> FakeServer {
        self.server.lock().unwrap().clone()
    }

    fn shared(&self, db: &Db) -> Arc<Shared> {
        let shared = shared_of(&self.server(), db);
        self.seed(&shared);
        shared
    }

    fn work(&self, db: &Db) -> Work {
        Work {
            shared: self.shared(db),
            record: self.record.clone(),
            input: self.input,
            instance: None,
            image: None,
            others: Vec::new(),
            layer: None,
            ahead: None,
            secrets_version: None,
            fault: None,
            gate: None,
            is_to_end: Arc::default(),
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
        let wish = LayerWish { size_gb: 1, fresh: true, kept: true };
        server.prepare(&upper, wish).await.unwrap();
        let image = server.mount(&work.record.version.image).await.unwrap();
        work.image = Some(image);
        work.input.boot = 1;
        for step in [Step::Boot, Step::Network] {
            steps::run(&mut work, step).await.unwrap();
        }
        let instance = work.instance.unwrap();
        instance.start(GuestStart::default()).await.unwrap();
        if self.record.is_frozen() {
            instance.freeze().await.unwrap();
        }
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
        let (runs, frozen) = match server.runtime.adopt(&dir).await.unwrap() {
            Adopted::Running(instance) => {
                (Some(instance.info().instance.clone()), instance.is_frozen().await.unwrap())
            }
            Adopted::Ended(_) | Adopted::Gone => (None, false),
        };
        let attached = server.attached().await.unwrap();
        let is_lost = self.may_lose_memory && (frozen || runs.is_none());
        let (runs, frozen, attached) =
            if is_lost { (None, false, Vec::new()) } else { (runs, frozen, attached) };
        let volumes = self.work(db).shared.volumes.all();
        let volumes = volumes.into_iter().map(|known| known.row.record);
        // A machine that could not be prepared has its volumes until it is destroyed.
        let counts = self.input.intent != Intent::Prepare || self.is_prepared(db);
        let volumes = volumes.filter(|record| counts && record.attached.is_some());
        let volumes = volumes.map(|record| record.id).collect();
        Found { layers: server.layers(), attached, runs, frozen, volumes }
    }
}

async fn survives(name: &str) {
    let plan = plans().into_iter().find(|(known, ..)| *known == name);
    let (_, record, intent) = plan.unwrap_or_else(|| panic!("there is no plan `{name}`"));
    let mut machine = Machine::planned(&record, intent);
    if let Err(broken) = everything(&mut machine).await {
        panic!("{name}: {broken}");
    }
}

/// Puts every plan through the harnesses, each in a test of its own.
macro_rules! survive_everything {
    ($($test:ident: $plan:literal,)+) => {
        $(
            #[tokio::test]
            async fn $test() {
                Box::pin(survives($plan)).await;
            }
        )+

        const SURVIVE: &[&str] = &[$($plan),+];
    };
}

survive_everything! {
    a_launch_survives_everything: "launch",
    a_preparation_survives_everything: "prepare (skip_launch)",
    a_start_survives_everything: "start",
    a_stop_survives_everything: "stop",
    a_suspension_survives_everything: "suspend",
    a_resumption_survives_everything: "resume (start of a suspended one)",
    a_settling_survives_everything: "settle (it ended by itself)",
    an_update_of_a_running_machine_survives_everything: "update, it runs",
    an_update_of_a_stopped_machine_survives_everything: "update, it does not run",
    an_update_that_starts_nothing_survives_everything: "update, it does not run, skip_launch",
    an_update_of_a_suspended_machine_survives_everything: "update, it is suspended",
    an_update_that_ends_a_suspension_survives_everything: "update, it is suspended, skip_launch",
    a_destruction_survives_everything: "destroy",
}

#[test]
fn every_plan_survives_everything() {
    let plans: Vec<&str> = plans().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(plans, SURVIVE);
}

#[tokio::test]
async fn a_machine_with_volumes_has_them_or_has_not_whatever_crashes() {
    for (intent, runs_before) in
        [(Intent::Update { skip_launch: false }, true), (Intent::Destroy, true)]
    {
        let mut machine = Machine::new(intent, runs_before).with_volumes();
        if let Err(broken) = everything(&mut machine).await {
            panic!("{intent:?}: {broken}");
        }
    }
}

/// What is written in a power loss may be torn. The layer that an update made before one is not
/// booted from, nor is what containers share ever used by two boots.
#[tokio::test]
async fn a_boot_takes_no_layer_that_may_be_torn() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path().join("db"), &[]).unwrap();
    let machine = Machine::new(Intent::Update { skip_launch: false }, true);
    let begin = |rebooted: bool, persist: RootfsPersist| {
        let mut work = machine.work(&db);
        Arc::get_mut(&mut work.shared).unwrap().rebooted = rebooted;
        let next = work.record.next.as_mut().unwrap();
        next.config.rootfs = Some(RootfsConfig { persist: Some(persist), ..Default::default() });
        let on_disk = TempDir { storage_type: Some(StorageType::Disk), ..TempDir::default() };
        next.config.volumes = vec![VolumeConfig {
            name: "shared".to_owned(),
            temp_dir: Some(on_disk),
            ..VolumeConfig::default()
        }];
        let upper = next.upper.clone();
        let layer = work.dir().state.join(upper);
        (work, vec![layer.clone(), disk_path(&layer, 0)])
    };
    for (rebooted, persist, made_again) in [
        (false, RootfsPersist::Never, 1..),
        (true, RootfsPersist::Restart, 1..),
        (true, RootfsPersist::Never, 0..),
    ] {
        let case = format!("rebooted {rebooted}, {persist:?}");
        let (mut work, both) = begin(rebooted, persist);
        drop(machine.server().take_prepared());
        steps::run(&mut work, Step::Rootfs).await.unwrap();
        assert_eq!(machine.server().take_prepared(), both, "{case}");
        steps::run(&mut work, Step::Boot).await.unwrap();
        assert_eq!(machine.server().take_prepared(), [] as [PathBuf; 0], "{case}: made just now");
        // Another process goes on behind the step, and one that failed is run again.
        let (mut other, _) = begin(rebooted, persist);
        for work in [&mut other, &mut work] {
            steps::run(work, Step::Boot).await.unwrap();
            let again = machine.server().take_prepared();
            assert_eq!(again, both[made_again.clone()], "{case}");
        }
    }
}

#[test]
fn a_machine_keeps_its_addresses() {
    let machine = Machine::new(Intent::Launch, false);
    let server = machine.server();
    let network = machine_network(&machine.record);
    let first = server.addresses(&network).unwrap();
    assert_eq!(server.addresses(&network).unwrap(), first);
}
