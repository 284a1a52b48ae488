//! Waits of tasks that follow something and must be seen to go on.
//!
//! Never hides a task that is stuck: it shows nothing while it is not asked to go on.

use std::time::Duration;

use perch_types::pulse::Pulse;

/// How often a task shows that it turns.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Waits for something, and shows meanwhile that the task turns.
pub async fn turning<F: Future>(pulse: &Pulse, waiting: F) -> F::Output {
    let mut waiting = std::pin::pin!(waiting);
    loop {
        pulse.beat();
        tokio::select! {
            outcome = waiting.as_mut() => return outcome,
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
    }
}
