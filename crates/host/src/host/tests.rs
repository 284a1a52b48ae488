//! Lives of machines on a server that is none: clocks that jump, schedules, standbys, limits.

mod autostop;
mod faults;
mod lost;

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use perch_runtime::fake::Call;
use perch_runtime::{Consumed, Pressure, Traffic};
use perch_types::api::MachineEvent;
use perch_types::host::{CreateVolume, VolumeSource, WaitQuery};
use perch_types::schedule::{Schedule, spread_ms};
use perch_types::{InstanceId, MachineConfig, OrgSlug, Timestamp, VolumeId};
use serde_json::json;

use super::*;
use crate::cache::CachePolicy;
use crate::config::{Config, Limits};
use crate::fake::FakeServer;
use crate::network::{NetworkConfig, Pool, Prefix};

const STOP: Command = Command::Stop { signal: None, timeout: None };
const HOUR_MS: i64 = 3_600_000;

/// The first volume, as the API asks for it.
fn volume_asked() -> CreateVolume {
    CreateVolume {
        id: VolumeId::from_bits(1),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        app_id: "app_1".to_owned(),
        name: "data".to_owned(),
        size_gb: 1,
        source: VolumeSource::Empty,
        snapshot_retention: 5,
        auto_backup: false,
    }
}

/// The server's clocks; somebody sets the wall clock, and time passes sooner.
#[derive(Debug, Default)]
struct Turned {
    by_ms: AtomicI64,
    passed_ms: AtomicU64,
}

impl Turned {
    fn turn(&self, by_ms: i64) {
        self.by_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    fn boot() -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
    }
}

impl Clock for Turned {
    fn now(&self) -> Timestamp {
        let since = 1_700_000_000_000 + Self::boot();
        Timestamp::from_unix_ms(since + self.by_ms.load(Ordering::SeqCst))
    }

    fn boot_ms(&self) -> u64 {
        Self::boot().unsigned_abs() + self.passed_ms.load(Ordering::SeqCst)
    }
}

struct Rig {
    host: Host,
    server: FakeServer,
    clock: Arc<Turned>,
    folder: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), FakeServer::new());
        let clock = Arc::new(Turned::default());
        Self::on(server, clock, folder).await
    }

    /// Starts an agent where one was; the tasks of that one may still be ending.
    async fn on(server: FakeServer, clock: Arc<Turned>, folder: tempfile::TempDir) -> Self {
        let host = loop {
            match start(&folder, &server, &clock).await {
                Ok(host) => break host,
                Err(crate::Error::State { source: perch_durable::Error::InUse { .. } }) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        Self { host, server, clock, folder }
    }

    /// Ends the agent; the caller then does what happens meanwhile.
    async fn end(self) -> (FakeServer, Arc<Turned>, tempfile::TempDir) {
        let Self { host, server, clock, folder } = self;
        host.shutdown().await;
        (server, clock, folder)
    }

    async fn create(&self, bits: u64, config: serde_json::Value) -> MachineId {
        let request = request(bits, &config);
        let id = request.id.clone();
        let goal = if request.skip_launch { "stopped" } else { "started" };
        self.host.create(request).await.unwrap();
        self.wait(&id, goal).await;
        id
    }

    async fn wait(&self, id: &MachineId, states: &str) -> HostMachine {
        let query = WaitQuery {
            states: states.to_owned(),
            instance: None,
            from_event: None,
            timeout_ms: 20_000,
        };
        self.host.wait(id, &query).await.unwrap()
    }

    /// Waits until what is said of a machine is so.
    async fn until(&self, id: &MachineId, holds: impl Fn(&HostMachine) -> bool) {
        let mut follow = self.host.shared.machine(id).unwrap().follow();
        let found = follow.wait_for(|published| holds(&published.machine));
        drop(tokio::time::timeout(Duration::from_secs(20), found).await.unwrap());
    }

    /// Waits until it runs and has been started so often.
    async fn started(&self, id: &MachineId, count: usize) {
        self.until(id, |machine| {
            machine.state == State::Started && of_kind(machine, "start").len() == count
        })
        .await;
    }

    async fn tell(&self, id: &MachineId, command: Command) {
        self.host.command(id, command).await.unwrap();
    }

    /// Has the machine's task look at everything once more; returns the machine after that.
    async fn look(&self, id: &MachineId) -> HostMachine {
        for cordoned in [true, false] {
            self.tell(id, Command::SetCordoned { cordoned }).await;
        }
        self.host.get(id).unwrap()
    }

    fn noted_slot(&self, id: &MachineId) -> Option<i64> {
        let found = self.host.shared.db.read(|snapshot| RECORDS.get(snapshot, id));
        found.unwrap().unwrap().schedule_ms
    }

    fn boots(&self, id: &MachineId) -> usize {
        let calls = self.server.runtime.calls(id);
        calls.iter().filter(|call| matches!(call, Call::Create(_))).count()
    }
}

async fn start(
    folder: &tempfile::TempDir,
    server: &FakeServer,
    clock: &Arc<Turned>,
) -> Result<Host, crate::Error> {
    let config = Config {
        id: HostId::from_bits(1),
        data_dir: folder.path().join("data"),
        run_dir: folder.path().join("run"),
        region: "ams".parse().unwrap(),
        cgroup: "perch".to_owned(),
        network: NetworkConfig::default(),
        uid_base: crate::config::UID_BASE_DEFAULT,
        monitor: std::path::PathBuf::new(),
        init: std::path::PathBuf::new(),
        registry: None,
        machine_api: None,
        unpack: perch_oci::Privilege::InProcess,
        others: Vec::new(),
        pool: Default::default(),
        limits: Limits { disk_reserve_bytes: 0, ..Limits::default() },
    };
    let clock: Arc<Turned> = Arc::clone(clock);
    Host::start_with(config, server.effects(clock), None, Vec::new()).await
}

fn request(bits: u64, more: &serde_json::Value) -> CreateMachine {
    let mut config = json!({"image": "web:1"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: MachineConfig = serde_json::from_value(config).unwrap();
    CreateMachine {
        id: MachineId::from_bits(bits),
        instance: InstanceId::from_parts(1, u128::from(bits)),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        network_id: 1,
        name: format!("web-{bits}"),
        epoch: 1,
        config_digest: bits.to_string(),
        skip_launch: !config.standbys.is_empty(),
        config,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    }
}

fn of_kind<'a>(machine: &'a HostMachine, kind: &str) -> Vec<&'a MachineEvent> {
    machine.events.iter().filter(|event| event.kind == kind).collect()
}

#[tokio::test]
async fn a_pause_before_a_restart_is_as_long_whatever_the_wall_clock_does() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"restart": {"policy": "always"}})).await;
    for by_ms in [-5 * HOUR_MS, 9 * HOUR_MS] {
        let before = rig.boots(&id);
        rig.server.runtime.exit(&id, 1);
        rig.until(&id, |machine| of_kind(machine, "exit").len() == before).await;
        rig.clock.turn(by_ms);
        rig.look(&id).await;
        // By the wall clock that was set back it would come in five hours.
        rig.started(&id, before + 1).await;
    }
    let exits = rig.host.get(&id).unwrap();
    let exit = of_kind(&exits, "exit")[0].request.clone().unwrap();
    assert_eq!(exit["restart_count"], 2, "{exit}");
}

#[tokio::test]
async fn a_destroyed_machine_is_kept_as_long_whatever_the_wall_clock_does() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    rig.tell(&id, Command::Destroy { force: true }).await;
    rig.wait(&id, "destroyed").await;
    rig.clock.turn(24 * HOUR_MS);
    for _ in 0..3 {
        rig.tell(&id, Command::Destroy { force: true }).await;
    }
    assert_eq!(rig.host.get(&id).unwrap().state, State::Destroyed);
}

#[tokio::test]
async fn a_schedule_starts_a_machine_once_a_slot_whatever_the_wall_clock_does() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"schedule": "hourly"})).await;
    rig.server.runtime.exit(&id, 0);
    rig.wait(&id, "stopped").await;
    assert_eq!(rig.look(&id).await.state, State::Stopped);
    let to_next_slot = || {
        let now = rig.clock.now();
        rig.clock.turn(Schedule::Hourly.slot(&id, now).next_ms - now.unix_ms() + 1);
    };
    for boots in [2, 3] {
        to_next_slot();
        rig.look(&id).await;
        rig.wait(&id, "started").await;
        assert_eq!(rig.boots(&id), boots);
        rig.server.runtime.exit(&id, 0);
        rig.wait(&id, "stopped").await;
        assert_eq!(rig.look(&id).await.state, State::Stopped, "once a slot");
    }
    // The clock was an hour ahead: that hour is over once more, and was dealt with.
    rig.clock.turn(-HOUR_MS);
    assert_eq!(rig.look(&id).await.state, State::Stopped);
    to_next_slot();
    assert_eq!(rig.look(&id).await.state, State::Stopped);
    // It was years ahead: what it said then does not count.
    rig.clock.turn(-1_000 * HOUR_MS);
    let slot = Schedule::Hourly.slot(&id, rig.clock.now());
    while rig.noted_slot(&id) != Some(slot.current_ms) {
        assert_eq!(rig.look(&id).await.state, State::Stopped);
    }
    to_next_slot();
    rig.look(&id).await;
    rig.wait(&id, "started").await;
    // One that runs is left alone.
    to_next_slot();
    assert_eq!(rig.look(&id).await.state, State::Started);
    assert_eq!(rig.boots(&id), 4);
}

#[tokio::test]
async fn runs_that_were_missed_are_made_up_for_once() {
    let rig = Rig::new().await;
    // Missed runs are spread over a minute; this one comes early in it.
    let early = |bits: &u64| spread_ms(&MachineId::from_bits(*bits), 60_000) < 100;
    let bits = (1..).find(early).unwrap();
    let id = rig.create(bits, json!({"schedule": "hourly"})).await;
    rig.server.runtime.exit(&id, 0);
    rig.wait(&id, "stopped").await;
    let (server, clock, folder) = rig.end().await;
    let now = clock.now();
    let slot = Schedule::Hourly.slot(&id, now);
    // Half an hour after the fifth of the slots that were missed.
    clock.turn(slot.next_ms - now.unix_ms() + 4 * HOUR_MS + HOUR_MS / 2);
    let rig = Rig::on(server, clock, folder).await;
    rig.wait(&id, "started").await;
    rig.server.runtime.exit(&id, 0);
    rig.wait(&id, "stopped").await;
    assert_eq!(rig.look(&id).await.state, State::Stopped);
    assert_eq!(rig.boots(&id), 2);
}

#[tokio::test]
async fn a_standby_starts_once_for_each_failure_and_for_nothing_else() {
    let rig = Rig::new().await;
    let named = rig.create(1, json!({"restart": {"policy": "no"}})).await;
    let standby = rig.create(2, json!({"standbys": [named.as_str()]})).await;
    for exits in [Some(0), None] {
        match exits {
            Some(code) => rig.server.runtime.exit(&named, code),
            None => rig.tell(&named, STOP).await,
        }
        rig.wait(&named, "stopped").await;
        rig.host.shared.stand_in();
        assert_eq!(rig.look(&standby).await.state, State::Stopped, "{exits:?}");
        rig.tell(&named, Command::Start).await;
        rig.wait(&named, "started").await;
    }
    for _ in 0..2 {
        rig.server.runtime.exit(&named, 1);
        rig.wait(&named, "stopped").await;
        rig.wait(&standby, "started").await;
        rig.tell(&standby, STOP).await;
        rig.wait(&standby, "stopped").await;
        rig.host.shared.stand_in();
        assert_eq!(rig.look(&standby).await.state, State::Stopped, "it was told to stop");
        rig.tell(&named, Command::Start).await;
        rig.wait(&named, "started").await;
    }
    assert_eq!(rig.boots(&standby), 2);
}

#[tokio::test]
async fn what_machines_use_is_told_while_they_run() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    let received = Traffic { bytes: 3, packets: 1 };
    let consumed = Consumed { cpu_user_us: 7, received, ..Consumed::default() };
    rig.server.runtime.set_consumed(consumed);
    let all = rig.host.consumed().await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&all[0].id, all[0].cpu_user_us, all[0].received_bytes), (&id, 7, 3));
    rig.tell(&id, STOP).await;
    rig.wait(&id, "stopped").await;
    assert!(rig.host.consumed().await.is_empty());
}

#[tokio::test]
async fn a_limit_that_was_reached_is_told_once_a_boot() {
    let rig = Rig::new().await;
    let volume = rig.host.create_volume(volume_asked()).await.unwrap().id;
    let mounts = json!([{"volume": volume, "path": "/data"}]);
    let id = rig.create(1, json!({"restart": {"policy": "always"}, "mounts": mounts})).await;
    rig.host.shared.look_at_limits().await;
    assert!(of_kind(&rig.look(&id).await, "limit").is_empty());
    rig.server.fill(100);
    rig.server.runtime.set_pressure(Pressure {
        oom_kills: 1,
        forks_refused: 3,
        root_full: true,
        log_dropped: 2,
    });
    for boots in [1, 2] {
        for _ in 0..3 {
            rig.host.shared.look_at_limits().await;
            rig.look(&id).await;
        }
        let found = rig.host.get(&id).unwrap();
        let told: Vec<String> = of_kind(&found, "limit")
            .into_iter()
            .map(|event| event.request.clone().unwrap()["error"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(told.len(), 5 * boots, "{told:?}");
        assert_eq!(
            told[..5],
            [
                "log lines were dropped: the machine wrote more than its log keeps",
                "out of disk: a volume that the machine mounts is full",
                "out of disk: the machine's root file system is full",
                "too many processes: the machine reached its 4096 and could make no other",
                "out of memory: the machine reached its 256 MiB and a process in it was killed",
            ]
        );
        rig.server.runtime.exit(&id, 1);
        rig.started(&id, boots + 1).await;
    }
}

#[tokio::test]
async fn a_machine_that_cannot_be_frozen_runs_on_and_says_why() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    rig.server.runtime.fail_freeze("a process waits for its disk");
    rig.tell(&id, Command::Suspend).await;
    let found = rig.wait(&id, "started").await;
    let failed = of_kind(&found, "failed")[0].request.clone().unwrap();
    assert!(failed["error"].as_str().unwrap().contains("waits for its disk"), "{failed}");
    assert!(found.failure.is_some());
    rig.tell(&id, Command::Suspend).await;
    assert_eq!(rig.wait(&id, "suspended").await.failure, None);
}

#[tokio::test]
async fn what_may_not_be_suspended_is_refused_by_name() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"schedule": "daily"})).await;
    let refused = rig.host.command(&id, Command::Suspend).await.unwrap_err();
    assert_eq!(refused.code, Code::PreconditionFailed);
    assert!(refused.error.starts_with("config.schedule: "), "{}", refused.error);
}

#[tokio::test]
async fn a_suspended_machine_whose_update_fails_is_stopped_with_its_old_version() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    rig.tell(&id, Command::Suspend).await;
    let before = rig.wait(&id, "suspended").await;
    rig.server.runtime.fail_create("no room");
    let next = request(2, &json!({"env": {"A": "b"}}));
    let update = Command::Update {
        instance: next.instance,
        epoch: 2,
        config: Box::new(next.config),
        config_digest: "next".to_owned(),
        skip_launch: false,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    };
    rig.tell(&id, update).await;
    let after = rig.wait(&id, "stopped").await;
    assert_eq!(after.instance, before.instance);
    assert!(!rig.server.runtime.runs(&id));
    rig.tell(&id, Command::Start).await;
    rig.wait(&id, "started").await;
}

#[tokio::test]
async fn memory_and_processes_are_asked_of_what_runs_or_is_suspended() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"guest": {"memory_mb": 256, "max_memory_mb": 512}})).await;
    rig.tell(&id, Command::Suspend).await;
    rig.wait(&id, "suspended").await;
    assert_eq!(rig.host.memory(&id).await.unwrap().limit_mb, 256);
    assert_eq!(rig.host.set_memory(&id, 512).await.unwrap().limit_mb, 512);
    for (limit_mb, code) in [
        (513, Code::InvalidValue),
        (0, Code::InvalidValue),
        (31, Code::InvalidValue),
        // The fake one uses half of what it began with.
        (100, Code::PreconditionFailed),
    ] {
        let refused = rig.host.set_memory(&id, limit_mb).await.unwrap_err();
        assert_eq!(refused.code, code, "{limit_mb}: {}", refused.error);
    }
    assert_eq!(rig.host.reclaim_memory(&id, 28).await.unwrap(), 28);
    assert_eq!(rig.host.set_memory(&id, 100).await.unwrap().limit_mb, 100);
    assert_eq!(rig.host.reclaim_memory(&id, 0).await.unwrap_err().code, Code::InvalidValue);
    assert!(rig.host.processes(&id).await.unwrap().is_empty());
    rig.tell(&id, STOP).await;
    rig.wait(&id, "stopped").await;
    for refused in [
        rig.host.memory(&id).await.map(drop).unwrap_err(),
        rig.host.set_memory(&id, 256).await.map(drop).unwrap_err(),
        rig.host.processes(&id).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.code, Code::WrongState);
    }
    // What was changed ended with the boot.
    rig.tell(&id, Command::Start).await;
    rig.wait(&id, "started").await;
    assert_eq!(rig.host.memory(&id).await.unwrap().limit_mb, 256);
}

#[tokio::test]
async fn a_launch_that_fails_leaves_an_event_that_says_why() {
    let rig = Rig::new().await;
    rig.server.runtime.fail_create("no room");
    let request = request(1, &json!({}));
    let id = request.id.clone();
    rig.host.create(request).await.unwrap();
    let found = rig.wait(&id, "failed").await;
    let failed = of_kind(&found, "failed")[0];
    assert_eq!(failed.status, "failed");
    assert!(failed.request.clone().unwrap()["error"].as_str().unwrap().contains("no room"));
}

/// The edge answers the record with which the stop began, and is not asked again.
#[tokio::test]
async fn a_machine_that_is_stopped_is_drained_by_what_was_said_first() {
    let rig = Rig::new().await;
    let service = json!({"protocol": "tcp", "internal_port": 80, "ports": [{"port": 80}]});
    let id = rig.create(1, json!({"services": [service]})).await;
    let sender = rig.host.join_senders(None);
    let (_, mut changes) = rig.host.watch();
    rig.tell(&id, STOP).await;
    let mut said = Vec::new();
    while said.is_empty() {
        if let WatchEvent::Changed { machine } = changes.recv().await.unwrap().as_ref()
            && machine.state == State::Stopping
        {
            said.push(machine.generation);
        }
    }
    rig.host.drained(&id, Drained { generation: said[0], edge: None }).unwrap();
    rig.wait(&id, "stopped").await;
    drop(sender);
    while let Ok(event) = changes.try_recv() {
        if let WatchEvent::Changed { machine } = event.as_ref()
            && machine.state == State::Stopping
        {
            said.push(machine.generation);
        }
    }
    assert_eq!(said.len(), 1, "it was said again: {said:?}");
}

#[tokio::test]
async fn a_machine_whose_slot_a_smaller_pool_has_no_more_gets_another() {
    let rig = Rig::new().await;
    let (id, gone) = (rig.create(1, json!({})).await, rig.create(2, json!({})).await);
    rig.tell(&id, STOP).await;
    rig.wait(&id, "stopped").await;
    rig.tell(&gone, Command::Destroy { force: true }).await;
    rig.wait(&gone, "destroyed").await;
    // As if they had been made when many others were there.
    let both = [id.clone(), gone.clone()];
    let written: Result<(), perch_durable::Error> = rig
        .host
        .shared
        .db
        .write(move |tx| {
            for id in &both {
                let mut record = RECORDS.get(tx, id)?.unwrap();
                record.slot = 60_000;
                RECORDS.put(tx, id, &record)?;
            }
            Ok(())
        })
        .await;
    written.unwrap();
    let (server, clock, folder) = rig.end().await;
    let small: Prefix = "10.1.0.0/24".parse().unwrap();
    server.set_addresses(Pool::new(small).unwrap());
    let rig = Rig::on(server, clock, folder).await;
    assert_eq!(rig.host.get(&id).unwrap().private_ipv4.octets()[..3], [10, 1, 0]);
    assert_eq!(rig.host.get(&gone).unwrap().state, State::Destroyed);
    assert!(!rig.host.shared.has_unreadable.load(Ordering::SeqCst));
    rig.tell(&id, Command::Start).await;
    rig.wait(&id, "started").await;
    let slot = rig.host.shared.db.read(|snapshot| RECORDS.get(snapshot, &id));
    let slot: Result<_, perch_durable::Error> = slot;
    assert!(slot.unwrap().unwrap().slot < 256, "it is written down");
}

#[tokio::test]
async fn what_volumes_may_still_write_is_kept_free_by_whatever_else_is_made() {
    let rig = Rig::new().await;
    rig.server.set_pool_folder(rig.folder.path());
    // More than any disk has.
    rig.server.set_pool(1 << 60, 1 << 60);
    let volume = CreateVolume { size_gb: 1 << 24, ..volume_asked() };
    rig.create(1, json!({})).await;
    rig.host.create_volume(volume).await.unwrap();
    let refused = rig.host.create(request(2, &json!({}))).await.unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    assert!(refused.error.contains("more for what volumes may still write"), "{refused}");
    assert_eq!(rig.host.shared.cache_policy(), CachePolicy::EMPTY);
    // Another agent knows it from the beginning.
    let (server, clock, folder) = rig.end().await;
    let rig = Rig::on(server, clock, folder).await;
    let refused = rig.host.create(request(2, &json!({}))).await.unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    // On a disk of their own they take nothing of this one.
    rig.server.set_pool_folder(Path::new("/proc"));
    rig.host.tend_volumes().await;
    rig.create(2, json!({})).await;
    assert_ne!(rig.host.shared.cache_policy(), CachePolicy::EMPTY);
}

#[tokio::test]
async fn machines_that_are_made_at_once_are_written_at_once() {
    let rig = Rig::new().await;
    let db = rig.host.shared.db.clone();
    // Nobody sees how many have come as far as the file: each try gives them twice the time.
    for attempt in 0..10_u32 {
        let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
        drop(db.write(move |_| {
            let _released = released.recv();
            Ok::<(), perch_durable::Error>(())
        }));
        let before = db.read(|snapshot| RECORDS.list(snapshot)).unwrap().records.len();
        let mut creations = JoinSet::new();
        for bits in 1..=10 {
            let host = rig.host.clone();
            let bits = u64::from(attempt) * 10 + bits;
            creations.spawn(async move { host.create(request(bits, &json!({}))).await });
        }
        for _ in 0..100 << attempt {
            tokio::task::yield_now().await;
        }
        drop(release);
        creations.join_next().await.unwrap().unwrap().unwrap();
        let written = db.read(|snapshot| RECORDS.list(snapshot)).unwrap().records.len() - before;
        if written == 10 {
            return;
        }
        while let Some(created) = creations.join_next().await {
            created.unwrap().unwrap();
        }
    }
    panic!("machines made at once were never written at once");
}
