//! Services and their ports (contract 1.13).
//!
//! Never knows whose a port is: see [`crate::ports`].

use std::collections::BTreeSet;

use perch_types::MachineConfig;
use perch_types::ports::{self, Named};
use perch_types::service::{Handler, HttpOptions, Port, Protocol, Service, TlsOptions};
use serde_json::Value;

use super::unsupported::is_nothing;
use super::{http_options, refuse};
use crate::reply::Failure;

/// Services of a machine.
const SERVICES_MAX: usize = 16;
/// Public ports of a service.
const PORTS_MAX: usize = 16;
/// Claimed ports of a machine, ranges counted in full: all of them are claimed in one transaction.
const RAW_PORTS_MAX: usize = 24;

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
    claimed_ports(config)
}

fn claimed_ports(config: &MachineConfig) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for Named { path, port: (protocol, port), .. } in ports::of_config(config) {
        if !seen.insert((protocol, port)) {
            let protocol = protocol.as_str();
            return refuse(format!("{path}.port: {protocol} {port} is named twice"));
        }
        if seen.len() > RAW_PORTS_MAX {
            let rule = "beside 80 and 443";
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
        if let Err(bad) = TlsOptions::of(port) {
            return refuse(format!("{path}.tls_options{bad}"));
        }
        if port.is_raw() || service.protocol == Protocol::Udp {
            handlers(&path, service, port)?;
            proxy_proto(&path, port)?;
        }
        http_only(&path, port)?;
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
        (_, None, None) => refuse(format!("{path}.port: is not 1 to 65535")),
        (None, ..) => refuse(format!("{path}.start_port: is not 1 to end_port")),
        (Some(_), ..) => refuse(format!("{path}.start_port: is not allowed beside port")),
    }
}

/// Checks what is done on a port without HTTP; datagrams pass as they are.
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

/// Checks what only has a meaning where the edge speaks HTTP.
fn http_only(path: &str, port: &Port) -> Result<(), Failure> {
    let speaks_http = !port.is_raw();
    if port.force_https == Some(true) && !speaks_http {
        return refuse(format!("{path}.force_https: is only for ports with the handler http"));
    }
    let Some(options) = &port.http_options else { return Ok(()) };
    let path = format!("{path}.http_options");
    if !speaks_http && *options != HttpOptions::default() {
        return refuse(format!("{path}: is only for ports with the handler http"));
    }
    http_options::check(&path, options)
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
