//! Several containers in one machine, and what they share (contract 1.13).
//!
//! Never pulls an image and never starts one: names, references and bounds are all.

use std::collections::{BTreeMap, BTreeSet};

use perch_types::MachineConfig;
use perch_types::image::Reference;
use perch_types::machine_config::{
    ContainerCondition, ContainerConfig, Healthcheck, STOP_TIMEOUT_MAX, StorageType, VolumeConfig,
};

use super::checks::{headers, method, path, server_name};
use super::processes::{env_from, secrets, user};
use super::{RETRIES_MAX, refuse, stop_signal, variables, words};
use crate::reply::Failure;

/// Containers of a machine.
const CONTAINERS_MAX: usize = 16;
/// Volumes that containers share.
const VOLUMES_MAX: usize = 16;
/// Health checks of a machine's containers together.
const HEALTHCHECKS_MAX: usize = 32;
/// The longest name of a container, volume or health check.
const NAME_BYTES_MAX: usize = 63;
/// The longest interval and time of grace of a health check, in seconds.
const SECONDS_MAX: u64 = 3_600;
/// The longest that a health check may take, in seconds.
const TIMEOUT_S_MAX: u64 = 60;
/// How often in a row a health check may have to say the same.
const THRESHOLD_MAX: u32 = 100;
/// The largest volume that containers share, in MiB.
const SIZE_MB_MAX: u64 = 100 * 1024;
/// The smallest one on the disk, in MiB.
const DISK_MB_MIN: u64 = 4;

pub(super) fn check(config: &MachineConfig) -> Result<(), Failure> {
    if config.containers.is_empty() {
        if !config.volumes.is_empty() {
            return refuse("config.volumes: is for containers only; use config.containers");
        }
        return Ok(());
    }
    alone(config)?;
    let (containers, volumes) = (&config.containers, &config.volumes);
    if containers.len() > CONTAINERS_MAX {
        let count = containers.len();
        return refuse(format!("config.containers: {count} are more than {CONTAINERS_MAX}"));
    }
    if volumes.len() > VOLUMES_MAX {
        let count = volumes.len();
        return refuse(format!("config.volumes: {count} are more than {VOLUMES_MAX}"));
    }
    let checks = containers.iter().map(|one| one.healthchecks.len()).sum::<usize>();
    if checks > HEALTHCHECKS_MAX {
        return refuse(format!(
            "config.containers: {checks} health checks together are more than {HEALTHCHECKS_MAX}"
        ));
    }
    names("config.containers", containers.iter().map(|one| one.name.as_str()))?;
    names("config.volumes", volumes.iter().map(|one| one.name.as_str()))?;
    for (index, volume) in volumes.iter().enumerate() {
        self::volume(&format!("config.volumes[{index}]"), volume, config)?;
    }
    for (index, container) in containers.iter().enumerate() {
        one(&format!("config.containers[{index}]"), container, config)?;
    }
    cycles(containers)
}

/// Refuses what is a machine's of one program.
fn alone(config: &MachineConfig) -> Result<(), Failure> {
    let init = &config.init;
    let own = "each container has its own";
    for (asks, key) in [
        (!config.processes.is_empty(), "processes"),
        (!init.exec.is_empty(), "init.exec"),
        (!init.entrypoint.is_empty(), "init.entrypoint"),
        (!init.cmd.is_empty(), "init.cmd"),
        (init.tty, "init.tty"),
    ] {
        if asks {
            return refuse(format!("config.{key}: cannot be set beside config.containers; {own}"));
        }
    }
    Ok(())
}

fn names<'a>(path: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
            return refuse(format!(
                "{path}[{index}].name: is not 1 to {NAME_BYTES_MAX} letters, digits, dashes and \
                 underscores"
            ));
        }
        if !seen.insert(name) {
            return refuse(format!("{path}[{index}].name: `{name}` is there twice"));
        }
    }
    Ok(())
}

fn known<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = all.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn reference(path: &str, image: &str) -> Result<(), Failure> {
    if image.is_empty() {
        return refuse(format!("{path}.image: is missing"));
    }
    match image.parse::<Reference>() {
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("{path}.image: {error}")),
    }
}

fn volume(path: &str, volume: &VolumeConfig, config: &MachineConfig) -> Result<(), Failure> {
    let folder = match (&volume.temp_dir, volume.image()) {
        (None, Some(image)) => return reference(path, image),
        (Some(folder), None) => folder,
        _ => return refuse(format!("{path}: exactly one of temp_dir and image is needed")),
    };
    let Some(size) = folder.size_mb.filter(|size| *size > 0) else {
        return Ok(());
    };
    let (least, most) = match folder.storage_type.unwrap_or_default() {
        StorageType::Disk => (DISK_MB_MIN, SIZE_MB_MAX),
        StorageType::Memory => (1, u64::from(config.memory_mb())),
    };
    if (least..=most).contains(&size) {
        return Ok(());
    }
    refuse(format!("{path}.temp_dir.size_mb: {size} is not {least} to {most}"))
}

fn one(path: &str, one: &ContainerConfig, config: &MachineConfig) -> Result<(), Failure> {
    reference(path, &one.image)?;
    words(&format!("{path}.exec"), &one.exec)?;
    words(&format!("{path}.entrypoint"), &one.entrypoint)?;
    words(&format!("{path}.cmd"), &one.cmd)?;
    variables(&format!("{path}.env"), &one.env)?;
    if let Some(user) = &one.user {
        self::user(path, user)?;
    }
    secrets(path, &one.secrets)?;
    env_from(path, &one.env_from)?;
    super::files::check(&format!("{path}.files"), &one.files)?;
    if let Some(index) = one.files.iter().position(|file| file.image_config.is_some()) {
        return refuse(format!(
            "{path}.files[{index}].image_config: is for config.files only; allowed are raw_value, \
             secret_name"
        ));
    }
    let retries = one.restart.as_ref().and_then(|restart| restart.max_retries);
    if let Some(retries) = retries.filter(|retries| *retries > RETRIES_MAX) {
        let text = format!("{path}.restart.max_retries: {retries} is not 0 to {RETRIES_MAX}");
        return refuse(text);
    }
    if let Some(stop) = &one.stop {
        if let Some(signal) = stop.signal {
            stop_signal(&format!("{path}.stop.signal"), signal)?;
        }
        if let Some(timeout) = stop.timeout.filter(|timeout| *timeout > STOP_TIMEOUT_MAX) {
            let text = format!("{path}.stop.timeout: {timeout} is longer than {STOP_TIMEOUT_MAX}");
            return refuse(text);
        }
    }
    depends_on(path, one, &config.containers)?;
    mounts(path, one, config)?;
    let mut seen = BTreeSet::new();
    for (index, check) in one.healthchecks.iter().enumerate() {
        let path = format!("{path}.healthchecks[{index}]");
        healthcheck(&path, check)?;
        if !seen.insert(check.name.as_str()) {
            return refuse(format!("{path}.name: `{}` is there twice", check.name));
        }
    }
    Ok(())
}

fn depends_on(
    path: &str,
    one: &ContainerConfig,
    containers: &[ContainerConfig],
) -> Result<(), Failure> {
    for (index, dependency) in one.depends_on.iter().enumerate() {
        let path = format!("{path}.depends_on[{index}]");
        let Some(other) = containers.iter().find(|other| other.name == dependency.name) else {
            let shown: String = dependency.name.chars().take(NAME_BYTES_MAX).collect();
            let names = known(containers.iter().map(|one| one.name.as_str()));
            return refuse(format!(
                "{path}.name: there is no container `{shown}`; allowed are {names}"
            ));
        };
        let healthy = dependency.condition == Some(ContainerCondition::Healthy);
        if healthy && other.healthchecks.is_empty() {
            let name = &other.name;
            return refuse(format!("{path}.condition: container `{name}` has no healthchecks"));
        }
    }
    Ok(())
}

/// Refuses containers that wait for each other.
fn cycles(containers: &[ContainerConfig]) -> Result<(), Failure> {
    let mut waiting: BTreeMap<&str, BTreeSet<&str>> = containers
        .iter()
        .map(|one| {
            let names = one.depends_on.iter().map(|dependency| dependency.name.as_str());
            (one.name.as_str(), names.collect())
        })
        .collect();
    loop {
        let free: Vec<&str> =
            waiting.iter().filter(|(_, on)| on.is_empty()).map(|(name, _)| *name).collect();
        if free.is_empty() {
            break;
        }
        waiting.retain(|name, _| !free.contains(name));
        for on in waiting.values_mut() {
            on.retain(|name| !free.contains(name));
        }
    }
    let Some((name, _)) = waiting.first_key_value() else {
        return Ok(());
    };
    let index = containers.iter().position(|one| one.name == *name).unwrap_or_default();
    let names = known(waiting.keys().copied());
    refuse(format!("config.containers[{index}].depends_on: these wait for each other: {names}"))
}

/// Returns a folder's path without what can be written in several ways.
fn folder(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts.join("/")
}

fn mounts(path: &str, one: &ContainerConfig, config: &MachineConfig) -> Result<(), Failure> {
    let volumes = &config.volumes;
    if one.mounts.len() > VOLUMES_MAX {
        let count = one.mounts.len();
        return refuse(format!("{path}.mounts: {count} are more than {VOLUMES_MAX}"));
    }
    // The machine's own volumes are in every container.
    let mut paths: BTreeSet<String> =
        config.mounts.iter().map(|mount| folder(&mount.path)).collect();
    for (index, mount) in one.mounts.iter().enumerate() {
        let path = format!("{path}.mounts[{index}]");
        if !volumes.iter().any(|volume| volume.name == mount.name) {
            let shown: String = mount.name.chars().take(NAME_BYTES_MAX).collect();
            let names = known(volumes.iter().map(|one| one.name.as_str()));
            return refuse(format!(
                "{path}.name: there is no volume `{shown}`; allowed are {names}"
            ));
        }
        super::mounts::path(&path, &mount.path)?;
        if !paths.insert(folder(&mount.path)) {
            return refuse(format!("{path}.path: `{}` is mounted twice", mount.path));
        }
    }
    Ok(())
}

fn healthcheck(path: &str, check: &Healthcheck) -> Result<(), Failure> {
    names_one(path, &check.name)?;
    let given = [check.http.is_some(), check.tcp.is_some(), check.exec.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return refuse(format!("{path}: exactly one of http, tcp and exec is needed"));
    }
    for (key, given, most) in [
        ("interval", check.interval, SECONDS_MAX),
        ("grace_period", check.grace_period, SECONDS_MAX),
        ("timeout", check.timeout, TIMEOUT_S_MAX),
        ("success_threshold", check.success_threshold.map(u64::from), THRESHOLD_MAX.into()),
        ("failure_threshold", check.failure_threshold.map(u64::from), THRESHOLD_MAX.into()),
    ] {
        if let Some(given) = given.filter(|given| *given > most) {
            return refuse(format!("{path}.{key}: {given} is not 0 to {most}"));
        }
    }
    let no_port = |port: Option<u16>| port.is_none_or(|port| port == 0);
    if let Some(http) = &check.http {
        let path = format!("{path}.http");
        if no_port(http.port) {
            return refuse(format!("{path}.port: is not 1 to 65535"));
        }
        method(&path, http.method.as_deref().unwrap_or_default())?;
        self::path(&path, http.path.as_deref().unwrap_or_default())?;
        server_name(&path, http.tls_server_name.as_deref().unwrap_or_default())?;
        headers(&path, &http.headers)?;
    }
    if check.tcp.as_ref().is_some_and(|tcp| no_port(tcp.port)) {
        return refuse(format!("{path}.tcp.port: is not 1 to 65535"));
    }
    if let Some(exec) = &check.exec {
        let path = format!("{path}.exec.command");
        if exec.command.first().is_none_or(String::is_empty) {
            return refuse(format!("{path}: names no program"));
        }
        words(&path, &exec.command)?;
    }
    Ok(())
}

fn names_one(path: &str, name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
        return refuse(format!(
            "{path}.name: is not 1 to {NAME_BYTES_MAX} letters, digits, dashes, dots and \
             underscores"
        ));
    }
    Ok(())
}
