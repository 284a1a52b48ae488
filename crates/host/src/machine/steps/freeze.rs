//! The processes of a boot stand still, or go on.
//!
//! Never freezes a program in the middle of a request that the drain before could wait for. May
//! run twice: what is frozen stays frozen, what goes on goes on. The undo of a freeze is a thaw.

use perch_types::Code;
use serde_json::Value;

use crate::effects::{Fault, chain};
use crate::machine::run::{Found, Thawed, Work};

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    match work.find().await? {
        Found::Running(instance) => instance.freeze().await?,
        // It ended meanwhile; what follows from that is decided once the run is over.
        Found::Ended(_) => work.instance = None,
    }
    Ok(Value::Null)
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    match work.find().await? {
        Found::Running(instance) => instance.thaw().await.map_err(Fault::from),
        Found::Ended(_) => Ok(()),
    }
}

/// Lets the boot go on; one that cannot is removed, and the machine starts anew.
pub(super) async fn thaw(work: &mut Work) -> Result<Value, Fault> {
    let wanted = work.record.boot.as_ref().map(|boot| boot.number);
    let thawed = match work.find().await? {
        Found::Running(instance) if Some(instance.info().boot) == wanted => {
            match instance.thaw().await {
                Ok(()) => Thawed::GoesOn,
                Err(error) => {
                    tracing::warn!(machine = %work.record.id, error = %chain(&error),
                        "suspended machine cannot go on, it is started anew");
                    Thawed::Lost
                }
            }
        }
        Found::Running(_) | Found::Ended(_) => Thawed::Lost,
    };
    if thawed == Thawed::Lost {
        work.instance = None;
        work.shared.effects.runtime.clean(&work.dir()).await?;
    }
    serde_json::to_value(thawed)
        .map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
}
