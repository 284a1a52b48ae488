//! `config.containers` and `config.volumes`: several images in one machine (contract 1.13).
//!
//! Never says in which order they start: the runtime does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    EnvFrom, FileConfig, Other, RestartConfig, STOP_TIMEOUT_MAX, SecretRef, StopConfig,
    null_is_default,
};
use crate::service::{HttpHeader, empty_is_none};
use crate::time::GoDuration;

/// One of `config.containers`: an image of its own in the machine that all share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name, unique in the machine.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Its image's reference.
    #[serde(default, deserialize_with = "null_is_default")]
    pub image: String,
    /// Replaces entrypoint and command entirely.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's CMD.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Whom it runs as; the image's user when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment, merged over the machine's.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// Variables that say something about the machine.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    /// The only secrets that it gets; all of the app's when empty.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Files that are written into it before its program starts.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileConfig>,
    /// What follows its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartConfig>,
    /// How it is stopped; the machine's way when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopConfig>,
    /// What it waits for before it starts.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<ContainerDependency>,
    /// What says whether it is well.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub healthchecks: Vec<Healthcheck>,
    /// The machine's shared volumes that it sees.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<ContainerMount>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl ContainerConfig {
    /// Returns how long it may take to end, `or` when nothing was said.
    #[must_use]
    pub fn stop_timeout(&self, or: GoDuration) -> GoDuration {
        let own = self.stop.as_ref().and_then(|stop| stop.timeout);
        own.unwrap_or(or).min(STOP_TIMEOUT_MAX)
    }
}

/// A container that must have come so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerDependency {
    /// Which.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// How far; `started` when unset.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub condition: Option<ContainerCondition>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// How far a container must have come for another to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerCondition {
    /// Its program was executed.
    #[default]
    Started,
    /// Its health checks pass.
    Healthy,
    /// Its program ended with code 0.
    ExitedSuccessfully,
}

/// One of `containers[].healthchecks`; exactly one of `http`, `tcp` and `exec` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Healthcheck {
    /// Its name, unique in the container.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Seconds between two checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// Seconds after a start in which a failure does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<u64>,
    /// Seconds that one may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// How often in a row it must pass to count as healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
    /// How often in a row it must fail to count as unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    /// What follows from it.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub kind: Option<HealthcheckKind>,
    /// What is done to a container that is unhealthy.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<UnhealthyPolicy>,
    /// A request that must be answered with 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthcheck>,
    /// A connection that must be accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealthcheck>,
    /// A program that must end with code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecHealthcheck>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// What follows from a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthcheckKind {
    /// The machine gets no requests while it fails.
    Readiness,
    /// The container is not well while it fails.
    Liveness,
}

/// What is done to a container that is unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnhealthyPolicy {
    /// It is stopped; its restart policy says what follows.
    Stop,
}

/// A request inside the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpHealthcheck {
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Further headers.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpHeader>,
    /// `http` or `https`.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub scheme: Option<crate::service::CheckProtocol>,
    /// Whether any certificate will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// The name that the certificate must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// A connection inside the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpHealthcheck {
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// A program inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecHealthcheck {
    /// The program and its arguments.
    #[serde(default, deserialize_with = "null_is_default")]
    pub command: Vec<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Where a container sees one of `config.volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerMount {
    /// The volume's name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Where, absolute.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: String,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// One of `config.volumes`: shared among containers, gone with the boot. Either `temp_dir` or
/// `image` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Its name, unique in the machine.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// A folder that begins empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_dir: Option<TempDir>,
    /// The files of an image, read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl VolumeConfig {
    /// Returns the reference of the image that it is, if it is one.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref().filter(|image| !image.is_empty())
    }
}

/// A folder that begins empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TempDir {
    /// Where it is kept; on the disk when unset.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub storage_type: Option<StorageType>,
    /// Its size in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mb: Option<u64>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Where a temporary folder is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageType {
    /// On the disk.
    #[default]
    Disk,
    /// In the machine's memory.
    Memory,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MachineConfig;

    #[test]
    fn containers_come_back_as_they_were_sent() {
        let sent = serde_json::json!({
            "init": {},
            "containers": [{
                "name": "web", "image": "web:1", "exec": ["a"], "entrypoint": ["b"], "cmd": ["c"],
                "user": "web", "env": {"A": "1"}, "later": true,
                "env_from": [{"env_var": "ID", "field_ref": "id"}],
                "secrets": [{"env_var": "TOKEN"}],
                "restart": {"policy": "always", "max_retries": 3},
                "stop": {"signal": "SIGTERM", "timeout": "10s"},
                "depends_on": [{"name": "db", "condition": "healthy"}],
                "healthchecks": [{"name": "up", "interval": 5, "grace_period": 1, "timeout": 2,
                    "success_threshold": 1, "failure_threshold": 3, "kind": "readiness",
                    "unhealthy": "stop", "http": {"port": 80, "method": "GET", "path": "/up",
                        "scheme": "https", "tls_skip_verify": true, "tls_server_name": "web",
                        "headers": [{"name": "A", "values": ["1"]}]}}],
                "mounts": [{"name": "scratch", "path": "/scratch"}],
            }],
            "volumes": [{"name": "scratch", "temp_dir": {"storage_type": "memory", "size_mb": 16}},
                        {"name": "site", "image": "site:2"}],
        });
        let config: MachineConfig = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), sent);
        assert_eq!(config.image_references(), ["web:1", "site:2"]);
        assert_eq!(config.stop_timeout(), GoDuration::from_secs(10));
    }

    #[test]
    fn words_of_containers_are_refused_with_what_is_allowed() {
        for (json, allowed) in [
            (r#"{"depends_on":[{"condition":"ready"}]}"#, "`exited_successfully`"),
            (r#"{"healthchecks":[{"kind":"startup"}]}"#, "`readiness` or `liveness`"),
            (r#"{"healthchecks":[{"unhealthy":"restart"}]}"#, "`stop`"),
            (r#"{"healthchecks":[{"interval":-1}]}"#, "u64"),
        ] {
            let text = serde_json::from_str::<ContainerConfig>(json).unwrap_err().to_string();
            assert!(text.contains(allowed), "{text}");
        }
    }
}
