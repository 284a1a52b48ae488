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
    /// Every signal, by name.
    pub const ALL: [Self; 14] = [
        Self::SigAbrt,
        Self::SigAlrm,
        Self::SigFpe,
        Self::SigHup,
        Self::SigIll,
        Self::SigInt,
        Self::SigKill,
        Self::SigPipe,
        Self::SigQuit,
        Self::SigSegv,
        Self::SigTerm,
        Self::SigTrap,
        Self::SigUsr1,
        Self::SigUsr2,
    ];

    /// Returns the signal's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SigAbrt => "SIGABRT",
            Self::SigAlrm => "SIGALRM",
            Self::SigFpe => "SIGFPE",
            Self::SigHup => "SIGHUP",
            Self::SigIll => "SIGILL",
            Self::SigInt => "SIGINT",
            Self::SigKill => "SIGKILL",
            Self::SigPipe => "SIGPIPE",
            Self::SigQuit => "SIGQUIT",
            Self::SigSegv => "SIGSEGV",
            Self::SigTerm => "SIGTERM",
            Self::SigTrap => "SIGTRAP",
            Self::SigUsr1 => "SIGUSR1",
            Self::SigUsr2 => "SIGUSR2",
        }
    }

    /// Returns the names of all signals.
    #[must_use]
    pub fn words() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_in_the_list_by_its_name() {
        for (index, signal) in Signal::ALL.into_iter().enumerate() {
            let name = serde_json::Value::from(signal.as_str());
            assert_eq!(serde_json::to_value(signal).unwrap(), name);
            assert_eq!(
                Signal::ALL.iter().position(|it| it.number() == signal.number()),
                Some(index)
            );
        }
        // Of a word that is none, the reader of JSON lists all there are.
        let all = serde_json::from_str::<Signal>("\"SIGNONE\"").unwrap_err().to_string();
        assert_eq!(all.matches("`SIG").count(), Signal::ALL.len() + 1, "{all}");
    }
}
