//! How much of something may be done in a time.
//!
//! Never waits: what is too much is refused.

/// A number that fills up with time and is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    max: u64,
    per_s: u64,
    /// What is left, in thousandths.
    left_milli: u64,
    at_ms: u64,
}

impl Allowance {
    pub(crate) const fn new(max: u64, per_s: u64, now_ms: u64) -> Self {
        Self { max, per_s, left_milli: max.saturating_mul(1000), at_ms: now_ms }
    }

    /// Spends `count`, or nothing when there is not that much.
    pub(crate) fn spend(&mut self, count: u64, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        let full = self.max.saturating_mul(1000);
        self.left_milli =
            self.left_milli.saturating_add(passed_ms.saturating_mul(self.per_s)).min(full);
        self.at_ms = now_ms;
        match self.left_milli.checked_sub(count.saturating_mul(1000)) {
            Some(left) => {
                self.left_milli = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_up_with_time_and_never_over_its_edge() {
        let mut allowance = Allowance::new(10, 2, 1_000);
        assert!(allowance.spend(10, 1_000));
        assert!(!allowance.spend(1, 1_499));
        assert!(allowance.spend(1, 1_500));
        assert!(!allowance.spend(11, 1_000_000));
        assert!(allowance.spend(10, 1_000_000));
        // A clock that goes back fills nothing.
        assert!(!allowance.spend(1, 0));
    }
}
