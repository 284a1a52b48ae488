//! `config.mounts`: volumes in a machine.
//!
//! Never chooses a volume: that is the api's.

use serde::{Deserialize, Serialize};

use super::{Other, is_false, null_is_default};

/// One entry of `config.mounts`: a volume and where it appears.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountConfig {
    /// The volume's id; found by the name when empty.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub volume: String,
    /// The volume's name.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// Where in the machine, absolute.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: String,
    /// Accepted either way; the volume says what is.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub encrypted: bool,
    /// How large the volume has to be in GiB; a smaller one is extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u32>,
    /// Extend the volume when it is that full, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extend_threshold_percent: Option<u32>,
    /// By so many GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_size_gb: Option<u32>,
    /// But not beyond this size in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb_limit: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// When and how far a volume grows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoExtend {
    /// When it is that full, in percent.
    pub threshold_percent: u32,
    /// By so many GiB.
    pub add_gb: u32,
    /// But not beyond this size in GiB.
    pub limit_gb: u32,
}

impl MountConfig {
    /// Returns when the volume grows by itself, if it does.
    #[must_use]
    pub fn auto_extend(&self) -> Option<AutoExtend> {
        Some(AutoExtend {
            threshold_percent: self.extend_threshold_percent.filter(|percent| *percent > 0)?,
            add_gb: self.add_size_gb.filter(|size| *size > 0)?,
            limit_gb: self.size_gb_limit.filter(|size| *size > 0)?,
        })
    }
}
