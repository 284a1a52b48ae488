//! Labels and versions of machines, and machines of a whole organization (contract sections 1.3
//! and 1.7).
//!
//! Never keeps anything between two calls.

use perch_types::api::{MachineVersion, MetadataValue, OrgMachines, SetMetadata, UpdateMetadata};
use perch_types::endpoint;
use perch_types::labels::Labels;
use perch_types::{AppName, MachineId, OrgSlug, Timestamp};

use super::{Api, ListFilter};
use crate::connection::{RequestParts, percent_encode};
use crate::error::Error;

/// Which page of an organization's machines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// At most that many.
    pub limit: Option<usize>,
    /// Only what changed after this.
    pub updated_after: Option<Timestamp>,
}

impl Api {
    /// Returns the versions of a machine that are kept, newest first.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn versions(
        &self,
        app: &AppName,
        id: &MachineId,
    ) -> Result<Vec<MachineVersion>, Error> {
        self.connection.json(self.of(endpoint::MACHINE_VERSIONS, app, id)).await
    }

    /// Returns the labels of a machine.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn metadata(&self, app: &AppName, id: &MachineId) -> Result<Labels, Error> {
        self.connection.json(self.of(endpoint::MACHINE_METADATA_GET, app, id)).await
    }

    /// Replaces all labels of a machine.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn replace_metadata(
        &self,
        app: &AppName,
        id: &MachineId,
        update: &UpdateMetadata,
    ) -> Result<(), Error> {
        let parts = self.of(endpoint::MACHINE_METADATA_PUT, app, id).with_json(update)?;
        self.connection.done(parts).await
    }

    /// Changes labels of a machine; those that are not named stay.
    ///
    /// # Errors
    /// `Code::PreconditionFailed` when the machine has another version; else as every call.
    pub async fn merge_metadata(
        &self,
        app: &AppName,
        id: &MachineId,
        update: &UpdateMetadata,
    ) -> Result<(), Error> {
        let parts = self.of(endpoint::MACHINE_METADATA_PATCH, app, id).with_json(update)?;
        self.connection.done(parts).await
    }

    /// Returns one label of a machine.
    ///
    /// # Errors
    /// `Code::NotFound` when it has none of that key; else as every call.
    pub async fn metadata_value(
        &self,
        app: &AppName,
        id: &MachineId,
        key: &str,
    ) -> Result<String, Error> {
        let parts = self.label(endpoint::MACHINE_METADATA_KEY_GET, (app, id), key);
        Ok(self.connection.json::<MetadataValue>(parts).await?.value)
    }

    /// Sets one label of a machine.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn set_metadata(
        &self,
        app: &AppName,
        id: &MachineId,
        (key, value): (&str, &str),
    ) -> Result<(), Error> {
        let body = SetMetadata { value: value.to_owned(), updated_at: None };
        let parts = self.label(endpoint::MACHINE_METADATA_KEY_SET, (app, id), key);
        self.connection.done(parts.with_json(&body)?).await
    }

    /// Takes one label of a machine away.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_metadata(
        &self,
        app: &AppName,
        id: &MachineId,
        key: &str,
    ) -> Result<(), Error> {
        let parts = self.label(endpoint::MACHINE_METADATA_KEY_DELETE, (app, id), key);
        self.connection.done(parts).await
    }

    /// Returns one page of an organization's machines.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn org_machines(
        &self,
        org: &OrgSlug,
        of: &ListFilter,
        page: &Page,
    ) -> Result<OrgMachines, Error> {
        let mut parts = of.query(self.request(endpoint::ORG_MACHINES, &[org.as_str()]));
        if let Some(cursor) = &page.cursor {
            parts = parts.with_query("cursor", cursor);
        }
        if let Some(limit) = page.limit {
            parts = parts.with_query("limit", &limit.to_string());
        }
        if let Some(after) = page.updated_after {
            parts = parts.with_query("updated_after", &after.to_string());
        }
        self.connection.json(parts).await
    }

    fn label(
        &self,
        endpoint: endpoint::Endpoint,
        (app, id): (&AppName, &MachineId),
        key: &str,
    ) -> RequestParts {
        let mut encoded = String::with_capacity(key.len());
        percent_encode(&mut encoded, key);
        self.request(endpoint, &[app.as_str(), id.as_str(), &encoded])
    }
}
