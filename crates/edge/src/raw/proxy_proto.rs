//! The PROXY header that tells an app who its client is (haproxy's proxy-protocol.txt).
//!
//! Never read from outside: what a client sends is the app's, whatever it looks like. Pure.

use std::net::{IpAddr, SocketAddr};

use perch_types::service::{Handler, Port};

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 and the command PROXY.
const VERSION_2_PROXY: u8 = 0x21;
/// Connections over IPv4 and IPv6.
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Bytes of two addresses and two ports.
const ADDRESSES_V4: u16 = 12;
const ADDRESSES_V6: u16 = 36;

/// The form of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

/// Returns the form that a port asks for, if it does.
pub(super) fn wanted(port: &Port) -> Option<Version> {
    if !port.handlers.contains(&Handler::ProxyProto) {
        return None;
    }
    let version = port.other.get("proxy_proto_options").and_then(|it| it.get("version"));
    Some(match version.and_then(|it| it.as_str()) {
        Some("v2") => Version::V2,
        Some(_) | None => Version::V1,
    })
}

/// Makes the header of a connection: from whom, and to which public address and port.
pub(super) fn header(version: Version, client: SocketAddr, public: SocketAddr) -> Vec<u8> {
    let (from, to) = (client.ip().to_canonical(), public.ip().to_canonical());
    match version {
        Version::V1 => {
            let family = match (from, to) {
                (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
                (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
                // One connection has one family; nothing is better than a lie.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                    return b"PROXY UNKNOWN\r\n".to_vec();
                }
            };
            format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), public.port())
                .into_bytes()
        }
        Version::V2 => {
            let mut header = SIGNATURE.to_vec();
            header.push(VERSION_2_PROXY);
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.push(TCP_V4);
                    header.extend(ADDRESSES_V4.to_be_bytes());
                    header.extend(from.octets());
                    header.extend(to.octets());
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    header.push(TCP_V6);
                    header.extend(ADDRESSES_V6.to_be_bytes());
                    header.extend(from.octets());
                    header.extend(to.octets());
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                    // Unspecified, without addresses.
                    header.extend([0, 0, 0]);
                    return header;
                }
            }
            header.extend(client.port().to_be_bytes());
            header.extend(public.port().to_be_bytes());
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_headers() {
        let header = |version, from: &str, to: &str| {
            header(version, from.parse().unwrap(), to.parse().unwrap())
        };
        let v2 = |rest: &[u8]| [&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], rest].concat();
        let long = |ip: &str| ip.parse::<std::net::Ipv6Addr>().unwrap().octets();
        for (version, from, to, want) in [
            (
                Version::V1,
                "192.0.2.1:1025",
                "198.51.100.7:5432",
                b"PROXY TCP4 192.0.2.1 198.51.100.7 1025 5432\r\n".to_vec(),
            ),
            (
                Version::V1,
                "[::ffff:192.0.2.1]:1025",
                "[::ffff:198.51.100.7]:5432",
                b"PROXY TCP4 192.0.2.1 198.51.100.7 1025 5432\r\n".to_vec(),
            ),
            (
                Version::V1,
                "[2001:db8::1]:1025",
                "[2001:db8::2]:5432",
                b"PROXY TCP6 2001:db8::1 2001:db8::2 1025 5432\r\n".to_vec(),
            ),
            (Version::V1, "192.0.2.1:1", "[2001:db8::2]:2", b"PROXY UNKNOWN\r\n".to_vec()),
            (
                Version::V2,
                "192.0.2.1:1025",
                "198.51.100.7:5432",
                v2(&[0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 7, 4, 1, 0x15, 0x38]),
            ),
            (
                Version::V2,
                "[2001:db8::1]:1025",
                "[2001:db8::2]:5432",
                v2(&[
                    &[0x21, 0, 36][..],
                    long("2001:db8::1").as_slice(),
                    long("2001:db8::2").as_slice(),
                    &[4, 1, 0x15, 0x38],
                ]
                .concat()),
            ),
            (Version::V2, "192.0.2.1:1", "[2001:db8::2]:2", v2(&[0, 0, 0])),
        ] {
            assert_eq!(header(version, from, to), want, "{version:?} {from} {to}");
        }
    }

    #[test]
    fn a_port_says_which_form() {
        let port = |json: serde_json::Value| serde_json::from_value::<Port>(json).unwrap();
        let options = serde_json::json!({"version": "v2"});
        for (value, want) in [
            (serde_json::json!({"port": 1}), None),
            (serde_json::json!({"port": 1, "handlers": ["proxy_proto"]}), Some(Version::V1)),
            (
                serde_json::json!({"port": 1, "handlers": ["proxy_proto"],
                    "proxy_proto_options": options}),
                Some(Version::V2),
            ),
            (serde_json::json!({"port": 1, "proxy_proto_options": options}), None),
        ] {
            assert_eq!(wanted(&port(value.clone())), want, "{value}");
        }
    }
}
