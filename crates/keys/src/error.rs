//! What can go wrong outside of a request.
//!
//! Never holds anything of a key.

use std::path::PathBuf;

/// A fault of the role `keys`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the master key cannot be read.
    #[error("read the master key in `{path}`")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of the master key is not one, or of a newer format.
    #[error("understand the master key in `{path}`: {reason}")]
    Understand {
        /// Where.
        path: PathBuf,
        /// Why; nothing of the file.
        reason: String,
    },
    /// Others than its owner may read the file of the master key.
    #[error("trust the master key in `{path}`: its mode is {mode:o}, not 600")]
    Open {
        /// Where.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file of the master key cannot be written.
    #[error("write the master key to `{path}`")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The library gives no key or does not do its part.
    #[error("use the cryptographic library")]
    Library,
    /// A wrapped key does not open.
    #[error("open a wrapped key: it is not of this master key, app and purpose")]
    Unwrap,
    /// The process could not give up what it does not need.
    #[error("give up rights: {0}")]
    Cage(String),
}
