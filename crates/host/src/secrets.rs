//! Apps' secrets on this host: read sealed, kept sealed, opened for one boot.
//!
//! Never written in the clear and never kept open: what was opened goes to init and is cleared.
//! What the directory said last is kept in a file an app, so that machines boot while the
//! directory and the role `keys` are down; the app's key in it is sealed to this host.

mod kept;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use perch_seal::{PrivateKey, PublicKey, Purpose};
use perch_store::Store;
use perch_types::clock::Clock;
use perch_types::error::chain;
use perch_types::keys::{HostKey, HostKeyRequest};
use perch_types::secrets::{SecretDoc, SecretsHead, prefix};
use perch_types::{ApiError, AppName, Code, OrgSlug, Secret};
use tokio::time::timeout;

pub(crate) use self::kept::write_private;
use self::kept::{Keeper, Kept, KeptSecret};
use crate::effects::Fault;
use crate::error::Error;

/// How long the directory may take before what was kept answers for it: a boot waits.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a directory that did not answer is not asked again if what was kept will do.
const AWAY_MS: u64 = 5_000;

/// The secrets of an app, open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenSecrets {
    /// Their version.
    pub version: u64,
    /// Values by name.
    pub values: BTreeMap<String, Secret>,
}

/// Whether an app is one of those that machines name.
pub type IsNamedApp<'a> = &'a (dyn Fn(&OrgSlug, &AppName) -> bool + Send + Sync);

/// Apps' secrets.
#[async_trait]
pub trait Secrets: Send + Sync + fmt::Debug {
    /// Returns the newest secrets of an app. `seen` is the version that an earlier boot of the
    /// machine saw: what was kept may then answer for a directory that does not.
    async fn of_app(
        &self,
        org: &OrgSlug,
        app: &AppName,
        seen: Option<u64>,
    ) -> Result<OpenSecrets, Fault>;

    /// Forgets what was kept of apps that no machine names.
    async fn forget_unused(&self, is_named: IsNamedApp<'_>) -> Result<(), Fault>;
}

/// Gives this host the keys of apps that it runs machines of.
#[async_trait]
pub trait AppKeys: Send + Sync + fmt::Debug {
    /// Returns the key of an app, sealed to the public key in the request.
    async fn for_host(&self, request: &HostKeyRequest) -> Result<HostKey, ApiError>;
}

/// Apps without secrets, on a host without a directory.
#[derive(Debug, Clone, Copy)]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn of_app(
        &self,
        _org: &OrgSlug,
        _app: &AppName,
        _seen: Option<u64>,
    ) -> Result<OpenSecrets, Fault> {
        Ok(OpenSecrets::default())
    }

    async fn forget_unused(&self, _is_named: IsNamedApp<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Secrets as the directory has them.
#[derive(Debug)]
pub struct SealedSecrets {
    store: Arc<dyn Store>,
    keys: Arc<dyn AppKeys>,
    clock: Arc<dyn Clock>,
    keeper: Arc<Keeper>,
    public: PublicKey,
    private: PrivateKey,
    /// Until when the directory is not asked if what was kept will do.
    away_until_ms: AtomicU64,
}

/// What the directory has of an app.
struct Found {
    head: SecretsHead,
    values: BTreeMap<String, KeptSecret>,
}

impl SealedSecrets {
    /// Opens the folder, and makes this host's own key the first time.
    ///
    /// # Errors
    /// When the folder or the key cannot be used.
    pub fn open(
        folder: PathBuf,
        store: Arc<dyn Store>,
        keys: Arc<dyn AppKeys>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let keeper = Keeper::open(folder)?;
        let (public, private) = keeper.own_key()?;
        let (keeper, away_until_ms) = (Arc::new(keeper), AtomicU64::new(0));
        Ok(Self { store, keys, clock, keeper, public, private, away_until_ms })
    }

    async fn ask_directory(&self, org: &OrgSlug, app: &AppName) -> Result<Option<Found>, Fault> {
        let away = |reason: String| {
            Fault::transient(Code::Unavailable, format!("read the secrets of `{app}`: {reason}"))
        };
        let prefix = prefix(org, app);
        let listing = match timeout(DIRECTORY_TIMEOUT, self.store.list(&prefix)).await {
            Ok(Ok(listing)) => listing,
            Ok(Err(error)) => return Err(away(chain(&error))),
            Err(_) => return Err(away("the directory does not answer".to_owned())),
        };
        let mut head = None;
        let mut values = BTreeMap::new();
        for entry in listing.entries {
            let unreadable = |error: serde_json::Error| {
                let text = format!("read `{}` of the directory: {error}", entry.key);
                Fault::permanent(Code::Internal, text)
            };
            let rest = entry.key.strip_prefix(&prefix).unwrap_or_default();
            if rest == "head" {
                let found: SecretsHead =
                    serde_json::from_slice(&entry.value).map_err(unreadable)?;
                head = Some(found);
            } else if let Some(name) = rest.strip_prefix("values/") {
                let SecretDoc { sealed, version, .. } =
                    serde_json::from_slice(&entry.value).map_err(unreadable)?;
                values.insert(name.to_owned(), KeptSecret { sealed, version });
            }
        }
        Ok(head.map(|head| Found { head, values }))
    }

    /// Returns what is to be opened now, and keeps it.
    async fn newest(
        &self,
        org: &OrgSlug,
        app: &AppName,
        found: Option<Found>,
    ) -> Result<Option<(Kept, PrivateKey)>, Fault> {
        let before = self.keeper.read(org, app).await;
        let Some(Found { head, values }) = found else {
            if before.is_some() {
                self.keeper.forget(org, app).await;
            }
            return Ok(None);
        };
        let fits = before
            .as_ref()
            .filter(|kept| kept.key.app_id == head.app_id && kept.key.public == head.key.public);
        // A host that lost its own key asks again.
        let known = fits
            .and_then(|kept| Some((kept.key.clone(), self.open_key(org, app, &kept.key).ok()?)));
        let (key, private) = match known {
            Some(known) => known,
            None => {
                let host_public = self.public.to_base64();
                let request = HostKeyRequest { org: org.clone(), app: app.clone(), host_public };
                let key = self
                    .keys
                    .for_host(&request)
                    .await
                    .map_err(|error| Fault { transient: error.code != Code::Forbidden, error })?;
                let private = self.open_key(org, app, &key)?;
                (key, private)
            }
        };
        let kept = Kept { version: head.version, key, values };
        if before.as_ref() != Some(&kept) {
            self.keeper.write(org, app, &kept).await;
        }
        Ok(Some((kept, private)))
    }

    fn open_key(&self, org: &OrgSlug, app: &AppName, key: &HostKey) -> Result<PrivateKey, Fault> {
        let purpose = Purpose::KeyForHost { org, app, app_id: &key.app_id };
        let opened = self.private.open(purpose, &key.sealed);
        opened
            .and_then(|bytes| PrivateKey::from_bytes(&bytes))
            .map_err(|error| not_opened(app, error))
    }

    fn open_all(
        org: &OrgSlug,
        app: &AppName,
        kept: &Kept,
        key: &PrivateKey,
    ) -> Result<OpenSecrets, Fault> {
        let mut values = BTreeMap::new();
        for (name, secret) in &kept.values {
            let purpose = Purpose::AppSecret { org, app, name, version: secret.version };
            let value = key.open_text(purpose, &secret.sealed);
            values.insert(name.clone(), value.map_err(|error| not_opened(app, error))?);
        }
        Ok(OpenSecrets { version: kept.version, values })
    }

    /// Returns what was kept, for a machine that saw the app's secrets before.
    async fn kept(
        &self,
        org: &OrgSlug,
        app: &AppName,
        seen: u64,
    ) -> Result<Option<OpenSecrets>, Fault> {
        match self.keeper.read(org, app).await {
            Some(kept) => {
                let key = self.open_key(org, app, &kept.key)?;
                Self::open_all(org, app, &kept, &key).map(Some)
            }
            // It had none, and nothing says that it has now.
            None if seen == 0 => Ok(Some(OpenSecrets::default())),
            None => Ok(None),
        }
    }
}

fn not_opened(app: &AppName, error: perch_seal::Error) -> Fault {
    Fault::permanent(Code::Internal, format!("open the secrets of `{app}`: {error}"))
}

#[async_trait]
impl Secrets for SealedSecrets {
    async fn of_app(
        &self,
        org: &OrgSlug,
        app: &AppName,
        seen: Option<u64>,
    ) -> Result<OpenSecrets, Fault> {
        let now_ms = self.clock.boot_ms();
        if let Some(seen) = seen
            && now_ms < self.away_until_ms.load(Ordering::Acquire)
            && let Some(kept) = self.kept(org, app, seen).await?
        {
            return Ok(kept);
        }
        match self.ask_directory(org, app).await {
            Ok(found) => {
                self.away_until_ms.store(0, Ordering::Release);
                match self.newest(org, app, found).await? {
                    Some((kept, key)) => Self::open_all(org, app, &kept, &key),
                    None => Ok(OpenSecrets::default()),
                }
            }
            Err(fault) if fault.transient => {
                self.away_until_ms.store(now_ms.saturating_add(AWAY_MS), Ordering::Release);
                let Some(seen) = seen else {
                    return Err(fault);
                };
                match self.kept(org, app, seen).await? {
                    Some(kept) => {
                        tracing::warn!(%app, version = kept.version, error = %fault,
                            "boot with the secrets that were kept");
                        Ok(kept)
                    }
                    None => Err(fault),
                }
            }
            Err(fault) => Err(fault),
        }
    }

    async fn forget_unused(&self, is_named: IsNamedApp<'_>) -> Result<(), Fault> {
        let kept = self.keeper.list().map_err(|error| {
            Fault::permanent(Code::Internal, format!("list kept secrets: {error}"))
        })?;
        for (org, app) in kept {
            if !is_named(&org, &app) {
                self.keeper.forget(&org, &app).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
