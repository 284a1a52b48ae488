//! What the monitor's threads share.
//!
//! Never a lock held while waiting for the machine or an agent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use perch_runtime::cgroup::{Hierarchies, Paths};
use perch_runtime::containers::{ContainerStart, Containers, Event};
use perch_runtime::log::Stream;
use perch_runtime::protocol::InstanceInfo;
use perch_runtime::{BootSpec, Error, ExitStatus, process};
use perch_types::guest::FromGuest;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::guest::Speaker;
use crate::members::Member;
use crate::queue::Queue;

/// What may have happened to containers before the main thread looks.
const EVENTS_MAX: usize = 1024;

/// How far the program has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Init waits for the start.
    #[default]
    Created,
    /// Init was told to start the program.
    Starting,
    /// The program was executed.
    Running,
    /// The program could not be executed.
    NotExecutable { code: i32, reason: String },
    /// Everything has ended.
    Ended(Box<ExitStatus>),
}

/// What one of several main processes writes.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    pub(crate) process: u8,
    pub(crate) stream: Stream,
    pub(crate) from: OwnedFd,
}

/// What changes while the machine runs.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) started_unix_ms: u64,
    pub(crate) requested_stop: bool,
    pub(crate) tty: bool,
    pub(crate) killed: bool,
    pub(crate) kill_at_boot_ms: Option<u64>,
    pub(crate) clients: usize,
    /// Of agents that wait for a change, at most one for each of `clients`.
    waiting: Vec<Arc<Wake>>,
    pub(crate) execs: BTreeMap<u32, Arc<Mailbox>>,
    pub(crate) exec_last: u32,
    /// What the main processes write, until the main thread takes it.
    pub(crate) outputs: Vec<ProcessOutput>,
    /// What containers shall start with, until all are there.
    pub(crate) prepared: BTreeMap<usize, ContainerStart>,
    /// What the containers shall start with, until the main thread takes it.
    pub(crate) starts: Option<Vec<ContainerStart>>,
    /// What happened to the containers and the main thread has not seen yet.
    pub(crate) events: VecDeque<Event>,
    /// How they stand.
    pub(crate) containers: Containers,
}

/// What every thread may use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) spec: BootSpec,
    pub(crate) info: InstanceInfo,
    pub(crate) init: OwnedFd,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) paths: Paths,
    speaker: Speaker,
    /// The containers beside the first.
    pub(crate) members: Vec<Member>,
    pub(crate) queue: Queue,
    pub(crate) wake: Wake,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { spec, info, init, hierarchies, paths, speaker, members, wake } = parts;
        let queue = Queue::new(spec.log.bytes_per_second_max);
        let inits = std::iter::once(info.init.pid).chain(members.iter().map(|one| one.pid));
        let containers = Containers { inits: inits.collect(), ..Containers::default() };
        Self {
            spec,
            info,
            init,
            hierarchies,
            paths,
            speaker,
            members,
            queue,
            wake,
            state: Mutex::new(State { containers, ..State::default() }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells everybody who waits for a change.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        for one in &state.waiting {
            one.wake();
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` finds what it looks for; an error when the agent that wants to know
    /// hung up before. An agent that was killed must not keep its place until the machine's end.
    pub(crate) fn wait_for<T>(
        &self,
        agent: &UnixStream,
        mut ready: impl FnMut(&State) -> Option<T>,
    ) -> io::Result<T> {
        let wake = Arc::new(Wake::new()?);
        self.state().waiting.push(Arc::clone(&wake));
        let found = loop {
            wake.clear();
            if let Some(found) = ready(&self.state()) {
                break Ok(found);
            }
            let mut polled = [
                PollFd::new(&wake.descriptor, PollFlags::IN),
                PollFd::new(agent, PollFlags::RDHUP),
            ];
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => break Err(error.into()),
            }
            if polled.iter().skip(1).any(|agent| !agent.revents().is_empty()) {
                break Err(io::ErrorKind::ConnectionAborted.into());
            }
        };
        self.state().waiting.retain(|one| !Arc::ptr_eq(one, &wake));
        found
    }

    /// Waits until `ready` or until the time is over.
    pub(crate) fn wait_at_most(
        &self,
        limit: std::time::Duration,
        mut ready: impl FnMut(&mut State) -> bool,
    ) {
        let state = self.state();
        // Both outcomes are fine: whoever calls this goes on in any case.
        drop(self.changed.wait_timeout_while(state, limit, |state| !ready(state)));
    }

    /// Speaks to the init of a container; a machine without containers is its own first.
    pub(crate) fn speaker(&self, container: usize) -> &Speaker {
        let member = container.checked_sub(1).and_then(|index| self.members.get(index));
        member.map_or(&self.speaker, |member| &member.speaker)
    }

    /// Returns the number of a container by its name; without a name it is the first.
    pub(crate) fn container(&self, name: Option<&str>) -> Result<usize, String> {
        let Some(name) = name else {
            return Ok(0);
        };
        let mut all = self.spec.containers.iter();
        all.position(|one| one.name == name).ok_or_else(|| {
            let names: Vec<&str> =
                self.spec.containers.iter().map(|one| one.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("there is no container `{name}`; there are: {names}")
        })
    }

    /// Tells the main thread what happened to a container.
    pub(crate) fn happened(&self, event: Event) -> Result<(), Error> {
        let taken = self.change(|state| {
            let taken = state.events.len() < EVENTS_MAX;
            if taken {
                state.events.push_back(event);
            }
            taken
        });
        self.wake.wake();
        if taken { Ok(()) } else { Err(Error::Spec("too much happens at once".to_owned())) }
    }

    /// Kills everything in the machine.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        // Killing PID 1 ends its whole namespace. A frozen machine has to move to die.
        process::kill(&self.init).map_err(Error::system("kill the machine"))?;
        for member in &self.members {
            member.kill()?;
        }
        self.hierarchies.freeze(&self.paths.machine, false)?;
        self.hierarchies.kill(&self.paths.machine)
    }
}

/// The parts of [`Shared`] that the launch makes.
pub(crate) struct Parts {
    pub(crate) spec: BootSpec,
    pub(crate) info: InstanceInfo,
    pub(crate) init: OwnedFd,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) paths: Paths,
    pub(crate) speaker: Speaker,
    pub(crate) members: Vec<Member>,
    pub(crate) wake: Wake,
}

/// Interrupts a poll of another thread.
#[derive(Debug)]
pub(crate) struct Wake {
    pub(crate) descriptor: OwnedFd,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { descriptor })
    }

    pub(crate) fn wake(&self) {
        // Full means that it wakes already.
        rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes()).ok();
    }

    pub(crate) fn clear(&self) {
        rustix::io::read(&self.descriptor, &mut [0_u8; 8]).ok();
    }
}

/// Messages of init for the thread that runs a further program: at most started and ended.
#[derive(Debug)]
pub(crate) struct Mailbox {
    messages: Mutex<VecDeque<(FromGuest, Option<OwnedFd>)>>,
    pub(crate) wake: Wake,
    pub(crate) tty: bool,
}

impl Mailbox {
    pub(crate) fn new(tty: bool) -> io::Result<Self> {
        Ok(Self { messages: Mutex::default(), wake: Wake::new()?, tty })
    }

    pub(crate) fn put(&self, message: FromGuest, with: Option<OwnedFd>) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push_back((message, with));
        self.wake.wake();
    }

    pub(crate) fn take(&self) -> Option<(FromGuest, Option<OwnedFd>)> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let next = messages.pop_front();
        if messages.is_empty() {
            self.wake.clear();
        }
        next
    }
}
