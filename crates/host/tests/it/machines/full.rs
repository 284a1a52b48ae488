//! The disk is full from one commit of a run on, for every kind of run and every commit: whatever
//! becomes of the run, machine and volume can be stopped and destroyed, and once there is room
//! again everything goes on.

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

use super::acts::Act;
use super::kills::{check, start_telling};
use super::server::{PATIENCE, Server, tell, wait};

const DISK_MB: u32 = 48;
/// More commits than any run has.
const COMMITS_MAX: u64 = 40;

const ACTS: [Act; 18] = [
    Act::Launch,
    Act::Start,
    Act::Stop,
    Act::Restart,
    Act::Update,
    Act::UpdateStopped,
    Act::Exit,
    Act::Destroy,
    Act::Suspend,
    Act::Resume,
    Act::StopSuspended,
    Act::LaunchMounted,
    Act::DestroyMounted,
    Act::VolumeCreate,
    Act::VolumeExtend,
    Act::VolumeSnapshot,
    Act::VolumeFork,
    Act::VolumePurge,
];

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

/// A disk that is full from one commit on.
struct Disk {
    filler: PathBuf,
    /// How many commits are still to come before it is full.
    commits: Arc<AtomicU64>,
}

/// Returns whether nothing is under way with machine and volumes. A restart may wait for room
/// between its stop and its start.
fn rests(host: &Host, disk: &Disk, act: Act, number: u64) -> bool {
    use MachineState::{Destroyed, Failed, Restarting, Started, Stopped, Suspended};
    let machine = match host.get(&act.request(number).id).map(|found| found.state) {
        Ok(Restarting) => disk.filler.exists(),
        Ok(state) => matches!(state, Started | Stopped | Suspended | Failed | Destroyed),
        Err(_) => true,
    };
    let volumes = host.volumes();
    let state = |state: &str| matches!(state, "created" | "pending_destroy");
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
        use MachineState::{Restarting, Started, Suspended};
        matches!(state, Started | Restarting | Suspended)
    };
    if host.get(&id).is_ok_and(|found| runs(found.state)) {
        tell(host, &id, Command::Stop { signal: None, timeout: None }).await;
        wait(host, &id, "stopped").await;
    }
    act.clean(server, host, number).await;
    server.clock.turn(-server.clock.turned_ms());
    disk.commits.store(u64::MAX, Ordering::SeqCst);
    drop(std::fs::remove_file(&disk.filler));
    check(server, host, &format!("{act:?}, full at {at}")).await;
    was_full
}

#[test]
fn on_a_full_disk_machines_are_stopped_and_destroyed_and_go_on_when_there_is_room() {
    let test = "on_a_full_disk_machines_are_stopped_and_destroyed_and_go_on_when_there_is_room";
    Server::run(test, |server| async move {
        let data = server.config().data_dir;
        std::fs::create_dir_all(&data).unwrap();
        let (at, size) = (data.display().to_string(), format!("size={DISK_MB}m"));
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &at]);
        let disk =
            Disk { filler: data.join("filler"), commits: Arc::new(AtomicU64::new(u64::MAX)) };
        let (count, target) = (Arc::clone(&disk.commits), disk.filler.clone());
        let host = start_telling(&server, move || {
            if count.fetch_sub(1, Ordering::SeqCst) == 1 {
                fill(&target);
            }
        })
        .await;
        let mut number = 0;
        for act in ACTS {
            let mut commits = 0;
            loop {
                (number, commits) = (number + 1, commits + 1);
                assert!(commits <= COMMITS_MAX, "{act:?} has no end");
                if !through(&server, &host, &disk, (act, number, commits)).await {
                    break;
                }
            }
            assert!(commits > 1, "{act:?} wrote nothing");
        }
        host.remove_everything().await.unwrap();
        drop(host);
        run("umount", &["-l", &at]);
    });
}
