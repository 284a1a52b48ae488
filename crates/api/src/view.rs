//! Waits until the API's own view holds what a host has answered.
//!
//! Never fails for it: the host's answer is the truth, the view only follows.

use perch_types::MachineState;
use perch_types::host::HostMachine;

use crate::config::Shared;

/// Returns once the view holds the machine at least at the answer's generation, or after
/// [`crate::Limits::view_timeout`].
pub(crate) async fn follow(shared: &Shared, machine: &HostMachine) {
    let may_be_gone = matches!(machine.state, MachineState::Destroying | MachineState::Destroyed);
    let held = shared.view.wait_for(
        |view| match view.machine(&machine.id) {
            Some(known) => known.generation >= machine.generation,
            None => may_be_gone,
        },
        shared.limits.view_timeout,
    );
    if held.await.is_none() {
        tracing::warn!(machine = %machine.id, "view does not hold the change yet");
    }
}
