//! Signs of life of the loops that must go on.
//!
//! Never acts on a missing one: the daemon's watchdog does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The last sign of life of each loop.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    beats: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

/// One loop's last sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Which loop.
    pub name: &'static str,
    /// When, by the boot clock.
    pub boot_ms: u64,
}

/// How often a loop gives a sign of life even if it has nothing to do.
pub const BEAT_MS: u64 = 1_000;

impl Heartbeats {
    /// Notes a sign of life.
    pub fn beat(&self, name: &'static str, boot_ms: u64) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).insert(name, boot_ms);
    }

    /// Returns the last sign of each loop.
    #[must_use]
    pub fn all(&self) -> Vec<Beat> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().map(|(name, boot_ms)| Beat { name, boot_ms: *boot_ms }).collect()
    }
}
