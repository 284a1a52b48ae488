//! The disk is full from one commit of a run on, for every kind of run and every commit: whatever
//! becomes of the run, machine and volume can be stopped and destroyed, and once there is room
//! again everything goes on. The same with the pool instead, for everything that has to do with a
//! volume.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perch_host::Host;
use perch_types::MachineState;
use perch_types::host::Command;

use super::acts::{ACTS, Act};
use super::kills::{check, start_telling};
use super::server::{PATIENCE, Server, tell, wait};

const DISK_MB: u32 = 48;
/// More commits than any run has.
const COMMITS_MAX: u64 = 40;

/// Takes all the room there is.
pub(super) fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 16, 1 << 10, 1] {
        let zeros = vec![0; size];
        while file.write(&zeros).is_ok_and(|written| written > 0) {}
    }
}

pub(super) fn run(program: &str, arguments: &[&str]) {
    assert!(Program::new(program).args(arguments).status().unwrap().success(), "{program}");
}

/// Takes all the room of a file system that gives it away without a write: the pool is large.
fn claim(path: &Path) {
    let file = File::create(path).unwrap();
    let mut offset = 0;
    for shift in [30, 26, 22, 18, 14, 12] {
        let (none, bytes) = (rustix::fs::FallocateFlags::empty(), 1_u64 << shift);
        while rustix::fs::fallocate(&file, none, offset, bytes).is_ok() {
            offset += bytes;
        }
    }
}

fn free_bytes(folder: &Path) -> u64 {
    let found = rustix::fs::statvfs(folder).unwrap();
    found.f_bavail * found.f_frsize
}

/// A disk that is full from one commit on.
struct Disk {
    filler: PathBuf,
    /// How many commits are still to come before it is full.
    commits: Arc<AtomicU64>,
    /// Whether it is the pool.
    has_volumes: bool,
}

impl Disk {
    /// Waits until there is room again: XFS gives back what a removed file had a moment later.
    async fn empty(&self) {
        let had = std::fs::metadata(&self.filler).map_or(0, |found| found.len());
        drop(std::fs::remove_file(&self.filler));
        let deadline = Instant::now() + PATIENCE;
        while free_bytes(self.filler.parent().unwrap()) < had / 2 {
            assert!(Instant::now() < deadline, "the filler's blocks are not free");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Returns whether nothing is under way with machine and volumes but what waits for room: a restart
/// between its stop and its start, an update on its way back to the version that ran, a volume that
/// grows and the launch for which it does.
fn rests(host: &Host, disk: &Disk, act: Act, number: u64) -> bool {
    use MachineState::{
        Created, Destroyed, Failed, Replacing, Restarting, Started, Stopped, Suspended,
    };
    let machine = match host.get(&act.request(number).id).map(|found| found.state) {
        Ok(Restarting) => disk.filler.exists(),
        Ok(Replacing) => act == Act::UpdateToNothing && disk.filler.exists(),
        Ok(Created) => act == Act::LaunchMounted && disk.has_volumes && disk.filler.exists(),
        Ok(state) => matches!(state, Started | Stopped | Suspended | Failed | Destroyed),
        Err(_) => true,
    };
    let volumes = host.volumes();
    let waits = disk.has_volumes && disk.filler.exists();
    let state = |state: &str| match state {
        "created" | "pending_destroy" => true,
        "extending" => waits,
        _ => false,
    };
    let whole = |id| host.snapshots(id).unwrap().iter().all(|one| one.snapshot.status == "created");
    machine && volumes.iter().all(|one| state(one.state.as_str()) && whole(&one.id))
}

/// Puts one act through a disk that is full from its commit `at` on; returns whether it got there.
async fn through(
    server: &Server,
    host: &Host,
    disk: &Disk,
    (act, number, at): (Act, u64, u64),
) -> bool {
    let id = act.request(number).id;
    act.prepare(server, host, number).await;
    disk.commits.store(at, Ordering::SeqCst);
    // It may be refused, in plain words, but never hang.
    if let Err(error) = act.begin(host, number).await {
        assert!(!error.error.is_empty(), "{act:?}");
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let over = act.is_reached(number, host) || disk.filler.exists();
        if over && rests(host, disk, act, number) {
            break;
        }
        let found = || (host.get(&id), host.volumes());
        assert!(Instant::now() < deadline, "{act:?}, full at {at}: {:#?}", found());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let was_full = disk.filler.exists();
    let runs = |state| {
        use MachineState::{Replacing, Restarting, Started, Suspended};
        matches!(state, Started | Replacing | Restarting | Suspended)
    };
    if host.get(&id).is_ok_and(|found| runs(found.state)) {
        tell(host, &id, Command::Stop { signal: None, timeout: None }).await;
        let stopped = wait(host, &id, "stopped").await;
        // A stop that ends the way back of an update is no failure for which others stand in.
        let exit = stopped.events.iter().find(|event| event.kind == "exit");
        let exit = exit.and_then(|event| event.request.as_ref()).map(|said| &said["exit_event"]);
        let is_asked = exit.is_none_or(|exit| exit["requested_stop"] == true);
        assert!(act != Act::UpdateToNothing || is_asked, "full at {at}: {exit:?}");
    }
    act.clean(server, host, number).await;
    server.clock.turn(-server.clock.turned_ms());
    disk.commits.store(u64::MAX, Ordering::SeqCst);
    disk.empty().await;
    check(server, host, &format!("{act:?}, full at {at}")).await;
    was_full
}

/// Puts acts through a disk that is full from each of their commits on.
async fn all_through(server: &Server, host: &Host, disk: &Disk, acts: impl Iterator<Item = Act>) {
    let mut number = 0;
    for act in acts {
        let mut commits = 0;
        loop {
            (number, commits) = (number + 1, commits + 1);
            assert!(commits <= COMMITS_MAX, "{act:?} has no end");
            if !through(server, host, disk, (act, number, commits)).await {
                break;
            }
        }
        assert!(commits > 1, "{act:?} wrote nothing");
    }
}

/// Starts an agent that fills a disk when the commits that the disk was given are over.
async fn start_filling(server: &Server, disk: &Disk, fill: fn(&Path)) -> Host {
    let (count, target) = (Arc::clone(&disk.commits), disk.filler.clone());
    start_telling(server, move || {
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            fill(&target);
        }
    })
    .await
}

#[test]
fn on_a_full_disk_machines_are_stopped_and_destroyed_and_go_on_when_there_is_room() {
    let test = "on_a_full_disk_machines_are_stopped_and_destroyed_and_go_on_when_there_is_room";
    Server::run(test, |server| async move {
        let data = server.config().data_dir;
        std::fs::create_dir_all(&data).unwrap();
        let (at, size) = (data.display().to_string(), format!("size={DISK_MB}m"));
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &at]);
        let (filler, commits) = (data.join("filler"), Arc::new(AtomicU64::new(u64::MAX)));
        let disk = Disk { filler, commits, has_volumes: false };
        let host = start_filling(&server, &disk, fill).await;
        all_through(&server, &host, &disk, ACTS.into_iter()).await;
        host.remove_everything().await.unwrap();
        drop(host);
        run("umount", &["-l", &at]);
    });
}

#[test]
fn in_a_full_pool_machines_and_volumes_are_destroyed_and_others_come_when_there_is_room() {
    let test =
        "in_a_full_pool_machines_and_volumes_are_destroyed_and_others_come_when_there_is_room";
    Server::run(test, |server| async move {
        let filler = server.folder.join("pool/pool/filler");
        let commits = Arc::new(AtomicU64::new(u64::MAX));
        let disk = Disk { filler, commits, has_volumes: true };
        let host = start_filling(&server, &disk, claim).await;
        // The pool is made with its first volume.
        Act::VolumeDestroy.prepare(&server, &host, 0).await;
        Act::VolumeDestroy.clean(&server, &host, 0).await;
        let acts = ACTS.into_iter().filter(|act| act.is_of_volume() || act.mounts());
        all_through(&server, &host, &disk, acts).await;
        host.remove_everything().await.unwrap();
    });
}
