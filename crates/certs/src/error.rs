//! What can go wrong outside of an order.
//!
//! Never holds anything of a key.

use std::path::PathBuf;

/// A fault of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the edges' key cannot be read or written.
    #[error("keep the edges' key in `{path}`")]
    KeyFile {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of the edges' key is not one, or others may read it.
    #[error("trust the edges' key in `{path}`: {reason}")]
    KeyText {
        /// Where.
        path: PathBuf,
        /// Why; nothing of the key.
        reason: String,
    },
    /// Something was not sealed or opened.
    #[error(transparent)]
    Seal(#[from] perch_seal::Error),
    /// The directory did not do its part.
    #[error("{operation} in the directory")]
    Store {
        /// What was done.
        operation: &'static str,
        /// Why.
        #[source]
        source: perch_store::Error,
    },
    /// The certificates that vouch for the issuer cannot be used.
    #[error("trust the issuer: {0}")]
    Trust(String),
    /// No key or request could be made.
    #[error("make a key: {0}")]
    Key(String),
}

/// Returns a closure that names what was done in the directory.
pub(crate) fn store(operation: &'static str) -> impl FnOnce(perch_store::Error) -> Error {
    move |source| Error::Store { operation, source }
}
