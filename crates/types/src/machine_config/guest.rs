//! `config.guest`: CPU and memory, and the names of usual sizes.
//!
//! Never says which sizes are allowed: that is the admission's.

use serde::{Deserialize, Serialize};

use super::Other;

/// CPUs when nothing else was said.
pub const GUEST_CPUS_DEFAULT: u32 = 1;

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

impl CpuKind {
    /// Returns the memory in MiB that comes with each CPU when nothing else was said.
    #[must_use]
    pub const fn memory_mb_per_cpu(self) -> u32 {
        match self {
            Self::Shared => 256,
            Self::Performance => 2048,
        }
    }

    /// Returns how many CPUs of the class a machine may have.
    #[must_use]
    pub const fn cpus(self) -> &'static [u32] {
        match self {
            Self::Shared => &[1, 2, 4, 6, 8],
            Self::Performance => &[1, 2, 4, 6, 8, 10, 12, 14, 16],
        }
    }
}

impl GuestConfig {
    /// Returns what a name such as `shared-cpu-2x` or `performance-1x` stands for.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        let (kind, rest) = match name.strip_prefix("shared-cpu-") {
            Some(rest) => (CpuKind::Shared, rest),
            None => (CpuKind::Performance, name.strip_prefix("performance-")?),
        };
        let digits = rest.strip_suffix('x')?;
        let cpus = *kind.cpus().iter().find(|cpus| cpus.to_string() == digits)?;
        Some(Self {
            cpu_kind: Some(kind),
            cpus: Some(cpus),
            memory_mb: Some(cpus * kind.memory_mb_per_cpu()),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_contracts() {
        for (name, want) in [
            ("shared-cpu-1x", Some((CpuKind::Shared, 1, 256))),
            ("shared-cpu-8x", Some((CpuKind::Shared, 8, 2048))),
            ("performance-1x", Some((CpuKind::Performance, 1, 2048))),
            ("performance-16x", Some((CpuKind::Performance, 16, 32_768))),
            ("shared-cpu-3x", None),
            ("shared-cpu-16x", None),
            ("performance-02x", None),
            ("performance-2", None),
            ("a10", None),
            ("", None),
        ] {
            let found = GuestConfig::preset(name);
            let found = found.map(|guest| {
                (guest.cpu_kind.unwrap(), guest.cpus.unwrap(), guest.memory_mb.unwrap())
            });
            assert_eq!(found, want, "{name}");
        }
    }
}
