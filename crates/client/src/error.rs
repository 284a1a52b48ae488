//! What can go wrong with a call.
//!
//! Never a sentence for the screen: the outermost printer makes that of the chain and the hint.

use perch_types::{ApiError, Code};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a host's calls; the same as the API's.
pub type HostError = Error;

/// Why a call did not give what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("{error}")]
    Api {
        /// The answer.
        error: Box<ApiError>,
        /// Its HTTP status.
        status: u16,
    },
    /// Nothing was sent: there was no connection.
    #[error("connect to `{url}`")]
    Unreachable {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Nothing was sent: the server did not show that it is the right one.
    #[error("check the identity of `{url}`")]
    Tls {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The request may have been carried out, but its answer did not come, or not whole.
    #[error("read the answer of `{url}`")]
    Interrupted {
        /// Where to, with the path.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The answer is not of the shape that was agreed.
    #[error("understand the answer of `{url}`")]
    Protocol {
        /// Where to, with the path.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The request cannot be written down, such as a token with a line break.
    #[error("write the request to `{url}`")]
    Request {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

impl Error {
    /// Returns the server's code, when the server answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Api { error, .. } => Some(error.code),
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Interrupted { .. }
            | Self::Protocol { .. }
            | Self::Request { .. } => None,
        }
    }

    /// Returns whether it is certain that the server got nothing.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Tls { .. } | Self::Request { .. })
    }

    /// Returns whether the server says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { status: 404, .. })
    }

    /// Returns whether the same call may succeed later: no connection, or the server said so.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Api { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::Tls { .. } | Self::Protocol { .. } | Self::Request { .. } => false,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Api { error, status } => error.hint.clone().or_else(|| match status {
                401 => Some("log in with `perch auth login URL#fingerprint`".to_owned()),
                _ => None,
            }),
            Self::Unreachable { url, .. } => Some(if url.starts_with("unix:") {
                "is perchd running on this server? (`systemctl status perchd`)".to_owned()
            } else {
                "is perchd running there, and does a firewall allow the port?".to_owned()
            }),
            Self::Tls { .. } => Some(
                "compare the fingerprint with the one that perchd prints at its start, then \
                 `perch auth login URL#fingerprint`"
                    .to_owned(),
            ),
            Self::Interrupted { .. } => {
                Some("look whether it was carried out before you try again".to_owned())
            }
            Self::Protocol { .. } => {
                Some("is this a Perch server, and not much newer or older?".to_owned())
            }
            Self::Request { .. } => None,
        }
    }
}
