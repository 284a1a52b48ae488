//! The monitor's socket: agents ask, the monitor answers.
//!
//! Never answers anybody but root, and never lets one slow agent hold up another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use perch_runtime::containers::{ContainerStart, ContainerState, ContainerStatus, Event};
use perch_runtime::log::Stream;
use perch_runtime::protocol::{Answer, CLIENTS_MAX, FRAME_BYTES_MAX, Request};
use perch_runtime::{Error, ExitStatus, GuestStart, Stats, frame};
use perch_types::error::chain;
use perch_types::guest::{PROCESSES_MAX, ToGuest};

use crate::descriptors::pipe_out;
use crate::life::STACK_BYTES;
use crate::shared::{Phase, ProcessOutput, Shared, State};
use crate::{clock, exec, words};

/// How long an agent may take to take up an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest grace of a stop, in milliseconds: the contract's.
const GRACE_MS_MAX: u64 = 300_000;
/// How much later than a stop's grace the whole of a machine with containers is killed, in
/// milliseconds.
const CONTAINERS_MORE_MS: u64 = 1_000;
/// How long the processes of a machine are waited for here to stand still; whoever asked for it
/// looks again later.
const FREEZE_PATIENCE_MS: u64 = 20;
/// How often they are looked at.
const FREEZE_PAUSE: Duration = Duration::from_micros(100);
/// The highest number of a signal.
const SIGNAL_MAX: i32 = 31;

/// Accepts agents until the monitor ends.
pub(crate) fn accept(shared: &Arc<Shared>, socket: &UnixListener) {
    loop {
        let Ok((client, _)) = socket.accept() else {
            // Out of descriptors, or the agent went away while it waited.
            clock::pause(Duration::from_millis(10));
            continue;
        };
        if shared.change(|state| {
            let full = state.clients >= CLIENTS_MAX;
            if !full {
                state.clients += 1;
            }
            full
        }) {
            continue;
        }
        let served = Arc::clone(shared);
        let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // An agent that goes away is no fault.
            serve(&served, &client).ok();
            served.change(|state| state.clients = state.clients.saturating_sub(1));
        });
        if spawned.is_err() {
            shared.change(|state| state.clients = state.clients.saturating_sub(1));
        }
    }
}

/// Answers one agent until it goes away.
fn serve(shared: &Arc<Shared>, client: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(client)?;
    if !peer.uid.is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    client.set_write_timeout(Some(SEND_TIMEOUT))?;
    let mut stream = client;
    let hello = Answer::Hello(Box::new(shared.info.clone()));
    frame::write(&mut stream, &hello, FRAME_BYTES_MAX)?;
    loop {
        let received = frame::read(&mut stream, FRAME_BYTES_MAX)?;
        let request = match Request::understood(received) {
            Ok(request) => request,
            // A later agent may well know more: it is told, and goes on.
            Err(reason) => {
                frame::write(&mut stream, &Answer::Refused { reason }, FRAME_BYTES_MAX)?;
                continue;
            }
        };
        let answer = match request {
            Request::Exec(exec) => return exec::run(shared, client, *exec),
            Request::Wait => Answer::Ended(Box::new(wait(shared, client)?)),
            Request::Start(start) => start_program(shared, client, *start)?,
            Request::StartContainers => start_containers(shared, client)?,
            Request::Containers { seen } => containers(shared, client, seen)?,
            other => answer(shared, other),
        };
        frame::write(&mut stream, &answer, FRAME_BYTES_MAX)?;
    }
}

fn answer(shared: &Shared, request: Request) -> Answer {
    let result = match request {
        Request::PrepareContainer { container, start } => {
            return prepare_container(shared, container, *start);
        }
        Request::ContainerHealth { container, start, healthy } => {
            shared.happened(Event::Health(container, start, healthy))
        }
        Request::StopUnwell { container, start } => {
            shared.happened(Event::Unwell(container, start))
        }
        Request::Stats => return Answer::Stats(stats(shared)),
        Request::Note { text } => {
            shared.queue.system(&words::note(&text));
            Ok(())
        }
        Request::Signal { signal } => signal_program(shared, signal),
        Request::Stop { signal, grace_ms } => stop(shared, signal, grace_ms),
        Request::Kill => {
            shared.change(|state| {
                state.requested_stop = true;
                state.killed = true;
            });
            shared.kill()
        }
        Request::Freeze => freeze(shared),
        Request::Thaw => shared.hierarchies.freeze(&shared.paths.machine, false),
        Request::Boot(_)
        | Request::Start(_)
        | Request::StartContainers
        | Request::Containers { .. }
        | Request::Wait
        | Request::Exec(_)
        | Request::ExecFrame(_) => Err(Error::Shape("a request that has no place here".to_owned())),
    };
    match result {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Refused { reason: chain(&error) },
    }
}

fn stats(shared: &Shared) -> Stats {
    Stats { log_dropped: shared.queue.dropped(), ..shared.hierarchies.stats(&shared.paths.machine) }
}

/// Freezes the machine. Its processes mostly stand still a moment later, which nothing announces on
/// cgroup v1: here that moment costs nobody a timer.
fn freeze(shared: &Shared) -> Result<(), Error> {
    let group = &shared.paths.machine;
    shared.hierarchies.freeze(group, true)?;
    let until_ms = clock::boot_ms().saturating_add(FREEZE_PATIENCE_MS);
    while !shared.hierarchies.is_frozen(group)? && clock::boot_ms() < until_ms {
        clock::pause(FREEZE_PAUSE);
    }
    Ok(())
}

fn wait(shared: &Shared, client: &UnixStream) -> io::Result<ExitStatus> {
    shared.wait_for(client, |state| match &state.phase {
        Phase::Ended(status) => Some(status.as_ref().clone()),
        _ => None,
    })
}

/// Answers once the containers stand otherwise than at the counter that was seen.
fn containers(shared: &Shared, client: &UnixStream, seen: u64) -> io::Result<Answer> {
    shared.wait_for(client, |state| match &state.phase {
        Phase::Ended(status) => Some(Answer::Ended(status.clone())),
        _ if state.containers.counter == seen => None,
        _ => Some(Answer::Containers(state.containers.clone())),
    })
}

/// Notes that the machine's program, or its containers, are about to be executed; `false` if they
/// were before.
fn begin(shared: &Shared, change: impl FnOnce(&mut State)) -> bool {
    let accepted = shared.change(|state| {
        let accepted = state.phase == Phase::Created;
        if accepted {
            state.phase = Phase::Starting;
            change(state);
        }
        accepted
    });
    if accepted {
        shared.queue.system(words::STARTING);
    }
    accepted
}

fn prepare_container(shared: &Shared, container: usize, start: ContainerStart) -> Answer {
    if container >= shared.spec.containers.len() {
        return Answer::Refused { reason: "the machine has no such container".to_owned() };
    }
    let mut state = shared.state();
    if state.phase != Phase::Created {
        return Answer::Refused { reason: "the containers were started before".to_owned() };
    }
    state.prepared.insert(container, start);
    Answer::Done
}

fn start_containers(shared: &Shared, client: &UnixStream) -> io::Result<Answer> {
    let count = shared.spec.containers.len();
    if count == 0 || shared.state().prepared.len() != count {
        return Ok(Answer::Refused { reason: "not all containers were prepared".to_owned() });
    }
    let take = |state: &mut State| {
        state.starts = Some(std::mem::take(&mut state.prepared).into_values().collect());
    };
    if !begin(shared, take) {
        return Ok(Answer::Refused { reason: "the containers were started before".to_owned() });
    }
    shared.wake.wake();
    await_start(shared, client)
}

fn start_program(
    shared: &Shared,
    client: &UnixStream,
    mut start: GuestStart,
) -> io::Result<Answer> {
    if !shared.spec.containers.is_empty() {
        return Ok(Answer::Refused { reason: "the machine has containers".to_owned() });
    }
    let count = start.processes.len();
    if count > PROCESSES_MAX {
        let reason = format!("{count} processes are more than {PROCESSES_MAX}");
        return Ok(Answer::Refused { reason });
    }
    let (outputs, given) = match process_outputs(shared, count) {
        Ok(made) => made,
        Err(error) => return Ok(Answer::Refused { reason: format!("make a pipe: {error}") }),
    };
    let tty = start.tty;
    if !begin(shared, |state| (state.tty, state.outputs) = (tty, outputs)) {
        return Ok(Answer::Refused { reason: "the program was started before".to_owned() });
    }
    shared.wake.wake();
    start.outputs = !given.is_empty();
    let with: Vec<BorrowedFd<'_>> = given.iter().map(AsFd::as_fd).collect();
    if let Err(error) = shared.speaker(0).send(&ToGuest::Start(Box::new(start)), &with) {
        // Half a message has no other half to come.
        shared.kill().ok();
        return Ok(Answer::Refused { reason: format!("write to init: {error}") });
    }
    // Theirs alone from here on: their end is the end of what is read.
    drop(given);
    await_start(shared, client)
}

/// Makes the outputs of so many main processes: what is read, and what each writes, in the order
/// in which init takes them.
fn process_outputs(
    shared: &Shared,
    count: usize,
) -> io::Result<(Vec<ProcessOutput>, Vec<OwnedFd>)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for process in (0_u8..).take(count) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (from, to) = pipe_out(shared.spec.ids.first)?;
            ours.push(ProcessOutput { process, stream, from });
            theirs.push(to);
        }
    }
    Ok((ours, theirs))
}

/// Answers once the first program was executed, or cannot be.
fn await_start(shared: &Shared, client: &UnixStream) -> io::Result<Answer> {
    shared.wait_for(client, |state| match &state.phase {
        Phase::Created | Phase::Starting => None,
        Phase::Running => Some(Answer::Done),
        Phase::NotExecutable { code, reason } => {
            Some(Answer::NotExecutable { code: *code, reason: reason.clone() })
        }
        // It started and ended between two looks: the status tells how.
        Phase::Ended(status) if status.started_unix_ms > 0 => Some(Answer::Done),
        Phase::Ended(status) if status.reason == perch_runtime::ExitReason::NotExecutable => {
            Some(Answer::NotExecutable { code: status.code, reason: status.message.clone() })
        }
        Phase::Ended(status) => Some(Answer::Ended(status.clone())),
    })
}

fn signal_program(shared: &Shared, signal: i32) -> Result<(), Error> {
    if !(1..=SIGNAL_MAX).contains(&signal) {
        return Err(Error::Spec(format!("there is no signal {signal}")));
    }
    let running = shared.change(|state| {
        let running = state.phase == Phase::Running;
        state.requested_stop |= running && ends_programs(signal);
        running
    });
    if !running {
        return Err(Error::Spec("the program does not run".to_owned()));
    }
    let each = shared.state().containers.each.clone();
    if each.is_empty() {
        return send_signal(shared, 0, signal);
    }
    let runs = |one: &ContainerStatus| {
        matches!(one.state, ContainerState::Started | ContainerState::Stopping)
    };
    let running = each.iter().enumerate().filter(|(_, one)| runs(one));
    running.map(|(index, _)| index).try_for_each(|index| send_signal(shared, index, signal))
}

fn send_signal(shared: &Shared, container: usize, signal: i32) -> Result<(), Error> {
    let message = ToGuest::Signal { signal };
    shared.speaker(container).send(&message, &[]).map_err(Error::system("write to init"))
}

/// Returns whether a signal is one that people end programs with.
fn ends_programs(signal: i32) -> bool {
    [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGKILL, libc::SIGHUP].contains(&signal)
}

/// Sends a signal and sets the time of the kill.
pub(crate) fn stop(shared: &Shared, signal: i32, grace_ms: u64) -> Result<(), Error> {
    let grace_ms = grace_ms.min(GRACE_MS_MAX);
    let has_containers = !shared.spec.containers.is_empty();
    // Containers are killed one by one, in their order; this is for an init that does not listen.
    let more_ms = if has_containers { CONTAINERS_MORE_MS } else { 0 };
    let kill_at = clock::boot_ms().saturating_add(grace_ms).saturating_add(more_ms);
    // A frozen program hears nothing.
    shared.hierarchies.freeze(&shared.paths.machine, false)?;
    shared.change(|state| {
        state.requested_stop = true;
        // A second stop may come sooner, never later.
        let earlier = state.kill_at_boot_ms.map_or(kill_at, |at| at.min(kill_at));
        state.kill_at_boot_ms = Some(earlier);
    });
    shared.wake.wake();
    if shared.state().phase == Phase::Running {
        shared.queue.system(&words::stopping(signal));
    }
    if has_containers && shared.state().phase == Phase::Running {
        return shared.happened(Event::Stop(signal, grace_ms));
    }
    match signal_program(shared, signal) {
        // Nothing runs that could end by itself.
        Err(Error::Spec(_)) => shared.kill(),
        // Without grace the kill may come first, and an end of its own at any time: it stopped.
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
