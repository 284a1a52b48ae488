//! The registry as a value.
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use perch_types::clock::Clock;
use perch_types::image::Digest;
use crate::access::Authorize;
use crate::error::Error;
use crate::limits::Limits;
/// How a registry is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its folder; made if it is not there.
    pub root: PathBuf,
    /// What may be stored.
    pub limits: Limits,
    /// Who may do what.
    pub authorize: Arc<dyn Authorize>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}
/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Manifests removed.
    pub manifests: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Uploads removed.
    pub uploads: u64,
    /// Bytes freed.
    pub bytes: u64,
}
/// What the registry takes on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blobs, manifests among them.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Open uploads.
    pub uploads: u64,
    /// Their bytes.
    pub upload_bytes: u64,
}
/// The registry.
#[derive(Debug, Clone)]
pub struct Registry {}
#[expect(clippy::unused_async, unused_variables, missing_docs, clippy::todo, clippy::missing_errors_doc, clippy::unused_self, reason = "being written")]
impl Registry {
    pub async fn open(config: Config) -> Result<Self, Error> { todo!() }
    pub fn router(&self) -> axum::Router { todo!() }
    pub async fn gc(&self, keep: &BTreeSet<Digest>) -> Result<GcReport, Error> { todo!() }
    pub async fn usage(&self) -> Result<Usage, Error> { todo!() }
    pub async fn delete_repository(&self, repository: &str) -> Result<(), Error> { todo!() }
}
