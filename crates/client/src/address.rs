//! Where a server is and how it is known: a URL, and the fingerprint of its certificate authority.
//!
//! Never resolves a name or opens a connection.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The address of a server: `unix:/run/perch/api.sock`, `http://127.0.0.1:4280` or
/// `https://host:port#fingerprint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket on this server.
    Unix(PathBuf),
    /// Plain TCP, to this server only.
    Http {
        /// A loopback address or `localhost`.
        host: String,
        /// The port.
        port: u16,
    },
    /// TLS to a server whose certificate authority is known.
    Https {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The certificate authority.
        fingerprint: Fingerprint,
    },
}

/// The SHA-256 of a certificate authority's certificate (DER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A text that is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It does not begin as an address does.
    #[error("`{0}` is not `https://HOST:PORT#FINGERPRINT`, `http://127.0.0.1:PORT` or `unix:PATH`")]
    Shape(String),
    /// The fingerprint is not one.
    #[error("`{0}` is not a fingerprint: 64 hexadecimal digits")]
    Fingerprint(String),
    /// TLS without a fingerprint.
    #[error("`{0}` has no fingerprint: add `#` and the one that perchd printed at its start")]
    NoFingerprint(String),
    /// A token would cross a network in the clear.
    #[error("`{0}` is plain HTTP to another server, which would show the token to the network")]
    Plain(String),
}

impl Fingerprint {
    /// Returns the fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(Sha256::digest(certificate_der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidAddress;

    /// Reads 64 hexadecimal digits, with or without colons between the bytes.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let bad = || InvalidAddress::Fingerprint(text.chars().take(80).collect());
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        let mut bytes = [0; 32];
        if digits.len() != bytes.len() * 2 {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |value, digit| (value << 4) | digit);
        }
        Ok(Self(bytes))
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let shape = || InvalidAddress::Shape(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(shape());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let (rest, fingerprint) = match rest.split_once('#') {
            Some((rest, fingerprint)) => (rest, Some(fingerprint)),
            None => (rest, None),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let default_port = if scheme == "http" { 80 } else { 443 };
        let (host, port) = host_and_port(authority, default_port).ok_or_else(shape)?;
        match scheme {
            "http" if is_loopback(&host) => Ok(Self::Http { host, port }),
            "http" => Err(InvalidAddress::Plain(text.to_owned())),
            "https" => {
                let fingerprint = fingerprint
                    .ok_or_else(|| InvalidAddress::NoFingerprint(text.to_owned()))?
                    .parse()?;
                Ok(Self::Https { host, port, fingerprint })
            }
            _ => Err(shape()),
        }
    }
}

impl Address {
    /// Returns the address without the fingerprint, as people know it.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Http { .. } | Self::Https { .. } => {
                let scheme = if matches!(self, Self::Http { .. }) { "http" } else { "https" };
                format!("{scheme}://{}", self.authority())
            }
        }
    }

    /// Returns what belongs into the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Http { host, port } | Self::Https { host, port, .. } => {
                if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                }
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())?;
        match self {
            Self::Https { fingerprint, .. } => write!(f, "#{fingerprint}"),
            Self::Unix(_) | Self::Http { .. } => Ok(()),
        }
    }
}

fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, if tail.is_empty() { None } else { Some(tail.strip_prefix(':')?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => default_port,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || !host.chars().all(plain) {
        return None;
    }
    Some((host.to_ascii_lowercase(), port))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let pin = "ab".repeat(32);
        for (text, written) in [
            ("unix:/run/perch/api.sock".to_owned(), "unix:/run/perch/api.sock".to_owned()),
            ("unix:///run/a".to_owned(), "unix:/run/a".to_owned()),
            ("http://127.0.0.1:4280/".to_owned(), "http://127.0.0.1:4280".to_owned()),
            ("http://localhost".to_owned(), "http://localhost:80".to_owned()),
            ("http://[::1]:9".to_owned(), "http://[::1]:9".to_owned()),
            (format!("https://Cloud.example#{pin}"), format!("https://cloud.example:443#{pin}")),
            (format!("https://[fd00::1]:4281#{pin}"), format!("https://[fd00::1]:4281#{pin}")),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), written);
            assert_eq!(written.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_reason() {
        for bad in [
            "",
            "cloud.example",
            "ftp://a",
            "http://",
            "http://localhost:0",
            "unix:a",
            "http://localhost:99999",
            "http://user@localhost",
            "https://a b#00",
        ] {
            assert!(matches!(bad.parse::<Address>(), Err(InvalidAddress::Shape(_))), "{bad}");
        }
        assert!(matches!("http://10.0.0.1".parse::<Address>(), Err(InvalidAddress::Plain(_))));
        assert!(matches!("https://a".parse::<Address>(), Err(InvalidAddress::NoFingerprint(_))));
        for bad in ["00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            let error = format!("https://a#{bad}").parse::<Address>().unwrap_err();
            assert!(matches!(error, InvalidAddress::Fingerprint(_)), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in ".{0,80}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }
}
