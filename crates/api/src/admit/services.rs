//! Services and their ports (contract 1.13).
//!
//! Never knows whose a port is: see [`crate::ports`].

use std::collections::BTreeSet;

use perch_types::ports::{self, Named};
use perch_types::service::{Handler, Port, Protocol, Service};
use perch_types::{Code, MachineConfig};
use serde_json::Value;

use super::refuse;
use super::unsupported::is_nothing;
use crate::reply::Failure;

/// Services of a machine.
const SERVICES_MAX: usize = 16;
/// Public ports of a service.
const PORTS_MAX: usize = 16;
/// Raw ports of a machine, ranges counted in full: all of them are claimed in one transaction.
const RAW_PORTS_MAX: usize = 24;
/// The longest list of protocols (ALPN), and the longest name of one.
const ALPN_MAX: usize = 8;
const ALPN_BYTES_MAX: usize = 32;

/// Carries out the older way to say that no request wakes a machine.
pub(super) fn autostart(config: &mut MachineConfig) -> Result<(), Failure> {
    match config.other.get("disable_machine_autostart") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(()),
        Some(Value::Bool(true)) => {
            for service in &mut config.services {
                service.autostart = Some(false);
            }
            Ok(())
        }
        Some(_) => refuse("config.disable_machine_autostart: allowed are true, false"),
    }
}

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    let services = &config.services;
    if services.len() > SERVICES_MAX {
        return refuse(format!("config.services: {} are more than {SERVICES_MAX}", services.len()));
    }
    for (index, service) in services.iter().enumerate() {
        one_service(&format!("config.services[{index}]"), service)?;
    }
    raw_ports(config)
}

fn raw_ports(config: &MachineConfig) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for Named { path, port: (protocol, port) } in ports::of_config(config) {
        if !seen.insert((protocol, port)) {
            let protocol = protocol.as_str();
            return refuse(format!("{path}.port: {protocol} {port} is named twice"));
        }
        if seen.len() > RAW_PORTS_MAX {
            let rule = "without the handler http";
            return refuse(format!("{path}.port: more than {RAW_PORTS_MAX} ports {rule}"));
        }
    }
    Ok(())
}

fn one_service(path: &str, service: &Service) -> Result<(), Failure> {
    if service.internal_port == 0 {
        return refuse(format!("{path}.internal_port: 0 is not 1 to 65535"));
    }
    if service.ports.len() > PORTS_MAX {
        let ports = service.ports.len();
        return refuse(format!("{path}.ports: {ports} are more than {PORTS_MAX}"));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        one_port(&path, port)?;
        if port.is_raw() {
            handlers(&path, service, port)?;
            proxy_proto(&path, port)?;
            tls(&path, port)?;
        }
    }
    if let Some(limits) = &service.concurrency {
        if let (Some(soft), Some(hard)) = (limits.soft_limit, limits.hard_limit)
            && soft > hard
        {
            return refuse(format!(
                "{path}.concurrency.soft_limit: {soft} is more than hard_limit {hard}"
            ));
        }
        if limits.hard_limit == Some(0) {
            return refuse(format!("{path}.concurrency.hard_limit: 0 would let nothing through"));
        }
    }
    Ok(())
}

/// Checks which ports a port stands for.
fn one_port(path: &str, port: &Port) -> Result<(), Failure> {
    match (port.port, port.start_port, port.end_port) {
        (Some(1..), None, None) => Ok(()),
        (None, Some(first @ 1..), Some(last)) if first <= last => Ok(()),
        (None, None, None) | (Some(_), None, None) => {
            refuse(format!("{path}.port: is not 1 to 65535"))
        }
        (None, ..) => refuse(format!("{path}.start_port: is not 1 to end_port")),
        (Some(_), ..) => refuse(format!("{path}.start_port: is not allowed beside port")),
    }
}

/// Checks what is done on a raw port.
fn handlers(path: &str, service: &Service, port: &Port) -> Result<(), Failure> {
    let has = |handler| port.handlers.contains(&handler);
    if service.protocol == Protocol::Udp {
        if !port.handlers.is_empty() {
            return refuse(format!("{path}.handlers: none is allowed for udp"));
        }
        if port.port != Some(service.internal_port) {
            let internal = service.internal_port;
            return refuse(format!("{path}.port: for udp it is the internal_port, {internal}"));
        }
    }
    if has(Handler::Tls) && has(Handler::PgTls) {
        return refuse(format!("{path}.handlers: tls and pg_tls exclude each other"));
    }
    Ok(())
}

/// Checks what is said of the PROXY header.
fn proxy_proto(path: &str, port: &Port) -> Result<(), Failure> {
    let Some(options) = port.other.get("proxy_proto_options").filter(|it| !is_nothing(it)) else {
        return Ok(());
    };
    let path = format!("{path}.proxy_proto_options");
    if !port.handlers.contains(&Handler::ProxyProto) {
        return refuse(format!("{path}: is for the handler proxy_proto"));
    }
    match options.get("version") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(version)) if matches!(version.as_str(), "" | "v1" | "v2") => Ok(()),
        Some(_) => refuse(format!("{path}.version: allowed are v1, v2")),
    }
}

/// Checks what is said of TLS at a raw port.
fn tls(path: &str, port: &Port) -> Result<(), Failure> {
    let Some(options) = port.other.get("tls_options").filter(|it| !is_nothing(it)) else {
        return Ok(());
    };
    let path = format!("{path}.tls_options");
    if !port.handlers.iter().any(|it| matches!(it, Handler::Tls | Handler::PgTls)) {
        return refuse(format!("{path}: is for the handlers tls and pg_tls"));
    }
    if options.get("default_self_signed").is_some_and(|it| !is_nothing(it)) {
        let text = format!("{path}.default_self_signed: is not supported by this server yet");
        return Err(Failure::new(Code::UnsupportedKey, text));
    }
    let words = |key: &str| match options.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(words)) => words.iter().map(Value::as_str).collect(),
        Some(_) => None,
    };
    let fits = |word: &&str| (1..=ALPN_BYTES_MAX).contains(&word.len());
    match words("alpn") {
        Some(alpn) if alpn.len() <= ALPN_MAX && alpn.iter().all(fits) => {}
        Some(_) | None => {
            let rule = format!("at most {ALPN_MAX} names of 1 to {ALPN_BYTES_MAX} bytes");
            return refuse(format!("{path}.alpn: is not a list of {rule}"));
        }
    }
    match words("versions") {
        Some(named) if named.iter().all(|it| matches!(*it, "TLSv1.2" | "TLSv1.3")) => Ok(()),
        Some(_) | None => refuse(format!("{path}.versions: allowed are TLSv1.2, TLSv1.3")),
    }
}
