//! A machine's configuration (contract 1.13), as it is posted and given back.
//!
//! Never drops a key: what is not typed here stays in `other` at its own level, so that a
//! GET, edit, POST round trip gives back what was sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::schedule::Schedule;
use crate::service::{Check, Service};
use crate::time::GoDuration;

mod container;
mod dns;
mod files;
mod guest;
mod init;
mod mount;
mod process;
mod restart;
mod rootfs;
mod statics;
mod stop;

pub use container::{
    ContainerCondition, ContainerConfig, ContainerDependency, ContainerMount, ExecHealthcheck,
    Healthcheck, HealthcheckKind, HttpHealthcheck, StorageType, TcpHealthcheck, TempDir,
    UnhealthyPolicy, VolumeConfig,
};
pub use dns::{DnsConfig, DnsOption};
pub use files::{FILE_MODE_DEFAULT, FileConfig};
pub use guest::{CpuKind, GUEST_CPUS_DEFAULT, GuestConfig};
pub use init::InitConfig;
pub use mount::{AutoExtend, MountConfig};
pub use process::{EnvFrom, FieldRef, ProcessConfig, SecretRef};
pub use restart::{RESTART_RETRIES_DEFAULT, RESTART_WINDOW, RestartConfig, RestartPolicy};
pub use rootfs::{ROOTFS_SIZE_GB_DEFAULT, RootfsConfig, RootfsPersist};
pub use statics::StaticConfig;
pub use stop::{STOP_SIGNAL_DEFAULT, STOP_TIMEOUT_DEFAULT, STOP_TIMEOUT_MAX, Signal, StopConfig};

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
    /// Free-form labels; some keys have a meaning to clients. `perch_weight`, 0 to 100, says of how
    /// many of a hundred requests the machine is a candidate beside others.
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
    /// Several main processes instead of one.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessConfig>,
    /// Several images instead of one.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerConfig>,
    /// What containers share and what ends with the boot.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeConfig>,
    /// What follows an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartConfig>,
    /// How to stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_config: Option<StopConfig>,
    /// Remove it when its program has ended for good.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub auto_destroy: bool,
    /// How often it is started by itself.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Machines of which it takes the place when one of them fails.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<String>,
    /// The writable layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<RootfsConfig>,
    /// Names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
    /// Files that are written before the program starts.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileConfig>,
    /// Volumes.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// Files of the image that the edge serves.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub statics: Vec<StaticConfig>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl MachineConfig {
    /// Returns whether something else than a request says when it runs: it stands by for others, or
    /// has a schedule.
    #[must_use]
    pub fn starts_by_other_means(&self) -> bool {
        !self.standbys.is_empty() || self.schedule.is_some()
    }

    /// Returns the stop signal with its default.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        self.stop_config.as_ref().and_then(|stop| stop.signal).unwrap_or(STOP_SIGNAL_DEFAULT)
    }

    /// Returns how long a stop may take, clamped to [`STOP_TIMEOUT_MAX`]. Containers may be stopped
    /// one after another: unless something else was said they have all their times together.
    #[must_use]
    pub fn stop_timeout(&self) -> GoDuration {
        let own = self.stop_config.as_ref().and_then(|stop| stop.timeout);
        let of_containers = || {
            let each = self.containers.iter().map(|one| one.stop_timeout(STOP_TIMEOUT_DEFAULT));
            GoDuration::new(each.map(GoDuration::get).sum())
        };
        own.unwrap_or_else(|| of_containers().max(STOP_TIMEOUT_DEFAULT)).min(STOP_TIMEOUT_MAX)
    }

    /// Returns the references of the images that it needs: the program's, or every container's in
    /// their order, and then those of volumes that are images.
    #[must_use]
    pub fn image_references(&self) -> Vec<&str> {
        if self.containers.is_empty() {
            return vec![&self.image];
        }
        let containers = self.containers.iter().map(|one| one.image.as_str());
        containers.chain(self.volumes.iter().filter_map(VolumeConfig::image)).collect()
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
        let default = || self.cpus().saturating_mul(self.cpu_kind().memory_mb_per_cpu());
        self.guest.as_ref().and_then(|guest| guest.memory_mb).unwrap_or_else(default)
    }

    /// Returns the most memory in MiB that it may be given while it runs.
    #[must_use]
    pub fn max_memory_mb(&self) -> u32 {
        let asked = self.guest.as_ref().and_then(|guest| guest.max_memory_mb).unwrap_or_default();
        asked.max(self.memory_mb())
    }

    /// Returns the writable layer's size in GiB, with the default.
    #[must_use]
    pub fn rootfs_size_gb(&self) -> u32 {
        self.rootfs.as_ref().and_then(|rootfs| rootfs.size_gb).unwrap_or(ROOTFS_SIZE_GB_DEFAULT)
    }

    /// Returns how long the writable layer lives.
    #[must_use]
    pub fn rootfs_persist(&self) -> RootfsPersist {
        let older = || {
            let value = self.guest.as_ref()?.other.get("persist_rootfs")?;
            RootfsPersist::of_older(value)
        };
        let own = self.rootfs.as_ref().and_then(|rootfs| rootfs.persist);
        own.or_else(older).unwrap_or_default()
    }

    /// Returns its swap in MiB.
    #[must_use]
    pub fn swap_mb(&self) -> u32 {
        self.init.swap_size_mb.unwrap_or_default()
    }

    /// Fills in what the API answers as resolved defaults (contract 1.14, point 14).
    pub fn resolve_defaults(&mut self) {
        let (cpus, memory_mb) = (self.cpus(), self.memory_mb());
        let guest = self.guest.get_or_insert_default();
        guest.cpu_kind.get_or_insert_default();
        guest.cpus.get_or_insert(cpus);
        guest.memory_mb.get_or_insert(memory_mb);
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

/// Reads a word of which clients send `""` or `null` for "nothing".
fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    match Option::<String>::deserialize(deserializer)? {
        Some(word) if !word.is_empty() => {
            let word = serde::de::value::StringDeserializer::<D::Error>::new(word);
            T::deserialize(word).map(Some)
        }
        Some(_) | None => Ok(None),
    }
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
    fn how_long_the_layer_lives_is_said_in_all_its_forms() {
        for (text, want) in [
            (r#"{}"#, RootfsPersist::Never),
            (r#"{"rootfs": {"persist": "always"}}"#, RootfsPersist::Always),
            (
                r#"{"rootfs": {"size_gb": 2}, "guest": {"persist_rootfs": "always"}}"#,
                RootfsPersist::Always,
            ),
            (
                r#"{"rootfs": {"persist": "never"}, "guest": {"persist_rootfs": "always"}}"#,
                RootfsPersist::Never,
            ),
            (r#"{"guest": {"persist_rootfs": "restart"}}"#, RootfsPersist::Restart),
            (r#"{"guest": {"persist_rootfs": "none"}}"#, RootfsPersist::Never),
            (r#"{"guest": {"persist_rootfs": ""}}"#, RootfsPersist::Never),
            (r#"{"guest": {"persist_rootfs": 0}}"#, RootfsPersist::Never),
            (r#"{"guest": {"persist_rootfs": 1}}"#, RootfsPersist::Never),
            (r#"{"guest": {"persist_rootfs": 2}}"#, RootfsPersist::Restart),
            (r#"{"guest": {"persist_rootfs": 3}}"#, RootfsPersist::Always),
        ] {
            let config: MachineConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.rootfs_persist(), want, "{text}");
        }
    }

    #[test]
    fn memory_follows_the_cpus_unless_it_is_said() {
        for (text, want) in [
            (r#"{}"#, 256),
            (r#"{"guest": {"cpus": 4}}"#, 1024),
            (r#"{"guest": {"cpu_kind": "performance"}}"#, 2048),
            (r#"{"guest": {"cpu_kind": "performance", "cpus": 2}}"#, 4096),
            (r#"{"guest": {"cpus": 2, "memory_mb": 2048}}"#, 2048),
        ] {
            let mut config: MachineConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.memory_mb(), want, "{text}");
            config.resolve_defaults();
            assert_eq!(config.guest.unwrap().memory_mb, Some(want), "{text}");
        }
    }

    #[test]
    fn a_stop_never_takes_longer_than_the_longest() {
        let config: MachineConfig =
            serde_json::from_str(r#"{"stop_config":{"timeout":"1h"}}"#).unwrap();
        assert_eq!(config.stop_timeout(), STOP_TIMEOUT_MAX);
    }
}
