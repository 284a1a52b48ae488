//! What of a file cannot be honoured yet, told by name.
//!
//! Never silent: a key that changes what runs or what is kept is refused, one that only tunes is
//! warned of.

use serde_json::Value;

use super::{AppConfig, CheckSection, Strategy};
use crate::machine_config::Other;
use crate::service::{Concurrency, HttpOptions, Port, TLS_OPTIONS};

/// How much a missing feature matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The app runs without it.
    Warn,
    /// The app would not be what the file says.
    Refuse,
}

/// A key that is not honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The key with its section: `deploy.release_command`.
    pub key: String,
    /// How much it matters.
    pub severity: Severity,
    /// What happens instead, or what to do.
    pub note: &'static str,
}

use Severity::{Refuse, Warn};

const TOP: &[(&str, Severity, &str)] = &[
    ("machine_config", Refuse, "write its keys into this file"),
    ("machine_checks", Refuse, "use `http_service.checks`"),
    ("container", Refuse, "a machine runs one program"),
    ("host_dedication_id", Refuse, "hosts cannot be dedicated"),
    ("metrics", Warn, "metrics are not collected yet"),
    ("metric", Warn, "metrics are not collected yet"),
    ("console_command", Warn, "use `perch machine exec`"),
];

const BUILD: &[(&str, Severity, &str)] = &[
    ("builder", Refuse, "write a Dockerfile; buildpacks are not offered"),
    ("buildpacks", Refuse, "write a Dockerfile; buildpacks are not offered"),
    ("builtin", Refuse, "write a Dockerfile, or let `perch launch` write one"),
    ("compose", Refuse, "a machine runs one program"),
    ("settings", Warn, "it belongs to `builtin`"),
    ("compression", Warn, "layers are stored in the platform's own form"),
    ("compression_level", Warn, "layers are stored in the platform's own form"),
];

const DEPLOY: &[(&str, Severity, &str)] = &[
    ("release_command", Refuse, "run it in the program's start for now"),
    ("release_command_vm", Refuse, "it belongs to `release_command`"),
    ("release_command_timeout", Warn, "it belongs to `release_command`"),
    ("seed_command", Refuse, "run it with `perch machine exec` for now"),
];

const SERVICE: &[(&str, Severity, &str)] =
    &[("machine_checks", Refuse, "use checks of the service")];

const CHECK: &[(&str, Severity, &str)] =
    &[("restart_limit", Warn, "a check that fails never restarts a machine")];

const VM: &[(&str, Severity, &str)] = &[
    ("gpus", Refuse, "no host has a GPU"),
    ("gpu_kind", Refuse, "no host has a GPU"),
    ("host_dedication_id", Refuse, "hosts cannot be dedicated"),
    ("kernel_args", Warn, "machines share the host's kernel"),
];

const STATIC: &[(&str, Severity, &str)] =
    &[("tigris_bucket", Refuse, "only files of the image are served")];

const EXPERIMENTAL: &[(&str, Severity, &str)] = &[
    ("machine_config", Refuse, "write its keys into this file"),
    ("auto_rollback", Warn, "a failed deploy always puts the old version back"),
    ("enable_consul", Refuse, "there is no such service"),
    ("enable_etcd", Refuse, "there is no such service"),
    ("lazy_load_images", Warn, "images are always kept on the host"),
    ("attached", Warn, "use `perch secrets set`"),
    ("metrics_port", Warn, "metrics are not collected yet"),
    ("metrics_path", Warn, "metrics are not collected yet"),
];

const UNKNOWN: &str = "no such key is known; a typing error?";

impl AppConfig {
    /// Returns every key that is not honoured, refusals first.
    #[must_use]
    pub fn unsupported(&self) -> Vec<Unsupported> {
        let mut found = Vec::new();
        section(&mut found, "", &self.other, TOP);
        if let Some(build) = &self.build {
            section(&mut found, "build.", &build.other, BUILD);
            if build.dockerfile.as_deref().is_some_and(|path| path.contains("://")) {
                found.push(Unsupported {
                    key: "build.dockerfile".to_owned(),
                    severity: Refuse,
                    note: "a Dockerfile must be a file of the source folder",
                });
            }
        }
        if let Some(deploy) = &self.deploy {
            section(&mut found, "deploy.", &deploy.other, DEPLOY);
        }
        if let Some(http) = &self.http_service {
            section(&mut found, "http_service.", &without(&http.other, &[TLS_OPTIONS]), SERVICE);
            limits(&mut found, "http_service.", http.concurrency.as_ref());
            checks(&mut found, "http_service.checks.", &http.checks);
            options(&mut found, "http_service.", http.http_options.as_ref());
        }
        for service in &self.services {
            section(&mut found, "services.", &service.other, SERVICE);
            limits(&mut found, "services.", service.concurrency.as_ref());
            checks(&mut found, "services.tcp_checks.", &service.tcp_checks);
            checks(&mut found, "services.http_checks.", &service.http_checks);
            service.ports.iter().for_each(|one| port(&mut found, one));
        }
        checks(&mut found, "checks.", self.checks.values());
        for vm in &self.vm {
            section(&mut found, "vm.", &vm.other, VM);
        }
        for mount in &self.mounts {
            section(&mut found, "mounts.", &mount.other, &[]);
        }
        for file in &self.files {
            section(&mut found, "files.", &file.other, &[]);
        }
        for one in &self.statics {
            section(&mut found, "statics.", &one.other, STATIC);
        }
        if let Some(experimental) = &self.experimental {
            section(&mut found, "experimental.", &experimental.other, EXPERIMENTAL);
        }
        if matches!(self.strategy(), Strategy::Canary | Strategy::BlueGreen) {
            found.push(Unsupported {
                key: "deploy.strategy".to_owned(),
                severity: Warn,
                note: "machines are replaced one after another instead (`rolling`)",
            });
        }
        found.sort_by_key(|it| std::cmp::Reverse(it.severity));
        found
    }
}

/// Returns further keys without those that are honoured.
fn without(other: &Other, honoured: &[&str]) -> Other {
    let rest = other.iter().filter(|(key, _)| !honoured.contains(&key.as_str()));
    rest.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn port(found: &mut Vec<Unsupported>, port: &Port) {
    let other = without(&port.other, &[TLS_OPTIONS, "proxy_proto_options"]);
    section(found, "services.ports.", &other, &[]);
    options(found, "services.ports.", port.http_options.as_ref());
}

fn options(found: &mut Vec<Unsupported>, prefix: &str, options: Option<&HttpOptions>) {
    let Some(options) = options else { return };
    let prefix = format!("{prefix}http_options.");
    section(found, &prefix, &options.other, &[]);
    if let Some(response) = &options.response {
        section(found, &format!("{prefix}response."), &response.other, &[]);
    }
    for rule in &options.replay_cache {
        section(found, &format!("{prefix}replay_cache."), &rule.other, &[]);
    }
    if let Some(sticky) = &options.sticky {
        section(found, &format!("{prefix}sticky."), &sticky.other, &[]);
    }
}

fn limits(found: &mut Vec<Unsupported>, prefix: &str, limits: Option<&Concurrency>) {
    if let Some(limits) = limits {
        section(found, &format!("{prefix}concurrency."), &limits.other, &[]);
    }
}

fn checks<'a>(
    found: &mut Vec<Unsupported>,
    prefix: &str,
    all: impl IntoIterator<Item = &'a CheckSection>,
) {
    all.into_iter().for_each(|check| section(found, prefix, &check.other, CHECK));
}

fn section(
    found: &mut Vec<Unsupported>,
    prefix: &str,
    other: &Other,
    known: &[(&str, Severity, &'static str)],
) {
    for (key, value) in other {
        if is_nothing(value) {
            continue;
        }
        let entry = known.iter().find(|(name, ..)| name == key);
        let (severity, note) =
            entry.map_or((Warn, UNKNOWN), |(_, severity, note)| (*severity, *note));
        found.push(Unsupported { key: format!("{prefix}{key}"), severity, note });
    }
}

/// Returns whether a value asks for nothing: files written by other tools are full of these.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Array(list) => list.is_empty(),
        Value::Object(table) => table.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}
