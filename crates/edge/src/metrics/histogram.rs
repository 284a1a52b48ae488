//! How long something took, in buckets.
//!
//! Never keeps a single time, and never waits for anybody who reads or writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets in microseconds; above the last is one more.
pub(super) const BOUNDS_US: [u64; 18] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    75_000,
    100_000,
    150_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Times of one kind.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(super) fn add(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < took_us);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// Returns how many there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Returns all of them together.
    pub(super) fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }

    /// Returns how many there were up to each bound, and how many in all.
    pub(super) fn up_to(&self) -> (Vec<(Duration, u64)>, u64) {
        let mut total = 0;
        let mut counts = self.buckets.iter().map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        });
        let bounds = BOUNDS_US.iter().map(|bound| Duration::from_micros(*bound));
        let up_to: Vec<(Duration, u64)> = bounds.zip(counts.by_ref()).collect();
        let all = counts.next().unwrap_or_default();
        (up_to, all)
    }

    /// Returns the time below which so many of a hundred are, as well as buckets can tell; nothing
    /// without any.
    pub(super) fn quantile(&self, percent: u64) -> Option<Duration> {
        let (up_to, all) = self.up_to();
        if all == 0 {
            return None;
        }
        let rank = all.saturating_mul(percent).div_ceil(100).max(1);
        let (mut below, mut before) = (Duration::ZERO, 0);
        for (bound, count) in up_to {
            if count >= rank {
                // As if they were spread evenly over the bucket.
                let width_us = u64::try_from((bound - below).as_micros()).unwrap_or(u64::MAX);
                let within_us = width_us.saturating_mul(rank - before) / (count - before);
                return Some(below + Duration::from_micros(within_us));
            }
            (below, before) = (bound, count);
        }
        Some(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let histogram = Histogram::default();
        assert_eq!((histogram.quantile(50), histogram.count()), (None, 0));
        for ms in [0, 1, 2, 40, 40, 40, 40, 40, 40, 1_000_000] {
            histogram.add(Duration::from_millis(ms));
        }
        let (up_to, all) = histogram.up_to();
        let count = |ms| up_to.iter().find(|(bound, _)| bound.as_millis() == ms).unwrap().1;
        assert_eq!((count(1), count(25), count(50), count(120_000), all), (2, 3, 9, 9, 10));
        assert_eq!(histogram.sum(), Duration::from_millis(1_000_243));
        let p50 = histogram.quantile(50).unwrap();
        assert!(Duration::from_millis(25) < p50 && p50 < Duration::from_millis(50), "{p50:?}");
        assert_eq!(histogram.quantile(1), Some(Duration::from_micros(500)));
        assert_eq!(histogram.quantile(100), Some(Duration::from_secs(120)), "no bound is above it");
    }
}
