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

#[cfg(test)]
mod tests {
    use perch_types::pulse::Watchdog;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn seen(watchdog: &Watchdog, now_ms: u64) {
        while !watchdog.wedged(now_ms).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_task_shows_that_it_turns_for_as_long_as_it_waits() {
        let (pulse, watchdog) = (Pulse::default(), Watchdog::new(1));
        watchdog.watch("it", pulse.clone(), 0);
        let waiting = turning(&pulse, std::future::pending::<()>());
        let looking = async {
            // With the beginning, and again while nothing comes.
            seen(&watchdog, 1).await;
            seen(&watchdog, 2).await;
        };
        tokio::select! {
            () = waiting => {}
            seen = tokio::time::timeout(DEADLINE, looking) => seen.unwrap(),
        }
        assert_eq!(watchdog.wedged(3), ["it"], "it is gone");
    }

    #[tokio::test]
    async fn what_was_waited_for_is_returned() {
        assert_eq!(turning(&Pulse::default(), async { 7 }).await, 7);
    }
}
