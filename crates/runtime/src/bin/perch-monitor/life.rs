//! The life of a machine from outside, from the start of its program to its exit status.
//!
//! Never ends before the status is on the disk, and never reports it before the next boot could
//! begin.

mod containers;
mod ending;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use perch_runtime::log::{Stream, Writer};
use perch_runtime::{Error, ExitStatus, Pressure};
use perch_types::guest::{Ended, FromGuest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::descriptors::{Read, read};
use crate::guest::Listener;
use crate::launch::Running;
use crate::lines::Lines;
use crate::members::Heard;
use crate::shared::{Phase, ProcessOutput, Shared, State};
use crate::{api, clock, serve, words};

/// The stack of a thread: they parse small messages.
pub(crate) const STACK_BYTES: usize = 256 * 1024;
/// The most bytes of one output taken up in one turn.
const PIECE_BYTES: usize = 32 * 1024;

/// One output of the machine on its way to the log.
#[derive(Debug)]
pub(crate) struct Output {
    from: Option<OwnedFd>,
    lines: Lines,
}

impl Output {
    fn new(from: OwnedFd, stream: Stream, container: Option<&str>) -> Self {
        Self { from: Some(from), lines: Lines::new(stream, container.map(str::to_owned)) }
    }

    fn of_process(output: ProcessOutput) -> Self {
        let ProcessOutput { process, stream, from } = output;
        Self { from: Some(from), lines: Lines::of_process(stream, process) }
    }

    /// Takes up what is there, at most one piece; returns whether there may be more.
    fn take(&mut self, shared: &Shared) -> bool {
        let Some(from) = &self.from else { return false };
        let mut piece = [0; PIECE_BYTES];
        match read(from, &mut piece) {
            Read::Bytes(count) => {
                let bytes = piece.get(..count).unwrap_or_default();
                self.lines.push(bytes, clock::unix_ms(), |record| shared.queue.add(record));
                true
            }
            Read::Later => false,
            Read::End => {
                self.from = None;
                false
            }
        }
    }

    fn finish(&mut self, shared: &Shared) {
        self.lines.finish(clock::unix_ms(), |record| shared.queue.add(record));
    }
}

/// What the main thread works with.
struct Life {
    shared: Arc<Shared>,
    init: Option<Listener>,
    /// Inits of the containers beside the first.
    others: Vec<Option<Listener>>,
    several: containers::Several,
    outputs: Vec<Output>,
    ended: Option<Ended>,
    process: Option<u32>,
    fault: Option<String>,
    signals: Option<OwnedFd>,
}

/// Keeps a machine to its end.
pub(crate) fn live(running: Running, wanted: bool) -> Result<(), Error> {
    let Running { shared, mut root, init, stdout, stderr, others, socket, alone } = running;
    let log = spawn_log(&shared)?;
    let signals = termination_signals().map_err(Error::system("read signals"))?;
    let server = Arc::clone(&shared);
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || serve::accept(&server, &socket))
        .map_err(Error::system("start a thread"))?;
    if let (Some(socket), Some(agent)) = (root.api.take(), shared.spec.agent.clone()) {
        let server = Arc::clone(&shared);
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || api::hand_over(&server, &socket, &agent))
            .map_err(Error::system("start a thread"))?;
    }
    let first = shared.spec.containers.first().map(|one| one.name.as_str());
    let mut outputs = vec![
        Output::new(stdout, Stream::Stdout, first),
        Output::new(stderr, Stream::Stderr, first),
    ];
    let mut inits = Vec::new();
    for (index, Heard { init, stdout, stderr }) in others.into_iter().enumerate() {
        let name = Some(containers::name(&shared, index.saturating_add(1)));
        outputs.push(Output::new(stdout, Stream::Stdout, name));
        outputs.push(Output::new(stderr, Stream::Stderr, name));
        inits.push(Some(init));
    }
    let mut life = Life {
        outputs,
        init: Some(init),
        others: inits,
        several: containers::Several::default(),
        ended: None,
        process: None,
        fault: None,
        signals: Some(signals),
        shared,
    };
    if !wanted {
        life.shared.kill()?;
    }
    while !life.turn()? {}
    ending::end(life, &root, log, alone)
}

fn spawn_log(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    let mut writer = Writer::open(&shared.spec.dir.log_dir(), shared.spec.log.bytes_max)?;
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || shared.queue.drain(&mut writer))
        .map_err(Error::system("start a thread"))
}

/// Blocks the signals that ask the monitor to end, for all later threads, and makes them readable.
fn termination_signals() -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: the pointer is to a set that lives here.
    let _ok = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: as above, and it was emptied before.
        let _ok = unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: reads the set and writes nothing back.
    let blocked =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(std::io::Error::from_raw_os_error(blocked));
    }
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: reads the set; -1 asks for a new descriptor.
    let raw = unsafe { libc::signalfd(-1, set.as_ptr(), flags) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "a raw descriptor becomes an owned one")]
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

impl Life {
    /// Waits for the next thing and handles it; `true` when init has ended.
    fn turn(&mut self) -> Result<bool, Error> {
        self.adopt_outputs();
        let shared = Arc::clone(&self.shared);
        let kill_at = shared.state().kill_at_boot_ms;
        let due = [kill_at, self.several.due_ms()].into_iter().flatten().min();
        let limit = due.map(|at| {
            let wait_ms = at.saturating_sub(clock::boot_ms());
            Timespec {
                tv_sec: i64::try_from(wait_ms / 1000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(wait_ms % 1000).unwrap_or_default() * 1_000_000,
            }
        });
        let mut polled = vec![
            PollFd::new(&shared.init, PollFlags::IN),
            PollFd::new(&shared.wake.descriptor, PollFlags::IN),
        ];
        if let Some(signals) = &self.signals {
            polled.push(PollFd::new(signals, PollFlags::IN));
        }
        if let Some(init) = &self.init {
            polled.push(PollFd::from_borrowed_fd(init.as_fd(), PollFlags::IN));
        }
        for other in self.others.iter().flatten() {
            polled.push(PollFd::from_borrowed_fd(other.as_fd(), PollFlags::IN));
        }
        for output in &self.outputs {
            if let Some(from) = &output.from {
                polled.push(PollFd::new(from, PollFlags::IN));
            }
        }
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for the machine")(error)),
        }
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        drop(polled);
        shared.wake.clear();
        if kill_at.is_some_and(|at| at <= clock::boot_ms()) {
            shared.state().kill_at_boot_ms = None;
            shared.queue.system(words::KILLING);
            shared.kill()?;
        }
        for output in &mut self.outputs {
            output.take(&shared);
        }
        let mut ready = ready.into_iter();
        let init_ended = ready.next().unwrap_or_default();
        let _woken = ready.next();
        if self.signals.is_some() && ready.next().unwrap_or_default() {
            self.asked_to_end()?;
        }
        if self.init.is_some() && ready.next().unwrap_or_default() {
            self.hear();
        }
        for index in 0..self.others.len() {
            let there = self.others.get(index).is_some_and(Option::is_some);
            if there && ready.next().unwrap_or_default() {
                self.hear_other(index);
            }
        }
        self.orchestrate()?;
        Ok(init_ended)
    }

    /// Takes over what the main processes write, once they are being started.
    fn adopt_outputs(&mut self) {
        let outputs = std::mem::take(&mut self.shared.state().outputs);
        self.outputs.extend(outputs.into_iter().map(Output::of_process));
    }

    /// Somebody asked the monitor itself to end: it passes that on.
    fn asked_to_end(&mut self) -> Result<(), Error> {
        if let Some(signals) = self.signals.take() {
            // One is enough; what it says is known.
            drop(signals);
            let spec = &self.shared.spec;
            serve::stop(&self.shared, spec.stop_signal, spec.stop_grace_ms)
                .or_else(|_| self.shared.kill())?;
        }
        Ok(())
    }

    /// Takes up what the init of a container beside the first said.
    fn hear_other(&mut self, index: usize) {
        let Some(mut init) = self.others.get_mut(index).and_then(Option::take) else {
            return;
        };
        let container = index.saturating_add(1);
        let fault = match self.hear_all(&mut init, container) {
            Ok(true) => {
                if let Some(place) = self.others.get_mut(index) {
                    *place = Some(init);
                }
                return;
            }
            Ok(false) => "its init ended".to_owned(),
            Err(error) => error.to_string(),
        };
        // The machine is ending already, or it cannot go on without one of its inits.
        if self.ended.is_none() && !self.shared.state().killed {
            let name = containers::name(&self.shared, container);
            self.fault.get_or_insert_with(|| format!("container {name}: {fault}"));
            self.shared.kill().ok();
        }
    }

    /// Takes up what init said. One that breaks the protocol is killed.
    fn hear(&mut self) {
        let Some(mut init) = self.init.take() else {
            return;
        };
        match self.hear_all(&mut init, 0) {
            Ok(true) => self.init = Some(init),
            Ok(false) => {}
            Err(error) => {
                self.fault = Some(error.to_string());
                // It may have ended already.
                self.shared.kill().ok();
            }
        }
    }

    fn hear_all(&mut self, init: &mut Listener, container: usize) -> std::io::Result<bool> {
        let open = init.fill()?;
        while let Some(message) = init.next()? {
            match containers::understand(self, &message, container) {
                Some(event) => self.shared.state().events.push_back(event),
                None => self.understand(message, init)?,
            }
        }
        Ok(open)
    }

    fn understand(&mut self, message: FromGuest, init: &mut Listener) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        match message {
            FromGuest::Started => {
                let tty = shared.change(|state| state.program_started())?;
                if tty {
                    self.outputs.push(Output::new(init.terminal()?, Stream::Stdout, None));
                }
            }
            FromGuest::StartFailed { code, reason } => {
                shared.queue.system(&words::not_started(&reason));
                shared.change(|state| state.phase = Phase::NotExecutable { code, reason });
            }
            FromGuest::ProcessEnded { process, ended } => {
                // There is one first.
                if self.process.is_none() {
                    self.process = Some(process);
                    shared.queue.system(&words::process_ended(process, ended));
                }
            }
            FromGuest::Ended(ended) => self.ended = Some(ended),
            FromGuest::ExecStarted { id } => {
                if let Some(mailbox) = mailbox(&shared, id) {
                    let with = if mailbox.tty { Some(init.terminal()?) } else { None };
                    mailbox.put(FromGuest::ExecStarted { id }, with);
                }
            }
            FromGuest::ExecFailed { id, .. } | FromGuest::ExecEnded { id, .. } => {
                if let Some(mailbox) = mailbox(&shared, id) {
                    mailbox.put(message, None);
                }
            }
            FromGuest::Hello { .. } => {
                return Err(std::io::Error::other("init said hello twice"));
            }
        }
        Ok(())
    }
}

fn mailbox(shared: &Shared, id: u32) -> Option<Arc<crate::shared::Mailbox>> {
    shared.state().execs.get(&id).cloned()
}

impl State {
    /// Notes that the program was executed; returns whether it has a terminal.
    fn program_started(&mut self) -> std::io::Result<bool> {
        if self.phase != Phase::Starting {
            return Err(std::io::Error::other("init started a program that nobody asked for"));
        }
        self.phase = Phase::Running;
        self.started_unix_ms = clock::unix_ms();
        Ok(self.tty)
    }
}

/// Makes the exit status of what is known at the end.
fn status_of(life: &Life, init: Option<Ended>, pressure: Pressure) -> ExitStatus {
    use perch_runtime::ExitReason;
    let state = life.shared.state();
    let mut status = ExitStatus {
        instance: life.shared.info.instance.clone(),
        boot: life.shared.info.boot,
        code: 137,
        signal: Some(libc::SIGKILL),
        oom_killed: pressure.oom_kills > 0,
        forks_refused: pressure.forks_refused > 0,
        requested_stop: state.requested_stop,
        reason: ExitReason::Killed,
        message: String::new(),
        process: life.process,
        container: life
            .several
            .finished
            .map(|index| containers::name(&life.shared, index).to_owned()),
        started_unix_ms: state.started_unix_ms,
        ended_unix_ms: clock::unix_ms(),
    };
    if let Phase::NotExecutable { code, reason } = &state.phase {
        status.code = *code;
        status.signal = None;
        status.reason = ExitReason::NotExecutable;
        status.message = words::shown(reason);
    } else if let Some(ended) = life.ended {
        status.code = ended.code;
        status.signal = ended.signal;
        status.reason = ExitReason::Exited;
    } else if let Some(fault) = &life.fault {
        status.reason = ExitReason::InitFault;
        status.message = words::shown(fault);
    } else if state.phase == Phase::Created && !state.killed {
        status.reason = ExitReason::NotStarted;
    } else if init.is_some_and(|ended| ended.signal.is_none()) {
        status.reason = ExitReason::InitFault;
        "init ended without a report".clone_into(&mut status.message);
    }
    status
}
