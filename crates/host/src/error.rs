//! Why the agent cannot start.
//!
//! Never the answer to a request: those are `ApiError`s.

use std::io;
use std::path::PathBuf;

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host's own key cannot be used.
    #[error("use the host's own key in `{path}`: {reason}")]
    OwnKey {
        /// Where.
        path: PathBuf,
        /// Why; nothing of the key.
        reason: String,
    },
    /// A folder.
    #[error("create folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The monitor or init.
    #[error("keep a copy of {}", path.display())]
    Binary {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state file.
    #[error("open the host's state")]
    State {
        /// Why.
        source: perch_durable::Error,
    },
    /// Networking.
    #[error("prepare the network")]
    Network {
        /// Why.
        source: crate::network::Error,
    },
    /// The image store.
    #[error("open the image store")]
    Images {
        /// Why.
        source: perch_oci::Error,
    },
    /// Mounted images.
    #[error("prepare mounts of images")]
    Mounts {
        /// Why.
        source: crate::mounts::Error,
    },
    /// Writable layers.
    #[error("prepare writable layers")]
    Layers {
        /// Why.
        source: crate::layers::Error,
    },
    /// The pool of volumes.
    #[error("prepare the pool of volumes")]
    Pool {
        /// Why.
        source: crate::volumes::pool::Error,
    },
    /// Something stays after everything was to be removed.
    #[error("remove everything: {0}")]
    Remains(String),
}
