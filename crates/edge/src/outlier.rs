//! Machines that fail while others of their app do not.
//!
//! Never takes the last one out: one that is ejected is only the last that is asked.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row eject a machine.
const FAILURES_MAX: u32 = 5;
/// How long the first time, and the longest; each further time doubles it.
const EJECTED_FIRST: Duration = Duration::from_secs(2);
const EJECTED_MAX: Duration = Duration::from_secs(120);

/// When the clock of [`Health`] began.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How a machine's last requests went.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failures: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since [`BEGAN`].
    ejected_until: AtomicU64,
}

impl Health {
    /// Notes that the machine answered, with anything but an error of its own.
    pub(crate) fn succeeded(&self, now: Instant) {
        // Written only if it changes something: all loops read it.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let ejections = self.ejections.load(Ordering::Relaxed);
        if ejections > 0 {
            let last = u64::try_from(length(ejections).as_millis()).unwrap_or(u64::MAX);
            let until = self.ejected_until.load(Ordering::Relaxed);
            // Well for as long as it was out: what was before does not count any more.
            if ms(now) > until.saturating_add(last) {
                self.ejections.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Notes that the machine refused a connection, lost it, or answered with an error of its own.
    pub(crate) fn failed(&self, now: Instant) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 < FAILURES_MAX || self.is_ejected(now)
        {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        let ejections = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.ejected_until.store(ms(now + length(ejections)), Ordering::Relaxed);
    }

    /// Returns whether others are to be asked first.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until > 0 && ms(now) < until
    }

    /// Forgets everything: it is another program now.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        self.ejected_until.store(0, Ordering::Relaxed);
    }
}

fn ms(now: Instant) -> u64 {
    let since = now.saturating_duration_since(*BEGAN).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX)
}

/// Returns how long a machine is out for the n-th time.
fn length(ejections: u32) -> Duration {
    let doublings = ejections.saturating_sub(1).min(16);
    EJECTED_FIRST.saturating_mul(1 << doublings).min(EJECTED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &Health, now: Instant) {
        for _ in 0..FAILURES_MAX {
            assert!(!health.is_ejected(now));
            health.failed(now);
        }
    }

    #[test]
    fn only_failures_in_a_row_eject_and_each_time_for_longer() {
        let (health, start) = (Health::default(), Instant::now() + EJECTED_MAX);
        for _ in 0..FAILURES_MAX * 3 {
            health.failed(start);
            health.succeeded(start);
        }
        assert!(!health.is_ejected(start), "none followed another");
        let mut now = start;
        for seconds in [2, 4, 8, 16, 32, 64, 120, 120] {
            fail(&health, now);
            let until = now + Duration::from_secs(seconds);
            assert!(health.is_ejected(until - Duration::from_millis(10)), "{seconds}");
            assert!(!health.is_ejected(until), "{seconds}");
            // A success right after does not make up for all of it.
            health.succeeded(until);
            now = until;
        }
        now += EJECTED_MAX * 3;
        health.succeeded(now);
        fail(&health, now);
        assert!(!health.is_ejected(now + EJECTED_FIRST), "well for long: it begins anew");
        fail(&health, now + EJECTED_FIRST);
        health.reset();
        assert!(!health.is_ejected(now + EJECTED_FIRST));
    }
}
