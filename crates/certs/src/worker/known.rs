//! What is known of orders: which is due next, found without a look at all of them.
//!
//! Never reads a clock or a directory: both come in. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perch_types::Timestamp;

use super::LOOK_EVERY;

/// Orders by the key of their document.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// When something is to be done about each, and whether it is a renewal.
    due: BTreeMap<String, (Timestamp, bool)>,
    /// Those that nothing keeps from being begun, the first that is due first.
    queue: BTreeSet<(Timestamp, String)>,
    /// The same of renewals, which come first: what is served must not end.
    renewals: BTreeSet<(Timestamp, String)>,
    /// Those that a task works on.
    running: BTreeSet<String>,
    /// Those that are left alone, and until when by the boot clock.
    resting: BTreeMap<String, u64>,
    /// The same, the first that ends first.
    rests: BTreeSet<(u64, String)>,
}

impl Known {
    pub(super) fn put(&mut self, key: String, due: Timestamp, is_renewal: bool) {
        self.unqueue(&key);
        self.due.insert(key.clone(), (due, is_renewal));
        self.queue(key);
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.unqueue(key);
        self.due.remove(key);
        if let Some(until) = self.resting.remove(key) {
            self.rests.remove(&(until, key.to_owned()));
        }
    }

    /// Takes note that a task works on one.
    pub(super) fn begins(&mut self, key: &str) {
        self.unqueue(key);
        self.running.insert(key.to_owned());
    }

    /// Takes note that its task ended; it is left alone until then.
    pub(super) fn rests(&mut self, key: String, until_boot_ms: u64) {
        self.running.remove(&key);
        if !self.due.contains_key(&key) {
            return;
        }
        if let Some(before) = self.resting.insert(key.clone(), until_boot_ms) {
            self.rests.remove(&(before, key.clone()));
        }
        self.unqueue(&key);
        self.rests.insert((until_boot_ms, key));
    }

    /// Returns one that is due, and how long it takes until the next is.
    pub(super) fn next(&mut self, now: Timestamp, boot_ms: u64) -> (Option<String>, Duration) {
        while let Some((until, key)) = self.rests.pop_first() {
            if until > boot_ms {
                self.rests.insert((until, key));
                break;
            }
            self.resting.remove(&key);
            self.queue(key);
        }
        let mut pause = LOOK_EVERY;
        if let Some((until, _)) = self.rests.first() {
            pause = pause.min(Duration::from_millis(until.saturating_sub(boot_ms)));
        }
        for queue in [&self.renewals, &self.queue] {
            let Some((due, key)) = queue.first() else { continue };
            let wait = due.unix_ms().saturating_sub(now.unix_ms()).max(0).unsigned_abs();
            if wait == 0 {
                return (Some(key.clone()), Duration::ZERO);
            }
            pause = pause.min(Duration::from_millis(wait));
        }
        (None, pause)
    }

    fn queue(&mut self, key: String) {
        if self.running.contains(&key) || self.resting.contains_key(&key) {
            return;
        }
        if let Some((due, is_renewal)) = self.due.get(&key) {
            let queue = if *is_renewal { &mut self.renewals } else { &mut self.queue };
            queue.insert((*due, key));
        }
    }

    fn unqueue(&mut self, key: &str) {
        if let Some((due, is_renewal)) = self.due.get(key) {
            let queue = if *is_renewal { &mut self.renewals } else { &mut self.queue };
            queue.remove(&(*due, key.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_800_000_000_000 + ms)
    }

    fn next(known: &mut Known, ms: u64) -> (Option<String>, u128) {
        let (key, pause) = known.next(at(i64::try_from(ms).unwrap()), ms);
        (key, pause.as_millis())
    }

    fn key(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn the_first_that_is_due_is_next_unless_it_runs_or_rests() {
        let mut known = Known::default();
        assert_eq!(next(&mut known, 0), (None, LOOK_EVERY.as_millis()));
        known.put("b".to_owned(), at(200), false);
        known.put("a".to_owned(), at(300), false);
        assert_eq!(next(&mut known, 0), (None, 200));
        assert_eq!(next(&mut known, 250), (key("b"), 0));
        known.begins("b");
        // What it writes does not have it begun twice.
        known.put("b".to_owned(), at(100), false);
        assert_eq!(next(&mut known, 250), (None, 50));
        known.rests("b".to_owned(), 270);
        assert_eq!(next(&mut known, 250), (None, 20));
        known.put("b".to_owned(), at(260), false);
        assert_eq!(next(&mut known, 269), (None, 1));
        assert_eq!(next(&mut known, 270), (key("b"), 0));
        // Another due time replaces the one before.
        known.put("b".to_owned(), at(400), false);
        assert_eq!(next(&mut known, 300), (key("a"), 0));
        known.remove("a");
        assert_eq!(next(&mut known, 300), (None, 100));
    }

    #[test]
    fn what_is_gone_leaves_nothing_behind() {
        let mut known = Known::default();
        for (name, begun, rested) in [("a", false, false), ("b", true, false), ("c", true, true)] {
            known.put(name.to_owned(), at(0), false);
            if begun {
                known.begins(name);
            }
            if rested {
                known.rests(name.to_owned(), 50);
            }
            known.remove(name);
        }
        // Its task ends after it is gone.
        known.rests("b".to_owned(), 50);
        assert_eq!(next(&mut known, 100), (None, LOOK_EVERY.as_millis()));
        let Known { due, queue, renewals, running, resting, rests } = known;
        assert_eq!((due.len(), queue.len(), renewals.len(), running.len()), (0, 0, 0, 0));
        assert_eq!((resting.len(), rests.len()), (0, 0));
    }

    #[test]
    fn renewals_that_are_due_come_before_what_is_due_for_longer() {
        let mut known = Known::default();
        known.put("first".to_owned(), at(0), false);
        known.put("renewal".to_owned(), at(50), true);
        assert_eq!(next(&mut known, 10), (key("first"), 0));
        assert_eq!(next(&mut known, 50), (key("renewal"), 0));
        known.begins("renewal");
        assert_eq!(next(&mut known, 50), (key("first"), 0));
        known.begins("first");
        // It waits for what comes next of either.
        known.put("later".to_owned(), at(90), false);
        known.put("sooner".to_owned(), at(70), true);
        assert_eq!(next(&mut known, 50), (None, 20));
        // One that was issued meanwhile is a renewal from then on, and lies in one place.
        known.put("later".to_owned(), at(90), true);
        assert_eq!((known.queue.len(), known.renewals.len()), (0, 2));
    }
}
