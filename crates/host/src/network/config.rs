//! What an operator may set about machines' networking.
//!
//! Never read from a file here: the daemon parses, this says what is valid.

use super::address::{Pool, Prefix};

/// The group that the host's side of every machine's interface is in; rules match on it.
pub const INTERFACE_GROUP: u32 = 0x7065;
/// Connections that a machine may have open at once through or to its host (N7).
pub const CONNECTIONS_MAX: u32 = 16_384;
/// Bytes of a packet between machines: what WireGuard over IPv6 leaves of 1500, so that a
/// machine need not change when its network reaches other servers.
pub const MTU_BYTES: u32 = 1_420;

/// The configuration of machines' networking on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the nftables table: lowercase letters, digits and `_`.
    pub instance: String,
    /// Group number of the machines' interfaces; another instance on the same host needs another.
    pub interface_group: u32,
    /// Where private IPv4 addresses come from.
    pub pool: Pool,
    /// Connections that a machine may have open at once.
    pub connections_max: u32,
    /// TCP ports of the host's public addresses that machines reach too, such as the edge's.
    pub public_ports: Vec<u16>,
    /// Prefixes closed to machines besides private and local ones.
    pub closed: Vec<Prefix>,
    /// Prefixes open to machines although they are private.
    pub opened: Vec<Prefix>,
    /// Bytes of a packet on a machine's interface.
    pub mtu_bytes: u32,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            instance: "perch".to_owned(),
            interface_group: INTERFACE_GROUP,
            pool: Pool::default(),
            connections_max: CONNECTIONS_MAX,
            public_ports: Vec::new(),
            closed: Vec::new(),
            opened: Vec::new(),
            mtu_bytes: MTU_BYTES,
        }
    }
}

impl NetworkConfig {
    /// Returns whether the instance's name can be a table's.
    #[must_use]
    pub fn instance_is_valid(&self) -> bool {
        (1..=32).contains(&self.instance.len())
            && self.instance.starts_with(|first: char| first.is_ascii_lowercase())
            && self
                .instance
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }
}
