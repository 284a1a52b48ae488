//! Images of the store, mounted.
//!
//! Never pulls twice at once: the store holds one pull of an image for all that want it. Never
//! takes an image away while somebody holds it or a machine names it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use perch_oci::{Client, ImageStore, StoredImage};
use perch_types::Code;
use perch_types::error::chain;
use perch_types::image::{Digest, ImageRef, Reference};

use crate::effects::{CachedImage, Fault, Images, MountedImage, Resolved};
use crate::holds::{Holds, IsNamed};
use crate::mounts::Mounts;

/// Images of a store.
#[derive(Debug)]
pub struct StoredImages {
    store: ImageStore,
    client: Client,
    mounts: Mounts,
    holds: Holds,
}

impl StoredImages {
    /// Uses a store, and a client for the same registries.
    #[must_use]
    pub fn new(store: ImageStore, client: Client, mounts: Mounts) -> Self {
        Self { store, client, mounts, holds: Holds::default() }
    }

    /// Returns an image that is on the host already.
    async fn stored(&self, digest: Option<&Digest>) -> Result<Option<StoredImage>, Fault> {
        match digest {
            Some(digest) => self.store.get(digest).await.map_err(|error| fault(&error)),
            None => Ok(None),
        }
    }
}

fn fault(error: &perch_oci::Error) -> Fault {
    let code = error.code();
    // A full disk does not get emptier by asking again.
    let transient = error.is_transient() && code != Code::NoSpace;
    Fault { error: perch_types::ApiError::new(code, chain(error)), transient }
}

#[async_trait]
impl Images for StoredImages {
    async fn resolve(&self, reference: &str) -> Result<Resolved, Fault> {
        let reference: Reference = reference
            .parse()
            .map_err(|error| Fault::permanent(Code::InvalidValue, format!("image: {error}")))?;
        // An image that came from elsewhere is not this repository's because its digest is known.
        let is_from = |stored: &StoredImage| stored.is_from(&reference);
        if let Some(stored) = self.stored(reference.digest()).await?.filter(is_from) {
            let hold = self.holds.hold(&stored.digest).await;
            // It may have gone before it was held.
            if self.stored(Some(&stored.digest)).await?.is_some() {
                let image = image_ref(&reference, stored.digest, stored.config.labels);
                return Ok(Resolved { image, hold });
            }
        }
        let resolved =
            self.client.resolve(&reference, None).await.map_err(|error| fault(&error))?;
        let hold = self.holds.hold(&resolved.digest).await;
        let stored = self.stored(Some(&resolved.digest)).await?;
        let labels = stored.map(|stored| stored.config.labels).unwrap_or_default();
        Ok(Resolved { image: image_ref(&reference, resolved.digest, labels), hold })
    }

    async fn mount(&self, image: &ImageRef) -> Result<MountedImage, Fault> {
        let _hold = match &image.digest {
            Some(digest) => Some(self.holds.hold(digest).await),
            None => None,
        };
        let stored = match self.stored(image.digest.as_ref()).await? {
            Some(stored) => stored,
            None => {
                let reference = reference_of(image)?;
                self.store.ensure(&reference, None).await.map_err(|error| fault(&error))?
            }
        };
        let root = self.mounts.mount(&stored.digest, &stored.erofs)?;
        Ok(MountedImage { root, config: stored.config })
    }

    async fn config_json(&self, image: &ImageRef) -> Result<String, Fault> {
        let reference = reference_of(image)?;
        let resolved =
            self.client.resolve(&reference, None).await.map_err(|error| fault(&error))?;
        let bytes = resolved.config_bytes().await.map_err(|error| fault(&error))?;
        String::from_utf8(bytes).map_err(|_| {
            let text = format!("read the configuration of `{reference}`: it is not text");
            Fault::permanent(Code::ImageInvalid, text)
        })
    }

    async fn unmount_unused(&self, is_named: IsNamed<'_>) -> Result<(), Fault> {
        let mut result = Ok(());
        for digest in self.mounts.mounted() {
            if let Some(_going) = self.holds.begin_removal(&digest, is_named)
                && let Err(error) = self.mounts.unmount(&digest)
            {
                result = Err(error.into());
            }
        }
        result
    }

    async fn list(&self) -> Result<Vec<CachedImage>, Fault> {
        let stored = self.store.list().await.map_err(|error| fault(&error))?;
        Ok(stored
            .into_iter()
            .map(|image| CachedImage { digest: image.digest, size_bytes: image.size_bytes })
            .collect())
    }

    async fn remove(&self, digest: &Digest, is_named: IsNamed<'_>) -> Result<bool, Fault> {
        let Some(_going) = self.holds.begin_removal(digest, is_named) else {
            return Ok(false);
        };
        // First the tree: a file that is gone and still mounted would take space that nobody sees.
        self.mounts.unmount(digest)?;
        self.store.remove(digest).await.map_err(|error| fault(&error))?;
        Ok(true)
    }
}

fn image_ref(reference: &Reference, digest: Digest, labels: BTreeMap<String, String>) -> ImageRef {
    ImageRef { digest: Some(digest), labels, ..ImageRef::from(reference) }
}

fn reference_of(image: &ImageRef) -> Result<Reference, Fault> {
    let mut text = format!("{}/{}", image.registry, image.repository);
    if !image.tag.is_empty() {
        text.push(':');
        text.push_str(&image.tag);
    }
    if let Some(digest) = &image.digest {
        text.push('@');
        text.push_str(digest.as_str());
    }
    text.parse().map_err(|error| Fault::permanent(Code::ImageInvalid, format!("image: {error}")))
}
