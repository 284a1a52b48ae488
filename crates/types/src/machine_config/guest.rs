//! `config.guest`: CPU and memory.
//!
//! Never says which sizes there are: that is the admission's.

use serde::{Deserialize, Serialize};

use super::Other;

/// CPUs when nothing else was said.
pub const GUEST_CPUS_DEFAULT: u32 = 1;
/// Memory in MiB when nothing else was said.
pub const GUEST_MEMORY_MB_DEFAULT: u32 = 256;

/// `config.guest`: CPU and memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestConfig {
    /// `shared` or `performance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<CpuKind>,
    /// How many CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// The most memory that it may be given while it runs, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// CPU classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuKind {
    /// A share of a CPU.
    #[default]
    Shared,
    /// CPUs of its own.
    Performance,
}
