//! Images on a disk.
use std::path::PathBuf;
use perch_types::image::{Digest, ImageConfig, Reference};
use crate::client::{ClientConfig, Credentials};
use crate::error::Error;
use crate::limits::Limits;
use crate::unpack::Privilege;
/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Its folder; made if it is not there.
    pub root: PathBuf,
    /// How to reach registries.
    pub client: ClientConfig,
    /// What an image may be.
    pub limits: Limits,
    /// How layers are unpacked.
    pub privilege: Privilege,
}
/// An image that is ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The manifest's digest (of the platform's manifest, not of an index).
    pub digest: Digest,
    /// How its program is run.
    pub config: ImageConfig,
    /// The erofs file with its root filesystem.
    pub erofs: PathBuf,
    /// The erofs file's size.
    pub size_bytes: u64,
}
/// What the store takes on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of pulls under way.
    pub temporary_bytes: u64,
}
/// Images on a disk.
#[derive(Debug, Clone)]
pub struct ImageStore {}
#[expect(clippy::unused_async, unused_variables, missing_docs, clippy::todo, clippy::missing_errors_doc, clippy::unused_self, reason = "being written")]
impl ImageStore {
    pub async fn open(config: StoreConfig) -> Result<Self, Error> { todo!() }
    pub async fn ensure(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<StoredImage, Error> { todo!() }
    pub async fn get(&self, digest: &Digest) -> Result<Option<StoredImage>, Error> { todo!() }
    pub async fn list(&self) -> Result<Vec<StoredImage>, Error> { todo!() }
    pub async fn remove(&self, digest: &Digest) -> Result<(), Error> { todo!() }
    pub async fn usage(&self) -> Result<Usage, Error> { todo!() }
}
