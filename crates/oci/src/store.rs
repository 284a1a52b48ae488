//! Images on a disk: one folder per image digest with its erofs file and its configuration.
//!
//! Never shows an image that is not whole: all is written under `tmp/`, synced, and appears by one
//! rename; what a crash leaves under `tmp/` is removed at the next start. Who may use an image is
//! the caller's to decide: an image that is already here is given out by its digest without asking
//! its registry again.
//!
//! Layout: `images/<hex>/{rootfs.erofs,config.json}`, `aliases/<hex of an index>`, `tmp/`, and
//! `tmp/layers/` with the layers that pulls under way share.

mod files;
mod layers;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_types::image::{Digest, ImageConfig, Reference};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::client::{Client, ClientConfig, Credentials, Resolved};
use crate::error::Error;
use crate::limits::{CONCURRENT_PULLS_MAX, Limits};
use crate::manifest::{self, Refusal};
use crate::unpack::{self, EROFS, Fault, Job, Layer, Privilege};

const CONFIG: &str = "config.json";
/// How often a folder that gets new files while it is removed is tried again.
const PREPARE_TRIES_MAX: u32 = 20;
const PREPARE_WAIT: Duration = Duration::from_millis(50);

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Its folder; made if it is not there. One process at a time may use it.
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
    /// The erofs file with its root filesystem; owners in it count from 0.
    pub erofs: PathBuf,
    /// The erofs file's size.
    pub size_bytes: u64,
    /// The reference that it was first pulled by.
    reference: Reference,
}

impl StoredImage {
    /// Returns whether it was pulled from the repository that a reference names.
    #[must_use]
    pub fn is_from(&self, reference: &Reference) -> bool {
        let place = |it: &Reference| (it.registry().to_owned(), it.repository().to_owned());
        place(&self.reference) == place(reference)
    }
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

/// Images on a disk; cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

type Outcome = Result<StoredImage, Arc<Error>>;
/// What callers wait for: nothing until the pull has ended.
type Pull = watch::Receiver<Option<Outcome>>;

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    client: Client,
    limits: Limits,
    privilege: Privilege,
    /// Pulls under way, by the image's digest and by where, and for whom, it is read: nobody's
    /// pull depends on a registry or on credentials that are not its own.
    pulls: Mutex<HashMap<(Digest, String), Pull>>,
    layers: layers::Layers,
    /// For images of registries that the operator named.
    named_permits: Semaphore,
    /// For all others.
    other_permits: Semaphore,
    next_temporary: AtomicU64,
}

/// The content of `config.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: Digest,
    config: ImageConfig,
    /// The reference that the image was first pulled by.
    reference: Reference,
}

impl ImageStore {
    /// Opens a store and removes what unfinished pulls left in it.
    ///
    /// # Errors
    /// When its folder cannot be made or cleaned, or the client not be set up.
    pub async fn open(config: StoreConfig) -> Result<Self, Error> {
        let client = Client::new(config.client)?;
        let root = config.root;
        prepare(&root).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                client,
                limits: config.limits,
                privilege: config.privilege,
                pulls: Mutex::new(HashMap::new()),
                layers: layers::Layers::default(),
                named_permits: Semaphore::new(CONCURRENT_PULLS_MAX),
                other_permits: Semaphore::new(CONCURRENT_PULLS_MAX),
                next_temporary: AtomicU64::new(0),
            }),
        })
    }

    /// Returns the image that a reference names, pulled if it is not here. A reference with a
    /// digest that is here asks nobody; one with a tag asks the registry what the tag means.
    /// Callers of the same image, from the same repository with the same credentials, share one
    /// pull, which goes on when they stop waiting. Pulls of other images share the layers that are
    /// under way at the same time, if their own credentials reach them.
    ///
    /// # Errors
    /// As [`Error`] tells apart.
    pub async fn ensure(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<StoredImage, Error> {
        if let Some(digest) = reference.digest()
            && let Some(image) = self.get(digest).await?
        {
            return Ok(image);
        }
        let resolved = self.inner.client.resolve(reference, credentials).await?;
        if let Some(image) = self.get(&resolved.digest).await? {
            self.inner.alias(&resolved).await?;
            return Ok(image);
        }
        let mut pull = self.join(reference, resolved);
        let outcome = pull.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone());
        match outcome {
            Some(Ok(image)) => Ok(image),
            Some(Err(error)) => Err(Error::Shared(error)),
            None => Err(Error::Unpack {
                reference: Box::new(reference.clone()),
                reason: "the pull ended without an outcome".to_owned(),
            }),
        }
    }

    /// Returns an image that is here, by its own digest or an index's that led to it.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub async fn get(&self, digest: &Digest) -> Result<Option<StoredImage>, Error> {
        let (inner, digest) = (Arc::clone(&self.inner), digest.clone());
        blocking(move || match inner.read(&digest)? {
            Some(image) => Ok(Some(image)),
            None => match files::read_alias(&inner.alias_path(&digest))? {
                Some(target) => inner.read(&target),
                None => Ok(None),
            },
        })
        .await
    }

    /// Returns all images, by digest.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn list(&self) -> Result<Vec<StoredImage>, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let digests = files::list(&inner.root.join("images"))?;
            digests.iter().filter_map(|digest| inner.read(digest).transpose()).collect()
        })
        .await
    }

    /// Removes an image; fine when it is not here. A mounted erofs file stays until its unmount.
    ///
    /// # Errors
    /// When its files cannot be removed.
    pub async fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let (inner, digest) = (Arc::clone(&self.inner), digest.clone());
        blocking(move || {
            files::remove(&inner.image_path(&digest), &inner.temporary())?;
            files::forget_aliases(&inner.root.join("aliases"), &digest)
        })
        .await
    }

    /// Returns what the store takes on its disk.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let images = inner.root.join("images");
            Ok(Usage {
                images: files::list(&images)?.len() as u64,
                bytes: files::size_bytes(&images),
                temporary_bytes: files::size_bytes(&inner.root.join("tmp")),
            })
        })
        .await
    }

    /// Joins the pull of an image or begins it.
    fn join(&self, reference: &Reference, resolved: Resolved) -> Pull {
        let key = (resolved.digest.clone(), resolved.source());
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = pulls.get(&key)
            && pull.has_changed().is_ok()
        {
            return pull.clone();
        }
        let (sender, receiver) = watch::channel(None);
        pulls.insert(key.clone(), receiver.clone());
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        tokio::spawn(async move {
            let outcome = inner.pull(&reference, &resolved).await.map_err(Arc::new);
            inner.pulls.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            sender.send_replace(Some(outcome));
        });
        receiver
    }
}

impl Inner {
    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(digest.hex())
    }

    fn alias_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("aliases").join(digest.hex())
    }

    fn temporary(&self) -> PathBuf {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}", std::process::id()))
    }

    fn read(&self, digest: &Digest) -> Result<Option<StoredImage>, Error> {
        let folder = self.image_path(digest);
        let Some(record) = files::read_json::<Record>(&folder.join(CONFIG))? else {
            return Ok(None);
        };
        let erofs = folder.join(EROFS);
        let size_bytes =
            std::fs::metadata(&erofs).map_err(|e| Error::io("look at", &erofs, e))?.len();
        let (config, reference) = (record.config, record.reference);
        Ok(Some(StoredImage { digest: digest.clone(), config, erofs, size_bytes, reference }))
    }

    async fn alias(&self, resolved: &Resolved) -> Result<(), Error> {
        let Some(index) = &resolved.index else {
            return Ok(());
        };
        let (path, temporary) = (self.alias_path(index), self.temporary());
        let target = resolved.digest.clone();
        blocking(move || files::write_alias(&path, &temporary, &target)).await
    }

    async fn pull(&self, reference: &Reference, resolved: &Resolved) -> Result<StoredImage, Error> {
        let permits = if resolved.is_named() { &self.named_permits } else { &self.other_permits };
        let _permit = permits.acquire().await;
        // A pull of the same image may have ended while this one waited.
        if let Some(image) = self.read(&resolved.digest)? {
            return Ok(image);
        }
        let work = self.temporary();
        let outcome = self.pull_into(&work, reference, resolved).await;
        let left = work.clone();
        let cleaned = blocking(move || files::discard(&left)).await;
        if let Err(error) = cleaned {
            tracing::warn!(path = %work.display(), error = %error, "temporary files stay");
        }
        outcome?;
        self.alias(resolved).await?;
        self.read(&resolved.digest)?.ok_or_else(|| Error::Unpack {
            reference: Box::new(reference.clone()),
            reason: "the image went away right after it was stored".to_owned(),
        })
    }

    async fn pull_into(
        &self,
        work: &Path,
        reference: &Reference,
        resolved: &Resolved,
    ) -> Result<(), Error> {
        let refuse = |refusal| match refusal {
            Refusal::Invalid(reason) => Error::invalid(reference, reason),
            Refusal::OverLimit { what, limit } => Error::over(reference, what, limit),
        };
        let packings =
            manifest::check(&resolved.config, &resolved.layers, &self.limits).map_err(refuse)?;
        let limit = self.limits.pull_timeout;
        let timeout = |operation, limit| Error::Timeout {
            reference: Box::new(reference.clone()),
            operation,
            limit,
        };
        let made = work.to_owned();
        blocking(move || files::make_private(&made)).await?;
        let fetch = async {
            let bytes = resolved.config_bytes().await?;
            let parsed = manifest::parse_config(&bytes, resolved.layers.len()).map_err(refuse)?;
            let fetched = self.layers.fetch_all(&self.root, work, resolved).await?;
            Ok::<_, Error>((parsed, fetched))
        };
        // Held until the image is whole, for pulls that begin meanwhile.
        let ((config, diff_ids), _fetched) =
            tokio::time::timeout(limit, fetch).await.map_err(|_| timeout("pull", limit))??;
        let layers = resolved.layers.iter().zip(packings).zip(diff_ids);
        let layers = layers.map(|((layer, packing), diff_id)| Layer {
            file: layer.digest.hex().to_owned(),
            packing,
            diff_id,
            size_bytes: layer.size,
        });
        let job = Job { layers: layers.collect(), limits: self.limits.clone() };
        let limit = self.limits.unpack_timeout;
        let report = tokio::time::timeout(limit, unpack::build(work, &job, &self.privilege))
            .await
            .map_err(|_| timeout("unpack", limit))?
            .map_err(|fault| from_fault(reference, fault))?;
        tracing::info!(
            reference = %reference,
            digest = %resolved.digest,
            entries = report.entries,
            bytes = report.bytes,
            specials_dropped = report.specials_dropped,
            xattrs_dropped = report.xattrs_dropped,
            "image unpacked"
        );
        let record =
            Record { digest: resolved.digest.clone(), config, reference: reference.clone() };
        let (work, staged, target) =
            (work.to_owned(), self.temporary(), self.image_path(&resolved.digest));
        blocking(move || files::publish(&work, &staged, &target, &record)).await
    }
}

/// Makes a store's folders and removes what a former process left. Its unpacking child may still be
/// dying, and until then put files where they were just removed.
async fn prepare(root: &Path) -> Result<(), Error> {
    for _ in 1..PREPARE_TRIES_MAX {
        let made = root.to_owned();
        match blocking(move || files::prepare(&made)).await {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::DirectoryNotEmpty => {}
            other => return other,
        }
        tokio::time::sleep(PREPARE_WAIT).await;
    }
    let made = root.to_owned();
    blocking(move || files::prepare(&made)).await
}

fn from_fault(reference: &Reference, fault: Fault) -> Error {
    let boxed = Box::new(reference.clone());
    match fault {
        Fault::OverLimit { what, limit } => Error::OverLimit { reference: boxed, what, limit },
        Fault::Invalid(reason) => Error::Invalid { reference: boxed, reason },
        Fault::NoSpace => Error::NoSpace { reference: boxed },
        Fault::System(reason) => Error::Unpack { reference: boxed, reason },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::io("run on a thread", PathBuf::new(), std::io::Error::other(e)))?
}
