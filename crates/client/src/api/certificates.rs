//! The calls about certificates of an app's host names.
//!
//! Never asks DNS: the platform does.

use perch_types::AppName;
use perch_types::certificates::{
    CertificateCheck, CertificateDetail, CertificateList, CreateAcmeCertificate,
    CreateCustomCertificate, CustomCertificateRemoved,
};
use perch_types::endpoint::{self, Endpoint};

use super::Api;
use crate::connection::RequestParts;
use crate::error::Error;

impl Api {
    /// Returns a page of the certificates of an app, behind where another one ended.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn certificates(
        &self,
        app: &AppName,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<CertificateList, Error> {
        let mut parts = self
            .request(endpoint::CERTIFICATES_LIST, &[app.as_str()])
            .with_query("limit", &limit.to_string());
        if let Some(cursor) = cursor {
            parts = parts.with_query("cursor", cursor);
        }
        self.connection.json(parts).await
    }

    /// Has a certificate ordered.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn order_certificate(
        &self,
        app: &AppName,
        wanted: &CreateAcmeCertificate,
    ) -> Result<CertificateDetail, Error> {
        let parts = self.request(endpoint::CERTIFICATE_ACME, &[app.as_str()]).with_json(wanted)?;
        self.connection.json(parts).await
    }

    /// Uploads a certificate.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn import_certificate(
        &self,
        app: &AppName,
        own: &CreateCustomCertificate,
    ) -> Result<CertificateDetail, Error> {
        let parts = self.request(endpoint::CERTIFICATE_CUSTOM, &[app.as_str()]).with_json(own)?;
        self.connection.json(parts).await
    }

    /// Returns a certificate.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn certificate(
        &self,
        app: &AppName,
        hostname: &str,
    ) -> Result<CertificateDetail, Error> {
        self.connection.json(self.about(endpoint::CERTIFICATE_GET, app, hostname)).await
    }

    /// Has the platform look at a host name's records.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn check_certificate(
        &self,
        app: &AppName,
        hostname: &str,
    ) -> Result<CertificateCheck, Error> {
        self.connection.json(self.about(endpoint::CERTIFICATE_CHECK, app, hostname)).await
    }

    /// Removes all of a host name.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn remove_certificate(&self, app: &AppName, hostname: &str) -> Result<(), Error> {
        self.connection.done(self.about(endpoint::CERTIFICATE_DELETE, app, hostname)).await
    }

    /// Removes what the platform got for a host name.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn remove_ordered_certificate(
        &self,
        app: &AppName,
        hostname: &str,
    ) -> Result<CertificateDetail, Error> {
        self.connection.json(self.about(endpoint::CERTIFICATE_ACME_DELETE, app, hostname)).await
    }

    /// Removes what was uploaded for a host name.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn remove_imported_certificate(
        &self,
        app: &AppName,
        hostname: &str,
    ) -> Result<CustomCertificateRemoved, Error> {
        self.connection.json(self.about(endpoint::CERTIFICATE_CUSTOM_DELETE, app, hostname)).await
    }

    fn about(&self, endpoint: Endpoint, app: &AppName, hostname: &str) -> RequestParts {
        // What is no part of a host name would be another path.
        let plain =
            |one: &char| one.is_ascii_alphanumeric() || matches!(one, '-' | '.' | '*' | '_');
        let hostname: String = hostname.chars().filter(plain).collect();
        self.request(endpoint, &[app.as_str(), &hostname])
    }
}
