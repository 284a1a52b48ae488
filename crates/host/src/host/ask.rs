//! What can be asked about a machine that runs: waits, programs inside it.
//!
//! Never changes its record.

use std::sync::Arc;
use std::time::Duration;

use perch_runtime::{ExecStream, GuestExec, Instance};
use perch_types::api::{ExecRequest, ExecResponse, MachineEvent};
use perch_types::exec::ExecSpec;
use perch_types::host::{HostMachine, WaitQuery};
use perch_types::{ApiError, Code, InstanceId, MachineConfig, MachineId};

use super::Host;
use crate::effects::Fault;
use crate::logs::Log;
use crate::machine::containers;
use crate::machine::state::State;
use crate::words;

/// The longest that a wait takes.
pub const WAIT_MS_MAX: u64 = 300_000;
/// How long a program waits for its machine's adoption.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a program may take when nothing else was said.
const EXEC_TIMEOUT_S_DEFAULT: u64 = 60;

/// What a wait waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    State(State),
    Settled,
    Ready,
}

/// What a wait waits for, and from when on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    goals: Vec<Goal>,
    instance: Option<InstanceId>,
    from_event: Option<String>,
}

impl Asked {
    fn parse(query: &WaitQuery) -> Result<Self, ApiError> {
        let words = query.states.split(',').map(str::trim).filter(|word| !word.is_empty());
        let goals: Vec<Goal> = words.map(Goal::parse).collect::<Result<_, _>>()?;
        if goals.is_empty() {
            return Err(ApiError::new(Code::InvalidRequest, "states: name at least one"));
        }
        let (instance, from_event) = (query.instance.clone(), query.from_event.clone());
        Ok(Self { goals, instance, from_event })
    }

    /// Returns whether the machine is, or since the event was, what is waited for.
    fn is_reached(&self, machine: &HostMachine) -> bool {
        if self.instance.as_ref().is_some_and(|instance| machine.instance != *instance) {
            return false;
        }
        let is_now = self.goals.iter().any(|goal| goal.is_reached(machine));
        let Some(from) = &self.from_event else {
            return is_now;
        };
        let known = machine.events.iter().position(|event| event.id == *from);
        // One that is not kept any more lies before all that are.
        let newer = &machine.events[..known.unwrap_or(machine.events.len())];
        let before = known.and_then(|index| machine.events.get(index));
        let moved_on = before.is_none_or(|event| event.status != machine.state.as_str());
        (is_now && (moved_on || !newer.is_empty()))
            || newer.iter().any(|event| self.goals.iter().any(|goal| goal.is_told_by(event)))
    }
}

impl Goal {
    fn parse(word: &str) -> Result<Self, ApiError> {
        match word {
            "settled" => Ok(Self::Settled),
            "ready" => Ok(Self::Ready),
            word => word
                .parse()
                .map(Self::State)
                .map_err(|error| ApiError::new(Code::InvalidRequest, format!("states: {error}"))),
        }
    }

    fn is_reached(self, machine: &HostMachine) -> bool {
        match self {
            Self::State(state) => machine.state == state,
            Self::Settled => machine.state.is_settled() && machine.state != State::Created,
            Self::Ready => machine.ready,
        }
    }

    /// Returns whether an event says that it was reached.
    fn is_told_by(self, event: &MachineEvent) -> bool {
        match self {
            Self::State(state) => event.status == state.as_str(),
            Self::Settled | Self::Ready => false,
        }
    }
}

impl Host {
    /// Waits until a machine reaches one of some states.
    ///
    /// # Errors
    /// [`Code::DeadlineExceeded`] when it does not in time, [`Code::MachineNotFound`] when it is
    /// destroyed and that was not waited for.
    pub async fn wait(&self, id: &MachineId, query: &WaitQuery) -> Result<HostMachine, ApiError> {
        let asked = Asked::parse(query)?;
        let mut follow = self.shared.machine(id)?.follow();
        let reached = async {
            // Nothing comes after its destruction.
            let found = follow.wait_for(|published| {
                asked.is_reached(&published.machine) || published.machine.state == State::Destroyed
            });
            found.await.map(|published| published.machine.clone())
        };
        let limit = Duration::from_millis(query.timeout_ms.min(WAIT_MS_MAX));
        match tokio::time::timeout(limit, reached).await {
            Ok(Ok(machine)) if asked.is_reached(&machine) => Ok(machine),
            Ok(Ok(_) | Err(_)) => Err(ApiError::machine_not_found(id.as_str())),
            Err(_) => Err(ApiError::new(
                Code::DeadlineExceeded,
                format!("deadline_exceeded: machine did not reach {} in time", query.states),
            )),
        }
    }

    /// Runs a program inside a machine to its end.
    ///
    /// # Errors
    /// When the machine does not run, or the request names no program.
    pub async fn exec(
        &self,
        id: &MachineId,
        request: ExecRequest,
    ) -> Result<ExecResponse, ApiError> {
        let argv = if request.command.is_empty() {
            words::split(request.cmd.as_deref().unwrap_or_default())
                .map_err(|error| ApiError::new(Code::InvalidRequest, format!("cmd: {error}")))?
        } else {
            request.command
        };
        if argv.is_empty() {
            return Err(ApiError::new(Code::InvalidRequest, "command: name a program"));
        }
        let timeout_s = request.timeout.unwrap_or(EXEC_TIMEOUT_S_DEFAULT);
        let instance = self.running(id).await?;
        let container = self.container_of(id, request.container)?;
        let request = perch_runtime::ExecRequest {
            exec: GuestExec { argv, container, ..GuestExec::default() },
            stdin: request.stdin.unwrap_or_default().into_bytes(),
            timeout_ms: timeout_s
                .saturating_mul(1_000)
                .clamp(1, perch_runtime::EXEC_TIMEOUT_MS_MAX),
            output_bytes_max: 0,
        };
        let output = instance.exec(request).await.map_err(|error| Fault::from(error).error)?;
        if output.timed_out {
            return Err(ApiError::new(
                Code::DeadlineExceeded,
                format!("deadline_exceeded: the program did not end within {timeout_s} s"),
            ));
        }
        Ok(ExecResponse {
            exit_code: output.ended.code,
            exit_signal: output.ended.signal,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a program inside a machine with its streams open.
    ///
    /// # Errors
    /// When the machine does not run, or the request names no program.
    pub async fn attach(&self, id: &MachineId, spec: ExecSpec) -> Result<ExecStream, ApiError> {
        if spec.command.is_empty() {
            return Err(ApiError::new(Code::InvalidRequest, "command: name a program"));
        }
        let tty =
            spec.tty.then_some(perch_runtime::TerminalSize { rows: spec.rows, cols: spec.cols });
        let instance = self.running(id).await?;
        let container = self.container_of(id, spec.container)?;
        let exec = GuestExec { argv: spec.command, tty, container, ..GuestExec::default() };
        instance.exec_stream(exec).await.map_err(|error| Fault::from(error).error)
    }

    /// Returns the container of a machine in which a program is run.
    fn container_of(
        &self,
        id: &MachineId,
        wanted: Option<String>,
    ) -> Result<Option<String>, ApiError> {
        let published = self.shared.machine(id)?.published();
        containers::choose(&published.machine.containers, wanted)
            .map_err(|text| ApiError::new(Code::InvalidRequest, format!("container: {text}")))
    }

    /// Returns a machine's log.
    ///
    /// # Errors
    /// When there is no such machine.
    pub(crate) fn log(&self, id: MachineId) -> Result<Log, ApiError> {
        self.shared.machine(&id)?;
        Ok(Log {
            dir: self.shared.machine_dir(&id).log_dir(),
            machine: id,
            region: self.shared.config.region.clone(),
            followers: Arc::clone(&self.shared.followers),
        })
    }

    /// Returns the region.
    #[must_use]
    pub fn region(&self) -> &perch_types::Region {
        &self.shared.config.region
    }

    /// Returns the boot of a machine that runs and is not frozen.
    pub(crate) async fn running(&self, id: &MachineId) -> Result<Arc<dyn Instance>, ApiError> {
        let (instance, _) = self.alive(id).await?;
        let state = self.shared.machine(id)?.published().machine.state;
        // What is frozen would run a program only once the machine goes on.
        if matches!(state, State::Suspending | State::Suspended) {
            return Err(no_program(state));
        }
        Ok(instance)
    }

    /// Returns the boot of a machine that runs or is suspended, and its configuration. After a
    /// restart of the agent it may be under adoption still: that is waited for.
    pub(super) async fn alive(
        &self,
        id: &MachineId,
    ) -> Result<(Arc<dyn Instance>, MachineConfig), ApiError> {
        let mut follow = self.shared.machine(id)?.follow();
        let adopted = follow.wait_for(|published| {
            let state = published.machine.state;
            published.instance.is_some() || !matches!(state, State::Started | State::Suspended)
        });
        // Too late, or its task has ended: what it is then says the rest.
        drop(tokio::time::timeout(ADOPTION_TIMEOUT, adopted).await);
        let published = self.shared.machine(id)?.published();
        let instance =
            published.instance.clone().ok_or_else(|| no_program(published.machine.state))?;
        Ok((instance, published.machine.config.clone()))
    }
}

fn no_program(state: State) -> ApiError {
    ApiError::new(Code::WrongState, format!("machine is {state}: no program runs in it"))
        .with_hint("start it first")
}
#[cfg(test)]
mod tests;
