//! Decides whether a machine's configuration can be honoured, and fills in the defaults.
//!
//! Never asks anybody. A refusal names the path and what is allowed; a key of the contract that
//! this server cannot honour is refused by name instead of being ignored; keys that nobody knows
//! are kept and given back.

mod guest;
mod services;
#[cfg(test)]
mod tests;
mod unsupported;

use perch_types::directory::MACHINE_RECORD_BYTES_MAX;
use perch_types::image::Reference;
use perch_types::machine_config::{STOP_TIMEOUT_MAX, Signal};
use perch_types::{Code, MachineConfig};

use crate::reply::Failure;

pub(crate) use guest::check as guest;

/// The largest configuration in bytes of JSON; a version of it is one document of the directory.
pub(crate) const CONFIG_BYTES_MAX: usize = 60 * 1024;
/// Variables of an environment.
const ENV_MAX: usize = 512;
/// Bytes of an environment, names and values together.
const ENV_BYTES_MAX: usize = 48 * 1024;
/// Words of a command.
const WORDS_MAX: usize = 256;
/// Labels.
const METADATA_MAX: usize = 64;
/// The largest writable layer in GiB.
const ROOTFS_SIZE_GB_MAX: u32 = 100;
/// The most restarts within the window that can be asked for.
const RETRIES_MAX: u32 = 1000;
/// The longest name of a machine.
const NAME_BYTES_MAX: usize = 63;

/// Returns the configuration with its defaults filled in.
pub(crate) fn admit(mut config: MachineConfig) -> Result<MachineConfig, Failure> {
    unsupported::check(&config)?;
    image(&config)?;
    environment(&config)?;
    commands(&config)?;
    guest::check("config.guest", &config)?;
    restart(&config)?;
    stop(&config)?;
    rootfs(&mut config)?;
    services::check(&config)?;
    metadata(&config)?;
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
    if config.image.is_empty() {
        return refuse("config.image: is missing");
    }
    match config.image.parse::<Reference>() {
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("config.image: {error}")),
    }
}

fn environment(config: &MachineConfig) -> Result<(), Failure> {
    if config.env.len() > ENV_MAX {
        return refuse(format!(
            "config.env: {} variables are more than {ENV_MAX}",
            config.env.len()
        ));
    }
    let mut bytes = 0;
    for (name, value) in &config.env {
        let shown: String = name.chars().take(80).collect();
        if name.is_empty() || name.contains(['=', '\0']) {
            return refuse(format!("config.env: `{shown}` is not a name of a variable"));
        }
        if value.contains('\0') {
            return refuse(format!("config.env.{shown}: has a zero byte"));
        }
        bytes += name.len() + value.len();
    }
    if bytes > ENV_BYTES_MAX {
        return refuse(format!("config.env: {bytes} bytes are more than {ENV_BYTES_MAX}"));
    }
    Ok(())
}

fn commands(config: &MachineConfig) -> Result<(), Failure> {
    let init = &config.init;
    for (path, words) in [
        ("config.init.exec", &init.exec),
        ("config.init.entrypoint", &init.entrypoint),
        ("config.init.cmd", &init.cmd),
    ] {
        if words.len() > WORDS_MAX {
            return refuse(format!("{path}: {} words are more than {WORDS_MAX}", words.len()));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return refuse(format!("{path}: has a zero byte"));
        }
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
    if config.metadata.len() > METADATA_MAX {
        return refuse(format!(
            "config.metadata: {} labels are more than {METADATA_MAX}",
            config.metadata.len()
        ));
    }
    Ok(())
}

/// Checks the whole, and what of it every edge and resolver keeps in memory.
fn sizes(config: &MachineConfig) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(config).map_or(usize::MAX, |json| json.len());
    if bytes > CONFIG_BYTES_MAX {
        return refuse(format!("config: {bytes} bytes of JSON are more than {CONFIG_BYTES_MAX}"));
    }
    let kept = (&config.services, &config.metadata, &config.image);
    let record = serde_json::to_vec(&kept).map_or(usize::MAX, |json| json.len());
    let record = record.saturating_add(RECORD_FRAME_BYTES);
    if record > MACHINE_RECORD_BYTES_MAX {
        let over = record - MACHINE_RECORD_BYTES_MAX;
        return refuse(format!(
            "config: services, metadata and image together are {over} bytes over what a record \
             of a machine can hold ({MACHINE_RECORD_BYTES_MAX} bytes)"
        ));
    }
    Ok(())
}

/// Bytes of a record beside services, labels and image: names at their longest, addresses, times.
const RECORD_FRAME_BYTES: usize = 900;
