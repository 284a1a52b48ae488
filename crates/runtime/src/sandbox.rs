//! Machines as sandboxes, each behind a monitor process of its own.
//!
//! Never creates a sandbox in this process: that changes its caller.

mod exec;
mod instance;

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::process::Child;

use crate::protocol::{Answer, Boot, FRAME_BYTES_MAX, InstanceInfo, ProcessInfo, Request};
use crate::spec::{BootSpec, ExitStatus, MachineDir};
use crate::{Adopted, Error, Instance, Runtime, cgroup, frame, process};
use instance::SandboxInstance;

/// The longest that making a sandbox may take.
pub const CREATE_TIMEOUT_MS: u64 = 30_000;
/// How long a monitor that runs may take to greet or to end before it is called silent.
pub const ADOPT_TIMEOUT_MS: u64 = 5_000;
/// How often one that does neither is asked again.
const ADOPT_PAUSE: Duration = Duration::from_millis(20);
/// The longest that the processes of a dead boot may take to vanish.
pub const CLEAN_TIMEOUT_MS: u64 = 10_000;

/// Where the parts of the sandbox are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The monitor's binary, kept by digest so that a running machine keeps the one it has.
    pub monitor: PathBuf,
    /// The binary of PID 1, kept by digest too.
    pub init: PathBuf,
    /// The folder in every cgroup hierarchy below which monitors and machines live, such as
    /// `perch` or `perch.slice`, relative to the hierarchy's root.
    pub cgroup: String,
}

/// Runs machines as sandboxes.
#[derive(Debug)]
pub struct SandboxRuntime {
    config: Config,
}

impl SandboxRuntime {
    /// Makes a runtime of its parts.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config }
    }

    fn boot(&self, spec: &BootSpec) -> Result<Request, Error> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::file("name", path));
        Ok(Request::Boot(Box::new(Boot {
            spec: BootSpec {
                lower: absolute(&spec.lower)?,
                upper: absolute(&spec.upper)?,
                ..spec.clone()
            },
            init: absolute(&self.config.init)?,
            cgroup: self.config.cgroup.clone(),
        })))
    }

    fn spawn_error(&self, source: std::io::Error) -> Error {
        Error::Spawn { path: self.config.monitor.clone(), source }
    }

    /// Starts a monitor; returns the agent's end of the socket pair and the process that makes
    /// the monitor.
    fn spawn(&self, dir: &MachineDir) -> Result<(UnixStream, Child), Error> {
        let spawn_error = |source| self.spawn_error(source);
        let (ours, theirs) = UnixStream::pair().map_err(spawn_error)?;
        let theirs = theirs.into_std().map_err(spawn_error)?;
        theirs.set_nonblocking(false).map_err(spawn_error)?;
        let own_log = dir.state.join("monitor.log");
        let own_log = std::fs::File::create(&own_log).map_err(Error::file("create", own_log))?;
        // Its first process forks the monitor and ends before long, so that the one that stays is
        // nobody's child here: no zombie, whoever of the two ends first.
        let first = tokio::process::Command::new(&self.config.monitor)
            .args([dir.machine.as_str(), &self.config.cgroup])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(own_log))
            .spawn()
            .map_err(spawn_error)?;
        Ok((ours, first))
    }

    async fn create_sandbox(&self, spec: &BootSpec) -> Result<InstanceInfo, Error> {
        let machine = || spec.dir.machine.to_string();
        // The runtime below collects the first process also when nobody waits for it.
        let (mut stream, mut first) = self.spawn(&spec.dir)?;
        frame::send(&mut stream, &self.boot(spec)?, FRAME_BYTES_MAX).await.map_err(|source| {
            Error::Monitor { operation: "write to", machine: machine(), source }
        })?;
        match frame::receive(&mut stream, FRAME_BYTES_MAX).await {
            Ok(Answer::Hello(info)) => Ok(*info),
            Ok(Answer::Refused { reason }) => {
                Err(Error::Refused { operation: "create the sandbox", reason })
            }
            Ok(other) => Err(Error::Shape(format!("unexpected answer to boot: {other:?}"))),
            Err(source) => match first.wait().await {
                Ok(status) if !status.success() => {
                    Err(self.spawn_error(std::io::Error::other(status.to_string())))
                }
                _ => Err(Error::Monitor { operation: "read from", machine: machine(), source }),
            },
        }
    }
}

#[async_trait]
impl Runtime for SandboxRuntime {
    async fn create(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, Error> {
        spec.check()?;
        prepare(&spec.dir)?;
        let limit = Duration::from_millis(CREATE_TIMEOUT_MS);
        let info =
            tokio::time::timeout(limit, self.create_sandbox(spec)).await.map_err(|_| {
                Error::Timeout { operation: "create the sandbox", limit_ms: CREATE_TIMEOUT_MS }
            })??;
        Ok(Box::new(SandboxInstance::new(spec.dir.clone(), info)?))
    }

    async fn adopt(&self, dir: &MachineDir) -> Result<Adopted, Error> {
        let began = Instant::now();
        let limit = Duration::from_millis(ADOPT_TIMEOUT_MS);
        while let Some(info) = running_monitor(dir)? {
            let left = limit.saturating_sub(began.elapsed());
            let silent = match tokio::time::timeout(left, greeted(dir, info)).await {
                Ok(Ok(instance)) => return Ok(Adopted::Running(Box::new(instance))),
                // It runs, and no patience makes it one that this release understands.
                Ok(Err(error @ Error::Stranger { .. })) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => Error::Timeout { operation: "greet", limit_ms: ADOPT_TIMEOUT_MS },
            };
            // The socket appears after the note; a machine that ends right now has neither, and
            // leaves its status.
            if let Some(status) = ExitStatus::read(dir)? {
                return Ok(Adopted::Ended(status));
            }
            if began.elapsed() >= limit {
                let (machine, source) = (dir.machine.to_string(), Box::new(silent));
                return Err(Error::Silent { machine, source });
            }
            tokio::time::sleep(ADOPT_PAUSE).await;
        }
        Ok(ExitStatus::read(dir)?.map_or(Adopted::Gone, Adopted::Ended))
    }

    async fn clean(&self, dir: &MachineDir) -> Result<(), Error> {
        let paths = cgroup::Paths::new(&self.config.cgroup, dir.machine.as_str());
        end_monitor(dir, &paths).await?;
        let removed = async {
            while !cgroup::remove_all(&paths)? {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<(), Error>(())
        };
        let limit = Duration::from_millis(CLEAN_TIMEOUT_MS);
        tokio::time::timeout(limit, removed).await.map_err(|_| Error::Timeout {
            operation: "remove the cgroup",
            limit_ms: CLEAN_TIMEOUT_MS,
        })??;
        match std::fs::remove_dir_all(&dir.run) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", &dir.run)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Returns what the note of a boot says whose monitor runs.
fn running_monitor(dir: &MachineDir) -> Result<Option<InstanceInfo>, Error> {
    let Some(info) = read_boot_file(dir)? else {
        return Ok(None);
    };
    if info.host_boot != process::host_boot().map_err(Error::system("read the boot id"))? {
        return Ok(None);
    }
    let monitor = info.monitor.find().map_err(Error::system("look for the monitor"))?;
    Ok(monitor.is_some_and(|monitor| process::is_running(&monitor)).then_some(info))
}

/// Reaches the monitor of a boot.
async fn greeted(dir: &MachineDir, info: InstanceInfo) -> Result<SandboxInstance, Error> {
    let instance = SandboxInstance::new(dir.clone(), info)?;
    drop(instance.greet().await?);
    Ok(instance)
}

/// Kills the monitor and the init that a boot's note names.
fn kill_noted(dir: &MachineDir) -> Result<(), Error> {
    if let Some(info) = read_boot_file(dir)?
        && info.host_boot == process::host_boot().map_err(Error::system("read the boot id"))?
    {
        for one in [info.monitor, info.init] {
            if let Some(pidfd) = one.find().map_err(Error::system("look for a process"))? {
                process::kill(&pidfd).map_err(Error::system("kill a process"))?;
            }
        }
    }
    Ok(())
}

/// Ends the monitor, also one that is still making its sandbox for an agent that gave the boot up,
/// so that nothing of it comes after what is cleaned now. That one leaves no note before it is
/// ready, and takes down by itself what it made when it finds that nobody wants it; killed in the
/// middle it would leave processes that nobody knows. A monitor that takes the lock only later
/// finds its agent gone, and does nothing.
async fn end_monitor(dir: &MachineDir, paths: &cgroup::Paths) -> Result<(), Error> {
    let path = dir.lock_file();
    let file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return kill_noted(dir),
        file => file.map_err(Error::file("open", &path))?,
    };
    let began = Instant::now();
    let limit = Duration::from_millis(CLEAN_TIMEOUT_MS);
    loop {
        kill_noted(dir)?;
        if process::try_lock(&file).map_err(Error::file("lock", &path))? {
            return Ok(());
        }
        if began.elapsed() > limit {
            return Err(Error::Timeout {
                operation: "end the monitor",
                limit_ms: CLEAN_TIMEOUT_MS,
            });
        }
        if began.elapsed() > limit / 2 {
            // It is stuck. It wrote down who it is right after it took the lock.
            let holder = std::fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<ProcessInfo>(&text).ok());
            if let Some(pidfd) = holder.and_then(|holder| holder.open().ok()) {
                process::kill(&pidfd).map_err(Error::system("kill a process"))?;
            }
            cgroup::remove_all(paths)?;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes the folders of a boot and forgets the one before.
fn prepare(dir: &MachineDir) -> Result<(), Error> {
    for path in [&dir.state, &dir.run, &dir.log_dir()] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(Error::file("create", path))?;
    }
    for path in [dir.exit_file(), dir.boot_file(), dir.socket()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_boot_file(dir: &MachineDir) -> Result<Option<InstanceInfo>, Error> {
    let path = dir.boot_file();
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::Shape(format!("boot file: {error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}
