//! The calls about an app's secret keys.
//!
//! Never gets a key back: the platform uses it for the caller.

use perch_types::AppName;
use perch_types::endpoint;
use perch_types::secret_keys::{
    Decrypt, Decrypted, Encrypt, Encrypted, SecretKey, SecretKeyIsSet, SecretKeys, SetSecretKey,
    Sign, Signed, Verify,
};
use perch_types::secrets::SecretIsGone;

use super::Api;
use crate::error::Error;

impl Api {
    /// Returns the secret keys of an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn secret_keys(&self, app: &AppName) -> Result<SecretKeys, Error> {
        self.connection.json(self.request(endpoint::SECRET_KEYS_LIST, &[app.as_str()])).await
    }

    /// Returns a secret key.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn secret_key(&self, app: &AppName, name: &str) -> Result<SecretKey, Error> {
        self.connection.json(self.request(endpoint::SECRET_KEY_GET, &[app.as_str(), name])).await
    }

    /// Sets a secret key; without a value one is made.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn set_secret_key(
        &self,
        app: &AppName,
        name: &str,
        set: &SetSecretKey,
    ) -> Result<SecretKeyIsSet, Error> {
        let endpoint = match set.value {
            Some(_) => endpoint::SECRET_KEY_SET,
            None => endpoint::SECRET_KEY_GENERATE,
        };
        let parts = self.request(endpoint, &[app.as_str(), name]).with_json(set)?;
        self.connection.json(parts).await
    }

    /// Takes a secret key away.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_secret_key(
        &self,
        app: &AppName,
        name: &str,
    ) -> Result<SecretIsGone, Error> {
        self.connection.json(self.request(endpoint::SECRET_KEY_DELETE, &[app.as_str(), name])).await
    }

    /// Encrypts with a secret key.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn encrypt(
        &self,
        app: &AppName,
        name: &str,
        body: &Encrypt,
    ) -> Result<Encrypted, Error> {
        let parts = self.request(endpoint::SECRET_KEY_ENCRYPT, &[app.as_str(), name]);
        self.connection.json(parts.with_json(body)?).await
    }

    /// Decrypts with a secret key.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn decrypt(
        &self,
        app: &AppName,
        name: &str,
        body: &Decrypt,
    ) -> Result<Decrypted, Error> {
        let parts = self.request(endpoint::SECRET_KEY_DECRYPT, &[app.as_str(), name]);
        self.connection.json(parts.with_json(body)?).await
    }

    /// Signs with a secret key.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn sign(&self, app: &AppName, name: &str, body: &Sign) -> Result<Signed, Error> {
        let parts = self.request(endpoint::SECRET_KEY_SIGN, &[app.as_str(), name]);
        self.connection.json(parts.with_json(body)?).await
    }

    /// Verifies with a secret key.
    ///
    /// # Errors
    /// As every call: see [`Error`]; also when the signature is not right.
    pub async fn verify(&self, app: &AppName, name: &str, body: &Verify) -> Result<(), Error> {
        let parts = self.request(endpoint::SECRET_KEY_VERIFY, &[app.as_str(), name]);
        self.connection.done(parts.with_json(body)?).await
    }
}
