//! HTTP clients, one of which does not go where only the platform itself may go.
//!
//! Never lets an image reference, a redirect or a token server of a user's choosing reach a
//! loopback, link-local or private address: hosts have services there that trust their neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Url};

use crate::limits::{CONNECT_TIMEOUT, READ_TIMEOUT, REDIRECTS_MAX};

/// Returns a client; a guarded one refuses private addresses, literal or by name.
pub(super) fn client(guarded: bool) -> reqwest::Result<Client> {
    let policy = Policy::custom(move |attempt| redirect(attempt, guarded));
    let builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(policy)
        .no_proxy()
        .user_agent(concat!("perch/", env!("CARGO_PKG_VERSION")));
    if guarded { builder.dns_resolver(PublicOnly) } else { builder }.build()
}

fn redirect(attempt: Attempt<'_>, guarded: bool) -> reqwest::redirect::Action {
    let downgrade = attempt.url().scheme() != "https"
        && attempt.previous().last().is_some_and(|before| before.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("too many redirects")
    } else if downgrade {
        attempt.error("a redirect away from TLS")
    } else if guarded && is_private(attempt.url()) {
        attempt.error("a redirect to a private address")
    } else {
        attempt.follow()
    }
}

/// Tells whether a URL names a private address literally.
pub(super) fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    literal.parse().is_ok_and(is_private_address)
}

fn is_private_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => is_private_v4(inner),
            None => {
                address.is_loopback()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
            }
        },
    }
}

/// An IPv4 address inside an IPv6 one: mapped, or behind NAT64's well-known prefix (RFC 6052).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let nat64 = octets.starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);
    let [.., a, b, c, d] = octets;
    address.to_ipv4_mapped().or_else(|| nat64.then(|| Ipv4Addr::new(a, b, c, d)))
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || first == 0
        // Shared address space (RFC 6598) and the reserved block.
        || (first == 100 && (64..128).contains(&second))
        || first >= 240
}

#[derive(Debug, Clone, Copy)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await?
                .filter(|address| !is_private_address(address.ip()))
                .collect();
            if found.is_empty() {
                return Err("the name has no public address".into());
            }
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "192.168.0.1",
            "172.16.0.1",
            "0.0.0.0",
            "100.64.0.1",
            "[::1]",
            "[fdaa::3]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "2130706433",
            "0x7f.1",
        ] {
            let url = Url::parse(&format!("https://{text}/")).expect(text);
            assert!(is_private(&url), "{text}");
        }
        for text in ["1.1.1.1", "example.com", "[2606:4700::1]", "172.32.0.1"] {
            assert!(!is_private(&Url::parse(&format!("https://{text}/")).expect(text)), "{text}");
        }
    }

    #[tokio::test]
    async fn names_of_private_addresses_do_not_resolve() {
        let name = "localhost".parse().expect("name");
        assert!(PublicOnly.resolve(name).await.is_err());
    }
}
