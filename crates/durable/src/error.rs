//! What can go wrong with the file.
//!
//! Never carries a record's content: keys and names only.

use std::{io, path::PathBuf, sync::Arc};

use crate::run::{InvalidRun, RunId};

/// A fault of the file, of a record in it or of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, its lock or its reserve cannot be opened or made.
    #[error("open {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite does not accept the file.
    #[error("open database {}", path.display())]
    OpenDatabase {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Another process has the file open.
    #[error("lock {}: another process has it open", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The file was written by a newer release.
    #[error(
        "open {}: its {schema} schema is version {found}, this release knows up to {known}; \
         use the newer release",
        path.display()
    )]
    NewerSchema {
        /// Which file.
        path: PathBuf,
        /// Whose schema: the journal's own or the caller's.
        schema: &'static str,
        /// The version in the file.
        found: i64,
        /// The newest version this program can read.
        known: i64,
    },
    /// A migration does not apply.
    #[error("migrate database to version {version}")]
    Migrate {
        /// The version it would have reached.
        version: i64,
        /// Why.
        source: rusqlite::Error,
    },
    /// SQLite finds the file damaged.
    #[error("copy {}: it is damaged: {complaint}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What SQLite says of it.
        complaint: String,
    },
    /// A statement did not succeed.
    #[error("{operation}")]
    Sql {
        /// What was done.
        operation: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// The transaction did not reach the disk; the file takes no more writes until it is reopened.
    #[error("commit transaction")]
    Commit {
        /// Why.
        source: Arc<rusqlite::Error>,
    },
    /// The disk is full. Only work that frees space is accepted until there is room again.
    #[error("write to database: no space left on its disk")]
    Full,
    /// An earlier write did not reach the disk, or the file is being closed.
    #[error("write to database: stopped after an earlier write did not reach the disk")]
    Stopped,
    /// More writes wait than the limit.
    #[error("queue write: {limit} are waiting already")]
    QueueFull {
        /// The limit.
        limit: usize,
    },
    /// The work inside a transaction panicked; nothing of it was kept.
    #[error("run transaction: the work inside it panicked")]
    Panicked,
    /// A value does not turn into JSON.
    #[error("encode {what} {key}")]
    Encode {
        /// What it is: the table, or a part of a run.
        what: &'static str,
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A record does not parse.
    #[error("decode {what} {key}: {reason}")]
    Decode {
        /// What it is: the table, or a part of a run.
        what: &'static str,
        /// Its key.
        key: String,
        /// Why, in the parser's words (without the record's content).
        reason: String,
    },
    /// The owner has an unfinished run.
    #[error("begin run for {owner}: {run} has not ended")]
    OwnerBusy {
        /// The owner.
        owner: String,
        /// Its unfinished run.
        run: RunId,
    },
    /// There is no such run.
    #[error("find {run}: no such run")]
    NoSuchRun {
        /// The run.
        run: RunId,
    },
    /// The run's plan or one of its events breaks a rule.
    #[error("journal run of {owner}")]
    Run {
        /// The run's owner.
        owner: String,
        /// Which rule.
        source: InvalidRun,
    },
}

impl Error {
    /// Returns the error of a statement, named by what it did.
    #[must_use]
    pub fn sql(operation: &'static str, source: rusqlite::Error) -> Self {
        Self::Sql { operation, source }
    }
}
