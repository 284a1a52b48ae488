//! Housekeeping at intervals: trees of images that nobody uses any more are unmounted.
//!
//! Never takes input: it looks at what there is and runs again.

use std::sync::Arc;
use std::time::Duration;

use crate::heartbeat::BEAT_MS;
use crate::shared::Shared;

/// How many beats lie between two looks.
const BEATS_PER_ROUND: u64 = 60;

/// Runs until the agent ends.
pub(crate) async fn tend(shared: Arc<Shared>) {
    let mut beats = 0_u64;
    loop {
        shared.heartbeats.beat("tend", shared.effects.clock.boot_ms());
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(BEAT_MS)) => {}
        }
        beats = beats.wrapping_add(1);
        if beats.is_multiple_of(BEATS_PER_ROUND) {
            let used = shared.images_in_use();
            if let Err(error) = shared.effects.images.unmount_unused(&used).await {
                tracing::warn!(%error, "an unused image stays mounted");
            }
        }
    }
}
