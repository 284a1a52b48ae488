//! Several main processes, and what an environment is made of (contract 1.13).
//!
//! Never looks a secret up: whoever admits a machine does (`secrets::named`), and the host when it
//! starts the program.

use perch_types::MachineConfig;
use perch_types::guest::PROCESSES_MAX;
use perch_types::machine_config::{EnvFrom, SecretRef};

use super::{refuse, variables, words};
use crate::reply::Failure;

/// Variables from fields, and from secrets, of one process.
const FROM_MAX: usize = 64;
/// The longest user.
const USER_BYTES_MAX: usize = 256;

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    let processes = &config.processes;
    if processes.len() > PROCESSES_MAX {
        let count = processes.len();
        return refuse(format!("config.processes: {count} are more than {PROCESSES_MAX}"));
    }
    if !processes.is_empty() && config.init.tty {
        return refuse("config.init.tty: several processes have no terminal; allowed is false");
    }
    for (index, process) in processes.iter().enumerate() {
        let path = format!("config.processes[{index}]");
        words(&format!("{path}.exec"), &process.exec)?;
        words(&format!("{path}.entrypoint"), &process.entrypoint)?;
        words(&format!("{path}.cmd"), &process.cmd)?;
        variables(&format!("{path}.env"), &process.env)?;
        if let Some(user) = &process.user {
            self::user(&path, user)?;
        }
        secrets(&path, &process.secrets)?;
        env_from(&path, &process.env_from)?;
    }
    Ok(())
}

/// Refuses what is no user of an image.
pub(super) fn user(path: &str, user: &str) -> Result<(), Failure> {
    if user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
        return refuse(format!("{path}.user: is not a name or `uid:gid`"));
    }
    Ok(())
}

/// Refuses secrets under names that no variable has.
pub(super) fn secrets(path: &str, secrets: &[SecretRef]) -> Result<(), Failure> {
    if secrets.len() > FROM_MAX {
        return refuse(format!("{path}.secrets: {} are more than {FROM_MAX}", secrets.len()));
    }
    for (index, secret) in secrets.iter().enumerate() {
        variable(&format!("{path}.secrets[{index}].env_var"), &secret.env_var)?;
    }
    Ok(())
}

/// Refuses fields under names that no variable has.
pub(super) fn env_from(path: &str, env_from: &[EnvFrom]) -> Result<(), Failure> {
    if env_from.len() > FROM_MAX {
        return refuse(format!("{path}.env_from: {} are more than {FROM_MAX}", env_from.len()));
    }
    for (index, one) in env_from.iter().enumerate() {
        variable(&format!("{path}.env_from[{index}].env_var"), &one.env_var)?;
    }
    Ok(())
}

fn variable(path: &str, name: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let digit = name.starts_with(|first: char| first.is_ascii_digit());
    if name.is_empty() || name.len() > 256 || digit || !name.bytes().all(plain) {
        return refuse(format!("{path}: is not a name of letters, digits and underscores"));
    }
    Ok(())
}
