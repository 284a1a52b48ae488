//! Calls about tokens, and where machines would be placed.
//!
//! Never keeps a token but the caller's own.

use perch_types::AppName;
use perch_types::api::{
    CreateDeployToken, CreatedToken, Placements, PlacementsRequest, TokensCurrent,
};
use perch_types::endpoint;

use super::Api;
use crate::error::Error;

impl Api {
    /// Returns where machines would be placed now.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn placements(&self, wanted: &PlacementsRequest) -> Result<Placements, Error> {
        let parts = self.request(endpoint::PLACEMENTS, &[]).with_json(wanted)?;
        self.connection.json(parts).await
    }

    /// Makes a token for an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn create_deploy_token(
        &self,
        app: &AppName,
        token: &CreateDeployToken,
    ) -> Result<CreatedToken, Error> {
        let parts = self.request(endpoint::APP_DEPLOY_TOKEN, &[app.as_str()]);
        self.connection.json(parts.with_json(token)?).await
    }

    /// Returns the tokens for an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn app_tokens(&self, app: &AppName) -> Result<TokensCurrent, Error> {
        self.connection.json(self.request(endpoint::APP_TOKENS_LIST, &[app.as_str()])).await
    }

    /// Ends a token for an app. The id must be one that the platform gave.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn revoke_app_token(&self, app: &AppName, token_id: &str) -> Result<(), Error> {
        let parts = self.request(endpoint::APP_TOKEN_REVOKE, &[app.as_str(), token_id]);
        self.connection.done(parts).await
    }

    /// Returns what the token is.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn current_tokens(&self) -> Result<TokensCurrent, Error> {
        self.connection.json(self.request(endpoint::TOKEN_CURRENT, &[])).await
    }
}
