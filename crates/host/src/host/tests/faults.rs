//! Monitors that say nothing, disks that are full, files that take no writes: nothing that runs is
//! harmed, and nothing that was accepted is lost.

use std::path::Path;
use std::sync::mpsc;

use perch_durable::Db;
use perch_runtime::fake::ThawFault;
use perch_runtime::{Adopted, Runtime as _};
use perch_testkit::SmallDisk;
use perch_types::host::SecretsWanted;

use super::*;
use crate::schema::{HOST, HostRow};

/// More than any queue of the state file holds.
const WRITES: usize = 4096;

/// Keeps the state file from taking any write, until it is dropped.
struct Jam {
    release: mpsc::SyncSender<()>,
    db: Db,
}

impl Jam {
    fn new(db: &Db) -> Self {
        let (begun, begins) = mpsc::sync_channel(1);
        let (release, released) = mpsc::sync_channel::<()>(1);
        drop(db.write(move |_| {
            begun.send(()).unwrap();
            let _released = released.recv();
            Ok::<(), perch_durable::Error>(())
        }));
        begins.recv().unwrap();
        for _ in 0..WRITES {
            drop(db.write(|_| Ok::<(), perch_durable::Error>(())));
        }
        Self { release, db: db.clone() }
    }

    /// Returns once everything that was queued is written.
    async fn end(self) {
        let Self { release, db } = self;
        drop(release);
        while db.write(|_| Ok::<(), perch_durable::Error>(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

async fn rig_on(disk: &SmallDisk) -> Rig {
    let folder = tempfile::tempdir_in(disk.path()).unwrap();
    Rig::on(FakeServer::new(), Arc::default(), folder).await
}

/// Waits until the tasks of an agent that ended have let go of its file.
async fn closed(path: &Path) {
    loop {
        match Db::open(path, &[]) {
            Ok(db) => return drop(db),
            Err(perch_durable::Error::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

fn free(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn update(bits: u64, config: &serde_json::Value) -> Command {
    let next = request(bits, config);
    Command::Update {
        instance: next.instance,
        epoch: bits,
        config: Box::new(next.config),
        config_digest: next.config_digest,
        skip_launch: false,
        cordoned: false,
        secrets: SecretsWanted::default(),
    }
}

impl Rig {
    /// Waits until the machine's task follows its boot.
    async fn followed(&self, id: &MachineId) {
        let mut follow = self.host.shared.machine(id).unwrap().follow();
        let found = follow.wait_for(|published| published.instance.is_some());
        drop(tokio::time::timeout(Duration::from_secs(20), found).await.unwrap());
    }

    /// A machine that serves, told to stop while a request to it is under way.
    async fn draining(&self) -> (MachineId, Sender) {
        let service = json!({"protocol": "tcp", "internal_port": 80, "ports": [{"port": 80}]});
        let id = self.create(1, json!({"services": [service]})).await;
        let sender = self.host.shared.drains.join(None);
        self.tell(&id, STOP).await;
        self.until(&id, |machine| machine.state == State::Stopping).await;
        (id, sender)
    }
}

#[tokio::test]
async fn a_layer_is_repaired_before_each_boot_and_never_under_one() {
    let rig = Rig::new().await;
    let config = json!({"rootfs": {"persist": "always", "size_gb": 1}});
    let id = rig.create(1, config.clone()).await;
    assert_eq!(rig.server.repaired().len(), 1);
    let mut next = config;
    next["env"] = json!({"COLOUR": "green"});
    rig.tell(&id, update(2, &next)).await;
    rig.until(&id, |machine| machine.state == State::Started && machine.config.env.len() == 1)
        .await;
    rig.tell(&id, STOP).await;
    rig.wait(&id, "stopped").await;
    rig.tell(&id, Command::Start).await;
    rig.wait(&id, "started").await;
    let repaired = rig.server.repaired();
    assert_eq!(repaired.len(), 3, "{repaired:?}");
    assert!(repaired.iter().all(|path| path == &repaired[0]), "it is one layer: {repaired:?}");
}

#[tokio::test]
async fn a_machine_whose_monitor_does_not_answer_is_left_alone() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"restart": {"policy": "always"}})).await;
    let (server, clock, folder) = rig.end().await;
    server.runtime.set_silent(true);
    let rig = Rig::on(server, clock, folder).await;
    assert_eq!(rig.look(&id).await.state, State::Started);
    assert!(rig.server.runtime.runs(&id));
    rig.server.runtime.set_silent(false);
    rig.followed(&id).await;
    let found = rig.host.get(&id).unwrap();
    assert_eq!((found.state, rig.boots(&id)), (State::Started, 1), "{:?}", found.events);
    // Its end is heard of.
    rig.server.runtime.exit(&id, 1);
    rig.started(&id, 2).await;
}

#[tokio::test]
async fn a_machine_whose_monitor_does_not_answer_is_destroyed_when_it_is_to_be() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    let (server, clock, folder) = rig.end().await;
    server.runtime.set_silent(true);
    let rig = Rig::on(server, clock, folder).await;
    rig.tell(&id, Command::Destroy { force: true }).await;
    rig.wait(&id, "destroyed").await;
    assert!(!rig.server.runtime.runs(&id));
}

#[tokio::test]
async fn an_agent_starts_on_a_full_disk_and_frees_it() {
    let Some(disk) = SmallDisk::mount("an_agent_starts_on_a_full_disk_and_frees_it").unwrap()
    else {
        return;
    };
    let rig = rig_on(&disk).await;
    let stopped = rig.create(1, json!({})).await;
    let destroyed = rig.create(2, json!({})).await;
    let (server, clock, folder) = rig.end().await;
    closed(&folder.path().join("data/host.db")).await;
    let filler = disk.fill().unwrap();
    let rig = Rig::on(server, clock, folder).await;
    assert!(rig.host.shared.db.is_full());
    rig.tell(&stopped, STOP).await;
    rig.wait(&stopped, "stopped").await;
    rig.tell(&destroyed, Command::Destroy { force: true }).await;
    rig.wait(&destroyed, "destroyed").await;
    free(&filler);
    rig.tell(&stopped, Command::Start).await;
    rig.wait(&stopped, "started").await;
}

#[tokio::test]
async fn an_end_that_cannot_be_journaled_is_not_forgotten() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({"restart": {"policy": "no"}})).await;
    let jam = Jam::new(&rig.host.shared.db);
    rig.server.runtime.exit(&id, 3);
    loop {
        let refused = rig.host.command(&id, Command::Signal { signal: 1 }).await.unwrap_err();
        // The task heard of the end, and could not write it down.
        if refused.error == "no program runs" {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.host.get(&id).unwrap().state, State::Started);
    jam.end().await;
    let found = rig.wait(&id, "stopped").await;
    let exit = of_kind(&found, "exit")[0].request.clone().unwrap();
    assert_eq!(exit["exit_event"]["exit_code"], 3, "{exit}");
}

#[tokio::test]
async fn a_command_that_waits_for_room_is_not_lost_and_keeps_no_end_waiting() {
    let test = "a_command_that_waits_for_room_is_not_lost_and_keeps_no_end_waiting";
    let Some(disk) = SmallDisk::mount(test).unwrap() else {
        return;
    };
    let rig = rig_on(&disk).await;
    let (id, sender) = rig.draining().await;
    rig.tell(&id, Command::Start).await;
    for goal in ["started", "destroyed"] {
        let filler = disk.fill().unwrap();
        let row = HostRow {
            id: HostId::from_bits(1),
            incarnation: 0,
            starts: 0,
            server_boot: "x".repeat(1 << 20),
        };
        let refused = rig.host.shared.db.write(move |tx| HOST.put(tx, &"big".to_owned(), &row));
        assert!(matches!(refused.await, Err(perch_durable::Error::Full)));
        assert!(rig.host.shared.db.is_full());
        rig.server.runtime.exit(&id, 0);
        rig.wait(&id, "stopped").await;
        // It is answered once the start was tried.
        rig.tell(&id, Command::SetCordoned { cordoned: true }).await;
        assert_eq!(rig.host.get(&id).unwrap().state, State::Stopped);
        if goal == "destroyed" {
            rig.tell(&id, Command::Destroy { force: true }).await;
            rig.wait(&id, goal).await;
            free(&filler);
            break;
        }
        free(&filler);
        rig.wait(&id, goal).await;
        rig.tell(&id, STOP).await;
        rig.tell(&id, Command::Start).await;
    }
    drop(sender);
}

#[tokio::test]
async fn a_run_that_cannot_go_on_does_not_hold_up_a_destruction() {
    let rig = Rig::new().await;
    let (id, sender) = rig.draining().await;
    let jam = Jam::new(&rig.host.shared.db);
    rig.server.runtime.exit(&id, 0);
    while !rig.host.step_times().iter().any(|(name, _)| *name == "run: stop") {
        tokio::task::yield_now().await;
    }
    jam.end().await;
    // By itself it would try again in half a minute, and the wait is shorter.
    rig.tell(&id, Command::Destroy { force: true }).await;
    rig.wait(&id, "destroyed").await;
    drop(sender);
}

#[tokio::test]
async fn a_machine_that_cannot_be_forgotten_is_left_alone_for_a_while() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    rig.tell(&id, Command::Destroy { force: true }).await;
    rig.wait(&id, "destroyed").await;
    let jam = Jam::new(&rig.host.shared.db);
    let before = rig.server.removals();
    let pass = |by_ms| rig.clock.passed_ms.fetch_add(by_ms, Ordering::SeqCst);
    pass(601_000);
    for _ in 0..4 {
        rig.host.command(&id, Command::Start).await.unwrap_err();
    }
    assert_eq!(rig.server.removals(), before + 1);
    jam.end().await;
    pass(31_000);
    while rig.host.command(&id, Command::Start).await.unwrap_err().code != Code::MachineNotFound {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_drain_takes_no_place_at_the_monitor() {
    let rig = Rig::new().await;
    let (id, sender) = rig.draining().await;
    rig.server.runtime.exit(&id, 0);
    rig.wait(&id, "stopped").await;
    drop(sender);
    // One for the machine's task, one for the stop itself.
    assert_eq!(rig.server.runtime.waits(), 2);
}

impl Rig {
    /// A suspended machine that is told to start, as far as the first thaw that failed.
    async fn thawing(&self, fault: ThawFault) -> MachineId {
        let id = self.create(1, json!({"restart": {"policy": "always"}})).await;
        self.tell(&id, Command::Suspend).await;
        self.wait(&id, "suspended").await;
        self.server.runtime.set_thaw_fault(Some(fault));
        self.tell(&id, Command::Start).await;
        self.thaws(&id, 1).await;
        id
    }

    /// Waits until somebody tried so often to let a machine go on.
    async fn thaws(&self, id: &MachineId, count: usize) {
        let calls = || self.server.runtime.calls(id).into_iter();
        while calls().filter(|call| *call == Call::Thaw).count() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_thaw_that_fails_for_a_moment_loses_nothing() {
    let rig = Rig::new().await;
    let id = rig.thawing(ThawFault::Refused).await;
    rig.server.runtime.set_thaw_fault(None);
    let found = rig.wait(&id, "started").await;
    assert_eq!((rig.boots(&id), &found.failure), (1, &None));
    assert!(of_kind(&found, "exit").is_empty(), "{:?}", found.events);
}

#[tokio::test]
async fn a_machine_that_cannot_go_on_now_stays_suspended_until_the_next_start() {
    let rig = Rig::new().await;
    let id = rig.thawing(ThawFault::Refused).await;
    rig.thaws(&id, 2).await;
    // Longer than a run tries again.
    rig.clock.passed_ms.fetch_add(61_000, Ordering::SeqCst);
    let found = rig.wait(&id, "suspended").await;
    let failure = found.failure.as_ref().unwrap();
    assert!(failure.error.contains("cannot allocate memory"), "{failure}");
    let failed = &found.events[0];
    assert_eq!((failed.kind.as_str(), failed.status.as_str()), ("failed", "suspended"));
    assert_eq!(rig.server.runtime.calls(&id).last(), Some(&Call::Freeze), "it may have gone on");
    rig.server.runtime.set_thaw_fault(None);
    rig.tell(&id, Command::Start).await;
    let found = rig.wait(&id, "started").await;
    assert_eq!((rig.boots(&id), &found.failure), (1, &None));
    assert!(of_kind(&found, "exit").is_empty(), "{:?}", found.events);
}

#[tokio::test]
async fn a_suspended_machine_that_is_gone_starts_anew() {
    for is_lost in [false, true] {
        let rig = Rig::new().await;
        let fault = if is_lost { ThawFault::Refused } else { ThawFault::NoCgroup };
        let id = rig.thawing(fault).await;
        if is_lost {
            rig.server.runtime.lose(&id);
        }
        rig.started(&id, 2).await;
        let found = rig.host.get(&id).unwrap();
        assert_eq!(rig.boots(&id), 2, "{is_lost}");
        let exit = of_kind(&found, "exit")[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["restarting"], true, "{is_lost}: {exit}");
    }
}

#[tokio::test]
async fn a_machine_that_does_not_go_on_can_be_ended_though_its_monitor_says_nothing() {
    for (command, goal) in [(STOP, "stopped"), (Command::Destroy { force: true }, "destroyed")] {
        let rig = Rig::new().await;
        let id = rig.thawing(ThawFault::Refused).await;
        let (server, clock, folder) = rig.end().await;
        server.runtime.set_silent(true);
        let rig = Rig::on(server, clock, folder).await;
        rig.tell(&id, command).await;
        while rig.host.get(&id).unwrap().state == State::Starting {
            // A stop waits until the run is given up, a destruction by force does not.
            let passed_ms = if goal == "stopped" { 30_000 } else { 0 };
            rig.clock.passed_ms.fetch_add(passed_ms, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.wait(&id, goal).await;
        assert!(!rig.server.runtime.runs(&id), "{goal}");
    }
}

#[tokio::test]
async fn what_is_frozen_though_it_should_run_is_let_go_on_once_it_can_be() {
    let rig = Rig::new().await;
    let id = rig.create(1, json!({})).await;
    let dir = rig.host.shared.machine_dir(&id);
    let (server, clock, folder) = rig.end().await;
    let instance = match server.runtime.adopt(&dir).await.unwrap() {
        Adopted::Running(instance) => instance,
        other => panic!("{other:?}"),
    };
    instance.freeze().await.unwrap();
    server.runtime.set_thaw_fault(Some(ThawFault::Refused));
    let rig = Rig::on(server, clock, folder).await;
    rig.thaws(&id, 1).await;
    assert!(instance.is_frozen().await.unwrap());
    rig.server.runtime.set_thaw_fault(None);
    while instance.is_frozen().await.unwrap() {
        rig.clock.passed_ms.fetch_add(1_000, Ordering::SeqCst);
        rig.look(&id).await;
    }
    assert_eq!((rig.look(&id).await.state, rig.boots(&id)), (State::Started, 1));
}
