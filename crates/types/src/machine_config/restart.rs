//! `config.restart`: what follows an exit.
//!
//! Never counts: the host does.

use serde::{Deserialize, Serialize};

use super::Other;
use crate::time::GoDuration;

/// Restarts within [`RESTART_WINDOW`] that `on-failure` allows when nothing else was said.
pub const RESTART_RETRIES_DEFAULT: u32 = 10;
/// The window in which restarts are counted.
pub const RESTART_WINDOW: GoDuration = GoDuration::from_secs(300);

/// `config.restart`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartConfig {
    /// When to start it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// How often within five minutes, for `on-failure`; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// When a machine whose program ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// After every exit, with a back-off.
    Always,
    /// After an exit that was a failure; the API's default.
    #[default]
    OnFailure,
}
