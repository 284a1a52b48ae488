//! Calls about volumes and their snapshots.
//!
//! Never waits for a volume: the answer comes when it is done.

use perch_types::endpoint::{self, Endpoint};
use perch_types::volume::{
    CreateVolumeRequest, ExtendVolumeRequest, ExtendVolumeResponse, OrgVolumes,
    UpdateVolumeRequest, Volume, VolumeSnapshot,
};
use perch_types::{AppName, OrgSlug, VolumeId};

use super::{Api, CHANGE_TIMEOUT};
use crate::connection::RequestParts;
use crate::error::Error;

impl Api {
    /// Returns the volumes of an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn volumes(&self, app: &AppName) -> Result<Vec<Volume>, Error> {
        self.connection.json(self.request(endpoint::VOLUMES_LIST, &[app.as_str()])).await
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn create_volume(
        &self,
        app: &AppName,
        volume: &CreateVolumeRequest,
    ) -> Result<Volume, Error> {
        let parts = self.request(endpoint::VOLUMES_CREATE, &[app.as_str()]);
        let mut parts = parts.with_json(volume)?;
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Returns a volume.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn volume(&self, app: &AppName, id: &VolumeId) -> Result<Volume, Error> {
        self.connection.json(self.of_volume(endpoint::VOLUME_GET, app, id)).await
    }

    /// Changes how a volume's snapshots are kept and made.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn update_volume(
        &self,
        app: &AppName,
        id: &VolumeId,
        update: &UpdateVolumeRequest,
    ) -> Result<Volume, Error> {
        let parts = self.of_volume(endpoint::VOLUME_UPDATE, app, id).with_json(update)?;
        self.connection.json(parts).await
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn extend_volume(
        &self,
        app: &AppName,
        id: &VolumeId,
        size_gb: u64,
    ) -> Result<ExtendVolumeResponse, Error> {
        let asked = ExtendVolumeRequest { size_gb: Some(size_gb) };
        let mut parts = self.of_volume(endpoint::VOLUME_EXTEND, app, id).with_json(&asked)?;
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Destroys a volume; its data is kept for a day.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_volume(&self, app: &AppName, id: &VolumeId) -> Result<Volume, Error> {
        self.connection.json(self.of_volume(endpoint::VOLUME_DELETE, app, id)).await
    }

    /// Returns the snapshots of a volume, newest first.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn snapshots(
        &self,
        app: &AppName,
        id: &VolumeId,
    ) -> Result<Vec<VolumeSnapshot>, Error> {
        self.connection.json(self.of_volume(endpoint::SNAPSHOTS_LIST, app, id)).await
    }

    /// Makes a snapshot of a volume.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn create_snapshot(&self, app: &AppName, id: &VolumeId) -> Result<(), Error> {
        let mut parts = self.of_volume(endpoint::SNAPSHOTS_CREATE, app, id);
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Returns a page of the volumes of an organization, from a cursor of the page before.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn org_volumes(&self, org: &OrgSlug, cursor: &str) -> Result<OrgVolumes, Error> {
        let parts = self.request(endpoint::ORG_VOLUMES, &[org.as_str()]);
        self.connection.json(parts.with_query("cursor", cursor)).await
    }

    fn of_volume(&self, endpoint: Endpoint, app: &AppName, id: &VolumeId) -> RequestParts {
        self.request(endpoint, &[app.as_str(), id.as_str()])
    }
}
