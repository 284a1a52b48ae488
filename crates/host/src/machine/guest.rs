//! What a machine's program is started with: arguments, environment, user, files.
//!
//! Never touches the machine: init gets the result through a socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use perch_runtime::{GuestStart, Limits};
use perch_types::env::machine as names;
use perch_types::image::{ImageConfig, ImageRef};
use perch_types::machine_config::{CpuKind, MachineConfig};
use perch_types::{ApiError, Code, Region, Secret};

use super::files::{Given, files};
use super::names::{hostname, hosts, resolv_conf};
use super::processes::{Sources, processes};
use super::record::{Record, Version};

/// The label that names a machine's process group.
const PROCESS_GROUP_LABEL: &str = "fly_process_group";
/// The process group of machines that name none.
const PROCESS_GROUP_DEFAULT: &str = "app";
/// Thousandths of a CPU that a shared CPU may use at most.
const SHARED_CPU_MILLI: u32 = 1000;
/// The weight of a CPU of one's own against a shared one's 100.
const PERFORMANCE_WEIGHT: u32 = 1000;

/// Where a machine is, as its program sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The region.
    pub region: Region,
    /// Its private IPv6 address.
    pub private_ip: Ipv6Addr,
    /// Its private IPv4 address.
    pub private_ipv4: Ipv4Addr,
    /// The address that its requests to the internet come from, if this server has a public one.
    pub public_ip: Option<IpAddr>,
    /// The resolvers.
    pub resolvers: Vec<IpAddr>,
}

/// Returns everything that the program of a version is started with.
///
/// # Errors
/// When neither the image nor the configuration names a program, or a file has no content.
pub fn guest_start(
    record: &Record,
    version: &Version,
    image: &ImageConfig,
    around: &Surroundings,
    given: &Given,
) -> Result<GuestStart, ApiError> {
    let argv = argv(&version.config, image);
    let sources = Sources { record, version, around, secrets: &given.secrets };
    let processes = processes(sources, image)?;
    if argv.is_empty() && processes.is_empty() {
        return Err(ApiError::new(
            Code::InvalidValue,
            "the image names no program to run and the configuration's `init` neither",
        )
        .with_hint("set `init.exec` or `init.cmd`, or give the image a CMD"));
    }
    let config = &version.config;
    Ok(GuestStart {
        argv,
        env: environment(record, version, image, (around, given)),
        user: image.user.clone(),
        cwd: image.working_dir.clone(),
        tty: version.config.init.tty,
        processes,
        // Only the monitor has descriptors to give.
        outputs: false,
        stop_signal: version.config.stop_signal().number(),
        stop_grace_ms: u64::try_from(version.config.stop_timeout().get().as_millis())
            .unwrap_or(u64::MAX),
        hostname: Some(format!("{}\n", hostname(&record.id, config))),
        hosts: Some(hosts(&record.id, config, around)),
        resolv_conf: Some(resolv_conf(config, around)),
        files: files(&config.files, given)?,
        // One of a machine of containers does.
        stays: false,
    })
}

/// Returns the program and its arguments: `init.exec` alone, or entrypoint and command, each the
/// image's unless overridden (contract 1.13).
pub(super) fn argv(config: &MachineConfig, image: &ImageConfig) -> Vec<String> {
    let init = &config.init;
    if !init.exec.is_empty() {
        return init.exec.clone();
    }
    let entrypoint = if init.entrypoint.is_empty() { &image.entrypoint } else { &init.entrypoint };
    let cmd = if init.cmd.is_empty() { &image.cmd } else { &init.cmd };
    entrypoint.iter().chain(cmd).cloned().collect()
}

/// Returns the environment; a later one wins: image, machine, secrets, platform (contract 5.4).
fn environment(
    record: &Record,
    version: &Version,
    image: &ImageConfig,
    (around, given): (&Surroundings, &Given),
) -> BTreeMap<String, Secret> {
    let config = &version.config;
    let mut env: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, value) in image.env.iter().chain(&config.env) {
        env.insert(name.clone(), Secret::new(value.as_str()));
    }
    env.extend(given.secrets.clone());
    let group = config.metadata.get(PROCESS_GROUP_LABEL).map(String::as_str);
    let named = config.env.get("FLY_PROCESS_GROUP").map(String::as_str);
    let own = |name: &str| config.env.get(&format!("{}{name}", names::PREFIXES[0])).cloned();
    let mut platform = vec![
        (names::APP_NAME, record.app.to_string()),
        (names::MACHINE_ID, record.id.to_string()),
        (names::ALLOC_ID, record.id.to_string()),
        (names::REGION, around.region.to_string()),
        (names::IMAGE_REF, image_text(&version.image, &config.image)),
        (names::MACHINE_VERSION, version.instance.to_string()),
        (names::PRIVATE_IP, around.private_ip.to_string()),
        (names::PROCESS_GROUP, group.or(named).unwrap_or(PROCESS_GROUP_DEFAULT).to_owned()),
        (names::VM_MEMORY_MB, config.memory_mb().to_string()),
    ];
    platform.extend(around.public_ip.map(|address| (names::PUBLIC_IP, address.to_string())));
    for name in names::SET_BY_CLIENTS {
        platform.extend(own(name).map(|value| (name, value)));
    }
    for (name, value) in platform {
        for prefix in names::PREFIXES {
            env.insert(format!("{prefix}{name}"), Secret::new(value.as_str()));
        }
    }
    env.entry(names::PRIMARY_REGION.to_owned())
        .or_insert_with(|| Secret::new(around.region.as_str()));
    env
}

pub(super) fn image_text(image: &ImageRef, configured: &str) -> String {
    if image.repository.is_empty() {
        return configured.to_owned();
    }
    let mut text = format!("{}/{}", image.registry, image.repository);
    if !image.tag.is_empty() {
        text.push(':');
        text.push_str(&image.tag);
    }
    if let Some(digest) = &image.digest {
        text.push('@');
        text.push_str(digest.as_str());
    }
    text
}

/// Returns what a machine of this configuration may use.
#[must_use]
pub fn limits(config: &MachineConfig) -> Limits {
    let cpus = config.cpus().clamp(1, 64);
    let weight = match config.cpu_kind() {
        CpuKind::Shared => 100,
        CpuKind::Performance => PERFORMANCE_WEIGHT,
    };
    Limits {
        memory_bytes: u64::from(config.memory_mb()) * 1024 * 1024,
        swap_bytes: u64::from(config.swap_mb()) * 1024 * 1024,
        cpu_milli: Some(cpus * SHARED_CPU_MILLI),
        cpu_weight: (cpus * weight).min(10_000),
        ..Limits::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::machine::record::tests::record;

    pub(in crate::machine) fn around() -> Surroundings {
        Surroundings {
            region: "ams".parse().unwrap(),
            private_ip: "fdaa::1:2".parse().unwrap(),
            private_ipv4: Ipv4Addr::new(10, 209, 0, 16),
            public_ip: None,
            resolvers: vec!["fdaa::3".parse().unwrap(), "10.209.0.1".parse().unwrap()],
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_program_is_the_images_unless_overridden() {
        let image = ImageConfig {
            entrypoint: words("/entry"),
            cmd: words("serve"),
            ..ImageConfig::default()
        };
        for (exec, entrypoint, cmd, want) in [
            ("", "", "", "/entry serve"),
            ("", "/other", "", "/other serve"),
            ("", "", "migrate all", "/entry migrate all"),
            ("/bin/sh -x", "/other", "migrate", "/bin/sh -x"),
        ] {
            let mut config = MachineConfig::default();
            config.init.exec = words(exec);
            config.init.entrypoint = words(entrypoint);
            config.init.cmd = words(cmd);
            assert_eq!(argv(&config, &image), words(want));
        }
    }

    #[test]
    fn a_machine_without_a_program_is_refused_with_a_way_out() {
        let record = record();
        let error = guest_start(
            &record,
            &record.version,
            &ImageConfig::default(),
            &around(),
            &Given::default(),
        );
        let error = error.unwrap_err();
        assert_eq!(error.code, Code::InvalidValue);
        assert!(error.hint.is_some());
    }

    #[test]
    fn later_environments_win() {
        let mut record = record();
        let image = ImageConfig {
            env: [("A", "image"), ("B", "image"), ("C", "image"), ("FLY_REGION", "image")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            cmd: words("serve"),
            ..ImageConfig::default()
        };
        record.version.config.env = [
            ("B", "machine"),
            ("C", "machine"),
            ("FLY_APP_NAME", "forged"),
            ("PRIMARY_REGION", "fra"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        record.version.config.env.insert("FLY_STANDBY_FOR".to_owned(), "another".to_owned());
        let around =
            Surroundings { public_ip: Some(Ipv4Addr::new(192, 0, 2, 7).into()), ..around() };
        let secrets = [("C", "secret"), ("FLY_MACHINE_ID", "secret")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), Secret::new(value))).into();
        let given = Given { secrets, ..Given::default() };
        let start = guest_start(&record, &record.version, &image, &around, &given).unwrap();
        let env: Vec<String> =
            start.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
        insta::assert_snapshot!(env.join("\n"), @r"
        A=image
        B=machine
        C=secret
        FLY_ALLOC_ID=00000000000abc
        FLY_APP_NAME=web
        FLY_IMAGE_REF=web:1
        FLY_MACHINE_ID=00000000000abc
        FLY_MACHINE_VERSION=01HF7YAT000000000000000007
        FLY_PRIVATE_IP=fdaa::1:2
        FLY_PROCESS_GROUP=app
        FLY_PUBLIC_IP=192.0.2.7
        FLY_REGION=ams
        FLY_STANDBY_FOR=another
        FLY_VM_MEMORY_MB=256
        PERCH_ALLOC_ID=00000000000abc
        PERCH_APP_NAME=web
        PERCH_IMAGE_REF=web:1
        PERCH_MACHINE_ID=00000000000abc
        PERCH_MACHINE_VERSION=01HF7YAT000000000000000007
        PERCH_PRIVATE_IP=fdaa::1:2
        PERCH_PROCESS_GROUP=app
        PERCH_PUBLIC_IP=192.0.2.7
        PERCH_REGION=ams
        PERCH_STANDBY_FOR=another
        PERCH_VM_MEMORY_MB=256
        PRIMARY_REGION=fra
        ");
        assert_eq!(start.hostname.as_deref(), Some("00000000000abc\n"));
    }
}
