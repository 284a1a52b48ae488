//! A running sandbox, spoken to through its monitor's socket.
//!
//! Never keeps a connection open between requests, so it survives a restart of its owner as a
//! note on the disk.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::exec;
use crate::cgroup::Hierarchies;
use crate::protocol::{Answer, FRAME_BYTES_MAX, InstanceInfo, PROTOCOL, Request, Stats};
use crate::room::{self, LogMark};
use crate::spec::{ExitReason, ExitStatus, MachineDir};
use crate::{
    Consumed, ContainerStart, Containers, Error, ExecOutput, ExecRequest, ExecStream, GuestExec,
    GuestStart, Instance, Memory, Pressure, Process, consumed, frame, memory, process, processes,
};

/// The longest that a monitor may take to answer.
const REQUEST_TIMEOUT_MS: u64 = 20_000;
/// The longest that a look at a machine from outside may take.
const LOOK_TIMEOUT_MS: u64 = 10_000;
/// The longest that processes may take to stand still: one that waits for a disk takes a while.
const FREEZE_TIMEOUT_MS: u64 = 5_000;
/// The first pause between two looks whether they do; doubled each time.
const FREEZE_PAUSE: Duration = Duration::from_millis(1);
/// The longest.
const FREEZE_PAUSE_MAX: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct SandboxInstance {
    dir: MachineDir,
    info: InstanceInfo,
    init: OwnedFd,
    /// How far the log was when its monitor last said how many lines it had dropped.
    log_seen: Mutex<Option<LogMark>>,
}

impl SandboxInstance {
    pub(super) fn new(dir: MachineDir, info: InstanceInfo) -> Result<Self, Error> {
        if info.understands_from > PROTOCOL {
            let from = info.understands_from;
            let reason = format!("it understands protocol {from} and later, this is {PROTOCOL}");
            return Err(Error::Stranger { machine: dir.machine.to_string(), reason });
        }
        let init = info.init.open().map_err(|_| Error::Ended(dir.machine.to_string()))?;
        Ok(Self { dir, info, init, log_seen: Mutex::default() })
    }

    /// Connects and makes sure that the one who answers is this boot's monitor.
    pub(super) async fn greet(&self) -> Result<UnixStream, Error> {
        let mut stream = UnixStream::connect(self.dir.socket())
            .await
            .map_err(|source| self.lost("connect to", source))?;
        let hello = frame::receive(&mut stream, FRAME_BYTES_MAX);
        let hello = tokio::time::timeout(Duration::from_millis(REQUEST_TIMEOUT_MS), hello)
            .await
            .map_err(|_| Error::Timeout { operation: "greet", limit_ms: REQUEST_TIMEOUT_MS })?
            .map_err(|source| self.lost("read from", source))?;
        match hello {
            Answer::Hello(info) if *info == self.info => Ok(stream),
            Answer::Hello(info) => Err(Error::Stranger {
                machine: self.dir.machine.to_string(),
                reason: format!("expected {:?}, found {info:?}", self.info),
            }),
            Answer::Refused { reason } => Err(Error::Refused { operation: "greet", reason }),
            other => Err(Error::Shape(format!("unexpected greeting: {other:?}"))),
        }
    }

    pub(super) fn lost(&self, operation: &'static str, source: io::Error) -> Error {
        if process::is_running(&self.init) {
            Error::Monitor { operation, machine: self.dir.machine.to_string(), source }
        } else {
            Error::Ended(self.dir.machine.to_string())
        }
    }

    /// Refuses what this monitor would not understand.
    fn check(&self, operation: &'static str, request: &Request) -> Result<(), Error> {
        let (spoken, needed) = (self.info.protocol, request.since());
        if needed <= spoken {
            return Ok(());
        }
        Err(Error::Older { operation, machine: self.dir.machine.to_string(), spoken, needed })
    }

    async fn request(&self, operation: &'static str, request: Request) -> Result<Answer, Error> {
        self.check(operation, &request)?;
        let talk = async {
            let mut stream = self.greet().await?;
            frame::send(&mut stream, &request, FRAME_BYTES_MAX)
                .await
                .map_err(|source| self.lost("write to", source))?;
            frame::receive(&mut stream, FRAME_BYTES_MAX)
                .await
                .map_err(|source| self.lost("read from", source))
        };
        let answer = tokio::time::timeout(Duration::from_millis(REQUEST_TIMEOUT_MS), talk)
            .await
            .map_err(|_| Error::Timeout { operation, limit_ms: REQUEST_TIMEOUT_MS })??;
        match answer {
            Answer::Refused { reason } => Err(Error::Refused { operation, reason }),
            Answer::NotExecutable { code, reason } => Err(Error::NotExecutable { code, reason }),
            Answer::Ended(_) => Err(Error::Ended(self.dir.machine.to_string())),
            other => Ok(other),
        }
    }

    async fn done(&self, operation: &'static str, request: Request) -> Result<(), Error> {
        match self.request(operation, request).await? {
            Answer::Done => Ok(()),
            other => Err(Error::Shape(format!("unexpected answer to {operation}: {other:?}"))),
        }
    }

    /// Asks the monitor; `None` when it ended without an answer.
    async fn ask_status(&self) -> Option<ExitStatus> {
        let mut stream = self.greet().await.ok()?;
        frame::send(&mut stream, &Request::Wait, FRAME_BYTES_MAX).await.ok()?;
        match frame::receive(&mut stream, FRAME_BYTES_MAX).await {
            Ok(Answer::Ended(status)) => Some(*status),
            _ => None,
        }
    }

    async fn monitor_gone(&self) -> Result<(), Error> {
        let watch = Error::system("watch the monitor");
        match self.info.monitor.find().map_err(Error::system("look for the monitor"))? {
            Some(pidfd) => {
                let pidfd = process::awaitable(pidfd).map_err(watch)?;
                drop(pidfd.readable().await.map_err(Error::system("watch the monitor"))?);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Does something with the machine's cgroup that may block.
    async fn look<T: Send + 'static>(
        &self,
        operation: &'static str,
        look: impl FnOnce(&Hierarchies, &Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let group = PathBuf::from(&self.info.cgroup);
        let looked = tokio::task::spawn_blocking(move || look(&Hierarchies::detect()?, &group));
        let late = Error::Timeout { operation, limit_ms: LOOK_TIMEOUT_MS };
        match tokio::time::timeout(Duration::from_millis(LOOK_TIMEOUT_MS), looked).await {
            Ok(Ok(found)) if process::is_running(&self.init) => found,
            Ok(Ok(_)) => Err(Error::Ended(self.dir.machine.to_string())),
            Ok(Err(error)) => Err(Error::system(operation)(io::Error::other(error))),
            Err(_) => Err(late),
        }
    }

    fn log_seen(&self) -> MutexGuard<'_, Option<LogMark>> {
        self.log_seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_status(&self) -> Result<Option<ExitStatus>, Error> {
        Ok(ExitStatus::read(&self.dir)?.filter(|status| status.boot == self.info.boot))
    }
}

#[async_trait]
impl Instance for SandboxInstance {
    fn info(&self) -> &InstanceInfo {
        &self.info
    }

    fn network_namespace(&self) -> Result<OwnedFd, Error> {
        process::network_namespace(self.info.init, &self.init)
    }

    async fn start(&self, start: GuestStart) -> Result<(), Error> {
        self.done("start the program", Request::Start(Box::new(start))).await
    }

    async fn start_containers(&self, containers: Vec<ContainerStart>) -> Result<(), Error> {
        for (container, start) in containers.into_iter().enumerate() {
            let request = Request::PrepareContainer { container, start: Box::new(start) };
            self.done("prepare a container", request).await?;
        }
        self.done("start the containers", Request::StartContainers).await
    }

    async fn containers(&self, seen: u64) -> Result<Containers, Error> {
        // It answers when there is something to tell, however long that takes.
        let mut stream = self.greet().await?;
        frame::send(&mut stream, &Request::Containers { seen }, FRAME_BYTES_MAX)
            .await
            .map_err(|source| self.lost("write to", source))?;
        let answer = frame::receive(&mut stream, FRAME_BYTES_MAX).await;
        match answer.map_err(|source| self.lost("read from", source))? {
            Answer::Containers(containers) => Ok(containers),
            Answer::Ended(_) => Err(Error::Ended(self.dir.machine.to_string())),
            other => Err(Error::Shape(format!("unexpected answer about containers: {other:?}"))),
        }
    }

    async fn container_health(
        &self,
        container: usize,
        start: u32,
        healthy: bool,
    ) -> Result<(), Error> {
        let request = Request::ContainerHealth { container, start, healthy };
        self.done("tell of a container's health", request).await
    }

    async fn stop_unwell(&self, container: usize, start: u32) -> Result<(), Error> {
        self.done("stop a container", Request::StopUnwell { container, start }).await
    }

    async fn note(&self, text: &str) -> Result<(), Error> {
        self.done("write into the log", Request::Note { text: text.to_owned() }).await
    }

    async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.done("send a signal", Request::Signal { signal }).await
    }

    async fn stop(&self, signal: i32, grace_ms: u64) -> Result<(), Error> {
        self.done("stop the program", Request::Stop { signal, grace_ms }).await
    }

    async fn kill(&self) -> Result<(), Error> {
        self.done("kill the machine", Request::Kill).await
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.done("freeze the machine", Request::Freeze).await?;
        let frozen = async {
            let mut pause = FREEZE_PAUSE;
            while !self.is_frozen().await? {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FREEZE_PAUSE_MAX);
            }
            Ok(())
        };
        let limit = Duration::from_millis(FREEZE_TIMEOUT_MS);
        let late = Error::Timeout { operation: "freeze the machine", limit_ms: FREEZE_TIMEOUT_MS };
        let frozen = tokio::time::timeout(limit, frozen).await.unwrap_or(Err(late));
        if frozen.is_err() {
            // The first fault says more than one of the way back.
            drop(self.thaw().await);
        }
        frozen
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.done("thaw the machine", Request::Thaw).await
    }

    async fn is_frozen(&self) -> Result<bool, Error> {
        Hierarchies::detect()?.is_frozen(Path::new(&self.info.cgroup))
    }

    async fn wait(&self) -> Result<ExitStatus, Error> {
        if let Some(status) = self.ask_status().await {
            return Ok(status);
        }
        // Busy, or just ended: the status on the disk is complete once the monitor is gone.
        self.monitor_gone().await?;
        Ok(self.own_status()?.unwrap_or_else(|| ExitStatus {
            instance: self.info.instance.clone(),
            boot: self.info.boot,
            code: 137,
            signal: Some(9),
            oom_killed: false,
            forks_refused: false,
            requested_stop: false,
            reason: ExitReason::MonitorLost,
            message: "the machine's monitor was killed".to_owned(),
            process: None,
            container: None,
            started_unix_ms: 0,
            ended_unix_ms: 0,
        }))
    }

    async fn over(&self) -> Result<(), Error> {
        let watch = || Error::system("watch the machine");
        let init = self.init.try_clone().map_err(watch())?;
        let init = process::awaitable(init).map_err(watch())?;
        drop(init.readable().await.map_err(watch())?);
        Ok(())
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, Error> {
        exec::run(self, request).await
    }

    async fn exec_stream(&self, exec: GuestExec) -> Result<ExecStream, Error> {
        exec::stream(self, exec).await
    }

    async fn consumed(&self) -> Result<Consumed, Error> {
        let init = self.info.init.pid;
        let look = move |all: &Hierarchies, group: &Path| Ok(consumed::read(all, group, init));
        self.look("read what it uses", look).await
    }

    async fn pressure(&self) -> Result<Pressure, Error> {
        let (init, log) = (self.info.init.pid, self.dir.log_dir());
        let look = move |all: &Hierarchies, group: &Path| {
            let root_full = room::is_root_full(init);
            Ok((Pressure { root_full, ..all.pressure(group) }, LogMark::of(&log)))
        };
        let (pressure, mark) = self.look("read the limits", look).await?;
        // The monitor of a machine that writes nothing is left alone; one that is too busy to say
        // it is asked again.
        if *self.log_seen() == mark {
            return Ok(pressure);
        }
        let Ok(stats) = self.stats().await else { return Ok(pressure) };
        *self.log_seen() = mark;
        Ok(Pressure { log_dropped: stats.log_dropped, ..pressure })
    }

    async fn processes(&self) -> Result<Vec<Process>, Error> {
        self.look("list the processes", processes::list).await
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.look("read the memory", memory::read).await
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), Error> {
        let set = move |all: &Hierarchies, group: &Path| memory::set_limit(all, group, bytes);
        self.look("change the memory limit", set).await
    }

    async fn reclaim_memory(&self, bytes: u64) -> Result<u64, Error> {
        let reclaim = move |all: &Hierarchies, group: &Path| memory::reclaim(all, group, bytes);
        self.look("reclaim memory", reclaim).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        match self.request("read statistics", Request::Stats).await? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(Error::Shape(format!("unexpected answer to stats: {other:?}"))),
        }
    }
}
