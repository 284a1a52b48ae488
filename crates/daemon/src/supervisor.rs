//! Starts one process per privilege class and keeps each alive.
//!
//! Never touches a machine or a request. A process that exits, or shows no sign of life for
//! [`SILENCE_MAX`], is started again alone, with a back-off; the sockets stay bound meanwhile.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use perch_types::Secret;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::addresses;
use crate::backup;
use crate::certificate::Authority;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::handover::{self, Successor};
use crate::identity::{self, Admin};
use crate::manager;
use crate::ports::{self, Keeper};
use crate::roles::Role;
use crate::setup::{self, HANDED_OVER, Purpose, Setup};
use crate::sockets::Bound;

/// How long a process may show no sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a process may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long a process may take to end when asked to.
const END_MAX: Duration = Duration::from_secs(10);
/// The first and the longest pause before a process is started again.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A process that ran this long is started again without a pause.
const STABLE: Duration = Duration::from_secs(60);

/// This program, whatever folder it lies in: the unprivileged user may not be able to get there.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// What is told to the operator once everything runs.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) config: Config,
    pub(crate) admin: Admin,
    pub(crate) admin_path: PathBuf,
    pub(crate) data_dir: PathBuf,
}

/// What the server's processes are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Stop,
    /// Make room for the processes of the program that is installed now.
    HandOver,
}

/// Runs a server until it is told to stop, or to leave its place to the program installed now.
pub(crate) async fn serve(config: Config, ready: impl FnOnce(&Ready)) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "perchd runs as root, because it makes namespaces and mounts; \
         what faces the network runs as user `{}` (try `sudo perchd serve`)",
        config.user
    );
    // First of all: until then each of these signals ends the process.
    let mut signals = Signals::new()?;
    let successor = Successor::new()?;
    let inherited = handover::inherited()?;
    let draining = inherited.draining;
    for pid in &draining {
        tokio::spawn(handover::reap(*pid));
    }
    let (claimed, sockets) = ports::part(inherited.sockets, &ports::rules(&config));
    let (server, _lock) = Server::prepare(config, sockets)?;
    let keeper = Arc::new(Keeper::new(&server.setup.config, claimed));
    keeper.start(server.bound.own(Purpose::Ports)?)?;
    if let Err(error) = manager::keep(server.bound.all()) {
        // The server runs as well without.
        tracing::warn!(error = format!("{error:#}"), "sockets not kept over a restart");
    }
    let server = Arc::new(server);
    let (wish, wishes) = watch::channel(Wish::Run);
    let mut keepers = JoinSet::new();
    let mut beating = Vec::new();
    for role in Role::ALL {
        let (started, is_started) = watch::channel(false);
        beating.push((role, is_started));
        keepers.spawn(keep(Arc::clone(&server), role, started, wishes.clone()));
    }
    let all_ready = async {
        for (role, is_started) in &mut beating {
            tokio::time::timeout(READY_MAX, is_started.wait_for(|started| *started))
                .await
                .with_context(|| format!("wait for the {} process", role.name()))?
                .with_context(|| format!("start the {} process", role.name()))?;
        }
        anyhow::Ok(())
    };
    let outcome = tokio::select! {
        outcome = all_ready => outcome,
        () = signals.stop() => Ok(()),
    };
    let mut asked = Wish::Stop;
    if outcome.is_ok() && beating.iter().all(|(_, started)| *started.borrow()) {
        ready(&server.ready);
        asked = signals.wait(&successor).await;
    }
    wish.send_replace(asked);
    let mut left = Vec::new();
    while let Some(ended) = keepers.join_next().await {
        left.extend(ended.ok().flatten().map(|child| *child));
    }
    if asked == Wish::HandOver {
        let pids = left.iter().filter_map(|child| i32::try_from(child.id()?).ok());
        let pids: Vec<i32> = draining.iter().copied().chain(pids).collect();
        let claimed = keeper.take();
        let all = server.bound.all().iter().chain(&claimed);
        let sockets: Vec<_> = all.map(|(purpose, socket)| (*purpose, socket.as_fd())).collect();
        match successor.begin(&sockets, &pids)? {}
    }
    handover::end(&draining).await;
    outcome
}

/// A prepared server: everything bound and written, nothing started.
struct Server {
    ready: Ready,
    bound: Bound,
    setup: Setup,
}

impl Server {
    fn prepare(mut config: Config, kept: Vec<(Purpose, OwnedFd)>) -> Result<(Self, std::fs::File)> {
        let front_uid = identity::user_id(&config.user, "--user")?;
        let keys_uid = identity::user_id(&config.keys_user, "--keys-user")?;
        ensure!(
            front_uid != keys_uid,
            "`user` and `keys_user` are the same: what faces the network could read the master key"
        );
        let guest_dir = guest_dir(config.guest_dir.as_deref())?;
        identity::reachable(&config.data_dir, front_uid)?;
        identity::reachable(&config.run_dir, front_uid)?;
        identity::reachable(&config.data_dir, keys_uid)?;
        identity::reachable(&config.run_dir, keys_uid)?;
        identity::folders(&config.data_dir, &config.run_dir, (front_uid, keys_uid))?;
        let lock = identity::lock(&config.data_dir)?;
        backup::ensure_restored(&config.data_dir)?;
        addresses::settle(&mut config)?;
        let dns: Vec<SocketAddr> = crate::roles::host::resolver_addresses(&config)?;
        let bound = Bound::bind(&mut config, &dns, (front_uid, keys_uid), kept)?;
        let clock = SystemClock;
        let authority = Authority::open(&config.data_dir.join(identity::CA_DIR), &clock)?;
        let api_certificate = match config.api_tls {
            Some(_) => Some(authority.issue(&config.certificate_names(), &clock)?),
            None => None,
        };
        let host_id = identity::host_id(&config.data_dir)?;
        let edge_certificate = match config.edge_peers {
            Some(_) => Some(authority.issue_edge(&host_id, &clock)?),
            None => None,
        };
        let url = format!("http://{}", config.api);
        let admin = identity::admin(&config.data_dir, &url, Some(authority.fingerprint()))?;
        let setup = Setup {
            config: config.clone(),
            sockets: Vec::new(),
            host_id,
            front_uid,
            keys_uid,
            host_token: identity::token()?,
            admin_token_hash: identity::token_hash(&admin.token),
            api_certificate,
            edge_certificate,
            guest_dir,
        };
        let ready = Ready {
            admin_path: identity::admin_path(&config.data_dir),
            data_dir: config.data_dir.clone(),
            config,
            admin,
        };
        Ok((Self { ready, bound, setup }, lock))
    }

    fn spawn(&self, role: Role) -> Result<(Child, UnixStream)> {
        let (ours, theirs) = setup::pair()?;
        let mut command = Command::new(THIS_PROGRAM);
        command
            .args(["role", role.name()])
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| passed_on(name)))
            .kill_on_drop(true);
        let own_user = match role {
            Role::Front => Some(self.setup.front_uid),
            Role::Keys => Some(self.setup.keys_uid),
            Role::Host | Role::Builder => None,
        };
        if let Some(uid) = own_user {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().with_context(|| format!("start `{}`", role.name()))?;
        // Our copy of their end is gone with the command: the channel ends with the process.
        drop(command);
        let (sockets, fds) = self.bound.of(role.sockets());
        let mut setup = Setup { sockets, ..self.setup.clone() };
        if role != Role::Front {
            setup.edge_certificate = None;
        }
        if role == Role::Keys {
            // It needs none of the others' secrets.
            setup.host_token = Secret::default();
            setup.api_certificate = None;
        }
        setup::send(&ours, &setup, &fds)?;
        let channel = setup::stream(ours)?;
        Ok((child, channel))
    }
}

/// Variables that a process of the server is given; the rest of the environment stays outside.
fn passed_on(name: &std::ffi::OsStr) -> bool {
    ["PATH", "LANG", "TZ", "RUST_BACKTRACE", perch_types::env::LOG]
        .iter()
        .any(|allowed| name == *allowed)
        || name.to_str().is_some_and(|name| name.to_ascii_lowercase().ends_with("_proxy"))
}

pub(crate) fn guest_dir(configured: Option<&Path>) -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    let beside = program.parent().map(Path::to_owned).unwrap_or_default();
    let candidates = match configured {
        Some(folder) => vec![folder.to_owned()],
        None => vec![beside.clone(), beside.join("../lib/perch"), beside.join("../guest")],
    };
    candidates
        .iter()
        .find(|folder| {
            folder.join("perch-init").is_file() && folder.join("perch-monitor").is_file()
        })
        .and_then(|folder| folder.canonicalize().ok())
        .with_context(|| {
            format!(
                "find perch-init and perch-monitor in {candidates:?}: build them with \
                 `cargo xtask guest` and name their folder with `--guest-dir`"
            )
        })
}

/// Keeps one process alive until the server stops; returns it if it goes on after its place was
/// handed over.
async fn keep(
    server: Arc<Server>,
    role: Role,
    started: watch::Sender<bool>,
    mut wishes: watch::Receiver<Wish>,
) -> Option<Box<Child>> {
    let mut pause = BACKOFF_MIN;
    while *wishes.borrow() == Wish::Run {
        let since = Instant::now();
        match server.spawn(role) {
            Ok((child, channel)) => match attend(role, child, channel, &started, &mut wishes).await
            {
                Ended::Alone(end) => {
                    tracing::error!(role = role.name(), end, "process ended, starting it again");
                }
                Ended::AsWished(left) => return left,
            },
            Err(error) => {
                tracing::error!(
                    role = role.name(),
                    error = format!("{error:#}"),
                    "process not started"
                );
            }
        }
        if since.elapsed() > STABLE {
            pause = BACKOFF_MIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = wished(&mut wishes) => {}
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
    None
}

/// How a process was left.
enum Ended {
    /// It ended, or was killed, by what it did.
    Alone(String),
    /// The server wanted it; a process that was handed over goes on.
    AsWished(Option<Box<Child>>),
}

/// Watches one process until it ends, falls silent or the server stops; says how it ended.
async fn attend(
    role: Role,
    mut child: Child,
    mut channel: UnixStream,
    started: &watch::Sender<bool>,
    wishes: &mut watch::Receiver<Wish>,
) -> Ended {
    loop {
        tokio::select! {
            status = child.wait() => {
                let end = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Ended::Alone(end);
            }
            beat = tokio::time::timeout(SILENCE_MAX, beat(&mut channel)) => match beat {
                Ok(true) => { started.send_replace(true); }
                // The channel ended: the process is about to.
                Ok(false) => {
                    return Ended::Alone(match tokio::time::timeout(END_MAX, child.wait()).await {
                        Ok(Ok(status)) => status.to_string(),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => {
                            child.kill().await.ok();
                            "killed: it had closed its channel".to_owned()
                        }
                    });
                }
                Err(_) => {
                    child.kill().await.ok();
                    return Ended::Alone(format!("killed: no sign of life for {SILENCE_MAX:?}"));
                }
            },
            wish = wished(wishes) => {
                let is_handed = wish == Wish::HandOver
                    && role == Role::Front
                    && hand_over(&child, &mut channel).await;
                if is_handed {
                    return Ended::AsWished(Some(Box::new(child)));
                }
                terminate(role, &mut child).await;
                return Ended::AsWished(None);
            }
        }
    }
}

/// Waits until the processes are to do something else than run.
async fn wished(wishes: &mut watch::Receiver<Wish>) -> Wish {
    // An error means that the sender is gone, which is a wish to stop.
    wishes.wait_for(|wish| *wish != Wish::Run).await.map_or(Wish::Stop, |wish| *wish)
}

/// Asks a process to leave its place and end what is under way; returns whether it has left.
async fn hand_over(child: &Child, channel: &mut UnixStream) -> bool {
    signal(child, rustix::process::Signal::HUP);
    let left = async {
        let mut byte = [0; 1];
        while channel.read(&mut byte).await.is_ok_and(|count| count > 0) {
            if byte == [HANDED_OVER] {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(END_MAX, left).await.unwrap_or(false)
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // What it does is awaited by the caller; a process that is already gone is fine.
        rustix::process::kill_process(pid, signal).ok();
    }
}

async fn terminate(role: Role, child: &mut Child) {
    signal(child, rustix::process::Signal::TERM);
    if tokio::time::timeout(END_MAX, child.wait()).await.is_err() {
        tracing::warn!(role = role.name(), "process did not end in time, killed");
        child.kill().await.ok();
    }
}

/// Waits for a sign of life; `false` when the channel has ended.
async fn beat(channel: &mut UnixStream) -> bool {
    channel.read(&mut [0; 1]).await.is_ok_and(|count| count > 0)
}

/// Signals that end a server or replace it.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// A terminal that closes sends the last of these, and means the end.
    is_by_hand: bool,
}

impl Signals {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
            is_by_hand: std::io::stdin().is_terminal(),
        })
    }

    /// Waits until the server is to end; a replacement comes later.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv(), if self.is_by_hand => {}
        }
    }

    async fn wait(&mut self, successor: &Successor) -> Wish {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Wish::Stop,
                _ = self.interrupt.recv() => return Wish::Stop,
                _ = self.hangup.recv() => {}
            }
            if self.is_by_hand {
                return Wish::Stop;
            }
            let checked = tokio::select! {
                _ = self.terminate.recv() => return Wish::Stop,
                _ = self.interrupt.recv() => return Wish::Stop,
                checked = successor.check() => checked,
            };
            match checked {
                Ok(()) => return Wish::HandOver,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "server not replaced");
                }
            }
        }
    }
}
