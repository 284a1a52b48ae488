//! Addresses of one host: those that are the same inside every machine, and the pool of private IPv4
//! addresses.
//!
//! Never a private IPv6 address, which a machine keeps when it moves (`perch_types::address`): one of
//! IPv4 belongs to a slot of this host and never leaves it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The resolver's address inside every machine (contract 5.1).
pub const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);
/// The gateway that machines have in their IPv6 default route; nobody answers at it.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The gateway that machines have in their IPv4 default route; nobody answers at it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Length of the prefix that all machines of one network share.
pub const NETWORK_PREFIX_BITS: u8 = 48;

/// Addresses at the start of the pool that no slot gets; the first is the network, the second
/// the resolver, the others are left for services of the host.
const POOL_RESERVED: u32 = 16;
/// A pool this small would leave no slot.
const POOL_LENGTH_MAX: u8 = 26;
/// A pool longer than this would have slots that no host can run.
const POOL_LENGTH_MIN: u8 = 12;

/// An address and the number of its leading bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// A text that is not an address prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address prefix such as 10.0.0.0/8: bits after the length must be zero")]
pub struct InvalidPrefix(String);

impl Prefix {
    /// Returns the prefix of `length` bits at `address`; `None` when the length is too large for
    /// the family or `address` has bits after it.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let rest = bits.checked_shl(u32::from(length)).unwrap_or(0);
        (length <= width && rest == 0).then_some(Self { address, length })
    }

    /// Returns the first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns how many leading bits count.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| InvalidPrefix(text.chars().take(80).collect()))
    }
}

/// The private IPv4 addresses of one host, 10.209.0.0/16 if nothing else is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    base: Ipv4Addr,
    length: u8,
}

impl Default for Pool {
    fn default() -> Self {
        Self { base: Ipv4Addr::new(10, 209, 0, 0), length: 16 }
    }
}

impl Pool {
    /// Returns the pool of an IPv4 prefix, `None` unless its length is 12 to 26.
    #[must_use]
    pub fn new(prefix: Prefix) -> Option<Self> {
        match prefix.address {
            IpAddr::V4(base) if (POOL_LENGTH_MIN..=POOL_LENGTH_MAX).contains(&prefix.length) => {
                Some(Self { base, length: prefix.length })
            }
            _ => None,
        }
    }

    /// Returns the whole pool.
    #[must_use]
    pub const fn prefix(&self) -> Prefix {
        Prefix { address: IpAddr::V4(self.base), length: self.length }
    }

    /// Returns the address at which machines that speak only IPv4 find the resolver.
    #[must_use]
    pub fn resolver(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// Returns how many slots there are; they are numbered from 0.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        (1 << (32 - self.length)) - POOL_RESERVED - 1
    }

    /// Returns a slot's address, `None` beyond the last slot.
    #[must_use]
    pub fn address(&self, slot: u32) -> Option<Ipv4Addr> {
        (slot < self.slots())
            .then(|| Ipv4Addr::from_bits(self.base.to_bits() + POOL_RESERVED + slot))
    }
}

#[cfg(test)]
mod tests {
    use perch_types::MachineId;
    use perch_types::address::private_ip;

    use super::*;

    #[test]
    fn the_resolver_is_no_machines_address() {
        for bits in [0, 1, u64::MAX] {
            assert_ne!(private_ip(0, &MachineId::from_bits(bits)), RESOLVER_V6);
        }
    }

    #[test]
    fn a_pool_maps_slots_to_addresses_inside_it() {
        let pool = Pool::default();
        assert_eq!(pool.resolver(), Ipv4Addr::new(10, 209, 0, 1));
        assert_eq!(pool.address(0), Some(Ipv4Addr::new(10, 209, 0, 16)));
        assert_eq!(pool.address(240), Some(Ipv4Addr::new(10, 209, 1, 0)));
        assert_eq!(pool.address(pool.slots() - 1), Some(Ipv4Addr::new(10, 209, 255, 254)));
        assert_eq!(pool.address(pool.slots()), None);
        let small = Pool::new("192.0.2.0/26".parse().unwrap()).unwrap();
        assert_eq!(small.address(small.slots() - 1), Some(Ipv4Addr::new(192, 0, 2, 62)));
        for bad in ["10.0.0.0/27", "10.0.0.0/8", "fdaa::/16"] {
            assert_eq!(Pool::new(bad.parse().unwrap()), None, "{bad}");
        }
    }

    #[test]
    fn a_prefix_has_no_bits_after_its_length() {
        for good in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fdaa::/16", "::1/128"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        for bad in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "fdaa::1/16", "::/129", "x/8"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
