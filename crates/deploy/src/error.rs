//! Why a deploy did not succeed.
//!
//! Never a sentence for the screen: the outermost printer makes that of the chain and the hint.

use std::fmt;

use perch_client::Error as CallError;
use perch_types::api::ExitEvent;
use perch_types::{Code, MachineId};

/// The most log lines that an error carries.
pub const LOG_LINES_MAX: usize = 20;

/// Why a deploy did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machines could not be listed.
    #[error("list the machines")]
    List {
        /// Why.
        source: CallError,
    },
    /// An operation was refused or did not reach the server.
    #[error("{op}")]
    Call {
        /// The operation.
        op: String,
        /// Why.
        source: CallError,
    },
    /// The machine could not be watched.
    #[error("look at machine `{machine}`")]
    Watch {
        /// The machine.
        machine: MachineId,
        /// Why.
        source: CallError,
    },
    /// The program ended right after its start.
    #[error("program of machine `{machine}` ended: {}", Ending(exit))]
    Exited {
        /// The machine.
        machine: MachineId,
        /// How it ended.
        exit: Box<ExitEvent>,
        /// Its last lines.
        log: Vec<String>,
    },
    /// The machine could not be run.
    #[error("machine `{machine}` failed: {because}")]
    Failed {
        /// The machine.
        machine: MachineId,
        /// Why.
        because: String,
        /// Its last lines.
        log: Vec<String>,
    },
    /// The machine runs and does not get ready.
    #[error("machine `{machine}` is not ready after {waited_s} s: {because}")]
    NotReady {
        /// The machine.
        machine: MachineId,
        /// What it lacks.
        because: String,
        /// How long it was given.
        waited_s: u64,
        /// Its last lines.
        log: Vec<String>,
    },
    /// The new version answers worse than the one before it.
    #[error(
        "machine `{machine}` answers worse than its version before: {errors} of {count} requests \
         failed, and {before} of a hundred did before"
    )]
    Worse {
        /// The machine.
        machine: MachineId,
        /// Requests that failed.
        errors: u64,
        /// Of so many.
        count: u64,
        /// How many of a hundred did before.
        before: u64,
        /// Its last lines.
        log: Vec<String>,
    },
    /// The operation did not succeed, and taking it back did not either.
    #[error("{failed}; and machine `{machine}` is not as it was before: {because}")]
    NotUndone {
        /// The machine.
        machine: MachineId,
        /// Why the operation did not succeed; it is part of this error's text, not its source.
        failed: Box<Self>,
        /// Why it could not be taken back.
        because: String,
        /// What to run to mend it by hand.
        next: String,
    },
    /// The machine was destroyed while it was being deployed.
    #[error("machine `{machine}` was destroyed meanwhile")]
    Gone {
        /// The machine.
        machine: MachineId,
    },
}

/// How a program ended, in words.
struct Ending<'a>(&'a ExitEvent);

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exit = self.0;
        if let Some(error) = &exit.error {
            return write!(f, "{error}");
        }
        if exit.oom_killed {
            return write!(f, "it used more memory than the machine has");
        }
        match exit.guest_signal {
            0 => write!(f, "exit code {}", exit.exit_code),
            signal => write!(f, "killed by signal {signal}"),
        }
    }
}

impl Error {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::List { source } | Self::Call { source, .. } | Self::Watch { source, .. } => {
                source.code()
            }
            Self::Exited { .. } | Self::Failed { .. } => Some(Code::ExitedAtOnce),
            Self::NotReady { .. } => Some(Code::DeadlineExceeded),
            Self::Worse { .. } => Some(Code::AnswersWorse),
            Self::Gone { .. } => Some(Code::MachineNotFound),
            Self::NotUndone { failed, .. } => failed.code(),
        }
    }

    /// Returns the program's last lines.
    #[must_use]
    pub fn log(&self) -> &[String] {
        match self {
            Self::Exited { log, .. }
            | Self::Failed { log, .. }
            | Self::NotReady { log, .. }
            | Self::Worse { log, .. } => log,
            Self::NotUndone { failed, .. } => failed.log(),
            Self::List { .. } | Self::Call { .. } | Self::Watch { .. } | Self::Gone { .. } => &[],
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::List { source } | Self::Call { source, .. } | Self::Watch { source, .. } => {
                source.hint()
            }
            Self::Exited { exit, .. } if exit.oom_killed => {
                Some("give it more with `memory` in `[[vm]]` of fly.toml".to_owned())
            }
            Self::Exited { exit, .. } if exit.exit_code == 0 => Some(
                "a program that is done must not restart: set `policy = \"never\"` in `[[restart]]`; \
                 one that serves must stay in the foreground"
                    .to_owned(),
            ),
            Self::Exited { log, .. } if !log.is_empty() => {
                Some("its last lines say why; mend it and run `perch deploy` again".to_owned())
            }
            Self::Exited { .. } => Some(
                "it printed nothing; look at its command (`CMD` of the image, `[processes]` of \
                 fly.toml) and run `perch deploy` again"
                    .to_owned(),
            ),
            Self::Failed { .. } | Self::Worse { .. } => {
                Some("mend it and run `perch deploy` again".to_owned())
            }
            Self::NotReady { .. } => Some(
                "let the program listen on 0.0.0.0 and on the port that `internal_port` in fly.toml \
                 names, or change that number"
                    .to_owned(),
            ),
            Self::NotUndone { next, .. } => Some(next.clone()),
            Self::Gone { .. } => None,
        }
    }
}
