//! How much one source may ask, and how much all of them together: a machine at the resolver, a
//! network over connections at the zone of challenges.
//!
//! Never waits: what is over a limit is refused at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Questions a second that one source may ask in the long run.
const RATE_PER_SECOND: u32 = 500;
/// Questions that one source may ask at once after a pause.
const BURST: u32 = 1_000;
/// Questions of one source that may wait for upstream at the same time.
const PENDING_PER_SOURCE_MAX: u32 = 64;
/// Questions of all sources that may wait for upstream at the same time.
const PENDING_MAX: u32 = 2_048;
/// TCP connections of one source.
const CONNECTIONS_PER_SOURCE_MAX: u32 = 16;
/// TCP connections of all sources.
const CONNECTIONS_MAX: u32 = 1_024;
/// Sources that are remembered; when there are more, idle ones are forgotten.
const SOURCES_MAX: usize = 16_384;
/// After this time without a question a source has all its tokens again.
const FORGET_AFTER: Duration = Duration::from_secs(3);

/// What a source takes a place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A question that waits for upstream.
    Pending,
    /// A TCP connection.
    Connection,
}

#[derive(Debug)]
struct Source {
    tokens: f64,
    seen: Instant,
    places: [u32; 2],
}

#[derive(Debug, Default)]
struct Counts {
    sources: HashMap<IpAddr, Source>,
    places: [u32; 2],
}

/// The counts of all sources.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    counts: Arc<Mutex<Counts>>,
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    limits: Limits,
    source: IpAddr,
    place: Place,
}

impl Limits {
    /// Counts one question; returns whether it may be answered.
    pub(crate) fn ask(&self, source: IpAddr, now: Instant) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = counts.source(source, now) else {
            return false;
        };
        let refill = now.saturating_duration_since(source.seen).as_secs_f64();
        source.tokens =
            refill.mul_add(f64::from(RATE_PER_SECOND), source.tokens).min(f64::from(BURST));
        source.seen = now;
        let allowed = source.tokens >= 1.0;
        if allowed {
            source.tokens -= 1.0;
        }
        allowed
    }

    /// Takes a place, `None` when there is none.
    pub(crate) fn take(&self, source: IpAddr, place: Place, now: Instant) -> Option<Taken> {
        let (of_source, of_all) = match place {
            Place::Pending => (PENDING_PER_SOURCE_MAX, PENDING_MAX),
            Place::Connection => (CONNECTIONS_PER_SOURCE_MAX, CONNECTIONS_MAX),
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.places[place as usize] >= of_all {
            return None;
        }
        let known = counts.source(source, now)?;
        if known.places[place as usize] >= of_source {
            return None;
        }
        known.places[place as usize] += 1;
        counts.places[place as usize] += 1;
        Some(Taken { limits: self.clone(), source, place })
    }
}

impl Counts {
    fn source(&mut self, source: IpAddr, now: Instant) -> Option<&mut Source> {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, known| {
                known.places != [0, 0] || now.saturating_duration_since(known.seen) < FORGET_AFTER
            });
            if self.sources.len() >= SOURCES_MAX {
                return None;
            }
        }
        Some(self.sources.entry(source).or_insert_with(|| Source {
            tokens: f64::from(BURST),
            seen: now,
            places: [0, 0],
        }))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut counts = self.limits.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.place as usize;
        counts.places[place] = counts.places[place].saturating_sub(1);
        if let Some(source) = counts.sources.get_mut(&self.source) {
            source.places[place] = source.places[place].saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> IpAddr {
        [10, 209, 0, last].into()
    }

    #[test]
    fn a_source_over_its_rate_is_refused_and_another_is_not() {
        let limits = Limits::default();
        let now = Instant::now();
        assert_eq!((0..BURST + 50).filter(|_| limits.ask(source(1), now)).count(), 1_000);
        assert!(limits.ask(source(2), now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..BURST).filter(|_| limits.ask(source(1), later)).count(), 500);
    }

    #[test]
    fn places_are_given_back() {
        let limits = Limits::default();
        let now = Instant::now();
        let mut held: Vec<_> = (0..CONNECTIONS_PER_SOURCE_MAX)
            .map(|_| limits.take(source(1), Place::Connection, now).unwrap())
            .collect();
        assert!(limits.take(source(1), Place::Connection, now).is_none());
        assert!(limits.take(source(1), Place::Pending, now).is_some());
        assert!(limits.take(source(2), Place::Connection, now).is_some());
        held.pop();
        assert!(limits.take(source(1), Place::Connection, now).is_some());
    }
}
