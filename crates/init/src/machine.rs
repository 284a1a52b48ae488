//! The life of a machine from inside.
//!
//! Never outlives the monitor: when its end of the socket closes, PID 1 ends and the kernel ends
//! the rest.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use perch_types::Secret;
use perch_types::guest::{
    CODE_NOT_EXECUTABLE, EXECS_MAX, Ended, FromGuest, GuestExec, GuestProcess, GuestStart,
    PROTOCOL, TerminalSize, ToGuest,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group,
    set_dumpable_behavior, set_parent_process_death_signal, wait,
};

use crate::accounts::{self, Account};
use crate::channel::Channel;
use crate::files;
use crate::mains::{Mains, Then};
use crate::placed;
use crate::program::{Program, Refusal, Streams};
use crate::signals::Signals;
use crate::terminal::Terminal;

/// The size of a main program's terminal until somebody says another.
const TERMINAL: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// What every program of the machine starts from.
struct Base {
    env: BTreeMap<String, Secret>,
    user: String,
    cwd: String,
}

struct Machine {
    channel: Channel,
    signals: Signals,
    /// Nothing until the first start.
    base: Option<Base>,
    mains: Mains,
    stop_signal: i32,
    stays: bool,
    execs: BTreeMap<i32, u32>,
}

/// Runs the machine to its end.
pub(crate) fn run() -> io::Result<()> {
    let channel = Channel::take()?;
    // Whoever kills the monitor kills the machine; nobody inside may look into PID 1, which has
    // seen every secret.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"perch-init")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let signals = Signals::new()?;
    channel.send(&FromGuest::Hello { protocol: PROTOCOL }, None)?;
    let mut machine = Machine {
        channel,
        signals,
        base: None,
        mains: Mains::default(),
        stop_signal: 0,
        stays: false,
        execs: BTreeMap::new(),
    };
    machine.serve()
}

fn account(user: &str) -> Result<Account, Refusal> {
    accounts::resolve(Path::new("/"), user)
        .map_err(|reason| Refusal::new(CODE_NOT_EXECUTABLE, reason))
}

fn terminal(size: TerminalSize, account: &Account) -> Result<Terminal, Refusal> {
    Terminal::open(size, account.uid)
        .map_err(|error| Refusal::new(CODE_NOT_EXECUTABLE, format!("open a terminal: {error}")))
}

/// A main process's own standard output and error.
type Outputs = (OwnedFd, OwnedFd);

/// Starts the main processes, or none: one that cannot be executed ends init and with it the
/// others.
fn start_mains(
    channel: &Channel,
    start: &GuestStart,
    outputs: Vec<Outputs>,
) -> Result<Vec<i32>, Refusal> {
    let mut pids = Vec::new();
    let mut master = None;
    if start.processes.is_empty() {
        let account = account(&start.user)?;
        let streams = if start.tty {
            let terminal = terminal(TERMINAL, &account)?;
            master = Some(terminal.master);
            Streams::Terminal(terminal.slave)
        } else {
            own(init_outputs(), &account);
            Streams::Log
        };
        let program =
            Program { argv: &start.argv, env: &start.env, cwd: &start.cwd, account: &account };
        pids.push(program.spawn(streams)?);
    }
    let mut outputs = outputs.into_iter();
    for (number, process) in start.processes.iter().enumerate() {
        let started = start_process(start, process, outputs.next());
        pids.push(started.map_err(|Refusal { code, reason }| {
            Refusal::new(code, format!("process {number}: {reason}"))
        })?);
    }
    channel
        .send(&FromGuest::Started, master.as_ref())
        .map_err(|error| Refusal::new(CODE_NOT_EXECUTABLE, format!("report the start: {error}")))?;
    Ok(pids)
}

fn start_process(
    start: &GuestStart,
    process: &GuestProcess,
    outputs: Option<Outputs>,
) -> Result<i32, Refusal> {
    let account = account(process.user.as_ref().unwrap_or(&start.user))?;
    let streams = match outputs {
        Some((stdout, stderr)) => {
            own([stdout.as_fd(), stderr.as_fd()], &account);
            Streams::Outputs(stdout, stderr)
        }
        None => {
            own(init_outputs(), &account);
            Streams::Log
        }
    };
    let mut env = start.env.clone();
    env.retain(|name, _| !process.without.contains(name));
    env.extend(process.env.clone());
    let program = Program { argv: &process.argv, env: &env, cwd: &start.cwd, account: &account };
    program.spawn(streams)
}

/// Returns init's own outputs, which are the machine's log.
const fn init_outputs() -> [BorrowedFd<'static>; 2] {
    [rustix::stdio::stdout(), rustix::stdio::stderr()]
}

/// Lets a program that is not root open `/dev/stdout` and `/dev/stderr` by name.
fn own(outputs: [BorrowedFd<'_>; 2], account: &Account) {
    let uid = Some(rustix::fs::Uid::from_raw(account.uid));
    let gid = Some(rustix::fs::Gid::from_raw(account.gid));
    for output in outputs {
        // Writing to the descriptors themselves works in any case.
        rustix::fs::fchown(output, uid, gid).ok();
    }
}

impl Machine {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let (left, report) = self.mains.patience(Instant::now());
            if let Some(report) = report
                && self.end(&report)?
            {
                return Ok(());
            }
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            let (said, signalled) = {
                let mut polled = [
                    PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                ];
                match poll(&mut polled, limit.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                let [said, signalled] = polled.map(|one| !one.revents().is_empty());
                (said, signalled)
            };
            if signalled && self.take_signals()? {
                return Ok(());
            }
            if said && self.hear()? {
                return Ok(());
            }
        }
    }

    /// Obeys what the monitor said; `true` when that is over.
    fn hear(&mut self) -> io::Result<bool> {
        if !self.channel.fill()? {
            return Ok(true);
        }
        while let Some(message) = self.channel.next()? {
            if self.obey(message)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Handles the signals that arrived; `true` when the machine has ended.
    fn take_signals(&mut self) -> io::Result<bool> {
        while let Some(signal) = self.signals.next()? {
            // What somebody inside sends to PID 1 is meant for the program.
            if signal != libc::SIGCHLD {
                self.signal_mains(signal);
            }
        }
        self.reap()
    }

    fn signal_mains(&self, signal: i32) {
        for pid in self.mains.pids() {
            send(pid, signal, false);
        }
    }

    fn reap(&mut self) -> io::Result<bool> {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(found)) => found,
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(false),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let pid = pid.as_raw_nonzero().get();
            let Some(ended) = ended(status) else { continue };
            match self.mains.ended(pid, ended, Instant::now()) {
                Then::Nothing => {}
                Then::StopOthers(report) => {
                    self.channel.send(&report, None)?;
                    self.signal_mains(self.stop_signal);
                    continue;
                }
                Then::Wait => continue,
                Then::End(report) => {
                    if self.end(&report)? {
                        return Ok(true);
                    }
                    continue;
                }
            }
            if let Some(id) = self.execs.remove(&pid) {
                self.channel.send(&FromGuest::ExecEnded { id, ended }, None)?;
            }
        }
    }

    /// Starts the program; `true` when init shall end because it could not.
    fn begin(&mut self, start: GuestStart) -> io::Result<bool> {
        if self.base.is_some() && (!self.stays || self.mains.run()) {
            return Err(io::Error::other("a second start came"));
        }
        self.stays = start.stays;
        let outputs = self.outputs(&start)?;
        files::prepare(Path::new("/"), &start);
        let placed = placed::write(Path::new("/"), &start.files);
        let started = placed.and_then(|()| start_mains(&self.channel, &start, outputs));
        let GuestStart { env, user, cwd, stop_signal, stop_grace_ms, .. } = start;
        self.base = Some(Base { env, user, cwd });
        self.stop_signal = stop_signal;
        match started {
            Ok(pids) => {
                self.mains = Mains::new(&pids, Duration::from_millis(stop_grace_ms));
                Ok(false)
            }
            Err(Refusal { code, reason }) => self.end(&FromGuest::StartFailed { code, reason }),
        }
    }

    /// Takes the outputs that came along for the main processes, in their order.
    fn outputs(&mut self, start: &GuestStart) -> io::Result<Vec<Outputs>> {
        let count = if start.outputs { start.processes.len() } else { 0 };
        let mut next = || -> io::Result<Outputs> {
            Ok((self.channel.descriptor()?, self.channel.descriptor()?))
        };
        (0..count).map(|_| next()).collect()
    }

    /// Reports the program's end; `true` when init ends too. One that stays first ends everything
    /// that the program left: the next start finds nothing of it.
    fn end(&mut self, report: &FromGuest) -> io::Result<bool> {
        if self.stays {
            self.end_all()?;
            self.mains = Mains::default();
        }
        self.channel.send(report, None)?;
        Ok(!self.stays)
    }

    /// Kills and collects every process but init.
    fn end_all(&mut self) -> io::Result<()> {
        loop {
            #[expect(unsafe_code, reason = "no safe binding for all processes")]
            // SAFETY: sends a signal and touches no memory. As PID 1 it reaches the processes of
            // its own namespace, and not itself.
            let _none_left = unsafe { libc::kill(-1, libc::SIGKILL) };
            let (pid, status) = match wait(WaitOptions::empty()) {
                Ok(Some(found)) => found,
                Ok(None) | Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if let Some(id) = self.execs.remove(&pid.as_raw_nonzero().get())
                && let Some(ended) = ended(status)
            {
                self.channel.send(&FromGuest::ExecEnded { id, ended }, None)?;
            }
        }
    }

    /// Does what the monitor asks; `true` when init shall end.
    fn obey(&mut self, message: ToGuest) -> io::Result<bool> {
        match message {
            ToGuest::Start(start) => return self.begin(*start),
            ToGuest::Signal { signal } => {
                self.signal_mains(signal);
            }
            ToGuest::SignalExec { id, signal } => {
                let found = self.execs.iter().find(|(_, one)| **one == id);
                if let Some((pid, _)) = found {
                    send(*pid, signal, true);
                }
            }
            ToGuest::Exec { id, exec } => {
                let given = if exec.tty.is_some() {
                    None
                } else {
                    let mut next = || self.channel.descriptor();
                    Some((next()?, next()?, next()?))
                };
                if let Err(Refusal { code, reason }) = self.run_exec(id, &exec, given) {
                    self.channel.send(&FromGuest::ExecFailed { id, code, reason }, None)?;
                }
            }
        }
        Ok(false)
    }

    fn run_exec(
        &mut self,
        id: u32,
        exec: &GuestExec,
        given: Option<(OwnedFd, OwnedFd, OwnedFd)>,
    ) -> Result<(), Refusal> {
        if self.execs.len() >= EXECS_MAX {
            let reason = format!("{EXECS_MAX} further programs run already");
            return Err(Refusal::new(CODE_NOT_EXECUTABLE, reason));
        }
        let Some(base) = self.base.as_ref().filter(|_| self.mains.run()) else {
            return Err(Refusal::new(CODE_NOT_EXECUTABLE, "the program does not run"));
        };
        let account = account(exec.user.as_ref().unwrap_or(&base.user))?;
        let mut env = base.env.clone();
        env.extend(exec.env.clone());
        let (streams, master) = match (given, exec.tty) {
            (Some((stdin, stdout, stderr)), _) => (Streams::Given(stdin, stdout, stderr), None),
            (None, size) => {
                env.entry("TERM".to_owned()).or_insert_with(|| Secret::new("xterm"));
                let Terminal { master, slave } = terminal(size.unwrap_or(TERMINAL), &account)?;
                (Streams::Terminal(slave), Some(master))
            }
        };
        let cwd = exec.cwd.as_ref().unwrap_or(&base.cwd);
        let program = Program { argv: &exec.argv, env: &env, cwd, account: &account };
        let pid = program.spawn(streams)?;
        self.execs.insert(pid, id);
        self.channel.send(&FromGuest::ExecStarted { id }, master.as_ref()).map_err(|error| {
            Refusal::new(CODE_NOT_EXECUTABLE, format!("report the start: {error}"))
        })
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    if let Some(code) = status.exit_status() {
        return Some(Ended { code, signal: None });
    }
    status
        .terminating_signal()
        .map(|signal| Ended { code: signal.saturating_add(128), signal: Some(signal) })
}

/// Sends a signal to a child, or to its process group. A child that has ended and is not yet
/// collected still owns its id, so this cannot hit another.
fn send(pid: i32, signal: i32, group: bool) {
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal)) {
        let result =
            if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        // It has ended: nothing left to signal.
        result.ok();
    }
}
