//! `config.rootfs`: the writable layer over the image.
//!
//! Never touches it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Other;

/// The writable layer's size in GiB when nothing else was said.
pub const ROOTFS_SIZE_GB_DEFAULT: u32 = 8;

/// `config.rootfs`: the writable layer over the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootfsConfig {
    /// Whether the layer outlives a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<RootfsPersist>,
    /// The layer's size in GiB, a hard edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// How long the writable layer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsPersist {
    /// Each start begins from the image.
    #[default]
    Never,
    /// Kept when the program is restarted, not after a stop.
    Restart,
    /// Kept until the machine is destroyed or gets another image.
    Always,
}

impl RootfsPersist {
    /// Reads the older `guest.persist_rootfs`: a word or its number (contract 1.13); nothing when it
    /// is neither.
    #[must_use]
    pub fn of_older(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Never),
            Value::String(word) => match word.as_str() {
                "" | "none" | "never" => Some(Self::Never),
                "restart" => Some(Self::Restart),
                "always" => Some(Self::Always),
                _ => None,
            },
            Value::Number(number) => match number.as_u64()? {
                0 | 1 => Some(Self::Never),
                2 => Some(Self::Restart),
                3 => Some(Self::Always),
                _ => None,
            },
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}
