//! Waits until the API's own view holds what a host has answered.
//!
//! Never fails for it: the host's answer is the truth, the view only follows.

use perch_types::host::HostMachine;
use perch_types::{HostId, MachineState};

use crate::config::Shared;

/// Returns once the view holds the machine at least at the answer's generation, or after
/// [`crate::Limits::view_timeout`]. What a host says of a machine that the view knows goes into it
/// at once; that one is new or gone for good the view hears by way of the directory.
pub(crate) async fn follow(shared: &Shared, host: &HostId, machine: &HostMachine) {
    let may_be_gone = matches!(machine.state, MachineState::Destroying | MachineState::Destroyed);
    if !may_be_gone && shared.view.take_known_machine(machine.record(host.clone())) {
        return;
    }
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
