//! The boot that runs is ended: the signal, the grace, then the kill.
//!
//! Never waits for ever. May run twice: a boot that has ended leaves its status. Its undo, in an
//! update that goes back, boots the old version again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use perch_runtime::{ExitStatus, Instance};
use perch_types::Code;
use serde_json::Value;

use super::{boot, execute, network};
use crate::effects::Fault;
use crate::machine::run::{Executed, Found, Stopped, Work};

/// How long the end of a machine may take beyond the grace, and again after a kill.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a boot whose monitor does not answer is looked for again.
const FIND_PAUSE: Duration = Duration::from_secs(1);
/// SIGKILL.
const KILL: i32 = 9;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let exit = match find(work).await? {
        Some(Found::Running(instance)) => end(work, instance.as_ref()).await?,
        Some(Found::Ended(exit)) => exit,
        None => force(work).await?,
    };
    work.instance = None;
    // A status of an earlier boot says nothing about this one.
    let number = work.record.boot.as_ref().map(|boot| boot.number);
    let exit = exit.filter(|exit| Some(exit.boot) == number);
    serde_json::to_value(Stopped { exit })
        .map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
}

/// Finds the boot; nothing when its monitor runs and says nothing for as long as its program may
/// take to end.
async fn find(work: &mut Work) -> Result<Option<Found>, Fault> {
    let began = Instant::now();
    let patience = Duration::from_millis(work.input.grace_ms);
    loop {
        match work.find().await {
            Err(fault) if fault.transient => {
                if began.elapsed() >= patience {
                    tracing::warn!(machine = %work.record.id, error = %fault,
                        "monitor that does not answer is killed");
                    return Ok(None);
                }
                tokio::time::sleep(FIND_PAUSE).await;
            }
            found => return found.map(Some),
        }
    }
}

/// Ends the boot from outside, without its monitor; nobody knows how it ended.
async fn force(work: &Work) -> Result<Option<ExitStatus>, Fault> {
    work.shared.effects.runtime.clean(&work.dir()).await?;
    Ok(None)
}

async fn end(work: &Work, instance: &dyn Instance) -> Result<Option<ExitStatus>, Fault> {
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
        return Ok(Some(exit?));
    }
    if instance.kill().await.is_ok()
        && let Ok(exit) = tokio::time::timeout(END_TIMEOUT, instance.wait()).await
    {
        return Ok(Some(exit?));
    }
    tracing::warn!(machine = %work.record.id, "monitor that does not end its machine is killed");
    force(work).await
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    if work.record.is_frozen() || work.is_to_end.load(Ordering::Acquire) {
        // What it had in memory is lost, and nobody wanted it to run, or nobody wants it any more:
        // a machine whose old version finds no room can be stopped and destroyed.
        return Ok(());
    }
    let old = work.record.version.clone();
    boot::make(work, &old, work.input.back).await?;
    network::attach(work).await?;
    match execute::execute(work, &old).await? {
        Executed::Started => Ok(()),
        Executed::NotExecutable => {
            Err(Fault::transient(Code::Internal, "the old version's program cannot be executed"))
        }
    }
}
