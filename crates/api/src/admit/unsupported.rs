//! Keys that the contract has and this server cannot honour yet.
//!
//! Never refuses a key for being there: only one that asks for something. Clients send many empty.

use perch_types::machine_config::Other;
use perch_types::service::{Autostop, Handler, Protocol};
use perch_types::{Code, MachineConfig};
use serde_json::Value;

use crate::reply::Failure;

pub(super) const TOP: [&str; 13] = [
    "metrics",
    "statics",
    "files",
    "schedule",
    "processes",
    "standbys",
    "containers",
    "volumes",
    "cache_drive",
    "spot",
    "size",
    "disable_machine_autostart",
    "vm_type",
];
const INIT: [&str; 2] = ["swap_size_mb", "kernel_args"];
const GUEST: [&str; 6] =
    ["max_memory_mb", "gpus", "gpu_kind", "host_dedication_id", "persist_rootfs", "kernel_args"];
const DNS: [&str; 6] =
    ["nameservers", "searches", "options", "dns_forward_rules", "hostname", "hostname_fqdn"];
const SERVICE: [&str; 2] = ["force_instance_key", "force_instance_description"];
const PORT: [&str; 3] = ["tls_options", "http_options", "proxy_proto_options"];
const CHECK: [&str; 3] = ["headers", "tls_skip_verify", "tls_server_name"];

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    let mut found = Vec::new();
    collect(&mut found, "config", &config.other, &TOP);
    collect(&mut found, "config.init", &config.init.other, &INIT);
    if let Some(guest) = &config.guest {
        let asks = |key: &&str| *key != "persist_rootfs" || !is_never(guest.other.get(*key));
        let keys: Vec<&str> = GUEST.into_iter().filter(asks).collect();
        collect(&mut found, "config.guest", &guest.other, &keys);
    }
    if let Some(dns) = &config.dns {
        collect(&mut found, "config.dns", &dns.other, &DNS);
    }
    for (index, service) in config.services.iter().enumerate() {
        services(&mut found, &format!("config.services[{index}]"), service);
    }
    for (name, check) in &config.checks {
        let shown: String = name.chars().take(80).collect();
        one_check(&mut found, &format!("config.checks.{shown}"), check);
    }
    if found.is_empty() {
        return Ok(());
    }
    let is_are = if found.len() == 1 { "is" } else { "are" };
    let text = format!("{}: {is_are} not supported by this server yet", found.join(", "));
    Err(Failure::new(Code::UnsupportedKey, text)
        .with_hint("leave it out; nothing is done about a key that cannot be honoured"))
}

fn services(found: &mut Vec<String>, path: &str, service: &perch_types::service::Service) {
    collect(found, path, &service.other, &SERVICE);
    if service.protocol == Protocol::Udp {
        found.push(format!("{path}.protocol udp"));
    }
    if service.autostop == Some(Autostop::Suspend) {
        found.push(format!("{path}.autostop suspend"));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        collect(found, &path, &port.other, &PORT);
        if port.start_port.is_some() || port.end_port.is_some() {
            found.push(format!("{path}.start_port"));
        }
        let raw = !port.handlers.contains(&Handler::Http);
        let other = |handler: &Handler| !matches!(handler, Handler::Http | Handler::Tls);
        if raw || port.handlers.iter().any(other) {
            found.push(format!("{path}.handlers other than http and tls with http"));
        }
    }
    for (index, check) in service.checks.iter().enumerate() {
        one_check(found, &format!("{path}.checks[{index}]"), check);
    }
}

fn one_check(found: &mut Vec<String>, path: &str, check: &perch_types::service::Check) {
    collect(found, path, &check.other, &CHECK);
    if check.other.get("protocol").and_then(Value::as_str) == Some("https") {
        found.push(format!("{path}.protocol https"));
    }
    if check.other.get("kind").and_then(Value::as_str) == Some("readiness") {
        found.push(format!("{path}.kind readiness"));
    }
}

fn collect(found: &mut Vec<String>, path: &str, other: &Other, keys: &[&str]) {
    let asks = keys.iter().filter(|key| other.get(**key).is_some_and(|value| !is_nothing(value)));
    found.extend(asks.map(|key| format!("{path}.{key}")));
}

/// Returns whether a value asks for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}

/// Returns whether a value of the older `persist_rootfs` says never (contract 1.13).
fn is_never(value: Option<&Value>) -> bool {
    match value {
        Some(Value::String(text)) => matches!(text.as_str(), "" | "none" | "never"),
        Some(Value::Number(number)) => number.as_u64().is_some_and(|number| number < 2),
        Some(_) | None => true,
    }
}
