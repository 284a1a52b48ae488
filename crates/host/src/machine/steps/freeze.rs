//! The processes of a boot stand still, or go on.
//!
//! Never freezes a program in the middle of a request that the drain before could wait for, and
//! never takes a boot for lost because it could not be let go on for a moment: what is in its memory
//! is nowhere else. May run twice: what is frozen stays frozen, what goes on goes on. The undo of a
//! freeze is a thaw, and that of a thaw a freeze.

use std::io::ErrorKind;

use perch_types::Code;
use serde_json::Value;

use crate::effects::Fault;
use crate::machine::run::{Found, Thawed, Work};

/// How a boot stood before the step that is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stood {
    Running,
    Frozen,
}

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    match work.find().await? {
        Found::Running(instance) => instance.freeze().await?,
        // It ended meanwhile; what follows from that is decided once the run is over.
        Found::Ended(_) => work.instance = None,
    }
    Ok(Value::Null)
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    back(work, Stood::Running).await;
    Ok(())
}

/// Stops what a thaw that is given up may have let go on.
pub(super) async fn undo_thaw(work: &mut Work) -> Result<(), Fault> {
    back(work, Stood::Frozen).await;
    Ok(())
}

/// Has the boot stand as it did before. Tried once: a stop that waits for the end of this run would
/// wait for as long as a monitor says nothing. Whether it worked the machine's task finds out,
/// which has the record count and tries again.
async fn back(work: &mut Work, stood: Stood) {
    let done = match (work.find().await, stood) {
        (Ok(Found::Running(instance)), Stood::Running) => {
            instance.thaw().await.map_err(Fault::from)
        }
        (Ok(Found::Running(instance)), Stood::Frozen) => {
            instance.freeze().await.map_err(Fault::from)
        }
        (Ok(Found::Ended(_)), _) => return,
        (Err(fault), _) => Err(fault),
    };
    if let Err(fault) = done {
        work.shared.unless_ending().await;
        tracing::warn!(machine = %work.record.id, error = %fault,
            "boot may not stand as before, it is looked at again");
        work.instance = None;
    }
}

/// Lets the boot go on; of one that is gone what is left is removed, and the machine starts anew.
pub(super) async fn thaw(work: &mut Work) -> Result<Value, Fault> {
    let wanted = work.record.boot.as_ref().map(|boot| boot.number);
    let thawed = match find(work).await? {
        Found::Running(instance) if Some(instance.info().boot) == wanted => {
            match instance.thaw().await {
                Ok(()) => Thawed::GoesOn,
                Err(error) => judge(work, wanted, error).await?,
            }
        }
        Found::Running(_) | Found::Ended(_) => Thawed::Lost,
    };
    if thawed == Thawed::Lost {
        tracing::warn!(machine = %work.record.id, "suspended machine is gone, it is started anew");
        work.instance = None;
        let cleaned = work.shared.effects.runtime.clean(&work.dir()).await;
        cleaned.map_err(|error| Fault { transient: true, ..Fault::from(error) })?;
    }
    serde_json::to_value(thawed)
        .map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
}

/// Finds the boot. Whatever keeps it from being found now says nothing of it.
async fn find(work: &mut Work) -> Result<Found, Fault> {
    work.find().await.map_err(|fault| Fault { transient: true, ..fault })
}

/// Decides what a thaw that did not succeed says. Lost is only a boot whose monitor or processes
/// are gone, or its cgroup, without which nobody can let it go on; any other is tried again.
async fn judge(
    work: &mut Work,
    wanted: Option<u64>,
    error: perch_runtime::Error,
) -> Result<Thawed, Fault> {
    // The one at hand may have ended since it was found.
    work.instance = None;
    let instance = match find(work).await? {
        Found::Running(instance) if Some(instance.info().boot) == wanted => instance,
        Found::Running(_) | Found::Ended(_) => return Ok(Thawed::Lost),
    };
    match instance.is_frozen().await {
        Err(perch_runtime::Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Ok(Thawed::Lost)
        }
        Ok(_) | Err(_) => Err(Fault { transient: true, ..Fault::from(error) }),
    }
}
