//! What the monitor's threads share.
//!
//! Never a lock held while waiting for the machine or an agent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use perch_runtime::cgroup::{Hierarchies, Paths};
use perch_runtime::protocol::InstanceInfo;
use perch_runtime::{BootSpec, Error, ExitStatus, process};
use perch_types::guest::FromGuest;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::guest::Speaker;
use crate::queue::Queue;

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
}

/// What every thread may use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) spec: BootSpec,
    pub(crate) info: InstanceInfo,
    pub(crate) init: OwnedFd,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) paths: Paths,
    pub(crate) speaker: Speaker,
    pub(crate) queue: Queue,
    pub(crate) wake: Wake,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { spec, info, init, hierarchies, paths, speaker, wake } = parts;
        let queue = Queue::new(spec.log.bytes_per_second_max);
        Self {
            spec,
            info,
            init,
            hierarchies,
            paths,
            speaker,
            queue,
            wake,
            state: Mutex::default(),
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

    /// Kills everything in the machine.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        // Killing PID 1 ends its whole namespace. A frozen machine has to move to die.
        process::kill(&self.init).map_err(Error::system("kill the machine"))?;
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
