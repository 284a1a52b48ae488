//! What can go wrong with a machine, as operations on objects.
//!
//! Never carries a value of the environment.

use std::io;
use std::path::PathBuf;

use perch_types::Code;

/// A fault of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{operation} {}", path.display())]
    File {
        /// What was done: "read", "mount".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A call to the kernel that has no path.
    #[error("{operation}")]
    System {
        /// What was done.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The monitor could not be started.
    #[error("start the monitor {}", path.display())]
    Spawn {
        /// Its binary.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection to the monitor.
    #[error("{operation} the monitor of machine {machine}")]
    Monitor {
        /// What was done: "connect to", "read from".
        operation: &'static str,
        /// Whose.
        machine: String,
        /// Why not.
        source: io::Error,
    },
    /// The monitor runs and does not answer as it should: nothing is known of its machine but that
    /// it was not given up.
    #[error("reach the monitor of machine {machine}, which runs")]
    Silent {
        /// Whose.
        machine: String,
        /// Why not.
        source: Box<Self>,
    },
    /// The monitor refused or could not do it; the text is its chain of causes.
    #[error("{operation}: {reason}")]
    Refused {
        /// What it was asked.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// Something else than what was expected answers at the socket.
    #[error("verify the monitor of machine {machine}: {reason}")]
    Stranger {
        /// Whose.
        machine: String,
        /// What did not match.
        reason: String,
    },
    /// The monitor is older than what it is to be asked for.
    #[error(
        "{operation}: the monitor of machine {machine} speaks protocol {spoken}, this takes {needed}"
    )]
    Older {
        /// What it was to be asked.
        operation: &'static str,
        /// Whose.
        machine: String,
        /// What it speaks.
        spoken: u32,
        /// What it would have to.
        needed: u32,
    },
    /// A message of the wrong shape.
    #[error("read a message: {0}")]
    Shape(String),
    /// The program could not be executed.
    #[error("execute the program: {reason}")]
    NotExecutable {
        /// 126 or 127.
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
    /// The machine has ended.
    #[error("reach machine {0}: it has ended")]
    Ended(String),
    /// Took longer than its limit.
    #[error("{operation}: no answer within {limit_ms} ms")]
    Timeout {
        /// What.
        operation: &'static str,
        /// The limit.
        limit_ms: u64,
    },
    /// More memory is in use than is to be allowed.
    #[error("lower the memory limit: {used_mb} MiB are in use")]
    InUse {
        /// How much.
        used_mb: u64,
    },
    /// The kernel has no such feature.
    #[error("use {0}: this kernel has no such file")]
    NoFeature(&'static str),
    /// A value of the boot's description is refused.
    #[error("check the boot: {0}")]
    Spec(String),
}

impl Error {
    /// Returns the code with which it reaches the API.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotExecutable { .. } => Code::ExitedAtOnce,
            Self::Ended(_) => Code::WrongState,
            Self::Timeout { .. } | Self::Silent { .. } => Code::Unavailable,
            Self::Spec(_) => Code::InvalidValue,
            Self::InUse { .. } | Self::Older { .. } => Code::PreconditionFailed,
            Self::NoFeature(_) => Code::UnsupportedKey,
            Self::File { source, .. } | Self::System { source, .. }
                if source.raw_os_error() == Some(28) =>
            {
                Code::NoSpace
            }
            _ => Code::Internal,
        }
    }

    /// Makes a function that turns an I/O error into one of this operation on this path.
    pub fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source: source.into() }
    }

    /// Makes a function that turns an I/O error into one of this operation.
    pub fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, source: source.into() }
    }
}
