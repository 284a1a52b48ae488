//! What goes wrong with an image, told apart by who has to act.
//!
//! Never logs. Every variant names the image or the file that it is about.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use perch_types::Code;
use perch_types::image::{Digest, Reference};

/// A fault of an image, its registry or the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry has no such repository, tag or digest.
    #[error("find image `{reference}`: its registry has no such image")]
    Unknown {
        /// What was asked for.
        reference: Box<Reference>,
    },
    /// The registry wants other credentials, or any.
    #[error("read image `{reference}`: its registry refused the credentials ({status})")]
    NotAuthorized {
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry's HTTP status.
        status: u16,
    },
    /// The registry did not answer.
    #[error("reach the registry of `{reference}`")]
    Unreachable {
        /// What was asked for.
        reference: Box<Reference>,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answered something else than it should.
    #[error("read image `{reference}`: its registry answered {status}: {text}")]
    Answer {
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry's HTTP status.
        status: u16,
        /// The beginning of its answer.
        text: String,
    },
    /// The bytes are not those that the digest names.
    #[error("check `{expected}` of image `{reference}`: the bytes have digest `{actual}`")]
    DigestMismatch {
        /// What was asked for.
        reference: Box<Reference>,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// There are more or fewer bytes than the manifest says.
    #[error("check `{digest}` of image `{reference}`: {actual} bytes instead of {expected}")]
    SizeMismatch {
        /// What was asked for.
        reference: Box<Reference>,
        /// The blob.
        digest: Digest,
        /// The size that was promised.
        expected: u64,
        /// What came; counting stops one chunk after the promised size.
        actual: u64,
    },
    /// The image is larger than a limit.
    #[error("take image `{reference}`: {what} is over the limit of {limit}")]
    OverLimit {
        /// What was asked for.
        reference: Box<Reference>,
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The image breaks a rule.
    #[error("take image `{reference}`: {reason}")]
    Invalid {
        /// What was asked for.
        reference: Box<Reference>,
        /// The rule.
        reason: String,
    },
    /// It took too long.
    #[error("{operation} of image `{reference}` within {} seconds", limit.as_secs())]
    Timeout {
        /// What was asked for.
        reference: Box<Reference>,
        /// What took too long.
        operation: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The disk of the store is full.
    #[error("store image `{reference}`: no space left")]
    NoSpace {
        /// What was asked for.
        reference: Box<Reference>,
    },
    /// The program that unpacks or writes the file system did not do so.
    #[error("unpack image `{reference}`: {reason}")]
    Unpack {
        /// What was asked for.
        reference: Box<Reference>,
        /// What it said.
        reason: String,
    },
    /// A file of the store.
    #[error("{operation} `{path}`")]
    Io {
        /// The operation, a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The HTTP client could not be made.
    #[error("set up the registry client")]
    Client {
        /// What was wrong.
        source: reqwest::Error,
    },
    /// The endpoint of a registry is not a URL.
    #[error("read the endpoint `{url}` of registry `{registry}`")]
    Endpoint {
        /// The registry.
        registry: String,
        /// The text.
        url: String,
    },
    /// The fault of a pull, told to every caller that waited for it.
    #[error(transparent)]
    Shared(std::sync::Arc<Self>),
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    pub(crate) fn invalid(reference: &Reference, reason: impl Into<String>) -> Self {
        Self::Invalid { reference: Box::new(reference.clone()), reason: reason.into() }
    }

    pub(crate) fn over(reference: &Reference, what: impl Into<String>, limit: u64) -> Self {
        Self::OverLimit { reference: Box::new(reference.clone()), what: what.into(), limit }
    }

    /// Returns the code under which an API answers it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } => Code::ImageUnknown,
            Self::NotAuthorized { .. }
            | Self::Unreachable { .. }
            | Self::Answer { .. }
            | Self::Timeout { operation: "pull", .. } => Code::ImageUnavailable,
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::OverLimit { .. }
            | Self::Invalid { .. }
            | Self::Timeout { .. } => Code::ImageInvalid,
            Self::NoSpace { .. } => Code::NoSpace,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Code::NoSpace,
            Self::Unpack { .. } | Self::Io { .. } | Self::Client { .. } | Self::Endpoint { .. } => {
                Code::Internal
            }
            Self::Shared(source) => source.code(),
        }
    }

    /// Tells whether the same call may go well a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoSpace { .. } => true,
            Self::Timeout { operation, .. } => *operation == "pull",
            Self::Answer { status, .. } => *status >= 500 || *status == 429,
            Self::Shared(source) => source.is_transient(),
            _ => false,
        }
    }
}
