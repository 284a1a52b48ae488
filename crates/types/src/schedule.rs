//! When a machine with a schedule is due (contract 1.13).
//!
//! Never reads a clock: the moment comes in.

use serde::{Deserialize, Serialize};

use crate::id::MachineId;
use crate::time::Timestamp;

/// How often a machine is started. It ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Once an hour.
    Hourly,
    /// Once a day.
    Daily,
    /// Once a week.
    Weekly,
    /// Once a month.
    Monthly,
}

/// The run that is due now and the one after it, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// When the latest that is not in the future was due.
    pub current_ms: i64,
    /// When the next is.
    pub next_ms: i64,
}

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const WEEK_MS: i64 = 7 * DAY_MS;
/// Every month has these days.
const MONTH_SPREAD_MS: i64 = 28 * DAY_MS;

impl Schedule {
    /// Returns when a machine is due. Each has its own minute of the hour, hour of the day and so
    /// on, made of its id, so that not all are due at once.
    #[must_use]
    pub fn slot(self, id: &MachineId, now: Timestamp) -> Slot {
        match self {
            Self::Hourly => even(id, HOUR_MS, now),
            Self::Daily => even(id, DAY_MS, now),
            Self::Weekly => even(id, WEEK_MS, now),
            Self::Monthly => monthly(id, now),
        }
    }
}

/// Returns a number below `bound` that is always the same for an id and spread over all ids.
#[must_use]
pub fn spread_ms(id: &MachineId, bound: i64) -> i64 {
    // Ids that were drawn at random are spread; this spreads others too.
    let mixed = id.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    i64::try_from(mixed).unwrap_or_default() % bound.max(1)
}

fn even(id: &MachineId, period_ms: i64, now: Timestamp) -> Slot {
    let offset = spread_ms(id, period_ms);
    let now_ms = now.unix_ms();
    let current_ms = now_ms.saturating_sub((now_ms.saturating_sub(offset)).rem_euclid(period_ms));
    Slot { current_ms, next_ms: current_ms.saturating_add(period_ms) }
}

fn monthly(id: &MachineId, now: Timestamp) -> Slot {
    let offset = spread_ms(id, MONTH_SPREAD_MS);
    let month = |months: i64| month_ms(now, months).saturating_add(offset);
    if month(0) <= now.unix_ms() {
        Slot { current_ms: month(0), next_ms: month(1) }
    } else {
        Slot { current_ms: month(-1), next_ms: month(0) }
    }
}

/// Returns the first moment of the month that is so many after that of `now`.
fn month_ms(now: Timestamp, months: i64) -> i64 {
    let date = now.date().first_of_month();
    let months = jiff::Span::new().months(months);
    // Only at the ends of the calendar there is no other month.
    let date = date.checked_add(months).unwrap_or(date);
    let midnight = date.to_datetime(jiff::civil::Time::midnight());
    jiff::tz::Offset::UTC.to_timestamp(midnight).map_or(0, jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        serde_json::from_value(text.into()).unwrap()
    }

    #[test]
    fn a_slot_holds_now_and_follows_the_one_before() {
        let schedules = [Schedule::Hourly, Schedule::Daily, Schedule::Weekly, Schedule::Monthly];
        for schedule in schedules {
            for bits in [0, 1, 0xabc, 0x00ff_ffff_ffff_ffff] {
                let id = MachineId::from_bits(bits);
                let mut now = at("2026-01-01T00:00:00.000Z");
                for _ in 0..40 {
                    let slot = schedule.slot(&id, now);
                    assert!(slot.current_ms <= now.unix_ms() && now.unix_ms() < slot.next_ms);
                    let next = schedule.slot(&id, Timestamp::from_unix_ms(slot.next_ms));
                    assert_eq!(next.current_ms, slot.next_ms, "{schedule:?} {bits} {now}");
                    let last = Timestamp::from_unix_ms(slot.next_ms - 1);
                    assert_eq!(schedule.slot(&id, last), slot);
                    now = Timestamp::from_unix_ms(slot.next_ms);
                }
            }
        }
    }

    #[test]
    fn a_year_has_as_many_runs_as_it_should() {
        for (schedule, runs) in [
            (Schedule::Hourly, 8_760),
            (Schedule::Daily, 365),
            (Schedule::Weekly, 52),
            (Schedule::Monthly, 12),
        ] {
            let id = MachineId::from_bits(77);
            let end = at("2027-01-01T00:00:00.000Z").unix_ms();
            let mut next = schedule.slot(&id, at("2026-01-01T00:00:00.000Z")).next_ms;
            let mut count = 0;
            while next < end {
                count += 1;
                next = schedule.slot(&id, Timestamp::from_unix_ms(next)).next_ms;
            }
            assert!((runs - 1..=runs + 1).contains(&count), "{schedule:?}: {count}");
        }
    }

    #[test]
    fn ids_are_spread_over_the_period() {
        let mut minutes: Vec<i64> =
            (0..600).map(|bits| spread_ms(&MachineId::from_bits(bits), HOUR_MS) / 60_000).collect();
        minutes.sort_unstable();
        minutes.dedup();
        assert!(minutes.len() > 50, "{minutes:?}");
    }
}
