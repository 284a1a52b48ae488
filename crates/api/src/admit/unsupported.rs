//! Keys that the contract has and this server cannot honour yet.
//!
//! Never refuses a key for being there: only one that asks for something. Clients send many empty.

use perch_types::machine_config::Other;
use perch_types::ports::{PUBLIC_HTTP_PORT, PUBLIC_HTTPS_PORT};
use perch_types::service::Handler;
use perch_types::{Code, MachineConfig};
use serde_json::Value;

use crate::reply::Failure;

pub(super) const TOP: [&str; 4] = ["metrics", "cache_drive", "spot", "vm_type"];
const INIT: [&str; 1] = ["kernel_args"];
const GUEST: [&str; 3] = ["gpus", "gpu_kind", "kernel_args"];
const DNS: [&str; 1] = ["dns_forward_rules"];
const STATIC: [&str; 1] = ["tigris_bucket"];
const SERVICE: [&str; 2] = ["force_instance_key", "force_instance_description"];
const HTTP_PORT: [&str; 1] = ["proxy_proto_options"];

/// What to do about a key that is refused.
const HINT: &str = "leave it out; nothing is done about a key that cannot be honoured";

/// Refuses a key beside the configuration that asks for what there is not.
pub(crate) fn refuse_key(key: &str, value: Option<bool>) -> Result<(), Failure> {
    if value != Some(true) {
        return Ok(());
    }
    let text = format!("{key}: is not supported by this server yet");
    Err(Failure::new(Code::UnsupportedKey, text).with_hint(HINT))
}

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    let mut found = Vec::new();
    collect(&mut found, "config", &config.other, &TOP);
    collect(&mut found, "config.init", &config.init.other, &INIT);
    if let Some(guest) = &config.guest {
        collect(&mut found, "config.guest", &guest.other, &GUEST);
    }
    if let Some(restart) = &config.restart {
        collect(&mut found, "config.restart", &restart.other, &["gpu_bid_price"]);
    }
    for (index, one) in config.containers.iter().enumerate() {
        if let Some(restart) = &one.restart {
            let path = format!("config.containers[{index}].restart");
            collect(&mut found, &path, &restart.other, &["gpu_bid_price"]);
        }
    }
    if let Some(dns) = &config.dns {
        collect(&mut found, "config.dns", &dns.other, &DNS);
    }
    for (index, one) in config.statics.iter().enumerate() {
        collect(&mut found, &format!("config.statics[{index}]"), &one.other, &STATIC);
    }
    for (index, service) in config.services.iter().enumerate() {
        services(&mut found, &format!("config.services[{index}]"), service);
    }
    if found.is_empty() {
        return Ok(());
    }
    let is_are = if found.len() == 1 { "is" } else { "are" };
    let text = format!("{}: {is_are} not supported by this server yet", found.join(", "));
    Err(Failure::new(Code::UnsupportedKey, text).with_hint(HINT))
}

fn services(found: &mut Vec<String>, path: &str, service: &perch_types::service::Service) {
    collect(found, path, &service.other, &SERVICE);
    for (index, port) in service.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        if port.is_raw() {
            continue;
        }
        collect(found, &path, &port.other, &HTTP_PORT);
        // All apps share these two, and what the edge does on them is the same for all.
        let ends_tls = port.handlers.contains(&Handler::Tls);
        if port.range().contains(&PUBLIC_HTTP_PORT) && ends_tls {
            found.push(format!("{path}.handlers tls on port {PUBLIC_HTTP_PORT}"));
        }
        if port.range().contains(&PUBLIC_HTTPS_PORT) && !ends_tls {
            found.push(format!("{path}.handlers http without tls on port {PUBLIC_HTTPS_PORT}"));
        }
        if port.handlers.iter().any(|it| matches!(it, Handler::PgTls | Handler::ProxyProto)) {
            found.push(format!("{path}.handlers other than tls with http"));
        }
    }
}

fn collect(found: &mut Vec<String>, path: &str, other: &Other, keys: &[&str]) {
    let asks = keys.iter().filter(|key| other.get(**key).is_some_and(|value| !is_nothing(value)));
    found.extend(asks.map(|key| format!("{path}.{key}")));
}

/// Returns whether a value asks for nothing.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}
