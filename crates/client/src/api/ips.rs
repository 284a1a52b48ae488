//! The calls about an app's addresses.
//!
//! Never chooses one: the platform does.

use std::net::IpAddr;

use perch_types::AppName;
use perch_types::endpoint;
use perch_types::ips::{AssignIp, IpAssignment, IpAssignments};

use super::Api;
use crate::error::Error;

impl Api {
    /// Returns the addresses of an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn ips(&self, app: &AppName) -> Result<IpAssignments, Error> {
        self.connection.json(self.request(endpoint::IPS_LIST, &[app.as_str()])).await
    }

    /// Assigns an address to an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn assign_ip(&self, app: &AppName, wanted: &AssignIp) -> Result<IpAssignment, Error> {
        let parts = self.request(endpoint::IPS_ASSIGN, &[app.as_str()]).with_json(wanted)?;
        self.connection.json(parts).await
    }

    /// Releases an address of an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn release_ip(&self, app: &AppName, ip: IpAddr) -> Result<(), Error> {
        let ip = ip.to_string();
        self.connection.done(self.request(endpoint::IP_RELEASE, &[app.as_str(), &ip])).await
    }
}
