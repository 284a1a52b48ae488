//! Checks of a service or of a machine (contract 1.13), and their names.
//!
//! Never carries one out: the host does.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::Service;
use crate::machine_config::{Other, null_is_default};
use crate::time::GoDuration;

/// The shortest time between two checks of a service; a shorter one is raised to it.
pub const SERVICE_CHECK_INTERVAL_MIN: GoDuration = GoDuration::from_secs(1);
/// The shortest time between two checks of a machine; a shorter one is refused.
pub const MACHINE_CHECK_INTERVAL_MIN: GoDuration = GoDuration::from_secs(2);
/// The longest that a check may take; a longer one is refused.
pub const CHECK_TIMEOUT_MAX: GoDuration = GoDuration::from_secs(60);

/// A check of a service or of a machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Check {
    /// `http` or `tcp`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<CheckKind>,
    /// Whether the machine is out of routing while it fails; of a machine's own checks only.
    #[serde(
        default,
        rename = "kind",
        deserialize_with = "empty_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub purpose: Option<CheckPurpose>,
    /// The port; a service's own when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time between two checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// How long one may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// How long after a start a failure does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<GoDuration>,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether HTTP is spoken through TLS.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<CheckProtocol>,
    /// Whether any certificate will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// The name that the certificate must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Further headers of the request.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpHeader>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Kinds of checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// A request that must be answered with 2xx.
    Http,
    /// A connection that must be accepted.
    Tcp,
}

/// What follows from a check of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckPurpose {
    /// Nothing: it is shown.
    Informational,
    /// The machine gets no requests while it fails.
    Readiness,
}

/// How an HTTP check is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckProtocol {
    /// Plain.
    #[default]
    Http,
    /// Through TLS.
    Https,
}

/// A header and its values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its values, each a line of its own.
    #[serde(default, deserialize_with = "null_is_default")]
    pub values: Vec<String>,
}

/// Reads a word of which clients send the empty text for "nothing".
pub(crate) fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    match Option::<serde_json::Value>::deserialize(deserializer)? {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) if text.is_empty() => Ok(None),
        Some(word) => serde_json::from_value(word).map(Some).map_err(serde::de::Error::custom),
    }
}

/// Names each check of a machine as clients expect it (contract 1.3, `CheckStatus`).
#[must_use]
pub fn check_names(services: &[Service], checks: &BTreeMap<String, Check>) -> Vec<String> {
    let of_services = services
        .iter()
        .flat_map(|service| service.checks.iter().map(|check| (service.internal_port, check)));
    let mut names: Vec<String> = of_services
        .enumerate()
        .map(|(index, (internal_port, check))| {
            let kind = match check.kind {
                Some(CheckKind::Http) => "http",
                Some(CheckKind::Tcp) | None => "tcp",
            };
            format!("servicecheck-{index:02}-{kind}-{}", check.port.unwrap_or(internal_port))
        })
        .collect();
    names.extend(checks.keys().cloned());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_checks_are_numbered_across_services() {
        let services: Vec<Service> = serde_json::from_str(
            r#"[{"internal_port":80,"checks":[{"type":"http"},{"type":"tcp","port":81}]},
                {"internal_port":90,"checks":[{"type":"tcp"}]}]"#,
        )
        .unwrap();
        let checks = BTreeMap::from([("disk".to_owned(), Check::default())]);
        assert_eq!(
            check_names(&services, &checks),
            ["servicecheck-00-http-80", "servicecheck-01-tcp-81", "servicecheck-02-tcp-90", "disk"]
        );
    }

    #[test]
    fn words_are_read_or_refused_with_what_is_allowed() {
        let read = serde_json::from_str::<Check>;
        let check = read(r#"{"type":"http","kind":"","protocol":"","headers":null}"#).unwrap();
        assert_eq!(check, Check { kind: Some(CheckKind::Http), ..Check::default() });
        let check = read(r#"{"kind":"readiness","protocol":"https"}"#).unwrap();
        assert_eq!(check.purpose, Some(CheckPurpose::Readiness));
        assert_eq!(check.protocol, Some(CheckProtocol::Https));
        for (json, allowed) in [
            (r#"{"kind":"liveness"}"#, "expected `informational` or `readiness`"),
            (r#"{"protocol":"h2"}"#, "expected `http` or `https`"),
            (r#"{"type":"grpc"}"#, "expected `http` or `tcp`"),
        ] {
            let text = read(json).unwrap_err().to_string();
            assert!(text.contains(allowed), "{text}");
        }
    }
}
