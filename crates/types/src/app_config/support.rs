//! What of a file cannot be honoured yet, told by name.
//!
//! Never silent: a key that changes what runs or what is kept is refused, one that only tunes is
//! warned of.

use serde_json::Value;

use super::{AppConfig, Strategy};
use crate::machine_config::Other;
use crate::service::{Autostop, Handler};

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

const NO_AUTOSTOP: &str = "machines that nothing uses are not stopped yet; all keep running";
const NO_SUSPEND: &str = "machines that nothing uses are not suspended yet; use \"off\"";
const NO_HTTPS: &str = "the edge serves no HTTPS yet; plain HTTP is answered as it is";
const NO_TLS: &str = "`tls`: the edge serves no HTTPS yet; plain HTTP is";
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
            let known = |key: &str| matches!(key, "http_options" | "tls_options");
            let other: Other =
                http.other.clone().into_iter().filter(|(key, _)| !known(key)).collect();
            section(&mut found, "http_service.", &other, SERVICE);
        }
        for service in &self.services {
            section(&mut found, "services.", &service.other, SERVICE);
        }
        self.not_served(&mut found);
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

    /// Tells of what is known here and the edge does not do yet.
    fn not_served(&self, found: &mut Vec<Unsupported>) {
        if let Some(http) = &self.http_service {
            let asked = (http.auto_stop_machines, http.min_machines_running);
            idle(found, "http_service.", asked);
            if http.force_https == Some(true) {
                add(found, "http_service.force_https".to_owned(), Warn, NO_HTTPS);
            }
        }
        for service in &self.services {
            idle(found, "services.", (service.auto_stop_machines, service.min_machines_running));
            for port in &service.ports {
                if port.force_https == Some(true) {
                    add(found, "services.ports.force_https".to_owned(), Warn, NO_HTTPS);
                }
                if port.handlers.contains(&Handler::Tls) {
                    add(found, "services.ports.handlers".to_owned(), Warn, NO_TLS);
                }
            }
        }
    }
}

/// Tells of what is to happen to machines that nothing uses.
fn idle(
    found: &mut Vec<Unsupported>,
    prefix: &str,
    (autostop, least): (Option<Autostop>, Option<u32>),
) {
    let key = format!("{prefix}auto_stop_machines");
    match autostop {
        Some(Autostop::Stop) => add(found, key, Warn, NO_AUTOSTOP),
        Some(Autostop::Suspend) => add(found, key, Refuse, NO_SUSPEND),
        Some(Autostop::Off) | None => {}
    }
    if least.is_some_and(|least| least > 0) {
        add(found, format!("{prefix}min_machines_running"), Warn, NO_AUTOSTOP);
    }
}

/// Tells of a key, once however many services have it.
fn add(found: &mut Vec<Unsupported>, key: String, severity: Severity, note: &'static str) {
    let told = Unsupported { key, severity, note };
    if !found.contains(&told) {
        found.push(told);
    }
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
