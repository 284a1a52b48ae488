//! How often something may be done to one thing (contract 1.1): per action and identifier.
//!
//! Never waits: a request is let through, or told when to come again. Time comes in.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use perch_types::endpoint::{self, Action, Endpoint};
use serde::{Deserialize, Serialize};

/// Things that are counted at once; when there are more, those that are full again go first.
const COUNTED_MAX: usize = 32_768;

/// So many a minute, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests a minute that can go on for ever; 0 is no limit.
    pub per_minute: u32,
    /// Requests at once.
    pub burst: u32,
}

impl Rate {
    const fn new(per_minute: u32, burst: u32) -> Self {
        Self { per_minute, burst }
    }

    /// Microseconds that one request takes of the budget.
    fn step_us(self) -> u64 {
        60_000_000_u64.checked_div(self.per_minute.into()).unwrap_or(0)
    }
}

/// The rates of the API. Laxer than the contract's, because the platform is the caller's own: they
/// stop what runs wild, and no deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Reads of one thing, of each kind.
    pub read: Rate,
    /// Changes of one machine or app, of each kind.
    pub change: Rate,
    /// New machines of one app.
    pub create: Rate,
    /// Deleted apps of one organization.
    pub delete_app: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            read: Rate::new(600_000, 20_000),
            change: Rate::new(6_000, 300),
            create: Rate::new(6_000, 600),
            delete_app: Rate::new(600, 100),
        }
    }
}

impl Rates {
    /// Returns rates that nobody reaches, for measurements and tests.
    #[must_use]
    pub const fn unlimited() -> Self {
        let rate = Rate::new(0, 0);
        Self { read: rate, change: rate, create: rate, delete_app: rate }
    }

    fn of(&self, endpoint: Endpoint) -> Rate {
        match endpoint {
            endpoint::APP_DELETE => self.delete_app,
            endpoint::MACHINES_CREATE => self.create,
            endpoint if endpoint.action == Action::Read => self.read,
            _ => self.change,
        }
    }
}

/// What one count is for.
type Key = (&'static str, &'static str, String);

/// Counts requests.
#[derive(Debug)]
pub(crate) struct Meter {
    rates: Rates,
    // When the budget of a thing is whole again, in microseconds since the boot.
    whole_at: Mutex<BTreeMap<Key, u64>>,
}

impl Meter {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, whole_at: Mutex::default() }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// The seconds after which it may come again.
    pub(crate) fn count(&self, endpoint: Endpoint, of: &str, now_ms: u64) -> Result<(), u64> {
        let rate = self.rates.of(endpoint);
        if rate.per_minute == 0 {
            return Ok(());
        }
        let now = now_ms.saturating_mul(1_000);
        let step = rate.step_us();
        let budget = step.saturating_mul(u64::from(rate.burst.max(1)));
        let key = (endpoint.method, endpoint.path, of.to_owned());
        let mut whole_at = self.lock();
        if whole_at.len() >= COUNTED_MAX && !whole_at.contains_key(&key) {
            make_room(&mut whole_at, now);
        }
        let entry = whole_at.entry(key).or_insert(now);
        let after = (*entry).max(now).saturating_add(step);
        let over = after.saturating_sub(now.saturating_add(budget));
        if over > 0 {
            return Err(over.div_ceil(1_000_000));
        }
        *entry = after;
        Ok(())
    }

    #[cfg(test)]
    fn counted(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, u64>> {
        self.whole_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what is whole again; when that is nothing, the half that is so soonest.
fn make_room(whole_at: &mut BTreeMap<Key, u64>, now: u64) {
    whole_at.retain(|_, at| *at > now);
    if whole_at.len() >= COUNTED_MAX {
        let mut ends: Vec<u64> = whole_at.values().copied().collect();
        let (_, middle, _) = ends.select_nth_unstable(COUNTED_MAX / 2);
        let middle = *middle;
        whole_at.retain(|_, at| *at > middle);
        if whole_at.len() >= COUNTED_MAX {
            whole_at.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Meter {
        let contract = Rate::new(60, 3);
        let rates = Rates {
            read: Rate::new(300, 10),
            change: contract,
            create: contract,
            delete_app: Rate::new(100, 100),
        };
        Meter::new(rates)
    }

    #[test]
    fn a_burst_goes_through_then_one_at_a_time() {
        let meter = meter();
        let ask = |ms| meter.count(endpoint::MACHINE_START, "one", ms);
        assert_eq!([ask(0), ask(0), ask(0), ask(0)], [Ok(()), Ok(()), Ok(()), Err(1)]);
        assert_eq!([ask(999), ask(1_000), ask(1_000)], [Err(1), Ok(()), Err(1)]);
        // A long pause fills the budget and no more.
        assert_eq!((0..5).filter(|_| ask(1_000_000).is_ok()).count(), 3);
        // The clock of the boot never goes back; if it did, nobody would be locked out.
        assert_eq!(meter.count(endpoint::MACHINE_START, "two", 0), Ok(()));
    }

    #[test]
    fn each_action_and_each_thing_has_its_own_count() {
        let meter = meter();
        let spend =
            |endpoint, of| (0..200).filter(|_| meter.count(endpoint, of, 0).is_ok()).count();
        assert_eq!(spend(endpoint::MACHINE_START, "one"), 3);
        assert_eq!(spend(endpoint::MACHINE_START, "two"), 3);
        assert_eq!(spend(endpoint::MACHINE_STOP, "one"), 3);
        assert_eq!(spend(endpoint::MACHINE_GET, "one"), 10);
        assert_eq!(spend(endpoint::APP_DELETE, "personal"), 100);
    }

    #[test]
    fn what_is_counted_has_a_bound_whoever_is_named() {
        let meter = meter();
        for number in 0..COUNTED_MAX * 2 {
            meter.count(endpoint::MACHINE_GET, &number.to_string(), 5).unwrap();
            assert!(meter.counted() <= COUNTED_MAX);
        }
        meter.count(endpoint::MACHINE_GET, "late", 60_000).unwrap();
        assert!(meter.counted() <= COUNTED_MAX);
    }
}
