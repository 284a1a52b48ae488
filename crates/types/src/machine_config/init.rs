//! `config.init`: what the program is.
//!
//! Never looks at the image: what replaces what is decided where both are known.

use serde::{Deserialize, Serialize};

use super::{Other, is_false, null_is_default};

/// `config.init`: what the program is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InitConfig {
    /// Replaces entrypoint and command entirely.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's CMD.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Gives the program a terminal.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub tty: bool,
    /// Swap in MiB beside the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_size_mb: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}
