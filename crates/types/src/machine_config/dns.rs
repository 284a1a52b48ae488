//! `config.dns`: the machine's names, and where it asks for those of others.
//!
//! Never answers one.

use serde::{Deserialize, Serialize};

use super::{Other, is_false, null_is_default};

/// `config.dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Keep it out of `.internal`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub skip_registration: bool,
    /// Resolvers in place of the platform's.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Domains that are tried after a short name.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Options of the machine's own resolver library.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<DnsOption>,
    /// The host name in place of the machine's id.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub hostname: String,
    /// The host name with its domain.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub hostname_fqdn: String,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// One of `config.dns.options`, such as `ndots` and `2`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsOption {
    /// Its name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Its value; empty for one that takes none.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub value: String,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}
