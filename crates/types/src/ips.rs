//! Addresses of apps (contract 1.11): their bodies and their document.
//!
//! Never an address of a machine: those are its own for its life. These are the server's, at which
//! the edge answers for the app.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::directory::Document;
use crate::id::{AppName, OrgSlug, Region};
use crate::time::Timestamp;

/// Public addresses that a server may have.
pub const ADDRESSES_MAX: usize = 16;

/// What kind of address an app is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpType {
    /// An IPv4 address of the server that no other app has.
    V4,
    /// An IPv6 address of the server, which other apps have too.
    V6,
    /// An IPv4 address of the server that other apps have too.
    #[default]
    SharedV4,
    /// A private address at which the edge answers; this server has none.
    PrivateV6,
}

impl IpType {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::SharedV4 => "shared_v4",
            Self::PrivateV6 => "private_v6",
        }
    }
}

/// Body of the wish for an address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AssignIp {
    /// What kind.
    #[serde(rename = "type")]
    pub kind: IpType,
    /// Where; the server's own region, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// For a private address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// For a private address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// For a private address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
}

/// An address that an app has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpAssignment {
    /// The address.
    pub ip: IpAddr,
    /// Where it leads.
    pub region: Region,
    /// Empty: an address is for all services of an app.
    #[serde(default)]
    pub service_name: String,
    /// Whether it came of `shared_v4`.
    pub shared: bool,
    /// Since when the app has it.
    pub created_at: Timestamp,
}

/// Answer of the list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IpAssignments {
    /// The addresses, the oldest assignment first.
    pub ips: Vec<IpAssignment>,
}

/// That an app has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpDoc {
    /// The app.
    pub app: AppName,
    /// Who owns it.
    pub org: OrgSlug,
    /// The address.
    pub ip: IpAddr,
    /// See [`IpAssignment::shared`].
    pub shared: bool,
    /// Since when.
    pub created_at: Timestamp,
}

/// What every key of an app's addresses starts with.
#[must_use]
pub fn prefix(org: &OrgSlug, app: &AppName) -> String {
    format!("{}{org}/{app}/", IpDoc::PREFIX)
}

impl Document for IpDoc {
    type Key = (OrgSlug, AppName, IpAddr);
    const PREFIX: &'static str = "ips/";
    const PARTS: usize = 3;

    fn key((org, app, ip): &Self::Key) -> String {
        format!("{}{ip}", prefix(org, app))
    }
}
