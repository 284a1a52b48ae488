//! The states of a machine, in the contract's words (section 1.4).
//!
//! Never decides a transition: that is the host's `admit` and `plan`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A machine's state as the API shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its image and root disk are being prepared, or are ready and it never ran.
    Created,
    /// It is being booted.
    Starting,
    /// Its process was executed.
    Started,
    /// It was told to stop and has not ended.
    Stopping,
    /// It does not run; it can be started.
    Stopped,
    /// It is being frozen.
    Suspending,
    /// It is frozen in memory; a start thaws it.
    Suspended,
    /// It is being stopped and started again.
    Restarting,
    /// A new version of it is taking its place.
    Replacing,
    /// It is being removed.
    Destroying,
    /// It is gone; its record stays for a while.
    Destroyed,
    /// Its last run could not be carried out; its events say why.
    Failed,
}

impl MachineState {
    /// All states, in the order of a life.
    pub const ALL: [Self; 12] = [
        Self::Created,
        Self::Starting,
        Self::Started,
        Self::Stopping,
        Self::Stopped,
        Self::Suspending,
        Self::Suspended,
        Self::Restarting,
        Self::Replacing,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
    ];

    /// Returns whether a machine can stay in this state without work being under way
    /// (`wait?state=settled`).
    #[must_use]
    pub const fn is_settled(self) -> bool {
        match self {
            Self::Created
            | Self::Started
            | Self::Stopped
            | Self::Suspended
            | Self::Destroyed
            | Self::Failed => true,
            Self::Starting
            | Self::Stopping
            | Self::Suspending
            | Self::Restarting
            | Self::Replacing
            | Self::Destroying => false,
        }
    }

    /// Returns whether the program of a machine in this state is about to be ended or frozen, or
    /// was: if the machine is not ready then, no request is sent to it any more.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        match self {
            Self::Stopping
            | Self::Suspending
            | Self::Restarting
            | Self::Replacing
            | Self::Destroying => true,
            Self::Created
            | Self::Starting
            | Self::Started
            | Self::Stopped
            | Self::Suspended
            | Self::Destroyed
            | Self::Failed => false,
        }
    }

    /// Returns the word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Restarting => "restarting",
            Self::Replacing => "replacing",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no machine state")]
pub struct UnknownState(String);

impl FromStr for MachineState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.chars().take(40).collect()))
    }
}
