//! The machine's own clocks.
//!
//! The only place of the server that reads them; everything else takes a `Clock`.

use perch_types::clock::Clock;
use perch_types::time::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The wall clock and the boot clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

fn ms(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(ms(clock_gettime(ClockId::Realtime)))
    }

    fn boot_ms(&self) -> u64 {
        ms(clock_gettime(ClockId::Boottime)).unsigned_abs()
    }
}
