//! Documents of the directory and their keys.
//!
//! Never reads or writes one: that is `store`. Every key carries the organization, but for names
//! that are global on a platform, which then name the organization in the document. The api
//! writes what should exist; a host writes [`MachineRecord`]s and its own [`HostDoc`], nothing
//! else; an edge its own [`EdgeDoc`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::ContainerSummary;
use crate::id::{AppName, HostId, InstanceId, MachineId, OrgSlug, Region, VolumeId};
use crate::machine_config::{CpuKind, MachineConfig, StaticConfig};
use crate::service::Service;
use crate::state::MachineState;
use crate::time::Timestamp;
use crate::volume::{VolumeState, VolumeUsage};

/// A document with a key.
pub trait Document: Serialize + DeserializeOwned + Send + Sync {
    /// What tells one from another.
    type Key;

    /// What every key of the kind starts with; ends with a slash.
    const PREFIX: &'static str;

    /// How many parts a key of the kind has behind its prefix.
    const PARTS: usize;

    /// Returns the whole key.
    fn key(key: &Self::Key) -> String;
}

macro_rules! document {
    ($name:ty, $prefix:literal, ($($part:ident : $kind:ty),+)) => {
        impl Document for $name {
            type Key = ($($kind,)+);
            const PREFIX: &'static str = $prefix;
            const PARTS: usize = [$(stringify!($part)),+].len();

            fn key(($($part,)+): &Self::Key) -> String {
                let parts: &[&str] = &[$($part.as_ref()),+];
                format!("{}{}", $prefix, parts.join("/"))
            }
        }
    };
}

macro_rules! as_ref_str {
    ($($name:ty),+) => { $(impl AsRef<str> for $name {
        fn as_ref(&self) -> &str { self.as_str() }
    })+ };
}

as_ref_str!(AppName, HostId, InstanceId, MachineId, OrgSlug, Region, VolumeId);

/// An app: it should exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDoc {
    /// The id, stable over renames.
    pub id: String,
    /// A number for clients that want one.
    pub number: u64,
    /// The name.
    pub name: AppName,
    /// Who owns it.
    pub org: OrgSlug,
    /// The private network's name.
    pub network: String,
    /// The private network's number in addresses.
    pub network_id: u32,
    /// What it is for, as whoever made it says.
    #[serde(default)]
    pub role: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}
document!(AppDoc, "apps/", (org: OrgSlug, app: AppName));

/// Who owns an app's name; made with the app in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNameClaim {
    /// Who owns it.
    pub org: OrgSlug,
}
document!(AppNameClaim, "names/apps/", (app: AppName));

/// Which app a public host name leads to. The platform's own `<app>.<domain>` needs none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostnameClaim {
    /// Who owns it.
    pub org: OrgSlug,
    /// Where it leads.
    pub app: AppName,
}
document!(HostnameClaim, "names/hosts/", (hostname: String));

/// A private network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDoc {
    /// Its number in addresses, unique on a platform and never used again.
    pub id: u32,
}
document!(NetworkDoc, "networks/", (org: OrgSlug, network: String));

/// The last network number that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkCounter {
    /// That number.
    pub last: u32,
}
document!(NetworkCounter, "counters/", (name: String));

/// A machine's configuration of one version; never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigDoc {
    /// The configuration.
    pub config: MachineConfig,
    /// When it was made.
    pub created_at: Timestamp,
}
document!(ConfigDoc, "configs/", (org: OrgSlug, app: AppName, machine: MachineId, instance: InstanceId));

/// Which host runs a machine. Written by compare-and-set before that host is called; a host never
/// runs an epoch older than this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementDoc {
    /// The app.
    pub app: AppName,
    /// The host.
    pub host: HostId,
    /// Grows with every change of host or version.
    pub epoch: u64,
    /// The version that should run.
    pub instance: InstanceId,
    /// SHA-256 of the configuration, hexadecimal.
    pub config_digest: String,
    /// The name given at creation.
    pub name: String,
    /// The region.
    pub region: Region,
    /// When the machine was made.
    pub created_at: Timestamp,
}
document!(PlacementDoc, "placements/", (org: OrgSlug, machine: MachineId));

/// A lease of a machine: until its end only who knows its nonce may change the machine. Deleted
/// with the machine, and by the api's reconciler some time after its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDoc {
    /// What tells its holder from others.
    pub nonce: String,
    /// The name of the token that holds it.
    pub owner: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How long it was to hold when it was written, in seconds; 0 in documents from before.
    #[serde(default)]
    pub ttl_s: u64,
}
document!(LeaseDoc, "leases/", (org: OrgSlug, machine: MachineId));

/// Which host a volume is on. Written before that host is called; a volume never moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlacementDoc {
    /// The app.
    pub app: AppName,
    /// The app's id: another app of the same name has no part in the volume.
    pub app_id: String,
    /// The host.
    pub host: HostId,
    /// The region.
    pub region: Region,
    /// Whether the host said that it has the volume; until then nobody was told of it.
    pub made: bool,
    /// Whether it was told to go: the document goes when the host has it no more.
    #[serde(default)]
    pub going: bool,
    /// When it was asked for.
    pub created_at: Timestamp,
}
document!(VolumePlacementDoc, "volume_placements/", (org: OrgSlug, volume: VolumeId));

/// What a host says of one of its volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume.
    pub id: VolumeId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// The app's id: another app of the same name has no part in the volume.
    pub app_id: String,
    /// Its name.
    pub name: String,
    /// The host that it is on.
    pub host: HostId,
    /// Where that stands.
    pub region: Region,
    /// Orders two records.
    pub generation: Generation,
    /// Its state.
    pub state: VolumeState,
    /// Its size in GiB.
    pub size_gb: u32,
    /// The machine that has it.
    #[serde(default)]
    pub attached: Option<MachineId>,
    /// How full it was when the host last looked.
    pub usage: VolumeUsage,
    /// How many days its snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is made every day.
    pub auto_backup: bool,
    /// Whether snapshots are full copies, because the pool cannot share blocks.
    #[serde(default)]
    pub copies: bool,
    /// Why the daily snapshot that is due could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_error: Option<String>,
    /// Until when its data is kept, once it is to go.
    #[serde(default)]
    pub destroy_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When this record last changed.
    pub updated_at: Timestamp,
}
document!(VolumeRecord, "volumes/", (org: OrgSlug, app: AppName, volume: VolumeId));

/// An app that was deleted; hosts lay down what belongs to it, whenever they come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The app's name, which stays taken until its machines are gone.
    pub app: AppName,
    /// When.
    pub deleted_at: Timestamp,
}
document!(Tombstone, "tombstones/", (org: OrgSlug, app_id: String));

/// A token, by the SHA-256 of its text; the text itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDoc {
    /// The name it was given.
    pub name: String,
    /// Whose things it reaches.
    pub org: OrgSlug,
    /// Whether it may run the platform itself.
    pub operator: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it holds.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// The id of the only app that it reaches; without one it reaches all of the organization.
    #[serde(default)]
    pub app_id: Option<String>,
}
document!(TokenDoc, "tokens/", (org: OrgSlug, sha256_hex: String));

/// A server that runs machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDoc {
    /// Where it stands.
    pub region: Region,
    /// Grows each time the host agent begins with a new or restored state file.
    pub incarnation: u64,
    /// CPUs it has.
    pub cpus: u32,
    /// Memory that its machines may be promised in MiB.
    pub memory_mb: u64,
}
document!(HostDoc, "hosts/", (host: HostId));

/// The edge of a host, as edges of other hosts reach it. It writes it itself when it starts, and
/// takes it back when it is not to be reached any more; there is one a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeDoc {
    /// Where it takes requests from other edges.
    pub address: SocketAddr,
}
document!(EdgeDoc, "edges/", (host: HostId));

/// The largest [`MachineRecord`] in bytes of JSON.
pub const MACHINE_RECORD_BYTES_MAX: usize = 4 * 1024;

/// Bytes of a [`MachineRecord`] beside services, labels and image: names at their longest,
/// addresses, times.
const RECORD_FRAME_BYTES: usize = 900;

/// Returns how many bytes a configuration is over what a [`MachineRecord`] can hold of it, 0 for
/// none.
#[must_use]
pub fn record_overflow(config: &MachineConfig) -> usize {
    let kept = (&config.services, &config.statics, &config.metadata, &config.image);
    let bytes = serde_json::to_vec(&kept).map_or(usize::MAX, |json| json.len());
    bytes.saturating_add(RECORD_FRAME_BYTES).saturating_sub(MACHINE_RECORD_BYTES_MAX)
}

/// What a host says of one of its machines: what routing and lists need and no environment,
/// files or events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The machine.
    pub id: MachineId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// Its name.
    pub name: String,
    /// The host that runs it.
    pub host: HostId,
    /// Where that stands.
    pub region: Region,
    /// Its version.
    pub instance: InstanceId,
    /// Orders two records of one machine.
    pub generation: Generation,
    /// Its state.
    pub state: MachineState,
    /// Whether it runs, listens on its services' ports and passes its checks.
    pub ready: bool,
    /// Whether it is out of routing.
    #[serde(default)]
    pub cordoned: bool,
    /// Its private IPv6 address, its own for its life.
    pub private_ip: Ipv6Addr,
    /// Its private IPv4 address on its host.
    pub private_ipv4: Ipv4Addr,
    /// What the edge may send to it.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Labels of its configuration.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Keep it out of `.internal`.
    #[serde(default)]
    pub skip_dns: bool,
    /// Files of its image that the edge serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statics: Vec<StaticConfig>,
    /// How its containers stand, if it has several: for whoever asks while its host is away. The
    /// first to be left out of a record that is too large.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerSummary>,
    /// The image's reference as configured.
    pub image: String,
    /// CPUs.
    pub cpus: u32,
    /// Their class.
    #[serde(default)]
    pub cpu_kind: CpuKind,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When this record changed.
    pub updated_at: Timestamp,
}
document!(MachineRecord, "machines/", (org: OrgSlug, app: AppName, machine: MachineId));

/// Orders two records of one thing: the host's incarnation first, then its counter.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation {
    /// The host's incarnation, given by the directory.
    pub incarnation: u64,
    /// Grows with every change on the host.
    pub counter: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_carry_the_organization() {
        let org = OrgSlug::personal();
        let app: AppName = "web".parse().unwrap();
        let machine = MachineId::from_bits(1);
        assert_eq!(AppDoc::key(&(org.clone(), app.clone())), "apps/personal/web");
        assert_eq!(
            MachineRecord::key(&(org.clone(), app, machine.clone())),
            "machines/personal/web/00000000000001"
        );
        assert_eq!(PlacementDoc::key(&(org, machine)), "placements/personal/00000000000001");
    }

    #[test]
    fn an_incarnation_outweighs_any_counter() {
        let old = Generation { incarnation: 1, counter: 900 };
        let new = Generation { incarnation: 2, counter: 1 };
        assert!(new > old);
    }
}
