//! The app's configuration: `fly.toml` in the contract's shape (section 2).
//!
//! Never reads a file and never refuses an unknown key: what cannot be honoured is told by
//! [`AppConfig::unsupported`]. It is decoded straight from the text, so that a fault keeps its
//! line; older spellings (contract 2.5) are read by the functions in `read`.
//!
//! `expand` turns it into what a machine is created with, `support` knows what is not honoured.

mod expand;
mod files;
mod mounts;
mod read;
mod support;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use expand::ExpandError;
pub use files::FileSection;
pub use mounts::MountSection;
pub use support::{Severity, Unsupported};
pub use words::{UnclosedQuote, split_words};

use crate::machine_config::{CpuKind, Other, Signal, StaticConfig};
use crate::service::{
    Autostop, CheckKind, CheckProtocol, Concurrency, HttpHeader, HttpOptions, Port, Protocol,
    empty_is_none,
};
use crate::time::GoDuration;

/// The process group that exists when nothing else was said.
pub const DEFAULT_GROUP: &str = "app";
/// How long one machine may take to be ready when nothing else was said.
pub const WAIT_TIMEOUT_DEFAULT: GoDuration = GoDuration::from_secs(300);

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AppConfig {
    /// The app's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Where machines are placed; machines see it as `PRIMARY_REGION`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_region: Option<String>,
    /// The signal that asks a machine to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_signal: Option<Signal>,
    /// How long it may take; an integer is seconds.
    #[serde(default, deserialize_with = "read::seconds", skip_serializing_if = "Option::is_none")]
    pub kill_timeout: Option<GoDuration>,
    /// Where the image comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildSection>,
    /// How a change is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy: Option<DeploySection>,
    /// Environment of every machine; a number or a boolean is read as text.
    #[serde(
        default,
        deserialize_with = "read::environment",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// Process groups: a name and a command. Empty means one group, [`DEFAULT_GROUP`].
    #[serde(
        default,
        deserialize_with = "read::processes",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub processes: BTreeMap<String, String>,
    /// The web service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_service: Option<HttpService>,
    /// Other services.
    #[serde(
        default,
        alias = "service",
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub services: Vec<ServiceSection>,
    /// Checks outside of services, by name.
    #[serde(
        default,
        deserialize_with = "read::checks",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub checks: BTreeMap<String, CheckSection>,
    /// CPU and memory.
    #[serde(
        default,
        alias = "compute",
        alias = "computes",
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub vm: Vec<VmSection>,
    /// Volumes.
    #[serde(
        default,
        alias = "mount",
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mounts: Vec<MountSection>,
    /// Files that are written before the program starts.
    #[serde(
        default,
        alias = "file",
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub files: Vec<FileSection>,
    /// Files of the image that the edge serves, for every group.
    #[serde(
        default,
        alias = "static",
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub statics: Vec<StaticConfig>,
    /// Swap of every machine in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_size_mb: Option<u32>,
    /// What follows an exit.
    #[serde(
        default,
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub restart: Vec<RestartSection>,
    /// Older and rarer settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experimental: Option<ExperimentalSection>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// `[build]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BuildSection {
    /// A ready image; nothing is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The Dockerfile, relative to the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The file that says what stays out of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignorefile: Option<String>,
    /// The stage to build.
    #[serde(
        default,
        rename = "build-target",
        alias = "build_target",
        alias = "target",
        skip_serializing_if = "Option::is_none"
    )]
    pub target: Option<String>,
    /// Build arguments.
    #[serde(
        default,
        deserialize_with = "read::environment",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub args: BTreeMap<String, String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// The fraction of machines that may be out of service at once when the file does not say
/// (contract 2.3).
const MAX_UNAVAILABLE_DEFAULT: f64 = 0.33;

/// `[deploy]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeploySection {
    /// How machines are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// A fraction below 1, a count from 1 on; how many may be out of service at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<f64>,
    /// How long one machine may take to be ready; an integer is seconds.
    #[serde(default, deserialize_with = "read::seconds", skip_serializing_if = "Option::is_none")]
    pub wait_timeout: Option<GoDuration>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// How machines are replaced (contract 7.4 to 7.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// One after another, each seen ready before the next.
    #[default]
    Rolling,
    /// All at once, without a look at them.
    Immediate,
    /// One extra machine first.
    Canary,
    /// A whole second set first.
    BlueGreen,
}

/// `[http_service]`: a service on the ports 80 and 443.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HttpService {
    /// The port that the program listens on.
    #[serde(deserialize_with = "read::port")]
    pub internal_port: u16,
    /// Answer plain HTTP with a redirect to HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_https: Option<bool>,
    /// What to do with a machine that nothing uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_stop_machines: Option<Autostop>,
    /// Whether a request starts a machine; unset means yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_start_machines: Option<bool>,
    /// How many keep running in the primary region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// The groups that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// Limits of load.
    #[serde(
        default,
        deserialize_with = "read::concurrency",
        skip_serializing_if = "Option::is_none"
    )]
    pub concurrency: Option<Concurrency>,
    /// Checks that decide whether the edge may use a machine.
    #[serde(
        default,
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub checks: Vec<CheckSection>,
    /// How HTTP is handled on both ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// One of `[[services]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceSection {
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port that the program listens on.
    #[serde(deserialize_with = "read::port")]
    pub internal_port: u16,
    /// What to do with a machine that nothing uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_stop_machines: Option<Autostop>,
    /// Whether a request starts a machine; unset means yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_start_machines: Option<bool>,
    /// How many keep running in the primary region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// The groups that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// Limits of load.
    #[serde(
        default,
        deserialize_with = "read::concurrency",
        skip_serializing_if = "Option::is_none"
    )]
    pub concurrency: Option<Concurrency>,
    /// Public ports.
    #[serde(default, deserialize_with = "read::ports", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Connections that must be accepted.
    #[serde(
        default,
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tcp_checks: Vec<CheckSection>,
    /// Requests that must be answered with 2xx.
    #[serde(
        default,
        deserialize_with = "read::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub http_checks: Vec<CheckSection>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// A check of a service, or one of `[checks]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CheckSection {
    /// `http` or `tcp`; only in `[checks]`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<CheckKind>,
    /// The port; the service's own when unset.
    #[serde(
        default,
        deserialize_with = "read::optional_port",
        skip_serializing_if = "Option::is_none"
    )]
    pub port: Option<u16>,
    /// Time between two checks; an integer is milliseconds.
    #[serde(
        default,
        deserialize_with = "read::milliseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub interval: Option<GoDuration>,
    /// How long one may take; an integer is milliseconds.
    #[serde(
        default,
        deserialize_with = "read::milliseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<GoDuration>,
    /// How long after a start a failure does not count; an integer is milliseconds.
    #[serde(
        default,
        deserialize_with = "read::milliseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub grace_period: Option<GoDuration>,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The groups that it is about; only in `[checks]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// `http` or `https`.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<CheckProtocol>,
    /// Whether any certificate will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// The name that the certificate must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Further headers of the request.
    #[serde(default, deserialize_with = "read::headers", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpHeader>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// One of `[[vm]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VmSection {
    /// A preset: `shared-cpu-1x`, `performance-2x`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// `"512mb"`, `"1gb"`; an integer is MiB.
    #[serde(default, deserialize_with = "read::memory", skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// How many CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// `shared` or `performance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<CpuKind>,
    /// What becomes of the root file system when a machine stops, as the API reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_rootfs: Option<Value>,
    /// The groups that it is about; none means those without an entry of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// One of `[[restart]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartSection {
    /// When to start it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartWord>,
    /// How often, for `on-failure`.
    #[serde(
        default,
        alias = "max_retries",
        alias = "MaxRetries",
        skip_serializing_if = "Option::is_none"
    )]
    pub retries: Option<u32>,
    /// The groups that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
}

/// The words of `[[restart]]`, which are not quite those of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWord {
    /// After every exit.
    Always,
    /// Never.
    #[serde(alias = "no")]
    Never,
    /// After an exit that was a failure.
    #[serde(alias = "on-fail")]
    OnFailure,
}

/// `[experimental]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ExperimentalSection {
    /// Replaces the image's CMD; one string is split as a shell splits words.
    #[serde(default, deserialize_with = "read::words", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    #[serde(default, deserialize_with = "read::words", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces both.
    #[serde(default, deserialize_with = "read::words", skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// The older place of the top level's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_signal: Option<Signal>,
    /// The older place of the top level's key.
    #[serde(default, deserialize_with = "read::seconds", skip_serializing_if = "Option::is_none")]
    pub kill_timeout: Option<GoDuration>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl AppConfig {
    /// Returns the process groups, by name; there is always one.
    #[must_use]
    pub fn groups(&self) -> Vec<&str> {
        if self.processes.is_empty() {
            return vec![DEFAULT_GROUP];
        }
        self.processes.keys().map(String::as_str).collect()
    }

    /// Returns the group that sections without `processes` are about (contract 2.3).
    #[must_use]
    pub fn default_group(&self) -> &str {
        if self.processes.contains_key(DEFAULT_GROUP) {
            return DEFAULT_GROUP;
        }
        self.processes.keys().next().map_or(DEFAULT_GROUP, String::as_str)
    }

    /// Returns how long one machine may take to be ready.
    #[must_use]
    pub fn wait_timeout(&self) -> GoDuration {
        self.deploy.as_ref().and_then(|deploy| deploy.wait_timeout).unwrap_or(WAIT_TIMEOUT_DEFAULT)
    }

    /// Returns how many of so many machines may be out of service at once; at least one.
    #[must_use]
    pub fn max_unavailable(&self, machines: u32) -> u32 {
        let wanted = self.deploy.as_ref().and_then(|deploy| deploy.max_unavailable);
        let wanted = wanted.unwrap_or(MAX_UNAVAILABLE_DEFAULT);
        let bound = if wanted < 1.0 { wanted * f64::from(machines) } else { wanted.floor() };
        (1..=machines).find(|count| f64::from(*count) >= bound).unwrap_or_else(|| machines.max(1))
    }

    /// Returns how machines are replaced, as the file says.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.deploy.as_ref().and_then(|deploy| deploy.strategy).unwrap_or_default()
    }

    /// Returns the signal that asks a machine to end, from either place.
    #[must_use]
    pub fn stop_signal(&self) -> Option<Signal> {
        self.kill_signal.or_else(|| self.experimental.as_ref().and_then(|old| old.kill_signal))
    }

    /// Returns how long a machine may take to end, from either place.
    #[must_use]
    pub fn stop_timeout(&self) -> Option<GoDuration> {
        self.kill_timeout.or_else(|| self.experimental.as_ref().and_then(|old| old.kill_timeout))
    }
}
