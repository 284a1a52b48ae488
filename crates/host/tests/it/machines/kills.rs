//! The agent is killed with -9 after every write of its journal, for every kind of run, with real
//! machines: the next agent brings the run to its goal, and nothing is left over.
//!
//! The agent is a process of this test binary, which ends itself from the hook that is called
//! after every commit. A server has no switch for that.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perch_host::Host;
use perch_testkit::{Place, Reality, Said};
use perch_types::MachineState;
use perch_types::host::HostMachine;

use super::acts::{ACTS, Act, Kind};
use super::server::{PATIENCE, Server};

/// Set for a child that is an agent: the folder of its server, the act, the machine's number,
/// after which commit it ends, counted from the act's beginning or from the agent's own, and how
/// far its clock is turned.
const AGENT: &str = "PERCH_TEST_KILLED_AGENT";
/// The name of the test that the child runs.
const CHILD: &str = "machines::kills::agent_that_is_killed";
/// Set for the long tests: every pair of two kills, the second in the midst of recovering.
const LONG: &str = "PERCH_TEST_LONG";
/// More commits than any run has.
const COMMITS_MAX: u64 = 40;

/// Waits until the act is over.
async fn reached(host: &Host, act: Act, number: u64) {
    let deadline = Instant::now() + PATIENCE;
    while !act.is_reached(number, host) {
        let found = || (host.get(&act.request(number).id), host.volumes());
        assert!(Instant::now() < deadline, "{act:?}: {:#?}", found());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn start(server: &Server, commits: Arc<AtomicU64>) -> Host {
    start_telling(server, move || {
        // One before the last: the count was armed with how many are still to come.
        if commits.fetch_sub(1, Ordering::SeqCst) == 1 {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        }
    })
    .await
}

/// Starts an agent that calls `committed` after every commit.
pub(super) async fn start_telling(
    server: &Server,
    committed: impl Fn() + Send + Sync + 'static,
) -> Host {
    let effects = server.effects().await;
    // Without a directory: nobody then lays down machines that have no placement.
    Host::start_telling(server.config(), effects, None, Vec::new(), committed).await.unwrap()
}

/// Ends the agent and waits until all that is left of it let go of its file.
async fn stop(server: &Server, host: Host) {
    host.shutdown().await;
    drop(host);
    let deadline = Instant::now() + PATIENCE;
    let path = server.config().data_dir.join("host.db.lock");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let kind = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    while rustix::fs::flock(&file, kind).is_err() {
        assert!(Instant::now() < deadline, "the agent does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Never ends the process: it takes an age to count down.
fn unarmed() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(u64::MAX))
}

/// Not a test of its own: what the child of the tests below does.
#[test]
fn agent_that_is_killed() {
    let Ok(words) = std::env::var(AGENT) else {
        return;
    };
    let words: Vec<&str> = words.split(' ').collect();
    let [folder, act, number, at, from, turned] = words.as_slice() else { unreachable!() };
    let act = Act::named(act);
    let (number, at): (u64, u64) = (number.parse().unwrap(), at.parse().unwrap());
    let is_recovering = *from == "start";
    let turned: i64 = turned.parse().unwrap();
    Server::adopt(Path::new(folder), |server| async move {
        server.clock.turn(turned);
        let commits = unarmed();
        if is_recovering {
            commits.store(at, Ordering::SeqCst);
        }
        let host = start(&server, Arc::clone(&commits)).await;
        if !is_recovering {
            commits.store(at, Ordering::SeqCst);
            act.begin(&host, number).await.unwrap();
        }
        reached(&host, act, number).await;
        std::io::stdout().write_all(b"over\n").unwrap();
        std::future::pending::<()>().await;
    });
}

/// Runs an agent until it ends itself or the act is over; returns whether it ended itself.
fn killed(server: &Server, act: Act, number: u64, at: u64, from: &str) -> bool {
    let (folder, turned) = (server.folder.display(), server.clock.turned_ms());
    let words = format!("{folder} {act:?} {number} {at} {from} {turned}");
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args(["--exact", CHILD, "--nocapture"])
        .env(AGENT, words)
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = program.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_over = lines.any(|line| line.is_ok_and(|line| line.contains("over")));
    end(&mut child, is_over);
    !is_over
}

fn end(child: &mut Child, is_over: bool) {
    use std::os::unix::process::ExitStatusExt as _;
    if is_over {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the agent did not end itself, it failed");
}

fn said(host: &Host) -> Vec<Said> {
    let runs = |machine: &HostMachine| {
        matches!(machine.state, MachineState::Started | MachineState::Suspended)
    };
    host.list().iter().map(|one| Said { id: one.id.to_string(), runs: runs(one) }).collect()
}

/// Compares what the host says with what there is, once it is at rest.
pub(super) async fn check(server: &Server, host: &Host, what: &str) {
    let config = server.config();
    let place = Place {
        data: config.data_dir,
        run: config.run_dir,
        cgroup: config.cgroup,
        pool: server.folder.join("pool/pool"),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let wrong = Reality::look(&place).unwrap().differences(&said(host));
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {wrong:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets the act be killed after one commit after the other, until none is left. With `twice`, the
/// agent that recovers is killed after each of its own as well.
async fn survives(server: &Server, act: Act, first_number: u64, twice: bool) -> u64 {
    let mut number = first_number;
    for at in 1..=COMMITS_MAX {
        let mut was_killed = true;
        for second in 1..=if twice { COMMITS_MAX } else { 1 } {
            number += 1;
            let host = start(server, unarmed()).await;
            act.prepare(server, &host, number).await;
            stop(server, host).await;
            was_killed = killed(server, act, number, at, "act");
            let again = twice && was_killed && killed(server, act, number, second, "start");
            let host = start(server, unarmed()).await;
            let what = format!("{act:?}, killed at {at}, again at {second} ({again})");
            reached(&host, act, number).await;
            check(server, &host, &what).await;
            act.verify(&host, number).await;
            act.clean(server, &host, number).await;
            server.clock.turn(-server.clock.turned_ms());
            check(server, &host, &format!("{what}, destroyed")).await;
            stop(server, host).await;
            if !again {
                break;
            }
        }
        if !was_killed {
            return at - 1;
        }
    }
    panic!("{act:?} is still not over after {COMMITS_MAX} commits");
}

fn all_survive(test: &str, kind: Kind) {
    let twice = std::env::var_os(LONG).is_some();
    Server::run(test, |server| async move {
        let acts = ACTS.into_iter().filter(|act| act.kind() == kind);
        for (act, number) in acts.zip(1_u64..) {
            let commits = survives(&server, act, 1_000 * number, twice).await;
            assert!(commits >= 1, "{act:?} wrote nothing");
        }
        let host = start(&server, unarmed()).await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn what_begins_survives_a_kill_after_every_commit() {
    let test = "what_begins_survives_a_kill_after_every_commit";
    all_survive(test, Kind::Begins);
}

#[test]
fn what_ends_survives_a_kill_after_every_commit() {
    let test = "what_ends_survives_a_kill_after_every_commit";
    all_survive(test, Kind::Ends);
}

#[test]
fn what_changes_survives_a_kill_after_every_commit() {
    let test = "what_changes_survives_a_kill_after_every_commit";
    all_survive(test, Kind::Changes);
}

#[test]
fn what_is_done_to_volumes_survives_a_kill_after_every_commit() {
    let test = "what_is_done_to_volumes_survives_a_kill_after_every_commit";
    all_survive(test, Kind::OfVolume);
}

/// What `systemctl restart` does in the middle of work: the agent ends by itself, and takes the
/// runtime with it that its steps run on.
#[test]
fn a_launch_in_the_middle_of_which_the_agent_ends_is_finished_by_the_next() {
    let test = "a_launch_in_the_middle_of_which_the_agent_ends_is_finished_by_the_next";
    Server::run(test, |server| async move {
        for round in 0..16_u64 {
            let number = 8_000 + round;
            let inner = Arc::clone(&server);
            let agent = move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let host = start(&inner, unarmed()).await;
                    Act::Launch.begin(&host, number).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(round * 3)).await;
                    stop(&inner, host).await;
                });
            };
            let ended = tokio::task::spawn_blocking(|| std::thread::spawn(agent).join());
            ended.await.unwrap().unwrap();
            let host = start(&server, unarmed()).await;
            reached(&host, Act::Launch, number).await;
            check(&server, &host, &format!("ended after {round}")).await;
            Act::Launch.clean(&server, &host, number).await;
            stop(&server, host).await;
        }
        let host = start(&server, unarmed()).await;
        host.remove_everything().await.unwrap();
    });
}
