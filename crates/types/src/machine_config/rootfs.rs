//! `config.rootfs`: the writable layer over the image.
//!
//! Never touches it.

use serde::{Deserialize, Serialize};

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
