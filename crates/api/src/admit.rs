//! Decides whether a machine's configuration can be honoured, and fills in the defaults.
//!
//! Never asks anybody. A refusal names the path and what is allowed; a key of the contract that
//! this server cannot honour is refused by name instead of being ignored; keys that nobody knows
//! are kept and given back.

mod checks;
mod containers;
mod dns;
mod files;
mod guest;
mod http_options;
mod mounts;
mod processes;
mod services;
mod statics;
#[cfg(test)]
mod tests;
mod unsupported;

use std::collections::BTreeMap;

use perch_types::directory::{MACHINE_RECORD_BYTES_MAX, record_overflow};
use perch_types::image::Reference;
use perch_types::machine_config::{STOP_TIMEOUT_MAX, Signal};
use perch_types::{Code, MachineConfig, MachineId, labels};

pub(crate) use guest::dedication;

use crate::reply::Failure;

pub(crate) use guest::check as guest;
pub(crate) use unsupported::refuse_key;

/// The largest configuration in bytes of JSON; a version of it is one document of the directory.
pub(crate) const CONFIG_BYTES_MAX: usize = 60 * 1024;
/// Variables of an environment.
const ENV_MAX: usize = 512;
/// Bytes of an environment, names and values together.
const ENV_BYTES_MAX: usize = 48 * 1024;
/// Words of a command.
const WORDS_MAX: usize = 256;
/// The largest writable layer in GiB.
const ROOTFS_SIZE_GB_MAX: u32 = 100;
/// The most restarts within the window that can be asked for.
const RETRIES_MAX: u32 = 1000;
/// Machines of which one can take the place.
const STANDBYS_MAX: usize = 8;
/// The longest name of a machine.
const NAME_BYTES_MAX: usize = 63;

/// Returns the configuration with its defaults filled in.
pub(crate) fn admit(mut config: MachineConfig) -> Result<MachineConfig, Failure> {
    unsupported::check(&config)?;
    guest::size(&mut config)?;
    services::autostart(&mut config)?;
    image(&config)?;
    environment(&config)?;
    commands(&config)?;
    processes::check(&config)?;
    guest::check("config.guest", &config)?;
    restart(&config)?;
    standbys(&config)?;
    stop(&config)?;
    rootfs(&mut config)?;
    mounts::check(&mut config)?;
    services::check(&config)?;
    checks::check(&config)?;
    containers::check(&config)?;
    metadata(&config)?;
    files::check("config.files", &config.files)?;
    statics::check(&config.statics)?;
    if let Some(dns) = &config.dns {
        dns::check(dns)?;
    }
    config.resolve_defaults();
    sizes(&config)?;
    Ok(config)
}

/// Checks a machine's name.
pub(crate) fn name(name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let rule = "1 to 63 letters, digits, dashes, dots and underscores";
    refuse(format!("name: `{shown}` is not {rule}"))
}

/// Checks how a program may be asked to end (contract 1.3).
pub(crate) fn stop_signal(path: &str, signal: Signal) -> Result<(), Failure> {
    match signal {
        Signal::SigHup
        | Signal::SigInt
        | Signal::SigQuit
        | Signal::SigKill
        | Signal::SigUsr1
        | Signal::SigUsr2
        | Signal::SigTerm => Ok(()),
        Signal::SigAbrt
        | Signal::SigAlrm
        | Signal::SigFpe
        | Signal::SigIll
        | Signal::SigPipe
        | Signal::SigSegv
        | Signal::SigTrap => refuse(format!(
            "{path}: allowed are SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM"
        )),
    }
}

/// Refuses a value; the text begins with its path.
pub(super) fn refuse<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(Code::InvalidValue, text))
}

fn image(config: &MachineConfig) -> Result<(), Failure> {
    // Every container has its own; clients leave the machine's empty.
    if config.image.is_empty() && !config.containers.is_empty() {
        return Ok(());
    }
    if config.image.is_empty() {
        return refuse("config.image: is missing");
    }
    match config.image.parse::<Reference>() {
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("config.image: {error}")),
    }
}

fn environment(config: &MachineConfig) -> Result<(), Failure> {
    variables("config.env", &config.env)
}

/// Refuses an environment that a program cannot be given.
fn variables(path: &str, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    if env.len() > ENV_MAX {
        return refuse(format!("{path}: {} variables are more than {ENV_MAX}", env.len()));
    }
    let mut bytes = 0;
    for (name, value) in env {
        let shown: String = name.chars().take(80).collect();
        if name.is_empty() || name.contains(['=', '\0']) {
            return refuse(format!("{path}: `{shown}` is not a name of a variable"));
        }
        if value.contains('\0') {
            return refuse(format!("{path}.{shown}: has a zero byte"));
        }
        bytes += name.len() + value.len();
    }
    if bytes > ENV_BYTES_MAX {
        return refuse(format!("{path}: {bytes} bytes are more than {ENV_BYTES_MAX}"));
    }
    Ok(())
}

fn commands(config: &MachineConfig) -> Result<(), Failure> {
    words("config.init.exec", &config.init.exec)?;
    words("config.init.entrypoint", &config.init.entrypoint)?;
    words("config.init.cmd", &config.init.cmd)
}

/// Refuses a command that cannot be executed.
fn words(path: &str, words: &[String]) -> Result<(), Failure> {
    if words.len() > WORDS_MAX {
        return refuse(format!("{path}: {} words are more than {WORDS_MAX}", words.len()));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return refuse(format!("{path}: has a zero byte"));
    }
    Ok(())
}

fn restart(config: &MachineConfig) -> Result<(), Failure> {
    match config.restart.as_ref().and_then(|restart| restart.max_retries) {
        Some(retries) if retries > RETRIES_MAX => {
            refuse(format!("config.restart.max_retries: {retries} is not 0 to {RETRIES_MAX}"))
        }
        _ => Ok(()),
    }
}

fn standbys(config: &MachineConfig) -> Result<(), Failure> {
    let named = &config.standbys;
    if named.len() > STANDBYS_MAX {
        return refuse(format!("config.standbys: {} are more than {STANDBYS_MAX}", named.len()));
    }
    for (index, id) in named.iter().enumerate() {
        if id.parse::<MachineId>().is_err() {
            let shown: String = id.chars().take(40).collect();
            return refuse(format!("config.standbys[{index}]: `{shown}` is not a machine's id"));
        }
    }
    if !named.is_empty() && config.schedule.is_some() {
        return refuse("config.standbys: a machine with a schedule cannot be a standby");
    }
    Ok(())
}

fn stop(config: &MachineConfig) -> Result<(), Failure> {
    let Some(stop) = &config.stop_config else {
        return Ok(());
    };
    if let Some(signal) = stop.signal {
        stop_signal("config.stop_config.signal", signal)?;
    }
    match stop.timeout {
        Some(timeout) if timeout > STOP_TIMEOUT_MAX => refuse(format!(
            "config.stop_config.timeout: {timeout} is longer than {STOP_TIMEOUT_MAX}"
        )),
        _ => Ok(()),
    }
}

fn rootfs(config: &mut MachineConfig) -> Result<(), Failure> {
    let Some(rootfs) = &mut config.rootfs else {
        return Ok(());
    };
    // Zero is how clients write "the default".
    if rootfs.size_gb == Some(0) {
        rootfs.size_gb = None;
    }
    match rootfs.size_gb {
        Some(size) if size > ROOTFS_SIZE_GB_MAX => {
            refuse(format!("config.rootfs.size_gb: {size} is not 1 to {ROOTFS_SIZE_GB_MAX}"))
        }
        _ => Ok(()),
    }
}

fn metadata(config: &MachineConfig) -> Result<(), Failure> {
    labels::check(&config.metadata).or_else(|error| refuse(format!("config.metadata: {error}")))
}

/// Checks the whole, and what of it every edge and resolver keeps in memory.
fn sizes(config: &MachineConfig) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(config).map_or(usize::MAX, |json| json.len());
    if bytes > CONFIG_BYTES_MAX {
        return refuse(format!("config: {bytes} bytes of JSON are more than {CONFIG_BYTES_MAX}"));
    }
    let over = record_overflow(config);
    if over > 0 {
        return refuse(format!(
            "config: services, statics, metadata and image together are {over} bytes over what a record \
             of a machine can hold ({MACHINE_RECORD_BYTES_MAX} bytes)"
        ));
    }
    Ok(())
}
