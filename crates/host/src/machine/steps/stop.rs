//! The boot that runs is ended: the signal, the grace, then the kill.
//!
//! Never waits for ever. May run twice: a boot that has ended leaves its status. Its undo, in an
//! update that goes back, boots the old version again.

use std::time::Duration;

use perch_runtime::Instance;
use perch_types::Code;
use serde_json::Value;

use super::{boot, execute, network};
use crate::effects::Fault;
use crate::machine::run::{Executed, Found, Stopped, Work};

/// How long the end of a machine may take beyond the grace, and again after a kill.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// SIGKILL.
const KILL: i32 = 9;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let exit = match work.find().await? {
        Found::Running(instance) => Some(end(work, instance.as_ref()).await?),
        Found::Ended(exit) => exit,
    };
    work.instance = None;
    // A status of an earlier boot says nothing about this one.
    let number = work.record.boot.as_ref().map(|boot| boot.number);
    let exit = exit.filter(|exit| Some(exit.boot) == number);
    serde_json::to_value(Stopped { exit })
        .map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
}

async fn end(work: &Work, instance: &dyn Instance) -> Result<perch_runtime::ExitStatus, Fault> {
    let input = work.input;
    let asked = if input.signal == KILL {
        instance.kill().await
    } else {
        instance.stop(input.signal, input.grace_ms).await
    };
    // One that has ended meanwhile needs no signal; of any other error the wait says more.
    drop(asked);
    let limit = Duration::from_millis(input.grace_ms).saturating_add(END_TIMEOUT);
    if let Ok(exit) = tokio::time::timeout(limit, instance.wait()).await {
        return Ok(exit?);
    }
    instance.kill().await?;
    match tokio::time::timeout(END_TIMEOUT, instance.wait()).await {
        Ok(exit) => Ok(exit?),
        Err(_) => Err(Fault::transient(Code::Internal, "the machine does not end when killed")),
    }
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    if work.record.is_frozen() {
        // What it had in memory is lost, and nobody wanted it to run.
        return Ok(());
    }
    let old = work.record.version.clone();
    // The layer of a machine that keeps nothing may begin empty; one that keeps is as it was.
    boot::make(work, &old, work.input.back).await?;
    network::attach(work).await?;
    match execute::execute(work, &old).await? {
        Executed::Started => Ok(()),
        Executed::NotExecutable => {
            Err(Fault::transient(Code::Internal, "the old version's program cannot be executed"))
        }
    }
}
