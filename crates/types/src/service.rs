//! Services and ports of a machine (contract 1.13).
//!
//! Never decides where a request goes: that is the edge's.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::machine_config::{Other, null_is_default};

mod check;
mod http_options;
mod tls;

pub(crate) use check::empty_is_none;
pub use check::{
    CHECK_TIMEOUT_MAX, Check, CheckKind, CheckProtocol, CheckPurpose, HttpHeader,
    MACHINE_CHECK_INTERVAL_MIN, SERVICE_CHECK_INTERVAL_MIN, check_names,
};
pub use http_options::{
    HEADERS_READ_TIMEOUT_S_MAX, HeaderChange, HttpOptions, IDLE_TIMEOUT_S_MAX, REPLAY_TTL_S_MIN,
    ReplayCacheRule, ResponseOptions, SessionKind, Sticky,
};
pub use tls::{BadTlsOptions, TLS_OPTIONS, TlsOptions, TlsVersions};

/// One port inside a machine and how the edge offers it outside.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Service {
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port that the program listens on.
    pub internal_port: u16,
    /// What to do with the machine when nothing uses it. One with several services rests only if
    /// all of them say so, and is suspended only if all say that; a machine that cannot be
    /// suspended is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostop: Option<Autostop>,
    /// Whether a request starts it; unset means yes (contract 4.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// How many machines keep running in the primary region, the one that `PRIMARY_REGION` names in
    /// the environment, although nothing uses them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// Public ports.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Checks that decide whether the edge may use the machine.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Limits of load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl Service {
    /// Returns whether a request may start a machine that does not run.
    #[must_use]
    pub fn starts_on_request(&self) -> bool {
        self.autostart.unwrap_or(true)
    }

    /// Returns whether one of its ports has the `http` handler.
    #[must_use]
    pub fn speaks_http(&self) -> bool {
        self.ports.iter().any(|port| port.handlers.contains(&Handler::Http))
    }

    /// Returns what it says of a public port at which the edge does not speak HTTP.
    #[must_use]
    pub fn raw_port(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|it| it.is_raw() && it.range().contains(&port))
    }
}

/// Transport of a service.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What the edge does between the public port and the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// Parses HTTP.
    Http,
    /// Ends TLS, where the server has an HTTPS port.
    Tls,
    /// Answers a Postgres client's TLS request.
    PgTls,
    /// Puts a PROXY line in front.
    ProxyProto,
    /// HTTP at the edge of the network.
    EdgeHttp,
}

/// What to do with a machine when nothing uses it. Booleans are read too: `true` is stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Autostop {
    /// Leave it running.
    #[default]
    Off,
    /// Stop it.
    Stop,
    /// Freeze it in memory.
    Suspend,
}

impl Serialize for Autostop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Off => "off",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
        })
    }
}

impl<'de> Deserialize<'de> for Autostop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match &value {
            serde_json::Value::Bool(false) => Ok(Self::Off),
            serde_json::Value::Bool(true) => Ok(Self::Stop),
            serde_json::Value::String(word) => match word.as_str() {
                "off" => Ok(Self::Off),
                "stop" => Ok(Self::Stop),
                "suspend" => Ok(Self::Suspend),
                _ => Err(serde::de::Error::custom("autostop is `off`, `stop` or `suspend`")),
            },
            _ => Err(serde::de::Error::custom("autostop is `off`, `stop` or `suspend`")),
        }
    }
}

/// A public port, or a range of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Port {
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The first of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_port: Option<u16>,
    /// The last of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// What the edge does on it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<Handler>,
    /// Answer plain HTTP with a redirect to HTTPS, where the server has an HTTPS port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_https: Option<bool>,
    /// How HTTP is handled on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl Port {
    /// Returns whether bytes pass it as they are: no handler of it reads HTTP.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        !self.handlers.iter().any(|it| matches!(it, Handler::Http | Handler::EdgeHttp))
    }

    /// Returns the ports that it stands for: one, or all of its range; none when it names none, or
    /// only one end.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<u16> {
        let (first, last) = match (self.port, self.start_port, self.end_port) {
            (Some(port), ..) => (port, port),
            (None, Some(first), Some(last)) => (first, last),
            (None, ..) => (1, 0),
        };
        first..=last
    }
}

/// Limits of load of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Concurrency {
    /// What is counted.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ConcurrencyKind>,
    /// Prefer another machine from here on; default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
    /// Never more than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// What counts as load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConcurrencyKind {
    /// Open connections.
    #[default]
    Connections,
    /// Requests in flight.
    Requests,
}

/// The load from which another machine is preferred when nothing else was said.
pub const SOFT_LIMIT_DEFAULT: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autostop_reads_all_the_forms_that_clients_send() {
        for (json, want) in [
            ("false", Autostop::Off),
            ("true", Autostop::Stop),
            ("\"off\"", Autostop::Off),
            ("\"stop\"", Autostop::Stop),
            ("\"suspend\"", Autostop::Suspend),
        ] {
            assert_eq!(serde_json::from_str::<Autostop>(json).unwrap(), want, "{json}");
        }
        serde_json::from_str::<Autostop>("\"sleep\"").unwrap_err();
        serde_json::from_str::<Autostop>("1").unwrap_err();
    }

    #[test]
    fn a_service_knows_its_raw_ports_alone() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "internal_port": 1,
            "ports": [
                {"port": 80, "handlers": ["http"]},
                {"port": 81, "handlers": ["edge_http"]},
                {"port": 5432, "handlers": ["pg_tls"]},
                {"start_port": 7000, "end_port": 7002},
                {"start_port": 9000},
            ],
        }))
        .unwrap();
        for (port, want) in [
            (80, false),
            (81, false),
            (5432, true),
            (6999, false),
            (7000, true),
            (7002, true),
            (7003, false),
            (9000, false),
        ] {
            assert_eq!(service.raw_port(port).is_some(), want, "{port}");
        }
    }
}
