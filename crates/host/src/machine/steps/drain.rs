//! No request is under way to the boot that is to be ended: none is sent any more, and those that
//! were had their time.
//!
//! Never waits longer than the limit, nor for a program that has ended. May run twice: a gate that
//! is closed stays closed. Its undo is the end of the run, after which the machine is looked at
//! anew.

use perch_types::service::Protocol;
use serde_json::Value;

use crate::effects::Fault;
use crate::machine::run::{Found, Work};

/// SIGKILL: whoever asks for it wants no delay.
const KILL: i32 = 9;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let services = &work.record.version.config.services;
    let serves = services.iter().any(|service| service.protocol == Protocol::Tcp);
    if !serves || work.input.signal == KILL {
        return Ok(Value::Null);
    }
    // Of a boot that cannot be asked now the next step finds out what becomes of it.
    let Ok(Found::Running(instance)) = work.find().await else {
        return Ok(Value::Null);
    };
    let Some(counter) = work.close_gate().await else {
        return Ok(Value::Null);
    };
    let limit = work.shared.config.limits.drain;
    let drained = tokio::time::timeout(limit, work.shared.drains.wait(&work.record.id, counter));
    tokio::select! {
        drained = drained => {
            if drained.is_err() {
                tracing::info!(machine = %work.record.id, limit_ms = limit.as_millis(),
                    "requests under way are cut off");
            }
        }
        // The next step finds out how it ended. The monitor is not asked: each drain would take a
        // place there that it keeps until the end.
        Ok(()) = instance.over() => {}
    }
    Ok(Value::Null)
}
