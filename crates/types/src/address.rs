//! Addresses: the private ones of machines, as pure functions of what identifies a machine, and whom
//! an address of a client stands for.
//!
//! Never derives an address from a host: a machine that moves keeps its private one.

use std::net::{IpAddr, Ipv6Addr};

use crate::id::MachineId;

/// Returns a machine's private address: `fdaa:`, 32 bits of network, 56 bits of machine with a
/// byte of zeros before them, and `::2` in the /112 that is the machine's (contract 5.1).
#[must_use]
pub fn private_ip(network_id: u32, machine: &MachineId) -> Ipv6Addr {
    let machine = u128::from(machine.bits()) & 0x00ff_ffff_ffff_ffff;
    Ipv6Addr::from(network_bits(network_id) | (machine << 16) | 2)
}

/// Returns the first address of a network's /48.
#[must_use]
pub fn network_prefix(network_id: u32) -> Ipv6Addr {
    Ipv6Addr::from(network_bits(network_id))
}

/// Returns the network that a private address is in, `None` if it is no private address.
#[must_use]
pub fn network_of(address: Ipv6Addr) -> Option<u32> {
    let bits = address.to_bits();
    (bits >> 112 == 0xfdaa).then(|| u32::try_from((bits >> 80) & 0xffff_ffff).unwrap_or_default())
}

fn network_bits(network_id: u32) -> u128 {
    (0xfdaa_u128 << 112) | (u128::from(network_id) << 80)
}

/// Returns whom an address counts for: itself, or its /64, of which one client has every address.
#[must_use]
pub fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_one_address_however_it_is_written_and_a_whole_network_of_version_6() {
        for (address, client) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ] {
            let client: IpAddr = client.parse().unwrap();
            assert_eq!(client_of(address.parse().unwrap()), client, "{address}");
        }
    }

    #[test]
    fn a_private_address_is_made_of_network_and_machine() {
        for (network, bits, expected) in [
            (0x18, 0x1, "fdaa:0:18:0:0:0:1:2"),
            (0x0001_0002, 0x00d8_910a_bcd1_2345, "fdaa:1:2:d8:910a:bcd1:2345:2"),
            (u32::MAX, u64::MAX, "fdaa:ffff:ffff:ff:ffff:ffff:ffff:2"),
        ] {
            let ip = private_ip(network, &MachineId::from_bits(bits));
            let octets = ip.octets();
            assert_eq!(octets[14..], [0, 2], "{ip}");
            assert_eq!(network_of(ip), Some(network));
            assert!(ip.to_bits() >> 80 == network_prefix(network).to_bits() >> 80);
            assert_eq!(ip, expected.parse::<Ipv6Addr>().unwrap());
        }
        assert_eq!(network_of("fe80::1".parse().unwrap()), None);
    }
}
