//! What `keys` does for the api and for the host.
//!
//! Never trusts what a caller says of a machine: the directory says where it is placed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use perch_seal::PublicKey;
use perch_store::{Store, Versioned, get_doc, list_docs_under};
use perch_types::clock::Clock;
use perch_types::directory::PlacementDoc;
use perch_types::keys::{AppRef, DIGESTS_MAX, Digests, DigestsRequest, HostKey, HostKeyRequest};
use perch_types::secrets::{AppKey, SecretsHead};
use perch_types::{ApiError, AppName, Code, HostId, OrgSlug};

use crate::allowance::Allowance;
use crate::app_key;
use crate::error::Error;
use crate::master::Master;

/// Digests that may be made at once after a while of none: whoever is in the api's place could
/// try out values with them.
pub const DIGESTS_AT_ONCE_MAX: u64 = 1_200;
/// Digests a second in the long run.
pub const DIGESTS_PER_S: u64 = 20;
/// The length of SHA-256 in bytes.
const HASH_BYTES: usize = 32;

/// What the role needs.
#[derive(Debug)]
pub struct Config {
    /// Its folder: the master key lies in it.
    pub folder: PathBuf,
    /// The directory.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The role. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keys {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// Replaced as a whole by a rotation.
    master: Mutex<Arc<Master>>,
    digests: Mutex<Allowance>,
    /// Rotations take turns.
    pub(crate) rotating: tokio::sync::Mutex<()>,
}

impl Keys {
    /// Opens the master key, or makes it the first time.
    ///
    /// # Errors
    /// When it cannot be read, is not one, or others may read it.
    pub fn open(config: Config) -> Result<Self, Error> {
        let master = Master::open(&config.folder)?;
        let now_ms = config.clock.boot_ms();
        Ok(Self {
            inner: Arc::new(Inner {
                store: config.store,
                clock: config.clock,
                master: Mutex::new(Arc::new(master)),
                digests: Mutex::new(Allowance::new(DIGESTS_AT_ONCE_MAX, DIGESTS_PER_S, now_ms)),
                rotating: tokio::sync::Mutex::default(),
            }),
        })
    }

    pub(crate) fn master(&self) -> Arc<Master> {
        Arc::clone(&self.inner.master.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_master(&self, master: Master) {
        *self.inner.master.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(master);
    }

    /// Makes a key for an app.
    ///
    /// # Errors
    /// When the library does not do its part.
    pub fn make(&self, of: &AppRef) -> Result<AppKey, ApiError> {
        app_key::make(&self.master(), of).map_err(answer)
    }

    /// Makes digests of values that were hashed before.
    ///
    /// # Errors
    /// When there are too many, one is no hash, or the key is not this app's.
    pub fn digests(&self, request: &DigestsRequest) -> Result<Digests, ApiError> {
        let count = request.sha256_hex.len();
        if count > DIGESTS_MAX {
            let text = format!("sha256_hex: {count} are more than {DIGESTS_MAX}");
            return Err(ApiError::new(Code::InvalidRequest, text));
        }
        let hashes = request.sha256_hex.iter().enumerate().map(|(index, text)| {
            hash(text).ok_or_else(|| {
                let text = format!("sha256_hex[{index}]: is not 64 hexadecimal digits");
                ApiError::new(Code::InvalidRequest, text)
            })
        });
        let hashes: Vec<[u8; HASH_BYTES]> = hashes.collect::<Result<_, _>>()?;
        let now_ms = self.inner.clock.boot_ms();
        let mut allowance = self.inner.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if !allowance.spend(u64::try_from(count).unwrap_or(u64::MAX), now_ms) {
            return Err(ApiError::new(Code::RateLimited, "too many secrets are set at once")
                .with_hint("try again in a minute"));
        }
        drop(allowance);
        let key = app_key::open(&self.master(), &request.of, &request.key).map_err(answer)?;
        Ok(Digests { digests: hashes.iter().map(|hash| key.digest(hash)).collect() })
    }

    /// Gives a host the key of an app, sealed to it, if a machine of the app is placed on it.
    ///
    /// # Errors
    /// [`Code::Forbidden`] when none is; when the app has no key or the directory does not answer.
    pub async fn for_host(
        &self,
        host: &HostId,
        request: &HostKeyRequest,
    ) -> Result<HostKey, ApiError> {
        let host_public = PublicKey::from_base64(&request.host_public).map_err(|error| {
            ApiError::new(Code::InvalidRequest, format!("host_public: {error}"))
        })?;
        let HostKeyRequest { org, app, .. } = request;
        if !self.is_placed(host, org, app).await? {
            tracing::warn!(%host, %org, %app, "host without a machine of the app asked for its key");
            let text = format!("no machine of the app `{app}` is placed on this host");
            return Err(ApiError::new(Code::Forbidden, text));
        }
        let head = self.head(org, app).await?.ok_or_else(|| {
            ApiError::new(Code::NotFound, format!("the app `{app}` has no secrets"))
        })?;
        let SecretsHead { app_id, key, .. } = head.document;
        let of = AppRef { org: org.clone(), app: app.clone(), app_id };
        let secret = app_key::open(&self.master(), &of, &key).map_err(answer)?;
        let sealed = secret.for_host(&of, &host_public).map_err(answer)?;
        Ok(HostKey { app_id: of.app_id, public: key.public, sealed })
    }

    async fn is_placed(
        &self,
        host: &HostId,
        org: &OrgSlug,
        app: &AppName,
    ) -> Result<bool, ApiError> {
        let placements =
            list_docs_under::<PlacementDoc>(self.inner.store.as_ref(), &format!("{org}/")).await;
        let placements = placements.map_err(|error| away(&error))?;
        let mut documents = placements.documents.iter().map(|(_, placement)| &placement.document);
        Ok(documents.any(|placement| placement.app == *app && placement.host == *host))
    }

    async fn head(
        &self,
        org: &OrgSlug,
        app: &AppName,
    ) -> Result<Option<Versioned<SecretsHead>>, ApiError> {
        let key = (org.clone(), app.clone());
        get_doc::<SecretsHead>(self.inner.store.as_ref(), &key).await.map_err(|error| away(&error))
    }
}

fn hash(text: &str) -> Option<[u8; HASH_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * HASH_BYTES {
        return None;
    }
    let mut hash = [0; HASH_BYTES];
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().try_fold(0, |value, one| Some((value << 4) | digit(*one)?))?;
    }
    Some(hash)
}

/// Turns a fault into an answer; the log has more.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives it away")]
pub(crate) fn answer(error: Error) -> ApiError {
    tracing::error!(%error, "key not used");
    ApiError::new(Code::Internal, "the role `keys` cannot use this app's key")
}

/// Turns a fault of the directory into an answer.
pub(crate) fn away(error: &perch_store::Error) -> ApiError {
    tracing::warn!(%error, "directory not read");
    ApiError::new(Code::Unavailable, "the directory does not answer")
        .with_hint("try again in a moment")
}
