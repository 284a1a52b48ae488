//! What can go wrong outside of a request.
//!
//! Never an answer: those are [`crate::reply::Failure`].

use perch_client::BoxError;
use perch_types::{AppName, Code};

/// A fault of the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory did not do its part.
    #[error("{operation} in the directory")]
    Store {
        /// What was done.
        operation: &'static str,
        /// Why.
        #[source]
        source: perch_store::Error,
    },
    /// The registry did not remove the images of an app that is gone.
    #[error("remove the images of app `{app}`")]
    Images {
        /// The app.
        app: AppName,
        /// Why.
        source: BoxError,
    },
    /// The kernel gave no random bytes.
    #[error("draw random bytes")]
    Random {
        /// Why.
        #[source]
        source: getrandom::Error,
    },
    /// A secret was not sealed.
    #[error(transparent)]
    Seal(#[from] perch_seal::Error),
    /// The hash of a token is not 64 hexadecimal digits.
    #[error("`{0}` is not the SHA-256 of a token")]
    TokenHash(String),
    /// More push tokens of one organization at once than the limit.
    #[error("more than {max} builds of one organization at once")]
    PushTokensOfOrg {
        /// The limit.
        max: usize,
    },
    /// More push tokens at once than the limit.
    #[error("more than {max} builds at once")]
    PushTokens {
        /// The limit.
        max: usize,
    },
}

impl Error {
    /// Returns whether somebody else changed in the directory what was to be changed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Store { source: perch_store::Error::Conflict { .. }, .. })
    }

    /// Returns the code under which it reaches a client.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Store { source, .. } => source.code(),
            Self::Images { .. } | Self::Random { .. } | Self::Seal(_) => Code::Internal,
            Self::TokenHash(_) => Code::InvalidValue,
            Self::PushTokens { .. } | Self::PushTokensOfOrg { .. } => Code::RateLimited,
        }
    }
}

/// Returns a closure that names what was done in the directory.
pub(crate) fn store(operation: &'static str) -> impl FnOnce(perch_store::Error) -> Error {
    move |source| Error::Store { operation, source }
}
