//! Signs of life of the loops that must go on.
//!
//! Never acts on a missing one: the daemon's watchdog does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_types::clock::Clock;

/// The last sign of life of each loop.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    beats: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

/// One loop's last sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Which loop.
    pub name: &'static str,
    /// When, by the boot clock.
    pub boot_ms: u64,
}

/// How often a loop gives a sign of life even if it has nothing to do.
pub const BEAT_MS: u64 = 1_000;

impl Heartbeats {
    /// Notes a sign of life.
    pub fn beat(&self, name: &'static str, boot_ms: u64) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).insert(name, boot_ms);
    }

    /// Waits for what a loop does, and notes meanwhile that it goes on: its work may take longer than
    /// a loop that is stuck is borne. Nothing is noted while the loop is not asked to go on.
    pub async fn turning<F: Future>(
        &self,
        name: &'static str,
        clock: &dyn Clock,
        work: F,
    ) -> F::Output {
        let mut work = std::pin::pin!(work);
        loop {
            self.beat(name, clock.boot_ms());
            tokio::select! {
                outcome = work.as_mut() => return outcome,
                () = tokio::time::sleep(Duration::from_millis(BEAT_MS)) => {}
            }
        }
    }

    /// Returns the last sign of each loop.
    #[must_use]
    pub fn all(&self) -> Vec<Beat> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().map(|(name, boot_ms)| Beat { name, boot_ms: *boot_ms }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use perch_types::Timestamp;

    use super::*;

    /// Is later at each look.
    #[derive(Debug, Default)]
    struct Looks(AtomicU64);

    impl Clock for Looks {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(0)
        }

        fn boot_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed) + 1
        }
    }

    #[tokio::test]
    async fn a_loop_whose_work_takes_long_gives_signs_meanwhile() {
        let (heartbeats, clock) = (Heartbeats::default(), Looks::default());
        let (end, work) = tokio::sync::oneshot::channel();
        let looking = async {
            // With the beginning, and again while the work goes on.
            while heartbeats.all().first().is_none_or(|beat| beat.boot_ms < 2) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            end.send(7).unwrap();
        };
        let both = async { tokio::join!(heartbeats.turning("it", &clock, work), looking) };
        let (outcome, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        assert_eq!(outcome.unwrap(), 7);
    }
}
