//! Signs of life of tasks that must go on, and who looks at them.
//!
//! Never acts on a missing one: whoever looks does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One task's signs of life. Clones are the same task's.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Shows that the task turns.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Knows which tasks have not turned for too long, if somebody looks now and then.
#[derive(Debug)]
pub struct Watchdog {
    wedged_ms: u64,
    watched: Mutex<Vec<Watched>>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    pulse: Pulse,
    /// The signs that there were at the last look, and since when there are no more.
    seen: u64,
    since_ms: u64,
}

impl Watchdog {
    /// Makes one to which a task is wedged that has given no sign for so long.
    #[must_use]
    pub fn new(wedged_ms: u64) -> Self {
        Self { wedged_ms, watched: Mutex::default() }
    }

    /// Watches a task from now on.
    pub fn watch(&self, name: &'static str, pulse: Pulse, now_ms: u64) {
        let seen = pulse.count();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(Watched { name, pulse, seen, since_ms: now_ms });
    }

    /// Returns the tasks that have given no sign for too long.
    #[must_use]
    pub fn wedged(&self, now_ms: u64) -> Vec<&'static str> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wedged = Vec::new();
        for one in &mut *watched {
            let count = one.pulse.count();
            if count != one.seen {
                (one.seen, one.since_ms) = (count, now_ms);
            } else if now_ms.saturating_sub(one.since_ms) >= self.wedged_ms {
                wedged.push(one.name);
            }
        }
        wedged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_wedged_when_it_gives_no_sign_for_so_long_and_only_then() {
        let watchdog = Watchdog::new(20);
        let (one, other) = (Pulse::default(), Pulse::default());
        one.beat();
        watchdog.watch("one", one.clone(), 100);
        watchdog.watch("other", other.clone(), 100);
        let nobody: [&str; 0] = [];
        assert_eq!(watchdog.wedged(119), nobody);
        one.beat();
        assert_eq!(watchdog.wedged(120), ["other"]);
        assert_eq!(watchdog.wedged(139), ["other"]);
        // It goes on after all, and the first has stopped.
        other.beat();
        assert_eq!(watchdog.wedged(140), ["one"]);
        other.beat();
        assert_eq!(watchdog.wedged(159), ["one"]);
        // A task that has ended gives none either.
        drop((one, other));
        assert_eq!(watchdog.wedged(179), ["one", "other"]);
    }

    #[test]
    fn nobody_is_wedged_because_nobody_looked() {
        let watchdog = Watchdog::new(20);
        let pulse = Pulse::default();
        watchdog.watch("one", pulse.clone(), 0);
        pulse.beat();
        let nobody: [&str; 0] = [];
        assert_eq!(watchdog.wedged(1_000), nobody);
    }
}
