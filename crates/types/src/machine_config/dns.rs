//! `config.dns`: names.
//!
//! Never answers one.

use serde::{Deserialize, Serialize};

use super::{Other, is_false, null_is_default};

/// `config.dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Keep it out of `.internal`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub skip_registration: bool,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}
