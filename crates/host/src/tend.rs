//! Housekeeping at intervals: standbys of failed machines are started, images that no machine names
//! any more are unmounted and, when they take too much, deleted.
//!
//! Never takes input: it looks at what there is and runs again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::heartbeat::BEAT_MS;
use crate::shared::Shared;

/// How many beats lie between two looks when nothing was left by a machine.
const BEATS_PER_ROUND: u64 = 60;

/// How many beats lie between two looks at the limits of machines.
const BEATS_PER_LOOK: u64 = 5;

/// Runs until the agent ends.
pub(crate) async fn tend(shared: Arc<Shared>) {
    let mut beats = 0_u64;
    loop {
        let clock = shared.effects.clock.as_ref();
        shared.heartbeats.beat("tend", clock.boot_ms());
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(BEAT_MS)) => {}
        }
        shared.stand_in();
        beats = beats.wrapping_add(1);
        let work = std::pin::pin!(look(&shared, beats));
        shared.heartbeats.turning("tend", clock, work).await;
    }
}

/// Does what is due at this beat.
async fn look(shared: &Shared, beats: u64) {
    if beats.is_multiple_of(BEATS_PER_LOOK) {
        shared.look_at_limits().await;
    }
    let untidy = shared.untidy.swap(false, Ordering::AcqRel);
    if (untidy || beats.is_multiple_of(BEATS_PER_ROUND))
        && let Err(error) = shared.tidy(shared.cache_policy()).await
    {
        tracing::warn!(%error, "unused images stay for now");
    }
}
