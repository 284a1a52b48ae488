//! Machines that fail while others of their app do not, and those whose host would not start them.
//!
//! Never takes the last one out: one that is ejected is only the last that is asked. Never by what
//! one client can bring about beside others that are answered well.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row eject a machine.
const FAILURES_MAX: u32 = 5;
/// How long the first time, and the longest; each further time doubles it.
const EJECTED_FIRST: Duration = Duration::from_secs(2);
const EJECTED_MAX: Duration = Duration::from_secs(120);
/// A machine that answered well within this time is not ejected by answers: whoever asks for what
/// fails would else take it from all others.
const WELL_FOR: Duration = Duration::from_secs(10);
/// How exactly it is known when a machine answered well: all loops read it.
const WELL_EVERY: Duration = Duration::from_secs(1);
/// How long a machine whose start was refused is not started again.
const START_PAUSE: Duration = Duration::from_secs(1);

/// When the clock of [`Health`] began.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How a machine failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It answered with an error of its own.
    Error,
    /// It lost the connection, answered too late, or could not be understood.
    Break,
    /// It took no connection.
    Deaf,
}

/// How a machine's last requests went, and its last start.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Failures in a row, and those of them that were no answers.
    failures: AtomicU32,
    breaks: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since [`BEGAN`], as all that follow; 0 is never.
    ejected_until: AtomicU64,
    broken_until: AtomicU64,
    well_at: AtomicU64,
    start_refused_until: AtomicU64,
}

impl Health {
    /// Notes that the machine answered, with anything but an error of its own.
    pub(crate) fn succeeded(&self, now: Instant) {
        // Written only if it changes something: all loops read it.
        for row in [&self.failures, &self.breaks] {
            if row.load(Ordering::Relaxed) > 0 {
                row.store(0, Ordering::Relaxed);
            }
        }
        let now = ms(now);
        let well_at = self.well_at.load(Ordering::Relaxed);
        if well_at == 0 || now >= well_at.saturating_add(millis(WELL_EVERY)) {
            self.well_at.store(now, Ordering::Relaxed);
        }
        let ejections = self.ejections.load(Ordering::Relaxed);
        if ejections > 0 {
            let last = millis(length(ejections));
            let until = self.ejected_until.load(Ordering::Relaxed);
            // Well for as long as it was out: what was before does not count any more.
            if now > until.saturating_add(last) {
                self.ejections.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Notes that the machine failed a request, which was not the client's doing.
    pub(crate) fn failed(&self, now: Instant, failure: Failure) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let breaks = match failure {
            Failure::Error => self.breaks.load(Ordering::Relaxed),
            Failure::Break | Failure::Deaf => {
                self.breaks.fetch_add(1, Ordering::Relaxed).saturating_add(1)
            }
        };
        if failures < FAILURES_MAX || self.is_ejected(now) {
            return;
        }
        // Whether it takes connections no client decides.
        if failure != Failure::Deaf && self.was_well(now) {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.breaks.store(0, Ordering::Relaxed);
        let ejections = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let until = ms(now + length(ejections));
        if breaks >= FAILURES_MAX {
            self.broken_until.store(until, Ordering::Relaxed);
        }
        self.ejected_until.store(until, Ordering::Relaxed);
    }

    /// Notes that the machine's host would not start it.
    pub(crate) fn start_refused(&self, now: Instant) {
        self.start_refused_until.store(ms(now + START_PAUSE), Ordering::Relaxed);
    }

    /// Returns whether its host would not start the machine a moment ago.
    pub(crate) fn refuses_start(&self, now: Instant) -> bool {
        is_before(now, &self.start_refused_until)
    }

    /// Returns whether the machine answered well of late.
    fn was_well(&self, now: Instant) -> bool {
        let well_at = self.well_at.load(Ordering::Relaxed);
        well_at > 0 && ms(now) < well_at.saturating_add(millis(WELL_FOR))
    }

    /// Returns whether others are to be asked first.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        is_before(now, &self.ejected_until)
    }

    /// Returns whether even one that has to be started is better: it is ejected, and not by its
    /// answers, which may be all that the program has to say.
    pub(crate) fn is_broken(&self, now: Instant) -> bool {
        is_before(now, &self.broken_until)
    }

    /// Forgets everything: it is another program now.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.breaks.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        for moment in
            [&self.ejected_until, &self.broken_until, &self.well_at, &self.start_refused_until]
        {
            moment.store(0, Ordering::Relaxed);
        }
    }
}

fn is_before(now: Instant, moment: &AtomicU64) -> bool {
    let moment = moment.load(Ordering::Relaxed);
    moment > 0 && ms(now) < moment
}

/// Returns the milliseconds since [`BEGAN`]; never 0, which is never.
fn ms(now: Instant) -> u64 {
    millis(now.saturating_duration_since(*BEGAN)).saturating_add(1)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
            health.failed(now, Failure::Deaf);
        }
    }

    #[test]
    fn only_failures_in_a_row_eject_and_each_time_for_longer() {
        let (health, start) = (Health::default(), Instant::now() + EJECTED_MAX);
        for _ in 0..FAILURES_MAX * 3 {
            health.failed(start, Failure::Deaf);
            health.succeeded(start);
        }
        assert!(!health.is_ejected(start), "none followed another");
        let mut now = start;
        for seconds in [2, 4, 8, 16, 32, 64, 120, 120] {
            fail(&health, now);
            let until = now + Duration::from_secs(seconds);
            let still = until - Duration::from_millis(10);
            assert!(health.is_ejected(still) && health.is_broken(still), "{seconds}");
            assert!(!health.is_ejected(until) && !health.is_broken(until), "{seconds}");
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
        assert!(!health.is_broken(now + EJECTED_FIRST));
    }

    #[test]
    fn answers_eject_a_machine_only_while_nobody_is_answered_well() {
        let start = Instant::now() + EJECTED_MAX;
        for failure in [Failure::Error, Failure::Break] {
            let health = Health::default();
            health.succeeded(start);
            let within = start + WELL_FOR - Duration::from_millis(1);
            for _ in 0..FAILURES_MAX * 20 {
                health.failed(within, failure);
            }
            assert!(!health.is_ejected(within), "{failure:?}: it was well a moment ago");
            health.failed(start + WELL_FOR, failure);
            assert!(health.is_ejected(start + WELL_FOR), "{failure:?}: nobody was, for long");
            let never_well = Health::default();
            (0..FAILURES_MAX).for_each(|_| never_well.failed(start, failure));
            assert!(never_well.is_ejected(start), "{failure:?}");
            assert_eq!(never_well.is_broken(start), failure == Failure::Break, "{failure:?}");
        }
        let mixed = Health::default();
        for _ in 1..FAILURES_MAX {
            mixed.failed(start, Failure::Break);
        }
        mixed.failed(start, Failure::Error);
        assert!(mixed.is_ejected(start) && !mixed.is_broken(start), "it still answers");
    }

    #[test]
    fn a_refused_start_is_remembered_for_a_moment() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(!health.refuses_start(now));
        health.start_refused(now);
        assert!(health.refuses_start(now));
        assert!(!health.refuses_start(now + START_PAUSE));
        health.start_refused(now);
        health.reset();
        assert!(!health.refuses_start(now));
    }
}
