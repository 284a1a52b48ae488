//! Services, ports and checks (contract 1.13).
//!
//! Never knows which ports the edge has: it takes requests by host name.

use std::collections::BTreeMap;

use perch_types::service::{Check, Service};
use perch_types::{Code, GoDuration, MachineConfig};
use serde_json::Value;

use super::refuse;
use crate::reply::Failure;

/// Services of a machine.
const SERVICES_MAX: usize = 16;
/// Public ports of a service.
const PORTS_MAX: usize = 16;
/// Checks of a machine, those of its services included.
const CHECKS_MAX: usize = 32;
/// The longest that a check may take.
const CHECK_TIMEOUT_MAX: GoDuration = GoDuration::from_secs(60);
/// The longest path of a check.
const CHECK_PATH_BYTES_MAX: usize = 1024;

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
    let checks = services.iter().map(|service| service.checks.len()).sum::<usize>();
    if checks + config.checks.len() > CHECKS_MAX {
        return refuse(format!("config.checks: all checks together are more than {CHECKS_MAX}"));
    }
    for (index, service) in services.iter().enumerate() {
        one_service(&format!("config.services[{index}]"), service)?;
    }
    top_checks(&config.checks)
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
    for (index, check) in service.checks.iter().enumerate() {
        one_check(&format!("{path}.checks[{index}]"), check)?;
    }
    Ok(())
}

fn top_checks(checks: &BTreeMap<String, Check>) -> Result<(), Failure> {
    for (name, check) in checks {
        let shown: String = name.chars().take(80).collect();
        let path = format!("config.checks.{shown}");
        if name.is_empty() || name.len() > 80 || name.chars().any(char::is_control) {
            return refuse(format!("{path}: is not a name of 1 to 80 bytes"));
        }
        if check.port.is_none_or(|port| port == 0) {
            return refuse(format!("{path}.port: is not 1 to 65535"));
        }
        one_check(&path, check)?;
    }
    Ok(())
}

fn one_check(path: &str, check: &Check) -> Result<(), Failure> {
    if check.kind.is_none() {
        return refuse(format!("{path}.type: is missing; allowed are http, tcp"));
    }
    if check.port == Some(0) {
        return refuse(format!("{path}.port: 0 is not 1 to 65535"));
    }
    if let Some(timeout) = check.timeout.filter(|timeout| *timeout > CHECK_TIMEOUT_MAX) {
        return refuse(format!("{path}.timeout: {timeout} is longer than {CHECK_TIMEOUT_MAX}"));
    }
    if let Some(method) = &check.method {
        let known = ["GET", "HEAD", "POST", "PUT", "OPTIONS"];
        if !method.is_empty() && !known.contains(&method.to_ascii_uppercase().as_str()) {
            return refuse(format!("{path}.method: allowed are {}", known.join(", ")));
        }
    }
    if let Some(check_path) = &check.path {
        let plain = check_path.bytes().all(|byte| byte.is_ascii_graphic());
        let bad = !check_path.starts_with('/') || check_path.len() > CHECK_PATH_BYTES_MAX || !plain;
        if !check_path.is_empty() && bad {
            let text = format!("{path}.path: is not a path that begins with `/`");
            return Err(Failure::new(Code::InvalidValue, text));
        }
    }
    Ok(())
}
