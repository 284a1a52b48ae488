//! Which container starts, is stopped and is started again when.
//!
//! Never reads a clock and does nothing itself: events go in, actions come out.

use perch_types::guest::Ended;
use perch_types::machine_config::{ContainerCondition, RESTART_WINDOW, RestartPolicy};

use super::{ContainerStart, ContainerState, ContainerStatus, Dependency};

/// The pause before the first restart of a container.
const PAUSE_MS: u64 = 100;
/// The longest pause before a restart.
const PAUSE_MS_MAX: u64 = 60_000;
/// How many restarts are remembered.
const REMEMBERED_MAX: usize = 64;
/// SIGKILL.
const KILL: i32 = 9;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The machine is to run.
    Begin,
    /// A container's program was executed.
    Started(usize),
    /// It could not be executed.
    NotExecutable(usize, i32),
    /// It ended.
    Ended(usize, Ended),
    /// The health checks of this start of it pass, or do not.
    Health(usize, u32, bool),
    /// This start of it is to be stopped because it is not well; its restart policy says what
    /// follows.
    Unwell(usize, u32),
    /// All are to end, with this signal where a container has none of its own, and at the latest
    /// after this time.
    Stop(i32, u64),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Execute a container's program.
    Start(usize),
    /// Send its main program a signal.
    Signal(usize, i32),
    /// The machine has ended.
    Finish(Finish),
}

/// How the machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// The container whose end it was: the first that failed, else the last that ended.
    pub container: usize,
    /// Its end.
    pub ended: Ended,
    /// Whether its program was never executed.
    pub not_executable: bool,
}

#[derive(Debug)]
struct Member {
    depends_on: Vec<Dependency>,
    restart: RestartPolicy,
    retries_max: usize,
    stop_signal: i32,
    stop_grace_ms: u64,
    state: ContainerState,
    starts: u32,
    healthy: bool,
    /// The last end that nothing follows.
    end: Option<(Ended, bool)>,
    unwell: bool,
    kill_at_ms: Option<u64>,
    again_at_ms: u64,
    restarts_ms: Vec<u64>,
}

/// The containers of a machine and what they wait for.
#[derive(Debug)]
pub struct Order {
    members: Vec<Member>,
    stop: Option<i32>,
    stop_at_ms: u64,
    first_failure: Option<Finish>,
    last_end: Option<Finish>,
    finished: bool,
}

impl Order {
    /// Begins with containers that all wait.
    #[must_use]
    pub fn new(containers: &[ContainerStart]) -> Self {
        let members = containers.iter().map(|one| Member {
            depends_on: one.depends_on.clone(),
            restart: one.restart,
            retries_max: usize::try_from(one.retries_max).unwrap_or(usize::MAX),
            stop_signal: one.stop_signal,
            stop_grace_ms: one.stop_grace_ms,
            state: ContainerState::Created,
            starts: 0,
            healthy: false,
            end: None,
            unwell: false,
            kill_at_ms: None,
            again_at_ms: 0,
            restarts_ms: Vec::new(),
        });
        Self {
            members: members.collect(),
            stop: None,
            stop_at_ms: 0,
            first_failure: None,
            last_end: None,
            finished: false,
        }
    }

    /// Returns how each stands.
    #[must_use]
    pub fn statuses(&self) -> Vec<ContainerStatus> {
        let each = self.members.iter();
        each.map(|one| ContainerStatus { state: one.state, starts: one.starts }).collect()
    }

    /// Returns when [`Event::Tick`] is due.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        let of_member = |one: &Member| match one.state {
            ContainerState::Restarting => Some(one.again_at_ms),
            _ => one.kill_at_ms,
        };
        self.members.iter().filter_map(of_member).min()
    }

    /// Takes an event into account and returns what is to be done.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Begin | Event::Tick => {}
            Event::Started(index) => {
                if let Some(member) = self.members.get_mut(index) {
                    member.starts = member.starts.saturating_add(1);
                    if member.state == ContainerState::Starting {
                        member.state = ContainerState::Started;
                    }
                }
            }
            Event::NotExecutable(index, code) => {
                self.end(index, Ended { code, signal: None }, true, now_ms);
            }
            Event::Ended(index, ended) => self.end(index, ended, false, now_ms),
            Event::Health(index, start, healthy) => {
                if let Some(member) = self.running(index, start) {
                    member.healthy = healthy;
                }
            }
            Event::Unwell(index, start) => {
                if let Some(member) = self.running(index, start) {
                    member.unwell = true;
                    actions.push(member.ask(index, member.stop_signal, now_ms));
                }
            }
            Event::Stop(signal, grace_ms) => {
                let at_ms = now_ms.saturating_add(grace_ms);
                self.stop_at_ms =
                    if self.stop.is_some() { self.stop_at_ms.min(at_ms) } else { at_ms };
                self.stop = Some(signal);
            }
        }
        self.settle(now_ms, &mut actions);
        actions
    }

    /// Returns a container if this start of it runs and was not asked to end.
    fn running(&mut self, index: usize, start: u32) -> Option<&mut Member> {
        let member = self.members.get_mut(index)?;
        (member.state == ContainerState::Started && member.starts == start).then_some(member)
    }

    /// Takes the end of a program into account.
    fn end(&mut self, index: usize, ended: Ended, not_executable: bool, now_ms: u64) {
        let stopping = self.stop.is_some();
        let Some(member) = self.members.get_mut(index) else {
            return;
        };
        member.healthy = false;
        member.kill_at_ms = None;
        let unwell = std::mem::take(&mut member.unwell);
        // One that had to be stopped for its health has failed, whatever it says itself.
        let failed = ended.code != 0 || unwell;
        if !stopping && !not_executable && member.again(failed, now_ms) {
            return;
        }
        let finish = Finish { container: index, ended, not_executable };
        member.end = Some((ended, failed));
        member.state = if failed && !stopping || not_executable {
            ContainerState::Failed
        } else {
            ContainerState::Stopped
        };
        if failed {
            self.first_failure.get_or_insert(finish);
        }
        self.last_end = Some(finish);
    }

    /// Does what follows from how all stand now.
    fn settle(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        match self.stop {
            Some(signal) => self.stop_ready(signal, now_ms, actions),
            None => while self.start_ready(now_ms, actions) {},
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.kill_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                member.kill_at_ms = None;
                actions.push(Action::Signal(index, KILL));
            }
        }
        let all = self.members.iter().all(|one| one.is_over());
        if all && !self.finished {
            self.finished = true;
            let nothing = Finish {
                container: 0,
                ended: Ended { code: 0, signal: None },
                not_executable: false,
            };
            let finish = if self.stop.is_some() { None } else { self.first_failure };
            actions.push(Action::Finish(finish.or(self.last_end).unwrap_or(nothing)));
        }
    }

    /// Starts what waits for nothing any more; `true` when others may follow from that.
    fn start_ready(&mut self, now_ms: u64, actions: &mut Vec<Action>) -> bool {
        let mut changed = false;
        for index in 0..self.members.len() {
            let Some(member) = self.members.get(index) else { continue };
            let next = match member.state {
                ContainerState::Created => match self.met(&member.depends_on) {
                    Some(true) => ContainerState::Starting,
                    Some(false) => continue,
                    None => ContainerState::Stopped,
                },
                ContainerState::Restarting if member.again_at_ms <= now_ms => {
                    ContainerState::Starting
                }
                _ => continue,
            };
            if next == ContainerState::Starting {
                actions.push(Action::Start(index));
            }
            changed |= next == ContainerState::Stopped;
            if let Some(member) = self.members.get_mut(index) {
                member.state = next;
            }
        }
        changed
    }

    /// Returns whether all conditions are met; nothing when one never will be.
    fn met(&self, depends_on: &[Dependency]) -> Option<bool> {
        let mut all = true;
        for dependency in depends_on {
            let other = self.members.get(dependency.container)?;
            let met = match dependency.condition {
                ContainerCondition::Started => other.starts > 0,
                ContainerCondition::Healthy => other.healthy,
                ContainerCondition::ExitedSuccessfully => {
                    matches!(other.end, Some((_, false))) && other.is_over()
                }
            };
            if !met && other.is_over() {
                return None;
            }
            all &= met;
        }
        Some(all)
    }

    /// Asks those to end on whom nobody depends any more.
    fn stop_ready(&mut self, signal: i32, now_ms: u64, actions: &mut Vec<Action>) {
        for index in 0..self.members.len() {
            let needed = self.members.iter().any(|other| {
                let depends = other.depends_on.iter().any(|one| one.container == index);
                depends && other.runs()
            });
            let stop_at_ms = self.stop_at_ms;
            let Some(member) = self.members.get_mut(index) else { continue };
            match member.state {
                ContainerState::Created | ContainerState::Restarting => {
                    member.state = ContainerState::Stopped;
                }
                ContainerState::Started if !needed => {
                    let own = if member.stop_signal == 0 { signal } else { member.stop_signal };
                    actions.push(member.ask(index, own, now_ms));
                }
                _ => {}
            }
            if member.runs() {
                let at_ms = member.kill_at_ms.map_or(stop_at_ms, |at_ms| at_ms.min(stop_at_ms));
                member.kill_at_ms = Some(at_ms);
            }
        }
    }
}

impl Member {
    const fn is_over(&self) -> bool {
        matches!(self.state, ContainerState::Stopped | ContainerState::Failed)
    }

    const fn runs(&self) -> bool {
        matches!(
            self.state,
            ContainerState::Starting | ContainerState::Started | ContainerState::Stopping
        )
    }

    fn ask(&mut self, index: usize, signal: i32, now_ms: u64) -> Action {
        self.state = ContainerState::Stopping;
        self.kill_at_ms = Some(now_ms.saturating_add(self.stop_grace_ms));
        Action::Signal(index, if signal == 0 { 15 } else { signal })
    }

    /// Decides whether it is started again, and notes when.
    fn again(&mut self, failed: bool, now_ms: u64) -> bool {
        let window_ms = u64::try_from(RESTART_WINDOW.get().as_millis()).unwrap_or(u64::MAX);
        self.restarts_ms.retain(|at_ms| now_ms.saturating_sub(*at_ms) < window_ms);
        let recent = self.restarts_ms.len();
        let again = match self.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => failed && recent < self.retries_max,
        };
        if again {
            let shift = u32::try_from(recent.min(16)).unwrap_or(16);
            self.again_at_ms = now_ms.saturating_add((PAUSE_MS << shift).min(PAUSE_MS_MAX));
            self.restarts_ms.push(now_ms);
            let surplus = self.restarts_ms.len().saturating_sub(REMEMBERED_MAX);
            self.restarts_ms.drain(..surplus);
            self.state = ContainerState::Restarting;
        }
        again
    }
}

#[cfg(test)]
mod tests;
