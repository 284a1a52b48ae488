//! Monitors that say nothing, disks that are full, files that take no writes: nothing that runs is
//! harmed, and nothing that was accepted is lost.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::mpsc;

use perch_durable::Db;
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

/// A disk of a few MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    #[expect(clippy::print_stderr, reason = "a test that did not run says so")]
    fn mount(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Program::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=12m", "perch-host-test"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: {test}: the right to mount a tmpfs");
        }
        mounted.then(|| Self(folder))
    }

    async fn rig(&self) -> Rig {
        let folder = tempfile::tempdir_in(self.0.path()).unwrap();
        Rig::on(FakeServer::new(), Arc::default(), folder).await
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [64 * 1024, 1024, 1] {
            let zeros = vec![0; size];
            while file.write(&zeros).is_ok_and(|written| written > 0) {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Program::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
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
        let sender = self.host.shared.drains.join();
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
    let Some(disk) = SmallDisk::mount("an_agent_starts_on_a_full_disk_and_frees_it") else {
        return;
    };
    let rig = disk.rig().await;
    let stopped = rig.create(1, json!({})).await;
    let destroyed = rig.create(2, json!({})).await;
    let (server, clock, folder) = rig.end().await;
    closed(&folder.path().join("data/host.db")).await;
    let filler = disk.fill();
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
    let Some(disk) = SmallDisk::mount(test) else {
        return;
    };
    let rig = disk.rig().await;
    let (id, sender) = rig.draining().await;
    rig.tell(&id, Command::Start).await;
    for goal in ["started", "destroyed"] {
        let filler = disk.fill();
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
