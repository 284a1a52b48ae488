//! The address under which this server is known to the internet.
//!
//! Never sends a packet: the kernel is asked which address it would send from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Addresses that are nobody's (documentation): the way to them is the way to the internet.
const FAR: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
];

/// Returns the address that requests to the internet come from, if it is a public one: IPv6 first,
/// as it is in the contract (5.4). Behind somebody else's translation of addresses there is none.
pub(crate) fn public_address() -> Option<IpAddr> {
    public_addresses().next()
}

/// Returns the public addresses of both families.
pub fn public_addresses() -> impl Iterator<Item = IpAddr> {
    FAR.iter().filter_map(|(any, far)| source(*any, *far)).filter(|address| is_public(*address))
}

fn source(any: IpAddr, far: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_documentation()
                || shared)
        }
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for (text, public) in [
            ("198.51.101.7", true),
            ("10.0.0.1", false),
            ("192.168.1.1", false),
            ("172.16.0.1", false),
            ("100.64.0.1", false),
            ("169.254.1.1", false),
            ("127.0.0.1", false),
            ("2a01:4f8::1", true),
            ("fdaa::1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), public, "{text}");
        }
    }
}
