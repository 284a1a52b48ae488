//! `config.stop_config`: how to ask a program to end, and signals by name.
//!
//! Never sends one.

use serde::{Deserialize, Serialize};

use super::Other;
use crate::time::GoDuration;

/// The signal that asks a program to end when nothing else was said.
pub const STOP_SIGNAL_DEFAULT: Signal = Signal::SigInt;
/// How long a program may take to end when nothing else was said.
pub const STOP_TIMEOUT_DEFAULT: GoDuration = GoDuration::from_secs(5);
/// The longest that a program may ask for to end.
pub const STOP_TIMEOUT_MAX: GoDuration = GoDuration::from_secs(300);

/// `config.stop_config`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StopConfig {
    /// How long the program may take; default 5 s, at most 300 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// The signal that asks it to end; default SIGINT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Signals that the API names (contract 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each is the signal of its name")]
pub enum Signal {
    SigAbrt,
    SigAlrm,
    SigFpe,
    SigHup,
    SigIll,
    SigInt,
    SigKill,
    SigPipe,
    SigQuit,
    SigSegv,
    SigTerm,
    SigTrap,
    SigUsr1,
    SigUsr2,
}

impl Signal {
    /// Returns Linux's number of the signal.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::SigHup => 1,
            Self::SigInt => 2,
            Self::SigQuit => 3,
            Self::SigIll => 4,
            Self::SigTrap => 5,
            Self::SigAbrt => 6,
            Self::SigFpe => 8,
            Self::SigKill => 9,
            Self::SigUsr1 => 10,
            Self::SigSegv => 11,
            Self::SigUsr2 => 12,
            Self::SigPipe => 13,
            Self::SigAlrm => 14,
            Self::SigTerm => 15,
        }
    }
}
