//! Leases of machines (contract section 1.6).
//!
//! Never refreshes one on its own: whoever holds it does.

use http::{HeaderName, HeaderValue};
use perch_types::api::{Lease, LeaseReleased, LeaseReply, LeaseRequest};
use perch_types::endpoint::{self, LEASE_HEADER};
use perch_types::{AppName, MachineId};

use super::Api;
use crate::connection::RequestParts;
use crate::error::Error;

impl Api {
    /// Returns the same client as the holder of a lease: its changes carry the nonce.
    ///
    /// # Errors
    /// When the nonce holds what no header can.
    pub fn holding(&self, nonce: &str) -> Result<Self, Error> {
        Ok(Self { nonce: Some(self.nonce_header(nonce)?), ..self.clone() })
    }

    /// Returns the lease of a machine; `Code::LeaseNotFound` when nobody holds one.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn lease(&self, app: &AppName, id: &MachineId) -> Result<Lease, Error> {
        let parts = self.of(endpoint::MACHINE_LEASE_GET, app, id);
        let reply: LeaseReply = self.connection.json(parts).await?;
        Ok(reply.data)
    }

    /// Acquires the lease of a machine; with its nonce, refreshes it.
    ///
    /// # Errors
    /// `Code::LeaseHeld` when somebody else holds it; else as every call.
    pub async fn acquire_lease(
        &self,
        app: &AppName,
        id: &MachineId,
        request: &LeaseRequest,
        nonce: Option<&str>,
    ) -> Result<Lease, Error> {
        let parts = self.of(endpoint::MACHINE_LEASE_ACQUIRE, app, id).with_json(request)?;
        let reply: LeaseReply = self.connection.json(self.with_nonce(parts, nonce)?).await?;
        Ok(reply.data)
    }

    /// Releases the lease of a machine.
    ///
    /// # Errors
    /// `Code::LeaseNotFound` when nobody holds one; else as every call.
    pub async fn release_lease(
        &self,
        app: &AppName,
        id: &MachineId,
        nonce: &str,
    ) -> Result<(), Error> {
        let parts = self.of(endpoint::MACHINE_LEASE_RELEASE, app, id);
        let parts = self.with_nonce(parts, Some(nonce))?;
        self.connection.json::<LeaseReleased>(parts).await.map(drop)
    }

    fn with_nonce(
        &self,
        mut parts: RequestParts,
        nonce: Option<&str>,
    ) -> Result<RequestParts, Error> {
        if let Some(nonce) = nonce {
            let name = HeaderName::from_static(LEASE_HEADER);
            parts.headers.insert(name, self.nonce_header(nonce)?);
        }
        Ok(parts)
    }

    fn nonce_header(&self, nonce: &str) -> Result<HeaderValue, Error> {
        HeaderValue::from_str(nonce)
            .map_err(|source| Error::Request { url: self.url.clone(), source: Box::new(source) })
    }
}
