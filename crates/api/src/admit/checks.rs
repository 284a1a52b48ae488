//! Checks of services and of the machine (contract 1.13).
//!
//! Never carries one out, and never looks a name up.

use perch_types::MachineConfig;
use perch_types::service::{
    CHECK_TIMEOUT_MAX, Check, CheckPurpose, HttpHeader, MACHINE_CHECK_INTERVAL_MIN,
};

use super::refuse;
use crate::reply::Failure;

/// Checks of a machine, those of its services included.
const CHECKS_MAX: usize = 32;
/// The longest name of a check.
const NAME_BYTES_MAX: usize = 80;
/// The longest path of a check.
const PATH_BYTES_MAX: usize = 1024;
/// Headers of a check.
const HEADERS_MAX: usize = 16;
/// Values of a header.
const VALUES_MAX: usize = 8;
/// The longest name or value of a header, and the longest name of a server.
const HEADER_BYTES_MAX: usize = 256;
/// Methods of a check.
pub(super) const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "OPTIONS"];

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    let of_services = config.services.iter().map(|service| service.checks.len()).sum::<usize>();
    if of_services + config.checks.len() > CHECKS_MAX {
        return refuse(format!("config.checks: all checks together are more than {CHECKS_MAX}"));
    }
    for (index, service) in config.services.iter().enumerate() {
        for (number, check) in service.checks.iter().enumerate() {
            let path = format!("config.services[{index}].checks[{number}]");
            if check.purpose == Some(CheckPurpose::Informational) {
                return refuse(format!(
                    "{path}.kind: allowed is readiness, as for every check of a service"
                ));
            }
            one(&path, check)?;
        }
    }
    for (name, check) in &config.checks {
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        let path = format!("config.checks.{shown}");
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return refuse(format!("{path}: is not a name of 1 to {NAME_BYTES_MAX} bytes"));
        }
        if check.port.is_none_or(|port| port == 0) {
            return refuse(format!("{path}.port: is not 1 to 65535"));
        }
        if let Some(interval) = check.interval.filter(|one| *one < MACHINE_CHECK_INTERVAL_MIN) {
            return refuse(format!(
                "{path}.interval: {interval} is shorter than {MACHINE_CHECK_INTERVAL_MIN}"
            ));
        }
        one(&path, check)?;
    }
    Ok(())
}

fn one(path: &str, check: &Check) -> Result<(), Failure> {
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
        self::method(path, method)?;
    }
    if let Some(text) = &check.path {
        self::path(path, text)?;
    }
    if let Some(name) = &check.tls_server_name {
        server_name(path, name)?;
    }
    headers(path, &check.headers)
}

/// Refuses a method that no check may have; nothing is the default.
pub(super) fn method(path: &str, method: &str) -> Result<(), Failure> {
    if method.is_empty() || METHODS.contains(&method.to_ascii_uppercase().as_str()) {
        return Ok(());
    }
    refuse(format!("{path}.method: allowed are {}", METHODS.join(", ")))
}

/// Refuses what is no path; nothing is the default.
pub(super) fn path(path: &str, text: &str) -> Result<(), Failure> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    let bad = !text.starts_with('/') || text.len() > PATH_BYTES_MAX || !plain;
    if text.is_empty() || !bad {
        return Ok(());
    }
    refuse(format!(
        "{path}.path: is not a path that begins with `/`, of at most {PATH_BYTES_MAX} printable \
         bytes"
    ))
}

/// Refuses what is no name of a server; nothing is the default.
pub(super) fn server_name(path: &str, name: &str) -> Result<(), Failure> {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if name.len() <= HEADER_BYTES_MAX && name.bytes().all(plain) {
        return Ok(());
    }
    refuse(format!("{path}.tls_server_name: is not a host name"))
}

/// Refuses headers that cannot be sent.
pub(super) fn headers(path: &str, headers: &[HttpHeader]) -> Result<(), Failure> {
    if headers.len() > HEADERS_MAX {
        return refuse(format!("{path}.headers: {} are more than {HEADERS_MAX}", headers.len()));
    }
    for (index, header) in headers.iter().enumerate() {
        let path = format!("{path}.headers[{index}]");
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let name = &header.name;
        if name.is_empty() || name.len() > HEADER_BYTES_MAX || !name.bytes().all(token) {
            return refuse(format!("{path}.name: is not a name of a header"));
        }
        // These say where the request ends, which is not for a configuration to say.
        let framing = ["content-length", "transfer-encoding", "connection", "upgrade", "te"];
        if framing.contains(&name.to_ascii_lowercase().as_str()) {
            return refuse(format!("{path}.name: `{name}` cannot be set"));
        }
        if header.values.len() > VALUES_MAX {
            let values = header.values.len();
            return refuse(format!("{path}.values: {values} are more than {VALUES_MAX}"));
        }
        for (index, value) in header.values.iter().enumerate() {
            let plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            if value.len() > HEADER_BYTES_MAX || !plain {
                return refuse(format!(
                    "{path}.values[{index}]: is not a value of at most {HEADER_BYTES_MAX} \
                     printable bytes"
                ));
            }
        }
    }
    Ok(())
}
