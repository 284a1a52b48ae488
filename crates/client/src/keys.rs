//! The calls of the role `keys` (`types::keys`), over its Unix sockets.
//!
//! Never sees the value of an app secret: digests are of hashes.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use perch_types::keys::{
    AppRef, DIGESTS, Digests, DigestsRequest, FOR_HOST, HostKey, HostKeyRequest, MAKE,
    MAKE_SECRET_KEY, MadeSecretKey, MakeSecretKey, PREFIX, ROTATE, Rotated, SecretKeyUsed,
    USE_SECRET_KEY, UseSecretKey,
};
use perch_types::secrets::AppKey;

use crate::connection::{Connection, RequestParts};
use crate::error::Error;

/// How long an answer may take: a boot may wait for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a rotation may take.
const ROTATE_TIMEOUT: Duration = Duration::from_secs(600);

/// The role `keys`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeysClient {
    connection: Connection,
}

impl KeysClient {
    /// Makes a client of the role that listens on a Unix socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { connection: Connection::unix(socket) }
    }

    /// Makes a key for an app.
    ///
    /// # Errors
    /// When the role does not answer.
    pub async fn make(&self, of: &AppRef) -> Result<AppKey, Error> {
        self.connection.json(request(MAKE).with_json(of)?).await
    }

    /// Returns digests of values that were hashed before.
    ///
    /// # Errors
    /// When the role refuses or does not answer.
    pub async fn digests(&self, request_of: &DigestsRequest) -> Result<Digests, Error> {
        self.connection.json(request(DIGESTS).with_json(request_of)?).await
    }

    /// Makes a secret key, or has one sealed.
    ///
    /// # Errors
    /// When the key is none of its type, or the role does not answer.
    pub async fn make_secret_key(&self, made: &MakeSecretKey) -> Result<MadeSecretKey, Error> {
        self.connection.json(request(MAKE_SECRET_KEY).with_json(made)?).await
    }

    /// Does something with a secret key.
    ///
    /// # Errors
    /// When the key or its type does not do it, or the role does not answer.
    pub async fn use_secret_key(&self, used: &UseSecretKey) -> Result<SecretKeyUsed, Error> {
        self.connection.json(request(USE_SECRET_KEY).with_json(used)?).await
    }

    /// Returns the key of an app, sealed to the host that asks.
    ///
    /// # Errors
    /// When no machine of the app is placed on the host or the role does not answer.
    pub async fn for_host(&self, request_of: &HostKeyRequest) -> Result<HostKey, Error> {
        self.connection.json(request(FOR_HOST).with_json(request_of)?).await
    }

    /// Makes a new version of the master key.
    ///
    /// # Errors
    /// When the role does not finish it; it can be run again.
    pub async fn rotate(&self) -> Result<Rotated, Error> {
        let mut parts = request(ROTATE);
        parts.headers_timeout = ROTATE_TIMEOUT;
        self.connection.json(parts).await
    }
}

fn request(path: &str) -> RequestParts {
    let mut parts = RequestParts::new(Method::POST, format!("{PREFIX}{path}"));
    parts.headers_timeout = ANSWER_TIMEOUT;
    parts
}
