//! The steps of a machine's runs, one file each: what it does, how it is undone, why it may run
//! twice.
//!
//! Never journal anything themselves and never call each other but in an update that goes back.

pub(super) mod boot;
mod clean;
mod drain;
mod execute;
mod freeze;
mod image;
mod network;
mod rootfs;
mod stop;
mod volume;

use serde_json::Value;

use super::plan::Step;
use super::run::Work;
use crate::effects::Fault;

/// Runs a step to its goal.
///
/// # Errors
/// Why it was not reached.
pub(crate) async fn run(work: &mut Work, step: Step) -> Result<Value, Fault> {
    match step {
        Step::Image => image::run(work).await,
        Step::Rootfs => rootfs::run(work).await,
        Step::Drain => drain::run(work).await,
        Step::Stop => stop::run(work).await,
        Step::Freeze => freeze::run(work).await,
        Step::Thaw => freeze::thaw(work).await,
        Step::Volume => volume::run(work).await,
        Step::Boot => boot::run(work).await,
        Step::Network => network::run(work).await,
        Step::Execute => execute::run(work).await,
        Step::Detach => network::detach(work).await,
        Step::Clean => clean::run(work).await,
        Step::Discard => {
            volume::discard(work).await?;
            rootfs::discard(work).await
        }
        Step::Erase => {
            volume::release(work).await?;
            clean::erase(work).await
        }
    }
}

/// Takes away what a step made.
///
/// # Errors
/// Why it is not away.
pub(crate) async fn undo(work: &mut Work, step: Step) -> Result<(), Fault> {
    match step {
        Step::Rootfs => rootfs::undo(work).await,
        Step::Volume => volume::undo(work).await,
        Step::Stop => stop::undo(work).await,
        Step::Freeze => freeze::undo(work).await,
        Step::Thaw => freeze::undo_thaw(work).await,
        Step::Boot => boot::undo(work).await,
        Step::Network => network::undo(work).await,
        // An image that is on the host may be another machine's too; the end of a run opens the
        // gate and the end of a boot ends its program; what removes things only goes forward.
        Step::Image
        | Step::Drain
        | Step::Execute
        | Step::Detach
        | Step::Clean
        | Step::Discard
        | Step::Erase => Ok(()),
    }
}
