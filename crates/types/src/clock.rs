//! The seam through which time enters.
//!
//! Never reads a clock itself: the daemon passes a real one, tests turn one by hand.

use crate::time::Timestamp;

/// Two clocks. Deadlines and intervals use [`Clock::boot_ms`]; the wall clock is for display and
/// for the expiry of tokens, and may jump either way.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Returns the wall clock.
    fn now(&self) -> Timestamp;

    /// Returns milliseconds since the host booted, counting the time it slept (`CLOCK_BOOTTIME`).
    fn boot_ms(&self) -> u64;
}
