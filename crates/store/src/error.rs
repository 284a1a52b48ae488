//! What can go wrong with the directory.
//!
//! Never carries a document's content.

use perch_types::Code;

use crate::directory::{LeaseId, Revision};

/// A fault of the directory or a refusal by its rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not at the expected revision: somebody else changed it.
    #[error("write {key}: it has changed in between")]
    Conflict {
        /// The key.
        key: String,
        /// Its revision now, or `None` if there is no such key.
        found: Option<Revision>,
    },
    /// The history that a watch wants is gone: list again.
    #[error("watch from revision {from}: the oldest that is kept is {oldest}")]
    Compacted {
        /// Where the watch wanted to begin or go on.
        from: Revision,
        /// The oldest revision it can begin at.
        oldest: Revision,
    },
    /// The key or the prefix breaks a rule.
    #[error("use key {key:?}: {reason}")]
    InvalidKey {
        /// The key.
        key: String,
        /// Which rule.
        reason: String,
    },
    /// The value is larger than the limit.
    #[error("write {key}: {bytes} bytes are more than the limit of {limit}")]
    TooLarge {
        /// The key.
        key: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The transaction or the lease asked for breaks a rule.
    #[error("write transaction: {reason}")]
    InvalidTxn {
        /// Which rule.
        reason: String,
    },
    /// More entries than one list may have.
    #[error("list {prefix}: there are more than {limit} entries")]
    TooMany {
        /// The prefix.
        prefix: String,
        /// The limit.
        limit: usize,
    },
    /// There is no such lease, or it has ended.
    #[error("use lease {lease}: it has ended")]
    NoSuchLease {
        /// The lease.
        lease: LeaseId,
    },
    /// A document does not parse.
    #[error("read document {key}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A document does not turn into JSON.
    #[error("encode document {key}")]
    Encode {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The directory cannot be reached, or broke off. A write may have happened all the same.
    #[error("{operation}: the directory is not available ({reason})")]
    Unavailable {
        /// What was done.
        operation: &'static str,
        /// Why.
        reason: String,
    },
    /// The file below has a fault.
    #[error("use the directory's file")]
    File {
        /// Which.
        #[from]
        source: perch_durable::Error,
    },
}

impl Error {
    /// Returns the code under which it reaches a client.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Conflict { .. } => Code::Conflict,
            Self::InvalidKey { .. } | Self::InvalidTxn { .. } | Self::TooMany { .. } => {
                Code::InvalidRequest
            }
            Self::TooLarge { .. } => Code::BodyTooLarge,
            Self::NoSuchLease { .. } => Code::NotFound,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::File { source: perch_durable::Error::Full } => Code::NoSpace,
            Self::Compacted { .. }
            | Self::Unreadable { .. }
            | Self::Encode { .. }
            | Self::File { .. } => Code::Internal,
        }
    }
}
