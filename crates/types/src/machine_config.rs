//! A machine's configuration (contract 1.13), as it is posted and given back.
//!
//! Never drops a key: what is not typed here stays in `other` at its own level, so that a
//! GET, edit, POST round trip gives back what was sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::service::{Check, Service};
use crate::time::GoDuration;

/// Keys that are not typed, kept as they came.
pub type Other = Map<String, Value>;

/// What to run, with how much of what, and how to treat it (contract 1.13).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The image's reference; required by the API.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Environment, merged over the image's.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// What the program is.
    #[serde(default, deserialize_with = "null_is_default")]
    pub init: InitConfig,
    /// CPU and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestConfig>,
    /// Free-form labels; some keys have a meaning to clients.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub metadata: BTreeMap<String, String>,
    /// What the edge may send to it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Checks outside of services.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub checks: BTreeMap<String, Check>,
    /// What follows an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartConfig>,
    /// How to stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_config: Option<StopConfig>,
    /// Remove it when its program has ended for good.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub auto_destroy: bool,
    /// The writable layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<RootfsConfig>,
    /// Names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// `config.init`: what the program is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InitConfig {
    /// Replaces entrypoint and command entirely.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's CMD.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Gives the program a terminal.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub tty: bool,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// `config.guest`: CPU and memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestConfig {
    /// `shared` or `performance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<CpuKind>,
    /// How many CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// CPU classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuKind {
    /// A share of a CPU.
    #[default]
    Shared,
    /// CPUs of its own.
    Performance,
}

/// `config.restart`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartConfig {
    /// When to start it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// How often within five minutes, for `on-failure`; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// When a machine whose program ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// After every exit, with a back-off.
    Always,
    /// After an exit that was a failure; the API's default.
    #[default]
    OnFailure,
}

/// `config.stop_config`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StopConfig {
    /// How long the program may take; default 5 s, at most 300 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// The signal that asks it to end; default SIGINT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// `config.rootfs`: the writable layer over the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootfsConfig {
    /// Whether the layer outlives a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<RootfsPersist>,
    /// The layer's size in GiB, a hard edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// How long the writable layer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsPersist {
    /// Each start begins from the image.
    #[default]
    Never,
    /// Kept when the program is restarted, not after a stop.
    Restart,
    /// Kept until the machine is destroyed or gets another image.
    Always,
}

/// `config.dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Keep it out of `.internal`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub skip_registration: bool,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Signals that the API names (contract 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each is the signal of its name")]
pub enum Signal {
    SigAbrt,
    SigAlrm,
    SigFpe,
    SigHup,
    SigIll,
    SigInt,
    SigKill,
    SigPipe,
    SigQuit,
    SigSegv,
    SigTerm,
    SigTrap,
    SigUsr1,
    SigUsr2,
}

impl Signal {
    /// Returns Linux's number of the signal.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::SigHup => 1,
            Self::SigInt => 2,
            Self::SigQuit => 3,
            Self::SigIll => 4,
            Self::SigTrap => 5,
            Self::SigAbrt => 6,
            Self::SigFpe => 8,
            Self::SigKill => 9,
            Self::SigUsr1 => 10,
            Self::SigSegv => 11,
            Self::SigUsr2 => 12,
            Self::SigPipe => 13,
            Self::SigAlrm => 14,
            Self::SigTerm => 15,
        }
    }
}

/// The signal that asks a program to end when nothing else was said.
pub const STOP_SIGNAL_DEFAULT: Signal = Signal::SigInt;
/// How long a program may take to end when nothing else was said.
pub const STOP_TIMEOUT_DEFAULT: GoDuration = GoDuration::from_secs(5);
/// The longest that a program may ask for to end.
pub const STOP_TIMEOUT_MAX: GoDuration = GoDuration::from_secs(300);
/// Restarts within [`RESTART_WINDOW`] that `on-failure` allows when nothing else was said.
pub const RESTART_RETRIES_DEFAULT: u32 = 10;
/// The window in which restarts are counted.
pub const RESTART_WINDOW: GoDuration = GoDuration::from_secs(300);
/// CPUs when nothing else was said.
pub const GUEST_CPUS_DEFAULT: u32 = 1;
/// Memory in MiB when nothing else was said.
pub const GUEST_MEMORY_MB_DEFAULT: u32 = 256;
/// The writable layer's size in GiB when nothing else was said.
pub const ROOTFS_SIZE_GB_DEFAULT: u32 = 8;

impl MachineConfig {
    /// Returns the stop signal with its default.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        self.stop_config.as_ref().and_then(|stop| stop.signal).unwrap_or(STOP_SIGNAL_DEFAULT)
    }

    /// Returns how long a stop may take, clamped to [`STOP_TIMEOUT_MAX`].
    #[must_use]
    pub fn stop_timeout(&self) -> GoDuration {
        self.stop_config
            .as_ref()
            .and_then(|stop| stop.timeout)
            .unwrap_or(STOP_TIMEOUT_DEFAULT)
            .min(STOP_TIMEOUT_MAX)
    }

    /// Returns the restart policy with its default.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.as_ref().and_then(|restart| restart.policy).unwrap_or_default()
    }

    /// Returns how many restarts within [`RESTART_WINDOW`] `on-failure` allows.
    #[must_use]
    pub fn restart_retries_max(&self) -> u32 {
        self.restart
            .as_ref()
            .and_then(|restart| restart.max_retries)
            .unwrap_or(RESTART_RETRIES_DEFAULT)
    }

    /// Returns the CPU class with its default.
    #[must_use]
    pub fn cpu_kind(&self) -> CpuKind {
        self.guest.as_ref().and_then(|guest| guest.cpu_kind).unwrap_or_default()
    }

    /// Returns how many CPUs it has, with the default.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.guest.as_ref().and_then(|guest| guest.cpus).unwrap_or(GUEST_CPUS_DEFAULT)
    }

    /// Returns its memory in MiB, with the default.
    #[must_use]
    pub fn memory_mb(&self) -> u32 {
        self.guest.as_ref().and_then(|guest| guest.memory_mb).unwrap_or(GUEST_MEMORY_MB_DEFAULT)
    }

    /// Returns the writable layer's size in GiB, with the default.
    #[must_use]
    pub fn rootfs_size_gb(&self) -> u32 {
        self.rootfs.as_ref().and_then(|rootfs| rootfs.size_gb).unwrap_or(ROOTFS_SIZE_GB_DEFAULT)
    }

    /// Returns how long the writable layer lives.
    #[must_use]
    pub fn rootfs_persist(&self) -> RootfsPersist {
        self.rootfs.as_ref().and_then(|rootfs| rootfs.persist).unwrap_or_default()
    }

    /// Fills in what the API answers as resolved defaults (contract 1.14, point 14).
    pub fn resolve_defaults(&mut self) {
        let guest = self.guest.get_or_insert_default();
        guest.cpu_kind.get_or_insert_default();
        guest.cpus.get_or_insert(GUEST_CPUS_DEFAULT);
        guest.memory_mb.get_or_insert(GUEST_MEMORY_MB_DEFAULT);
        let restart = self.restart.get_or_insert_default();
        restart.policy.get_or_insert_default();
    }
}

/// Reads a value of which clients send `null` for "nothing" (contract 2.6).
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_survive_at_every_level() {
        let sent = serde_json::json!({
            "image": "web:1",
            "init": {"cmd": ["serve"], "swap_size_mb": 64},
            "guest": {"cpus": 2, "gpus": 0},
            "restart": {"policy": "on-failure", "gpu_bid_price": 0.5},
            "services": [{"internal_port": 80, "protocol": "tcp", "colour": "red",
                "ports": [{"port": 80, "handlers": ["http"], "later": 1}]}],
            "mounts": [{"volume": "vol_1", "path": "/data"}],
            "from_the_future": {"deep": [1, 2]},
        });
        let config: MachineConfig = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), sent);
    }

    #[test]
    fn null_means_nothing() {
        let config: MachineConfig = serde_json::from_str(
            r#"{"image":"a","env":null,"services":null,"checks":null,"init":null,"auto_destroy":null,"restart":null}"#,
        )
        .unwrap();
        assert_eq!(config, MachineConfig { image: "a".to_owned(), ..MachineConfig::default() });
    }

    #[test]
    fn defaults_are_the_contracts() {
        let mut config = MachineConfig::default();
        assert_eq!(config.stop_signal(), Signal::SigInt);
        assert_eq!(config.stop_timeout(), GoDuration::from_secs(5));
        assert_eq!(config.restart_policy(), RestartPolicy::OnFailure);
        config.resolve_defaults();
        assert_eq!(
            serde_json::to_value(&config.guest).unwrap(),
            serde_json::json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256})
        );
        assert_eq!(serde_json::to_string(&Signal::SigUsr1).unwrap(), "\"SIGUSR1\"");
    }

    #[test]
    fn a_stop_never_takes_longer_than_the_longest() {
        let config: MachineConfig =
            serde_json::from_str(r#"{"stop_config":{"timeout":"1h"}}"#).unwrap();
        assert_eq!(config.stop_timeout(), STOP_TIMEOUT_MAX);
    }
}
