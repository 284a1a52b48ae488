//! Addresses: the private ones of machines, as pure functions of what identifies a machine.
//!
//! Never derives an address from a host: a machine that moves keeps its private one.

use std::net::Ipv6Addr;

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

#[cfg(test)]
mod tests {
    use super::*;

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
