//! Images that no machine names: noted when they were last used, unmounted, and deleted when the
//! cache is over its cap. Secrets of apps without a machine: what was kept of them is removed.
//!
//! Never deletes while a machine's record cannot be read: nobody knows what that one names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use perch_types::api::Pruned;
use perch_types::image::Digest;
use perch_types::{ApiError, AppName, OrgSlug};

use super::Host;
use crate::cache::{CachePolicy, Unused, to_delete};
use crate::effects::{CachedImage, Fault};
use crate::machine::state::State;
use crate::schema::IMAGE_USES;
use crate::shared::Shared;

/// How old a note of an image's last use may be while it is used: a note costs a commit.
const USE_NOTED_EVERY_MS: i64 = 10 * 60 * 1000;

impl Host {
    /// Unmounts the trees of images that no machine names and deletes as many of these images as
    /// the policy wants.
    ///
    /// # Errors
    /// When the store or the state file cannot be read; what was deleted stays deleted.
    pub async fn tidy(&self, policy: CachePolicy) -> Result<Pruned, ApiError> {
        self.shared.tidy(policy).await
    }
}

impl Shared {
    /// Does what [`Host::tidy`] says.
    ///
    /// # Errors
    /// As [`Host::tidy`].
    pub(crate) async fn tidy(&self, policy: CachePolicy) -> Result<Pruned, ApiError> {
        let refused = |fault: Fault| fault.error;
        let images = &self.effects.images;
        if self.has_unreadable.load(Ordering::Acquire) {
            return Ok(Pruned::default());
        }
        let is_named_app = |org: &OrgSlug, app: &AppName| {
            self.all().iter().any(|handle| {
                let machine = &handle.published().machine;
                machine.org == *org && machine.app == *app && machine.state != State::Destroyed
            })
        };
        self.effects.secrets.forget_unused(&is_named_app).await.map_err(refused)?;
        self.effects.policies.forget_unused(&is_named_app).await.map_err(refused)?;
        let is_named = |digest: &Digest| self.names_image(digest);
        images.unmount_unused(&is_named).await.map_err(refused)?;
        let stored = images.list().await.map_err(refused)?;
        let now_unix_ms = self.effects.clock.now().unix_ms();
        let uses = self.note_uses(&stored, now_unix_ms).await?;
        let named = self.images_named();
        let unused: Vec<Unused> = stored
            .into_iter()
            .filter(|image| !named.contains(&image.digest))
            .map(|CachedImage { digest, size_bytes }| {
                let used_unix_ms = uses.get(digest.as_str()).copied().unwrap_or(now_unix_ms);
                Unused { digest, size_bytes, used_unix_ms }
            })
            .collect();
        let mut tidied = Pruned::default();
        for image in to_delete(unused, policy, now_unix_ms) {
            if images.remove(&image.digest, &is_named).await.map_err(refused)? {
                tracing::info!(digest = %image.digest, bytes = image.size_bytes,
                    "image that no machine names was deleted");
                tidied.images += 1;
                tidied.bytes = tidied.bytes.saturating_add(image.size_bytes);
            }
        }
        Ok(tidied)
    }

    /// Returns how much may stay now: nothing while the disk is at its reserve, because an image
    /// can be pulled again and a machine that has no room cannot be made.
    pub(crate) fn cache_policy(&self) -> CachePolicy {
        match crate::host::free_bytes(&self.config.data_dir) {
            Ok(free) if free < self.disk_floor_bytes() => CachePolicy::EMPTY,
            Ok(_) | Err(_) => self.config.limits.cache,
        }
    }

    /// Notes that images which a machine names are used now, that new ones were, and forgets those
    /// that are gone; returns when each was used last.
    async fn note_uses(
        &self,
        stored: &[CachedImage],
        now_unix_ms: i64,
    ) -> Result<BTreeMap<String, i64>, ApiError> {
        let broken = |error: perch_durable::Error| self.db_error(&error);
        let found = self.db.read(|snapshot| IMAGE_USES.list(snapshot)).map_err(broken)?;
        let mut uses: BTreeMap<String, i64> = found.records.into_iter().collect();
        let there: BTreeSet<&str> = stored.iter().map(|image| image.digest.as_str()).collect();
        let gone: Vec<String> =
            uses.keys().filter(|digest| !there.contains(digest.as_str())).cloned().collect();
        let named = self.images_named();
        let due: Vec<String> = stored
            .iter()
            .map(|image| &image.digest)
            .filter(|digest| match uses.get(digest.as_str()) {
                // One that was set in the future by a wrong clock is set right.
                Some(used) => {
                    let age_ms = now_unix_ms.saturating_sub(*used);
                    named.contains(*digest) && !(0..USE_NOTED_EVERY_MS).contains(&age_ms)
                }
                None => true,
            })
            .map(|digest| digest.as_str().to_owned())
            .collect();
        if gone.is_empty() && due.is_empty() {
            return Ok(uses);
        }
        uses.retain(|digest, _| there.contains(digest.as_str()));
        uses.extend(due.iter().map(|digest| (digest.clone(), now_unix_ms)));
        let written: Result<(), perch_durable::Error> = self
            .db
            .write_reserved(move |tx| {
                for digest in &gone {
                    IMAGE_USES.delete(tx, digest)?;
                }
                for digest in &due {
                    IMAGE_USES.put(tx, digest, &now_unix_ms)?;
                }
                Ok(())
            })
            .await;
        written.map_err(broken)?;
        Ok(uses)
    }
}
