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
use perch_types::host::{Command, CreateMachine, HostMachine};
use perch_types::machine_config::{RestartConfig, RestartPolicy, Signal, StopConfig};
use perch_types::{ApiError, InstanceId, MachineId, MachineState};

use super::server::{PATIENCE, Server, exec, machine, tell, wait};

/// Set for a child that is an agent: the folder of its server, the act, the machine's number, and
/// after which commit it ends; counted from the act's beginning or from the agent's own.
const AGENT: &str = "PERCH_TEST_KILLED_AGENT";
/// The name of the test that the child runs.
const CHILD: &str = "machines::kills::agent_that_is_killed";
/// Set for the long tests: every pair of two kills, the second in the midst of recovering.
const LONG: &str = "PERCH_TEST_LONG";
/// More commits than any run has.
const COMMITS_MAX: u64 = 40;

const SCRIPT: &str = "echo up; while [ ! -e /tmp/go ]; do sleep 0.02; done; rm /tmp/go; exit 0";

/// What is done to a machine while the agent is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Launch,
    Prepare,
    LaunchNothing,
    Start,
    Stop,
    Restart,
    Update,
    UpdateStopped,
    UpdateToNothing,
    Cordon,
    Exit,
    ExitAndRestart,
    Destroy,
    DestroyStopped,
}

const ACTS: [Act; 14] = [
    Act::Launch,
    Act::Prepare,
    Act::LaunchNothing,
    Act::Start,
    Act::Stop,
    Act::Restart,
    Act::Update,
    Act::UpdateStopped,
    Act::UpdateToNothing,
    Act::Cordon,
    Act::Exit,
    Act::ExitAndRestart,
    Act::Destroy,
    Act::DestroyStopped,
];

impl Act {
    fn named(name: &str) -> Self {
        ACTS.into_iter().find(|act| format!("{act:?}") == name).unwrap()
    }

    pub(super) fn request(self, number: u64) -> CreateMachine {
        let mut request = machine(number, SCRIPT);
        // A shell takes no notice of SIGINT, and nobody wants to wait for it.
        let signal = Some(Signal::SigKill);
        request.config.stop_config = Some(StopConfig { signal, ..StopConfig::default() });
        request.skip_launch = self == Self::Prepare;
        if self == Self::LaunchNothing {
            request.config.init.exec = vec!["/no/such/program".to_owned()];
        }
        if self == Self::ExitAndRestart {
            request.config.restart =
                Some(RestartConfig { policy: Some(RestartPolicy::Always), ..Default::default() });
        }
        request
    }

    /// Brings the machine to where the act begins.
    pub(super) async fn prepare(self, host: &Host, number: u64) {
        let request = self.request(number);
        let id = request.id.clone();
        match self {
            Self::Launch | Self::Prepare | Self::LaunchNothing => {}
            Self::Start | Self::UpdateStopped | Self::DestroyStopped => {
                host.create(CreateMachine { skip_launch: true, ..request }).await.unwrap();
                wait(host, &id, "stopped").await;
            }
            Self::Stop
            | Self::Restart
            | Self::Update
            | Self::UpdateToNothing
            | Self::Cordon
            | Self::Exit
            | Self::ExitAndRestart
            | Self::Destroy => {
                host.create(request).await.unwrap();
                wait(host, &id, "started").await;
            }
        }
    }

    /// Asks for the act; that may be refused.
    pub(super) async fn begin(self, host: &Host, number: u64) -> Result<(), ApiError> {
        let request = self.request(number);
        let id = request.id.clone();
        let command = match self {
            Self::Launch | Self::Prepare | Self::LaunchNothing => {
                return host.create(request).await.map(drop);
            }
            Self::Exit | Self::ExitAndRestart => {
                return exec(host, &id, "touch /tmp/go").await.map(drop);
            }
            Self::Start => Command::Start,
            Self::Stop => Command::Stop { signal: None, timeout: None },
            Self::Restart => Command::Restart { force: true, signal: None, timeout: None },
            Self::Update | Self::UpdateStopped | Self::UpdateToNothing => self.update(number),
            Self::Cordon => Command::SetCordoned { cordoned: true },
            Self::Destroy | Self::DestroyStopped => Command::Destroy { force: true },
        };
        host.command(&id, command).await.map(drop)
    }

    fn update(self, number: u64) -> Command {
        let mut config = self.request(number).config;
        config.env.insert("VERSION".to_owned(), "2".to_owned());
        if self == Self::UpdateToNothing {
            config.init.exec = vec!["/no/such/program".to_owned()];
        }
        Command::Update {
            instance: second(number),
            epoch: 2,
            config: Box::new(config),
            config_digest: format!("{number}-2"),
            skip_launch: false,
            cordoned: false,
            secrets: perch_types::host::SecretsWanted::default(),
        }
    }

    /// Returns whether the machine is where the act leads.
    pub(super) fn is_reached(self, number: u64, found: &HostMachine) -> bool {
        let first = self.request(number).instance;
        let events = |kind: &str| found.events.iter().filter(|event| event.kind == kind).count();
        match self {
            Self::Launch | Self::Start => found.state == MachineState::Started,
            Self::Prepare | Self::Stop | Self::Exit | Self::LaunchNothing => {
                found.state == MachineState::Stopped
            }
            Self::Restart => {
                found.state == MachineState::Started && events("start") == 2 && events("exit") == 1
            }
            Self::ExitAndRestart => found.state == MachineState::Started && events("start") == 2,
            Self::Update | Self::UpdateStopped => {
                found.state == MachineState::Started && found.instance == second(number)
            }
            Self::UpdateToNothing => {
                found.state == MachineState::Started
                    && found.instance == first
                    && found.failure.is_some()
            }
            Self::Cordon => found.state == MachineState::Started && found.cordoned,
            Self::Destroy | Self::DestroyStopped => found.state == MachineState::Destroyed,
        }
    }
}

fn second(number: u64) -> InstanceId {
    InstanceId::from_parts(1_700_000_000_001, u128::from(number))
}

/// Waits until the act is over; what it says after that is `None` for a machine that is no more.
async fn reached(host: &Host, act: Act, number: u64, id: &MachineId) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = host.get(id);
        if found.as_ref().is_ok_and(|found| act.is_reached(number, found)) {
            return;
        }
        assert!(Instant::now() < deadline, "{act:?}: {found:#?}");
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
    let [folder, act, number, at, from] = words.as_slice() else { unreachable!() };
    let act = Act::named(act);
    let (number, at): (u64, u64) = (number.parse().unwrap(), at.parse().unwrap());
    let is_recovering = *from == "start";
    Server::adopt(Path::new(folder), |server| async move {
        let commits = unarmed();
        if is_recovering {
            commits.store(at, Ordering::SeqCst);
        }
        let host = start(&server, Arc::clone(&commits)).await;
        if !is_recovering {
            commits.store(at, Ordering::SeqCst);
            act.begin(&host, number).await.unwrap();
        }
        reached(&host, act, number, &act.request(number).id).await;
        std::io::stdout().write_all(b"over\n").unwrap();
        std::future::pending::<()>().await;
    });
}

/// Runs an agent until it ends itself or the act is over; returns whether it ended itself.
fn killed(server: &Server, act: Act, number: u64, at: u64, from: &str) -> bool {
    let words = format!("{} {act:?} {number} {at} {from}", server.folder.display());
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
    let runs = |machine: &HostMachine| machine.state == MachineState::Started;
    host.list().iter().map(|one| Said { id: one.id.to_string(), runs: runs(one) }).collect()
}

/// Compares what the host says with what there is, once it is at rest.
pub(super) async fn check(server: &Server, host: &Host, what: &str) {
    let config = server.config();
    let place = Place { data: config.data_dir, run: config.run_dir, cgroup: config.cgroup };
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
            let id = act.request(number).id;
            let host = start(server, unarmed()).await;
            act.prepare(&host, number).await;
            stop(server, host).await;
            was_killed = killed(server, act, number, at, "act");
            let again = twice && was_killed && killed(server, act, number, second, "start");
            let host = start(server, unarmed()).await;
            let what = format!("{act:?}, killed at {at}, again at {second} ({again})");
            reached(&host, act, number, &id).await;
            check(server, &host, &what).await;
            if host.get(&id).is_ok_and(|found| found.state != MachineState::Destroyed) {
                tell(&host, &id, Command::Destroy { force: true }).await;
                wait(&host, &id, "destroyed").await;
            }
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

fn all_survive(test: &str, acts: &'static [Act]) {
    let twice = std::env::var_os(LONG).is_some();
    Server::run(test, |server| async move {
        for (number, act) in acts.iter().enumerate() {
            let first = 1_000 * u64::try_from(number + 1).unwrap();
            let commits = survives(&server, *act, first, twice).await;
            assert!(commits >= 1, "{act:?} wrote nothing");
        }
        let host = start(&server, unarmed()).await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn what_begins_survives_a_kill_after_every_commit() {
    let test = "what_begins_survives_a_kill_after_every_commit";
    all_survive(test, &[Act::Launch, Act::Prepare, Act::LaunchNothing, Act::Start]);
}

#[test]
fn what_ends_survives_a_kill_after_every_commit() {
    let test = "what_ends_survives_a_kill_after_every_commit";
    all_survive(test, &[Act::Stop, Act::Exit, Act::Destroy, Act::DestroyStopped, Act::Cordon]);
}

#[test]
fn what_changes_survives_a_kill_after_every_commit() {
    let test = "what_changes_survives_a_kill_after_every_commit";
    all_survive(
        test,
        &[Act::Restart, Act::ExitAndRestart, Act::Update, Act::UpdateStopped, Act::UpdateToNothing],
    );
}

/// What `systemctl restart` does in the middle of work: the agent ends by itself, and takes the
/// runtime with it that its steps run on.
#[test]
fn a_launch_in_the_middle_of_which_the_agent_ends_is_finished_by_the_next() {
    let test = "a_launch_in_the_middle_of_which_the_agent_ends_is_finished_by_the_next";
    Server::run(test, |server| async move {
        for round in 0..16_u64 {
            let number = 8_000 + round;
            let id = Act::Launch.request(number).id;
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
            reached(&host, Act::Launch, number, &id).await;
            check(&server, &host, &format!("ended after {round}")).await;
            tell(&host, &id, Command::Destroy { force: true }).await;
            wait(&host, &id, "destroyed").await;
            stop(&server, host).await;
        }
        let host = start(&server, unarmed()).await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn every_act_is_put_through_it() {
    // A list that a new act is forgotten in fails to compile in `prepare` and `begin`, and here.
    assert!(ACTS.iter().all(|act| Act::named(&format!("{act:?}")) == *act));
}
