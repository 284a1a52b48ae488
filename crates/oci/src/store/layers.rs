//! Layers under way: fetched once for all pulls that want them at the same time.
//!
//! Never gives a layer to a pull whose own credentials do not reach it, and never keeps one longer
//! than a pull that uses it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use perch_types::image::Digest;
use tokio::sync::OnceCell;

use crate::client::Resolved;
use crate::error::Error;
use crate::limits::CONCURRENT_LAYERS_MAX;
use crate::manifest::Descriptor;
use crate::store::blocking;

/// The folder of shared layers inside the temporary folder; nobody else may enter it.
pub(super) const FOLDER: &str = "layers";

/// A layer's file; gone with its last user.
#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    /// Set once the file is whole and verified.
    whole: OnceCell<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a fetched layer stays");
            }
            _ => {}
        }
    }
}

/// A layer of one registry; its size is part of what was promised.
type Key = (String, Digest, u64);

/// The layers under way.
#[derive(Debug, Default)]
pub(super) struct Layers {
    known: Mutex<HashMap<Key, Weak<Shared>>>,
    next: AtomicU64,
}

impl Layers {
    /// Puts all layers of an image into its work folder, under their digests' hex digits.
    pub(super) async fn fetch_all(
        &self,
        root: &Path,
        work: &Path,
        resolved: &Resolved,
    ) -> Result<Vec<Arc<Shared>>, Error> {
        let mut unique = resolved.layers.clone();
        unique.sort_by(|a, b| a.digest.cmp(&b.digest));
        unique.dedup_by(|a, b| a.digest == b.digest);
        stream::iter(unique)
            .map(|layer| async move {
                let shared = self.fetch(root, resolved, &layer).await?;
                let (from, to) = (shared.path.clone(), work.join(layer.digest.hex()));
                blocking(move || {
                    std::fs::hard_link(&from, &to).map_err(|e| Error::io("link", &to, e))
                })
                .await?;
                Ok(shared)
            })
            .buffer_unordered(CONCURRENT_LAYERS_MAX)
            .try_collect()
            .await
    }

    /// Fetches a layer or waits for who does. When the one that fetches it fails or goes away, the
    /// next that waits fetches it with its own credentials.
    async fn fetch(
        &self,
        root: &Path,
        resolved: &Resolved,
        layer: &Descriptor,
    ) -> Result<Arc<Shared>, Error> {
        let shared = self.slot(root, resolved, layer);
        let mut own = false;
        let fetching = || {
            own = true;
            resolved.layer_to_file(layer, &shared.path)
        };
        shared.whole.get_or_try_init(fetching).await?;
        if !own {
            resolved.check_layer(layer).await?;
        }
        Ok(shared)
    }

    fn slot(&self, root: &Path, resolved: &Resolved, layer: &Descriptor) -> Arc<Shared> {
        let key = (resolved.registry().to_owned(), layer.digest.clone(), layer.size);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        known.retain(|_, shared| shared.strong_count() > 0);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = root.join("tmp").join(FOLDER).join(number.to_string());
        let shared = Arc::new(Shared { path, whole: OnceCell::new() });
        known.insert(key, Arc::downgrade(&shared));
        shared
    }
}
