//! The clocks of whoever waits for the kernel: the monitor, and who mounts volumes.
//!
//! Never decides by the wall clock: that is for the eyes of people.

use std::time::Duration;

use rustix::thread::nanosleep;
use rustix::time::{ClockId, Timespec, clock_gettime};

fn milliseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

/// Returns milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    milliseconds(ClockId::Realtime)
}

/// Returns milliseconds since the server booted, sleep included.
#[must_use]
pub fn boot_ms() -> u64 {
    milliseconds(ClockId::Boottime)
}

/// Waits a moment for something that the kernel announces nowhere.
pub fn pause(duration: Duration) {
    let time = Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    };
    // Interrupted is as good: every caller looks again.
    let _slept = nanosleep(&time);
}
