//! Standbys: a machine that starts when one that it stands by for has failed (contract 1.13).
//!
//! Never takes input: it looks at what there is and runs again. The standby itself keeps which
//! failures it has answered, so each starts it once.

use perch_types::api::MachineEvent;
use perch_types::host::HostMachine;

use crate::machine::state::{Fact, State};
use crate::shared::Shared;

impl Shared {
    /// Starts the standbys of machines that have failed.
    pub(crate) fn stand_in(&self) {
        for standby in self.all() {
            let published = standby.published();
            let machine = &published.machine;
            if machine.state != State::Stopped || machine.config.standbys.is_empty() {
                continue;
            }
            for event in self.failures_of(&machine.config.standbys) {
                standby.tell(Fact::StandIn { event });
            }
        }
    }

    /// Returns the events by which some of these machines have failed.
    pub(crate) fn failures_of(&self, machines: &[String]) -> Vec<String> {
        let handles = machines.iter().filter_map(|id| self.machine(&id.parse().ok()?).ok());
        handles
            .filter_map(|handle| failure(&handle.published().machine).map(|event| event.id.clone()))
            .collect()
    }
}

/// Returns the event by which a machine has failed and does not run any more, if it has.
fn failure(machine: &HostMachine) -> Option<&MachineEvent> {
    let newest = |kind: &str| machine.events.iter().find(|event| event.kind == kind);
    match machine.state {
        State::Failed => newest("failed"),
        State::Stopped | State::Destroyed => {
            let last =
                machine.events.iter().find(|it| matches!(it.kind.as_str(), "exit" | "start"));
            last.filter(|event| is_failure(event))
        }
        State::Created
        | State::Starting
        | State::Started
        | State::Stopping
        | State::Suspending
        | State::Suspended
        | State::Restarting
        | State::Replacing
        | State::Destroying => None,
    }
}

/// Returns whether an event is an end that nobody asked for and that was no good one.
fn is_failure(event: &MachineEvent) -> bool {
    let Some(exit) = event.request.as_ref().and_then(|request| request.get("exit_event")) else {
        return false;
    };
    let says = |name: &str| exit.get(name).and_then(serde_json::Value::as_bool) == Some(true);
    let code = exit.get("exit_code").and_then(serde_json::Value::as_i64);
    !says("requested_stop") && !says("restarting") && (code != Some(0) || says("oom_killed"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, exit: &serde_json::Value) -> MachineEvent {
        MachineEvent {
            id: kind.to_owned(),
            kind: kind.to_owned(),
            status: String::new(),
            source: "flyd".to_owned(),
            timestamp: 0,
            request: Some(json!({"exit_event": exit})),
        }
    }

    #[test]
    fn a_failure_is_a_bad_end_that_nobody_asked_for_and_nothing_follows() {
        let exit = |code: i32, asked: bool, restarting: bool| json!({"exit_code": code, "requested_stop": asked, "restarting": restarting});
        for (exit, want) in [
            (exit(1, false, false), true),
            (exit(137, false, false), true),
            (exit(0, false, false), false),
            (exit(1, true, false), false),
            (exit(1, false, true), false),
            (json!({"exit_code": 0, "oom_killed": true}), true),
        ] {
            assert_eq!(is_failure(&event("exit", &exit)), want, "{exit}");
        }
        assert!(!is_failure(&MachineEvent { request: None, ..event("exit", &json!({})) }));
    }
}
