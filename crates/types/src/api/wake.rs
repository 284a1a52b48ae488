//! How long apps take to wake.
//!
//! Never more than a shape.

use serde::{Deserialize, Serialize};

/// How long requests waited until a machine was started for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeTimes {
    /// How many there were since the edge was started.
    pub count: u64,
    /// Half of them waited no longer, in milliseconds.
    pub p50_ms: u64,
    /// All but one of a hundred waited no longer, in milliseconds.
    pub p99_ms: u64,
}
