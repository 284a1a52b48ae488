//! Public ports that are one app's alone: those at which the edge does not speak HTTP.
//!
//! Never says whether anybody listens there: that is the edge's. A port is claimed before a machine
//! that names it is asked for, by compare-and-set, so that no two apps have it.

use serde::{Deserialize, Serialize};

use crate::directory::Document;
use crate::id::{AppName, OrgSlug};
use crate::machine_config::MachineConfig;
use crate::service::{Protocol, Service};
use crate::time::Timestamp;

/// Raw ports that the apps of a server may have together.
pub const RAW_PORTS_MAX: usize = 1024;

/// A port and what is spoken over it.
pub type RawPort = (Protocol, u16);

/// That a public port is an app's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortClaim {
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

impl PortClaim {
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

/// A raw port and where a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The path of what names it: `config.services[0].ports[1]`.
    pub path: String,
    /// It.
    pub port: RawPort,
}

/// Returns the raw ports of services.
pub fn of_services(services: &[Service]) -> impl Iterator<Item = RawPort> {
    services.iter().flat_map(|service| {
        let raw = service.ports.iter().filter(|port| port.is_raw());
        raw.flat_map(|port| port.range()).map(move |port| (service.protocol, port))
    })
}

/// Returns the raw ports of a configuration, each with what names it.
pub fn of_config(config: &MachineConfig) -> impl Iterator<Item = Named> {
    config.services.iter().enumerate().flat_map(|(at, service)| {
        let raw = service.ports.iter().enumerate().filter(|(_, port)| port.is_raw());
        raw.flat_map(move |(index, port)| {
            let named = move |number| Named {
                path: format!("config.services[{at}].ports[{index}]"),
                port: (service.protocol, number),
            };
            port.range().map(named)
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
    fn a_configuration_names_its_raw_ports_with_their_paths() {
        let config: MachineConfig = serde_json::from_value(serde_json::json!({"services": [
            {"internal_port": 80, "ports": [{"port": 80, "handlers": ["http"]}, {"port": 7000}]},
            {"internal_port": 53, "protocol": "udp", "ports": [{"start_port": 5300, "end_port": 5301}]},
        ]}))
        .unwrap();
        let named: Vec<_> = of_config(&config).map(|it| (it.path, it.port)).collect();
        let path = |path: &str| format!("config.services{path}");
        let want = [
            (path("[0].ports[1]"), (Protocol::Tcp, 7000)),
            (path("[1].ports[0]"), (Protocol::Udp, 5300)),
            (path("[1].ports[0]"), (Protocol::Udp, 5301)),
        ];
        assert_eq!(named, want);
        let ports: Vec<_> = of_services(&config.services).collect();
        assert_eq!(ports, want.map(|(_, port)| port));
    }
}
