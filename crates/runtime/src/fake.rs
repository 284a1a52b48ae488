//! A runtime that runs nothing, for tests of what is above it without root.
//!
//! Never touches a kernel feature: its network namespace is the caller's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use perch_types::MachineId;
use tokio::sync::{mpsc, watch};

use crate::protocol::{PROTOCOL, ProcessInfo, UNDERSTANDS_FROM};
use crate::spec::{BootSpec, ExitReason, ExitStatus, MachineDir};
use crate::{
    Adopted, Consumed, ContainerStart, Containers, EXEC_FRAMES_MAX, Ended, Error, ExecEvent,
    ExecOutput, ExecRequest, ExecStream, GuestExec, GuestStart, Instance, InstanceInfo, Memory,
    Pressure, Process, Runtime, Stats,
};

/// What was done to a machine, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A boot was created, of this number.
    Create(u64),
    /// Its program was started with this.
    Start(Box<GuestStart>),
    /// Its containers were started with these.
    StartContainers(Vec<ContainerStart>),
    /// A signal was sent.
    Signal(i32),
    /// It was asked to stop with this signal and grace.
    Stop(i32, u64),
    /// It was killed.
    Kill,
    /// It was frozen.
    Freeze,
    /// It was thawed.
    Thaw,
    /// A program was run.
    Exec(Vec<String>),
    /// What it left was removed.
    Clean,
}

#[derive(Debug)]
struct Boot {
    info: InstanceInfo,
    exit: watch::Sender<Option<ExitStatus>>,
    frozen: AtomicBool,
    memory: Mutex<Memory>,
}

/// How thaws fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThawFault {
    /// The monitor cannot, for want of something that comes back.
    Refused,
    /// The machine's cgroup is gone.
    NoCgroup,
}

#[derive(Debug, Default)]
struct State {
    boots: BTreeMap<MachineId, Arc<Boot>>,
    calls: BTreeMap<MachineId, Vec<Call>>,
    create_faults: Vec<String>,
    start_faults: Vec<(i32, String)>,
    freeze_faults: Vec<String>,
    thaw_fault: Option<ThawFault>,
    processes: Vec<Process>,
    pressure: Pressure,
    consumed: Consumed,
    ignores_stop: bool,
    silent: bool,
    waits: u64,
    notes: Vec<String>,
}

/// Machines that exist in memory only. Clones share them, as the runtimes of an agent before and
/// after its restart share the server.
#[derive(Debug, Clone, Default)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
}

impl FakeRuntime {
    /// Makes one without machines.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next `create` fail.
    pub fn fail_create(&self, reason: &str) {
        self.state().create_faults.push(reason.to_owned());
    }

    /// Makes the next `start` fail with 126 or 127, ending the machine.
    pub fn fail_start(&self, code: i32, reason: &str) {
        self.state().start_faults.push((code, reason.to_owned()));
    }

    /// Makes the next `freeze` fail.
    pub fn fail_freeze(&self, reason: &str) {
        self.state().freeze_faults.push(reason.to_owned());
    }

    /// Makes every `thaw` fail, or none.
    pub fn set_thaw_fault(&self, fault: Option<ThawFault>) {
        self.state().thaw_fault = fault;
    }

    /// Sets which limits every machine has run into.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.state().pressure = pressure;
    }

    /// Sets what every machine has used.
    pub fn set_consumed(&self, consumed: Consumed) {
        self.state().consumed = consumed;
    }

    /// Sets which processes every machine has.
    pub fn set_processes(&self, processes: &[Process]) {
        self.state().processes = processes.to_vec();
    }

    /// Makes programs ignore the signals of `signal` and `stop` (a kill still ends them).
    pub fn ignore_signals(&self, ignore: bool) {
        self.state().ignores_stop = ignore;
    }

    /// Makes monitors run and not answer who wants to adopt their machines, or answer again.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// Returns the lines that were to be written into machines' logs.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.state().notes.clone()
    }

    /// Returns how often a monitor was asked to tell the end of its machine.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.state().waits
    }

    /// Ends the program of a machine with a code; nothing if it does not run.
    pub fn exit(&self, machine: &MachineId, code: i32) {
        self.end(machine, |status| status.code = code);
    }

    /// Ends a machine as the kernel does when its memory is exhausted.
    pub fn exit_oom(&self, machine: &MachineId) {
        self.end(machine, |status| {
            status.code = 137;
            status.signal = Some(9);
            status.oom_killed = true;
        });
    }

    /// Forgets a machine as if its monitor had been killed with it.
    pub fn lose(&self, machine: &MachineId) {
        self.end(machine, |status| status.reason = ExitReason::MonitorLost);
        self.state().boots.remove(machine);
    }

    /// Returns what was done to a machine so far.
    #[must_use]
    pub fn calls(&self, machine: &MachineId) -> Vec<Call> {
        self.state().calls.get(machine).cloned().unwrap_or_default()
    }

    /// Returns whether a boot of it runs.
    #[must_use]
    pub fn runs(&self, machine: &MachineId) -> bool {
        self.state().boots.get(machine).is_some_and(|boot| boot.exit.borrow().is_none())
    }

    fn record(&self, machine: &MachineId, call: Call) {
        self.state().calls.entry(machine.clone()).or_default().push(call);
    }

    fn end(&self, machine: &MachineId, change: impl FnOnce(&mut ExitStatus)) {
        let boot = self.state().boots.get(machine).cloned();
        if let Some(boot) = boot {
            boot.end(change);
        }
    }
}

impl Boot {
    fn end(&self, change: impl FnOnce(&mut ExitStatus)) {
        let mut status = ExitStatus {
            instance: self.info.instance.clone(),
            boot: self.info.boot,
            code: 0,
            signal: None,
            oom_killed: false,
            forks_refused: false,
            requested_stop: false,
            reason: ExitReason::Exited,
            message: String::new(),
            process: None,
            container: None,
            started_unix_ms: 0,
            ended_unix_ms: 0,
        };
        change(&mut status);
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(status);
            }
            first
        });
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn create(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, Error> {
        spec.check()?;
        let machine = spec.dir.machine.clone();
        self.record(&machine, Call::Create(spec.boot));
        let mut state = self.state();
        if let Some(reason) = state.create_faults.pop() {
            return Err(Error::Refused { operation: "create the sandbox", reason });
        }
        let info = InstanceInfo {
            protocol: PROTOCOL,
            understands_from: UNDERSTANDS_FROM,
            machine: machine.clone(),
            instance: spec.instance.clone(),
            boot: spec.boot,
            host_boot: "fake".to_owned(),
            monitor: ProcessInfo { pid: 0, start_ticks: 0 },
            init: ProcessInfo { pid: 0, start_ticks: 0 },
            cgroup: format!("fake/{machine}"),
        };
        let boot = Arc::new(Boot {
            info,
            exit: watch::Sender::new(None),
            frozen: AtomicBool::new(false),
            memory: Mutex::new(Memory {
                limit_bytes: spec.limits.memory_bytes,
                used_bytes: spec.limits.memory_bytes / 2,
            }),
        });
        state.boots.insert(machine, Arc::clone(&boot));
        drop(state);
        Ok(Box::new(FakeInstance { runtime: self.clone(), boot }))
    }

    async fn adopt(&self, dir: &MachineDir) -> Result<Adopted, Error> {
        let Some(boot) = self.state().boots.get(&dir.machine).cloned() else {
            return Ok(Adopted::Gone);
        };
        let ended = boot.exit.borrow().clone();
        if self.state().silent && ended.is_none() {
            let source = Error::Timeout { operation: "greet", limit_ms: 0 };
            let machine = dir.machine.to_string();
            return Err(Error::Silent { machine, source: Box::new(source) });
        }
        Ok(match ended {
            Some(status) => Adopted::Ended(status),
            None => Adopted::Running(Box::new(FakeInstance { runtime: self.clone(), boot })),
        })
    }

    async fn clean(&self, dir: &MachineDir) -> Result<(), Error> {
        self.record(&dir.machine, Call::Clean);
        self.end(&dir.machine, |status| {
            status.reason = ExitReason::MonitorLost;
        });
        Ok(())
    }
}

#[derive(Debug)]
struct FakeInstance {
    runtime: FakeRuntime,
    boot: Arc<Boot>,
}

impl FakeInstance {
    fn act(&self, call: Call) -> Result<(), Error> {
        let machine = &self.boot.info.machine;
        self.runtime.record(machine, call);
        if self.boot.exit.borrow().is_some() {
            return Err(Error::Ended(machine.to_string()));
        }
        Ok(())
    }

    fn signalled(&self, signal: i32) {
        if !self.runtime.state().ignores_stop || signal == 9 {
            self.boot.end(|status| {
                status.code = 128 + signal;
                status.signal = Some(signal);
                status.requested_stop = true;
            });
        }
    }
}

#[async_trait]
impl Instance for FakeInstance {
    fn info(&self) -> &InstanceInfo {
        &self.boot.info
    }

    fn network_namespace(&self) -> Result<OwnedFd, Error> {
        let path = "/proc/self/ns/net";
        File::open(path).map(OwnedFd::from).map_err(Error::file("open", path))
    }

    async fn start(&self, start: GuestStart) -> Result<(), Error> {
        self.act(Call::Start(Box::new(start)))?;
        let fault = self.runtime.state().start_faults.pop();
        if let Some((code, reason)) = fault {
            self.boot.end(|status| {
                status.code = code;
                status.reason = ExitReason::NotExecutable;
                status.message.clone_from(&reason);
            });
            return Err(Error::NotExecutable { code, reason });
        }
        Ok(())
    }

    async fn start_containers(&self, containers: Vec<ContainerStart>) -> Result<(), Error> {
        self.act(Call::StartContainers(containers))
    }

    async fn containers(&self, seen: u64) -> Result<Containers, Error> {
        if seen == 0 {
            return Ok(Containers { counter: 1, ..Containers::default() });
        }
        self.wait().await?;
        Err(Error::Ended(self.boot.info.machine.to_string()))
    }

    async fn container_health(
        &self,
        _container: usize,
        _start: u32,
        _healthy: bool,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn stop_unwell(&self, _container: usize, _start: u32) -> Result<(), Error> {
        Ok(())
    }

    async fn note(&self, text: &str) -> Result<(), Error> {
        self.runtime.state().notes.push(text.to_owned());
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.act(Call::Signal(signal))?;
        self.signalled(signal);
        Ok(())
    }

    async fn stop(&self, signal: i32, grace_ms: u64) -> Result<(), Error> {
        self.act(Call::Stop(signal, grace_ms))?;
        self.signalled(signal);
        // Whoever ignored the signal is killed at the end of the grace; here that is at once.
        self.signalled(9);
        Ok(())
    }

    async fn kill(&self) -> Result<(), Error> {
        self.act(Call::Kill)?;
        self.signalled(9);
        Ok(())
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.act(Call::Freeze)?;
        if let Some(reason) = self.runtime.state().freeze_faults.pop() {
            return Err(Error::Refused { operation: "freeze the machine", reason });
        }
        self.boot.frozen.store(true, Ordering::Release);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.act(Call::Thaw)?;
        if self.runtime.state().thaw_fault.is_some() {
            let reason = "write freezer.state: cannot allocate memory".to_owned();
            return Err(Error::Refused { operation: "thaw the machine", reason });
        }
        self.boot.frozen.store(false, Ordering::Release);
        Ok(())
    }

    async fn is_frozen(&self) -> Result<bool, Error> {
        if self.runtime.state().thaw_fault == Some(ThawFault::NoCgroup) {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::file("read", &self.boot.info.cgroup)(missing));
        }
        Ok(self.boot.frozen.load(Ordering::Acquire))
    }

    async fn over(&self) -> Result<(), Error> {
        let mut exit = self.boot.exit.subscribe();
        // The sender is a field of the boot that is held here.
        drop(exit.wait_for(Option::is_some).await);
        Ok(())
    }

    async fn wait(&self) -> Result<ExitStatus, Error> {
        self.runtime.state().waits += 1;
        let mut exit = self.boot.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|status| status.clone())
            .ok_or_else(|| Error::Ended(self.boot.info.machine.to_string()))
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, Error> {
        let stdout = request.exec.argv.join(" ").into_bytes();
        self.act(Call::Exec(request.exec.argv))?;
        Ok(ExecOutput {
            ended: Ended { code: 0, signal: None },
            stdout,
            stderr: Vec::new(),
            truncated: false,
            timed_out: false,
        })
    }

    async fn exec_stream(&self, exec: GuestExec) -> Result<ExecStream, Error> {
        let stdout = exec.argv.join(" ").into_bytes();
        self.act(Call::Exec(exec.argv))?;
        let (input, _) = mpsc::channel(EXEC_FRAMES_MAX);
        let (event, events) = mpsc::channel(EXEC_FRAMES_MAX);
        for one in [ExecEvent::Stdout(stdout), ExecEvent::Ended(Ended { code: 0, signal: None })] {
            // The receiver is two lines above.
            drop(event.send(one).await);
        }
        Ok(ExecStream { input, events })
    }

    async fn stats(&self) -> Result<Stats, Error> {
        Ok(Stats::default())
    }

    async fn consumed(&self) -> Result<Consumed, Error> {
        Ok(self.runtime.state().consumed)
    }

    async fn pressure(&self) -> Result<Pressure, Error> {
        Ok(self.runtime.state().pressure)
    }

    async fn processes(&self) -> Result<Vec<Process>, Error> {
        Ok(self.runtime.state().processes.clone())
    }

    async fn memory(&self) -> Result<Memory, Error> {
        Ok(*self.boot.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), Error> {
        let mut memory = self.boot.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes < memory.used_bytes {
            return Err(Error::InUse { used_mb: memory.used_bytes >> 20 });
        }
        memory.limit_bytes = bytes;
        Ok(())
    }

    async fn reclaim_memory(&self, bytes: u64) -> Result<u64, Error> {
        let mut memory = self.boot.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = bytes.min(memory.used_bytes);
        memory.used_bytes -= taken;
        Ok(taken)
    }
}
