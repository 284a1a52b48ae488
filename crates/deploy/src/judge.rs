//! Decides from a machine's record whether it came up.
//!
//! Never calls anything and never waits.

use perch_types::MachineState;
use perch_types::api::{CheckState, ExitEvent, ExitRequest, HostStatus, Machine};
use perch_types::machine_config::RestartPolicy;

/// How the host names what a program listens on that listens, but not where it should.
const LISTENS: &str = "listens on ";
/// How it says that the program listens on nothing at all, which a slow start mends.
const LISTENS_NOT: &str = "nothing listens on ";

/// What a machine had seen before an operation: its newest event then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark(Option<String>);

impl Mark {
    /// Makes the mark of a machine as it is.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        Self(machine.events.first().map(|event| event.id.clone()))
    }

    /// Makes the mark of an update: what the version before it did until it was noted, such as to
    /// end once more, is not the new one's fault.
    #[must_use]
    pub fn of_update(before: &Machine, updated: &Machine) -> Self {
        let is_new = |id: &str| before.events.iter().all(|event| event.id != id);
        let mut updates = updated.events.iter().filter(|event| event.kind == "update");
        match updates.find(|event| is_new(&event.id)) {
            Some(update) => Self(Some(update.id.clone())),
            None => Self::of(before),
        }
    }
}

/// How a machine stands after an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Not yet.
    Waiting {
        /// What is waited for.
        because: String,
        /// The program listens, but on another address or port; that seldom mends itself.
        wrong_listener: bool,
    },
    /// It runs, and nothing says whether it is ready.
    Runs,
    /// It runs and its checks pass, or it ended well and was not to run again.
    Ready,
    /// Its program ended.
    Exited(Box<ExitEvent>),
    /// It could not be run.
    Failed(String),
    /// It was destroyed.
    Gone,
}

/// Returns how a machine stands; only events after `mark` count.
#[must_use]
pub fn judge(machine: &Machine, mark: &Mark) -> Verdict {
    if let Some(exit) = exit_after(machine, mark) {
        let done = exit.exit_code == 0 && machine.config.restart_policy() == RestartPolicy::No;
        return if done { Verdict::Ready } else { Verdict::Exited(Box::new(exit)) };
    }
    if machine.host_status != HostStatus::Ok {
        return waiting("its server does not answer; what is known of it may be old".to_owned());
    }
    match machine.state {
        MachineState::Failed => Verdict::Failed(reason_of(machine, mark)),
        MachineState::Destroying | MachineState::Destroyed => Verdict::Gone,
        MachineState::Started => started(machine),
        other => waiting(format!("it is {other}")),
    }
}

fn started(machine: &Machine) -> Verdict {
    if machine.checks.is_empty() {
        return Verdict::Runs;
    }
    let failing = || machine.checks.iter().filter(|check| check.status != CheckState::Passing);
    // Of several reasons the one that the others follow from: a check of a port that nothing
    // listens on does not pass either.
    let wrong = failing().find(|check| is_wrong_listener(&check.output));
    match wrong.or_else(|| failing().next()) {
        None => Verdict::Ready,
        Some(check) => Verdict::Waiting {
            because: if check.output.is_empty() {
                format!("check `{}` does not pass yet", check.name)
            } else {
                check.output.clone()
            },
            wrong_listener: wrong.is_some(),
        },
    }
}

fn is_wrong_listener(output: &str) -> bool {
    output.replace(LISTENS_NOT, "").contains(LISTENS)
}

fn waiting(because: String) -> Verdict {
    Verdict::Waiting { because, wrong_listener: false }
}

/// Returns the newest exit after the mark that nobody asked for.
fn exit_after(machine: &Machine, mark: &Mark) -> Option<ExitEvent> {
    machine
        .events
        .iter()
        .take_while(|event| mark.0.as_ref() != Some(&event.id))
        .filter(|event| event.kind == "exit")
        .filter_map(|event| serde_json::from_value::<ExitRequest>(event.request.clone()?).ok())
        .map(|request| request.exit_event)
        .find(|exit| !exit.requested_stop)
}

/// Returns why a machine failed, from the newest event that says so.
fn reason_of(machine: &Machine, mark: &Mark) -> String {
    let said = machine
        .events
        .iter()
        .take_while(|event| mark.0.as_ref() != Some(&event.id))
        .filter_map(|event| event.request.as_ref())
        .find_map(|request| {
            let error = request.get("error").or_else(|| request.get("reason"))?;
            error.as_str().or_else(|| error.get("error")?.as_str())
        });
    said.unwrap_or("its events say no more").to_owned()
}
