//! Services and their ports (contract 1.13).
//!
//! Never knows which ports the edge has: it takes requests by host name.

use perch_types::MachineConfig;
use perch_types::service::{Handler, HttpOptions, Service, TlsOptions};
use serde_json::Value;

use super::{http_options, refuse};
use crate::reply::Failure;

/// Services of a machine.
const SERVICES_MAX: usize = 16;
/// Public ports of a service.
const PORTS_MAX: usize = 16;

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
        if port.port.is_none_or(|port| port == 0) {
            return refuse(format!("{path}.ports[{index}].port: is not 1 to 65535"));
        }
        if let Err(bad) = TlsOptions::of(port) {
            return refuse(format!("{path}.ports[{index}].tls_options{bad}"));
        }
        let speaks_http = port.handlers.contains(&Handler::Http);
        if port.force_https == Some(true) && !speaks_http {
            return refuse(format!(
                "{path}.ports[{index}].force_https: is only for ports with the handler http"
            ));
        }
        if let Some(options) = &port.http_options {
            let path = format!("{path}.ports[{index}].http_options");
            if !speaks_http && *options != HttpOptions::default() {
                return refuse(format!("{path}: is only for ports with the handler http"));
            }
            http_options::check(&path, options)?;
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
