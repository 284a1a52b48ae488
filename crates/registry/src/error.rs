//! What goes wrong with the registry's own files.
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
        source: std::io::Error,
    },
}
