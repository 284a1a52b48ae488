//! The cage is connected, or no longer.
//!
//! Never chooses an address: the record has the slot. May run twice: attaching makes the interface
//! anew, detaching one that is not there is nothing.

use perch_types::Code;
use serde_json::Value;

use crate::effects::Fault;
use crate::machine::ahead;
use crate::machine::run::Work;
use crate::shared::machine_network;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    attach(work).await?;
    Ok(Value::Null)
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    work.shared.effects.networks.detach(&work.record.id).await
}

pub(super) async fn detach(work: &mut Work) -> Result<Value, Fault> {
    undo(work).await?;
    Ok(Value::Null)
}

/// Connects the boot at hand.
pub(super) async fn attach(work: &mut Work) -> Result<(), Fault> {
    let Some(instance) = work.instance.clone() else {
        return Err(Fault::permanent(Code::Internal, "the cage ended before it was connected"));
    };
    let allowed = ahead::allowed(work).await?;
    // Before the interface is there: nothing passes that should not.
    if !allowed.is_everything() {
        let namespace = instance.network_namespace()?;
        work.shared.effects.networks.confine(namespace, allowed).await?;
    }
    let namespace = instance.network_namespace()?;
    let network = machine_network(&work.record);
    work.shared.effects.networks.attach(namespace, network).await
}
