//! The calls about where requests may be sent on to an organization's apps from.
//!
//! Never decides whether one may: the edge does.

use perch_types::OrgSlug;
use perch_types::endpoint;
use perch_types::replays::ReplaySources;

use super::Api;
use crate::error::Error;

impl Api {
    /// Returns from where requests may be sent on to an organization's apps.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn replay_sources(&self, org: &OrgSlug) -> Result<ReplaySources, Error> {
        let parts = self.request(endpoint::ORG_REPLAY_SOURCES_GET, &[org.as_str()]);
        self.connection.json(parts).await
    }

    /// Says anew from where requests may be sent on to an organization's apps.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn set_replay_sources(
        &self,
        org: &OrgSlug,
        sources: &ReplaySources,
    ) -> Result<ReplaySources, Error> {
        let parts = self.request(endpoint::ORG_REPLAY_SOURCES_SET, &[org.as_str()]);
        self.connection.json(parts.with_json(sources)?).await
    }
}
