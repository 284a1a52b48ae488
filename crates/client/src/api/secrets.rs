//! The calls about an app's secrets.
//!
//! Never gets a value back: they can be written and not read.

use perch_types::AppName;
use perch_types::endpoint;
use perch_types::secrets::{
    AppSecret, AppSecrets, SecretIsGone, SecretIsSet, SetSecret, UpdateSecrets, UpdatedSecrets,
};

use super::Api;
use crate::error::Error;

impl Api {
    /// Returns the secrets of an app, by name and digest.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn secrets(&self, app: &AppName) -> Result<AppSecrets, Error> {
        self.connection.json(self.request(endpoint::SECRETS_LIST, &[app.as_str()])).await
    }

    /// Sets and takes away secrets, all at once.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn update_secrets(
        &self,
        app: &AppName,
        update: &UpdateSecrets,
    ) -> Result<UpdatedSecrets, Error> {
        let parts = self.request(endpoint::SECRETS_UPDATE, &[app.as_str()]).with_json(update)?;
        self.connection.json(parts).await
    }

    /// Returns a secret, by name and digest.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn secret(&self, app: &AppName, name: &str) -> Result<AppSecret, Error> {
        self.connection.json(self.request(endpoint::SECRET_GET, &[app.as_str(), name])).await
    }

    /// Sets a secret.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn set_secret(
        &self,
        app: &AppName,
        name: &str,
        set: &SetSecret,
    ) -> Result<SecretIsSet, Error> {
        let parts = self.request(endpoint::SECRET_SET, &[app.as_str(), name]).with_json(set)?;
        self.connection.json(parts).await
    }

    /// Takes a secret away.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_secret(&self, app: &AppName, name: &str) -> Result<SecretIsGone, Error> {
        self.connection.json(self.request(endpoint::SECRET_DELETE, &[app.as_str(), name])).await
    }
}
