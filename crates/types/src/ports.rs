//! Public ports that are an app's own: all but 80 for HTTP and 443 for TLS, which are everybody's.
//!
//! Never says whether anybody listens there: that is the edge's. A port is claimed before a machine
//! that names it is asked for, by compare-and-set, so that no two apps have it; unless clients name
//! the app that they want in a TLS handshake, for then several can.

use serde::{Deserialize, Serialize};

use crate::directory::Document;
use crate::id::{AppName, OrgSlug};
use crate::machine_config::MachineConfig;
use crate::service::{Handler, Port, Protocol, Service};
use crate::time::Timestamp;

/// Claimed ports that the apps of a server may have together.
pub const RAW_PORTS_MAX: usize = 1024;
/// Apps that may share one port.
pub const HOLDERS_MAX: usize = 256;
/// Where the edge speaks plain HTTP, to clients of all apps.
pub const PUBLIC_HTTP_PORT: u16 = 80;
/// Where it ends TLS, for clients of all apps.
pub const PUBLIC_HTTPS_PORT: u16 = 443;

/// Ports that no app can have by any protocol, and what they are kept for: what a server is reached
/// and kept going by, which an app could else take while its own program restarts.
pub const RESERVED: [(u16, &str); 9] = [
    (22, "ssh"),
    (53, "dns"),
    (67, "dhcp"),
    (68, "dhcp"),
    (PUBLIC_HTTP_PORT, "http"),
    (123, "ntp"),
    (PUBLIC_HTTPS_PORT, "https"),
    (546, "dhcpv6"),
    (547, "dhcpv6"),
];

/// A claimed port and what is spoken over it.
pub type RawPort = (Protocol, u16);

/// That a public port is an app's, or some apps'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortClaim {
    /// The app that has had it longest.
    #[serde(flatten)]
    pub holder: Holder,
    /// Whether clients name the app that they want in a TLS handshake, so that others can have the
    /// port too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_name: bool,
    /// Those others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Holder>,
}

/// An app that has a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who owns the app.
    pub org: OrgSlug,
    /// The app.
    pub app: AppName,
    /// The app's id: another app of the same name has no part in the port.
    pub app_id: String,
    /// When a machine was last asked for that names it, but for some minutes.
    pub claimed_at: Timestamp,
}

impl Document for PortClaim {
    type Key = RawPort;
    const PREFIX: &'static str = "names/ports/";
    const PARTS: usize = 2;

    fn key((protocol, port): &Self::Key) -> String {
        format!("{}{}/{port}", Self::PREFIX, protocol.as_str())
    }
}

impl Holder {
    /// Returns whether it is the same app, whenever it claimed the port.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.is(&other.org, &other.app_id)
    }

    /// Returns whether it is this app.
    #[must_use]
    pub fn is(&self, org: &OrgSlug, app_id: &str) -> bool {
        self.org == *org && self.app_id == app_id
    }
}

impl PortClaim {
    /// Returns every app that has the port.
    pub fn holders(&self) -> impl Iterator<Item = &Holder> {
        std::iter::once(&self.holder).chain(&self.others)
    }

    /// Returns the claim of those that are left; nothing when none is.
    #[must_use]
    pub fn kept(&self, is_kept: impl Fn(&Holder) -> bool) -> Option<Self> {
        let mut left = self.holders().filter(|it| is_kept(it)).cloned();
        let holder = left.next()?;
        Some(Self { holder, by_name: self.by_name, others: left.collect() })
    }

    /// Returns the port that a key is of.
    #[must_use]
    pub fn port_of(key: &str) -> Option<RawPort> {
        let (protocol, port) = key.strip_prefix(Self::PREFIX)?.split_once('/')?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        Some((protocol, port.parse().ok()?))
    }
}

/// A claimed port and where a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The path of what names it: `config.services[0].ports[1]`.
    pub path: String,
    /// It.
    pub port: RawPort,
    /// Whether clients name the app that they want in a TLS handshake.
    pub by_name: bool,
}

/// Returns whether all apps are reached at a port, by the name that clients say.
fn is_everybodys(port: &Port, protocol: Protocol, number: u16) -> bool {
    protocol == Protocol::Tcp
        && match number {
            PUBLIC_HTTP_PORT => !port.is_raw(),
            PUBLIC_HTTPS_PORT => !port.is_raw() || port.handlers.contains(&Handler::Tls),
            _ => false,
        }
}

/// Returns the ports that a port of a service stands for and that have to be claimed.
fn claimed(port: &Port, protocol: Protocol) -> impl Iterator<Item = u16> {
    port.range().filter(move |number| !is_everybodys(port, protocol, *number))
}

/// Returns the ports of services that are claimed.
pub fn of_services(services: &[Service]) -> impl Iterator<Item = RawPort> {
    services.iter().flat_map(|service| {
        let protocol = service.protocol;
        let ports = service.ports.iter();
        ports.flat_map(move |port| claimed(port, protocol)).map(move |port| (protocol, port))
    })
}

/// Returns the ports of a configuration that are claimed, each with what names it.
pub fn of_config(config: &MachineConfig) -> impl Iterator<Item = Named> {
    config.services.iter().enumerate().flat_map(|(at, service)| {
        service.ports.iter().enumerate().flat_map(move |(index, port)| {
            let by_name =
                service.protocol == Protocol::Tcp && port.handlers.contains(&Handler::Tls);
            let named = move |number| Named {
                path: format!("config.services[{at}].ports[{index}]"),
                port: (service.protocol, number),
                by_name,
            };
            claimed(port, service.protocol).map(named)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        for port in [(Protocol::Tcp, 5432), (Protocol::Udp, 1)] {
            assert_eq!(PortClaim::port_of(&PortClaim::key(&port)), Some(port));
        }
        for bad in ["names/ports/tcp", "names/ports/sctp/1", "names/ports/tcp/65536", "names/x/1"] {
            assert_eq!(PortClaim::port_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_configuration_names_its_claimed_ports_with_their_paths() {
        let config: MachineConfig = serde_json::from_value(serde_json::json!({"services": [
            {"internal_port": 80, "ports": [
                {"port": 80, "handlers": ["http"]}, {"port": 7000},
                {"port": 443, "handlers": ["tls"]}, {"port": 443, "handlers": ["edge_http", "tls"]},
                {"port": 8080, "handlers": ["http"]}, {"port": 8443, "handlers": ["tls", "http"]},
                {"port": 80}, {"port": 443, "handlers": ["pg_tls"]}]},
            {"internal_port": 53, "protocol": "udp", "ports": [
                {"start_port": 5300, "end_port": 5301}, {"port": 443}]},
        ]}))
        .unwrap();
        let named: Vec<_> = of_config(&config).map(|it| (it.path, it.port, it.by_name)).collect();
        let want: Vec<_> = [
            ("[0].ports[1]", (Protocol::Tcp, 7000), false),
            ("[0].ports[4]", (Protocol::Tcp, 8080), false),
            ("[0].ports[5]", (Protocol::Tcp, 8443), true),
            ("[0].ports[6]", (Protocol::Tcp, 80), false),
            ("[0].ports[7]", (Protocol::Tcp, 443), false),
            ("[1].ports[0]", (Protocol::Udp, 5300), false),
            ("[1].ports[0]", (Protocol::Udp, 5301), false),
            ("[1].ports[1]", (Protocol::Udp, 443), false),
        ]
        .into_iter()
        .map(|(path, port, by_name)| (format!("config.services{path}"), port, by_name))
        .collect();
        assert_eq!(named, want);
        let ports: Vec<_> = of_services(&config.services).collect();
        assert_eq!(ports, want.iter().map(|(_, port, _)| *port).collect::<Vec<_>>());
    }

    #[test]
    fn a_claim_is_read_as_it_was_written_before_ports_were_shared_and_goes_with_its_last_holder() {
        let holder = |id: &str| {
            serde_json::json!({"org": "personal", "app": "web", "app_id": id,
                "claimed_at": "2026-01-01T00:00:00.000Z"})
        };
        let mut claim: PortClaim = serde_json::from_value(holder("a1")).unwrap();
        assert!(!claim.by_name && claim.others.is_empty());
        assert_eq!(serde_json::to_value(&claim).unwrap(), holder("a1"));
        claim.others.push(serde_json::from_value(holder("a2")).unwrap());
        let again: PortClaim =
            serde_json::from_value(serde_json::to_value(&claim).unwrap()).unwrap();
        assert_eq!(again, claim);
        let left = claim.kept(|it| it.app_id == "a2").unwrap();
        assert!(left.holder.app_id == "a2" && left.others.is_empty());
        assert_eq!(left.kept(|_| false), None);
    }
}
