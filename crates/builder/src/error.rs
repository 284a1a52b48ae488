//! What can go wrong around a build, and the code under which its client hears of it.
//!
//! Never the outcome of the user's own instructions: that is a [`BuildEvent::Failed`] with
//! `build_failed`, made where the output is read.
//!
//! [`BuildEvent::Failed`]: perch_types::build::BuildEvent::Failed

use std::io;
use std::path::PathBuf;

use perch_types::error::chain;
use perch_types::{ApiError, Code};

use crate::context::ContextError;
use crate::tools::MissingTool;

/// What can go wrong around a build.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not on this server.
    #[error("find the programs of a build")]
    Tool(#[from] MissingTool),
    /// The configuration cannot work.
    #[error("the builder's configuration has an impossible `{key}`: {rule}")]
    Configuration {
        /// The field.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A file or folder of the builder.
    #[error("{operation} `{path}`")]
    File {
        /// What was tried, such as `create`.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of the host could not be run.
    #[error("run `{program}`")]
    Spawn {
        /// Its name.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program of the host did not do its work.
    #[error("`{program}` ended with {status}: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What it said last.
        output: String,
    },
    /// The cage did not come up.
    #[error("the cage of the build did not start: {0}")]
    Cage(String),
    /// The registry's window inside a cage.
    #[error("open the registry's window in the cage")]
    Gateway {
        /// Why not.
        source: io::Error,
    },
    /// The registry did not answer as expected.
    #[error("ask the registry for {what}: {detail}")]
    Registry {
        /// For what.
        what: String,
        /// What it answered.
        detail: String,
    },
    /// The context is refused.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The build did not succeed; made where its output was read.
    #[error("{0}")]
    Build(ApiError),
    /// Too many builds wait already.
    #[error("{waiting} builds wait already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// Something in the request is not of the right shape.
    #[error("{0}")]
    Request(String),
    /// The client went away.
    #[error("the client of the build went away")]
    Abandoned,
}

impl Error {
    /// Makes the error of a file or folder.
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }

    /// Returns the error as a client gets it: with its causes, under its code.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        if let Self::Build(error) = self {
            return error.clone();
        }
        ApiError::new(self.code(), chain(self))
    }

    fn code(&self) -> Code {
        match self {
            Self::Tool(_) | Self::Registry { .. } => Code::Unavailable,
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Code::NoSpace
            }
            Self::Context(ContextError::Entries | ContextError::Bytes) => Code::BodyTooLarge,
            Self::Context(_) | Self::Request(_) => Code::InvalidRequest,
            Self::Busy { .. } => Code::RateLimited,
            Self::Build(error) => error.code,
            Self::Abandoned => Code::DeadlineExceeded,
            Self::Configuration { .. }
            | Self::File { .. }
            | Self::Spawn { .. }
            | Self::Program { .. }
            | Self::Cage(_)
            | Self::Gateway { .. } => Code::Internal,
        }
    }
}
