//! What goes wrong with the registry's own files.
//!
//! Never a client's fault: those are replies.

use std::io;
use std::path::PathBuf;

/// A fault of the registry's storage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{operation} `{path}`")]
    Io {
        /// The operation, a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel gave no random bytes for an upload's id.
    #[error("draw an upload's id")]
    Random {
        /// What it said.
        source: getrandom::Error,
    },
    /// Work on a thread did not end as it should.
    #[error("run storage work")]
    Thread {
        /// How it ended.
        source: tokio::task::JoinError,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }
}
