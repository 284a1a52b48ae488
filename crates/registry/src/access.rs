//! Who may do what to a repository: the question, not the answer.
//!
//! Never decides; without an [`Authorize`] there is no registry.

use perch_types::Secret;

/// A name and a password as they came with a request.
#[derive(Debug, Clone)]
pub struct Basic {
    /// The name.
    pub user: String,
    /// The password or token.
    pub password: Secret,
}

/// What a request is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read manifests, blobs and lists.
    Pull,
    /// Add blobs and manifests.
    Push,
    /// Remove a tag, a manifest or a blob.
    Delete,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Nobody knows these credentials: 401, try others.
    Unauthenticated,
    /// The credentials are known and do not reach this far: 403.
    Forbidden,
}

/// Decides about every request; given by the daemon.
#[async_trait::async_trait]
pub trait Authorize: Send + Sync + std::fmt::Debug {
    /// Returns whether the bearer of `credentials` may do `access` to `repository`.
    ///
    /// `repository` is empty for `GET /v2/`, which only asks whether the credentials are known.
    async fn authorize(
        &self,
        credentials: Option<&Basic>,
        repository: &str,
        access: Access,
    ) -> Decision;
}
