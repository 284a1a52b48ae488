//! Whether the wall clock was set back: what was reckoned by it is reckoned anew then.
//!
//! Never reads a clock: both come in. Pure.

use perch_types::Timestamp;

/// How far it is set back at least; less is as good as nothing.
const SET_BACK_MS: i64 = 60_000;

/// How far the wall clock was before the boot clock at most, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Wall(Option<i64>);

impl Wall {
    /// Returns whether it was set back since it was set last.
    pub(super) fn is_set_back(&mut self, now: Timestamp, boot_ms: u64) -> bool {
        let boot_ms = i64::try_from(boot_ms).unwrap_or(i64::MAX);
        let lead = now.unix_ms().saturating_sub(boot_ms);
        let most = self.0.map_or(lead, |most| most.max(lead));
        let is_set_back = most.saturating_sub(lead) >= SET_BACK_MS;
        self.0 = Some(if is_set_back { lead } else { most });
        is_set_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_noticed_once_however_small_the_steps_are() {
        let mut wall = Wall::default();
        for (now_s, boot_s, want) in [
            (1_000, 10, false),
            (1_050, 60, false),
            // Set forward, as after a start without a clock.
            (9_000, 61, false),
            (8_990, 80, false),
            (8_970, 95, true),
            (8_980, 100, false),
            (1_000, 101, true),
            (1_900, 1_001, false),
        ] {
            let now = Timestamp::from_unix_ms(now_s * 1_000);
            assert_eq!(wall.is_set_back(now, boot_s * 1_000), want, "{now_s} {boot_s}");
        }
    }
}
