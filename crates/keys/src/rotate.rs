//! A new version of the master key, and every app's key wrapped with it.
//!
//! Never forgets a version that something may still be wrapped with: only the one before the last
//! goes, and only after every app's key was seen to be wrapped with the last. It may be killed at
//! any moment and run again.

use perch_store::{Error as StoreError, Expected, Store, Versioned, list_docs, put_doc};
use perch_types::directory::Document as _;
use perch_types::keys::{AppRef, Rotated};
use perch_types::secrets::SecretsHead;
use perch_types::{ApiError, AppName, Code, OrgSlug};

use crate::app_key;
use crate::keys::{Keys, answer, away};

/// How often the list is gone through because somebody changed an app's secrets in between.
const ROUNDS_MAX: usize = 50;

impl Keys {
    /// Makes a new version of the master key and wraps every app's key with it.
    ///
    /// # Errors
    /// When the file or the directory does not do its part; then it can be run again.
    pub async fn rotate(&self) -> Result<Rotated, ApiError> {
        let _turn = self.inner.rotating.lock().await;
        // What is still under the version before the newest would be lost with it.
        self.wrap_all().await?;
        let rotated = self.master().with_new_version().map_err(answer)?;
        self.set_master(rotated);
        let apps = self.wrap_all().await?;
        let master = self.master().version();
        tracing::info!(master, apps, "master key has a new version");
        Ok(Rotated { master, apps })
    }

    /// Wraps every app's key with the newest version; returns how many there are.
    async fn wrap_all(&self) -> Result<usize, ApiError> {
        let store = self.inner.store.as_ref();
        for _ in 0..ROUNDS_MAX {
            let found = list_docs::<SecretsHead>(store).await.map_err(|error| away(&error))?;
            if let Some(unreadable) = found.unreadable.first() {
                tracing::error!(key = unreadable.key, "app's key not readable");
                let text = format!("`{}` in the directory cannot be read", unreadable.key);
                return Err(ApiError::new(Code::Internal, text));
            }
            let mut is_done = true;
            for (key, head) in &found.documents {
                is_done &= self.wrap_one(store, key, head).await?;
            }
            if is_done {
                return Ok(found.documents.len());
            }
        }
        Err(ApiError::new(Code::Conflict, "secrets are changed all the time")
            .with_hint("run it again"))
    }

    /// Wraps one app's key; returns false when somebody changed it in between.
    async fn wrap_one(
        &self,
        store: &dyn Store,
        key: &str,
        head: &Versioned<SecretsHead>,
    ) -> Result<bool, ApiError> {
        let master = self.master();
        let Versioned { document, revision } = head;
        if document.key.master == master.version() {
            return Ok(true);
        }
        let (org, app) = parts(key).ok_or_else(|| {
            ApiError::new(Code::Internal, format!("`{key}` in the directory is no app's"))
        })?;
        let of = AppRef { org: org.clone(), app: app.clone(), app_id: document.app_id.clone() };
        let secret = app_key::open(&master, &of, &document.key).map_err(answer)?;
        let wrapped = secret.wrap(&master, &of, document.key.public.clone()).map_err(answer)?;
        let rewrapped = SecretsHead { key: wrapped, ..document.clone() };
        match put_doc(store, &(org, app), &rewrapped, Expected::Revision(*revision)).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(away(&error)),
        }
    }
}

fn parts(key: &str) -> Option<(OrgSlug, AppName)> {
    let (org, app) =
        key.strip_prefix(SecretsHead::PREFIX)?.strip_suffix("/head")?.split_once('/')?;
    Some((org.parse().ok()?, app.parse().ok()?))
}
