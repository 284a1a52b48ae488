//! The block that machines' private IPv4 addresses are of, as it is written in the configuration.
//!
//! Never a public one.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// A block of private IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Ipv4Pool {
    pub(crate) network: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl TryFrom<String> for Ipv4Pool {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a block such as `10.209.0.0/16`");
        let (network, prefix) = text.split_once('/').ok_or_else(bad)?;
        let pool = Self {
            network: network.parse().map_err(|_| bad())?,
            prefix: prefix.parse().map_err(|_| bad())?,
        };
        if !(8..=24).contains(&pool.prefix) || !pool.network.is_private() {
            return Err(format!("`{text}` is not a private block of 8 to 24 bits"));
        }
        Ok(pool)
    }
}

impl From<Ipv4Pool> for String {
    fn from(pool: Ipv4Pool) -> Self {
        format!("{}/{}", pool.network, pool.prefix)
    }
}
