//! What the api and the edge ask of a host, and what it answers.
//!
//! Never public: it is spoken over a Unix socket checked by peer credentials on one server, and
//! over mTLS between servers. HTTP/1.1 with JSON bodies under [`PREFIX`]; errors are
//! [`crate::ApiError`].
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `POST /machines` | [`CreateMachine`] | [`HostMachine`]; the same again for the same id and digest |
//! | `GET /machines` | | `[HostMachine]`; destroyed ones for a while |
//! | `GET /machines/{id}` | | [`HostMachine`]; destroyed ones for a while |
//! | `POST /machines/{id}/command` | [`Command`] | [`Accepted`] once the command is journaled |
//! | `GET /machines/{id}/wait` | query [`WaitQuery`] | [`HostMachine`], 408, or 404 once it is destroyed |
//! | `POST /machines/{id}/exec` | [`crate::api::ExecRequest`] | [`crate::api::ExecResponse`] |
//! | `GET /machines/{id}/attach` | header [`EXEC_HEADER`], `Upgrade` | frames of [`crate::exec`] |
//! | `GET /machines/{id}/ps` | | `[`[`crate::api::ProcessStat`]`]` |
//! | `GET /machines/{id}/memory` | | [`crate::api::MachineMemory`] |
//! | `PUT /machines/{id}/memory` | [`crate::api::SetMemory`] | [`crate::api::MachineMemory`] |
//! | `POST /machines/{id}/memory/reclaim` | [`crate::api::ReclaimMemory`] | [`crate::api::ReclaimedMemory`] |
//! | `GET /machines/{id}/logs` | query [`LogsQuery`] | lines of [`crate::api::LogRecord`] |
//! | `GET /machines/{id}/static` | query [`StaticQuery`] | the file, its name in [`STATIC_NAME_HEADER`] |
//! | `POST /machines/{id}/drained` | [`Drained`] | the same |
//! | `POST /machines/{id}/rest` | [`Rest`] | nothing |
//! | `POST /machines/{id}/note` | [`EdgeNote`] | nothing |
//! | `POST /loads` | [`Loads`] | nothing |
//! | `GET /consumed` | | `[`[`crate::consumed::MachineConsumed`]`]` of machines that run |
//! | `POST /volumes` | [`CreateVolume`] | [`crate::directory::VolumeRecord`]; the same again for the same id |
//! | `GET /volumes` | | `[VolumeRecord]` |
//! | `GET /volumes/{id}` | | [`crate::directory::VolumeRecord`] with what is now |
//! | `POST /volumes/{id}/command` | [`VolumeCommand`] | [`crate::directory::VolumeRecord`] once it is done, or journaled |
//! | `GET /volumes/{id}/snapshots` | | `[`[`HostSnapshot`]`]`, newest first |
//! | `GET /snapshots/{id}` | | [`HostSnapshot`] |
//! | `GET /pool` | | [`PoolRoom`] |
//! | `GET /watch` | query [`WatchQuery`] | lines of [`WatchEvent`], the snapshot first |
//! | `GET /info` | | [`HostInfo`] |
//! | `GET /usage` | | [`crate::api::DiskUsage`] |
//! | `POST /prune` | | [`crate::api::Pruned`] |

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::api::{CheckStatus, MachineEvent};
use crate::directory::{Generation, MACHINE_RECORD_BYTES_MAX, MachineRecord};
use crate::id::{AppName, HostId, InstanceId, MachineId, OrgSlug, Region, SnapshotId, VolumeId};
use crate::image::ImageRef;
use crate::labels::LabelChange;
use crate::machine_config::{MachineConfig, Signal};
use crate::state::MachineState;
use crate::time::{GoDuration, Timestamp};
use crate::volume::VolumeSnapshot;

/// What every path starts with.
pub const PREFIX: &str = "/host/v1";
/// The header that carries a [`crate::exec::ExecSpec`] as JSON to `attach`.
pub const EXEC_HEADER: &str = "perch-exec";
/// How often a watch sends [`WatchEvent::Heartbeat`] when nothing else is to be said.
pub const WATCH_HEARTBEAT_MS: u64 = 5_000;

/// A machine to make. Idempotent by id and digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateMachine {
    /// The id, minted by the api.
    pub id: MachineId,
    /// Its first version.
    pub instance: InstanceId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// The number of its private network.
    pub network_id: u32,
    /// Its name.
    pub name: String,
    /// The placement's epoch.
    pub epoch: u64,
    /// What to run, defaults resolved.
    pub config: MachineConfig,
    /// SHA-256 of the configuration, hexadecimal.
    pub config_digest: String,
    /// Prepare it and leave it `stopped`.
    pub skip_launch: bool,
    /// Start it out of routing.
    pub cordoned: bool,
    /// What it needs of the app's secrets.
    #[serde(default)]
    pub secrets: SecretsWanted,
}

/// What a version of a machine needs of its app's secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecretsWanted {
    /// It runs without them.
    #[serde(default)]
    pub skip: bool,
    /// It must see at least this version.
    #[serde(default)]
    pub min_version: u64,
}

/// What a host's pool of volumes has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRoom {
    /// GiB that can still be promised to volumes.
    pub free_gb: u64,
}

/// What may be asked of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Run it.
    Start,
    /// End its program: the signal, then SIGKILL.
    Stop {
        /// Instead of the configured signal.
        #[serde(default)]
        signal: Option<Signal>,
        /// Instead of the configured time.
        #[serde(default)]
        timeout: Option<GoDuration>,
    },
    /// Freeze its processes in memory; a start lets them go on.
    Suspend,
    /// Stop and start.
    Restart {
        /// Skip the polite part.
        #[serde(default)]
        force: bool,
        /// Instead of the configured signal.
        #[serde(default)]
        signal: Option<Signal>,
        /// Instead of the configured time.
        #[serde(default)]
        timeout: Option<GoDuration>,
    },
    /// Take another version.
    Update {
        /// The new version.
        instance: InstanceId,
        /// The placement's epoch.
        epoch: u64,
        /// What to run.
        config: Box<MachineConfig>,
        /// SHA-256 of the configuration, hexadecimal.
        config_digest: String,
        /// Do not start it if it does not run.
        skip_launch: bool,
        /// The edge sends it nothing from now on; otherwise that stays as it is.
        #[serde(default)]
        cordoned: bool,
        /// What it needs of the app's secrets.
        #[serde(default)]
        secrets: SecretsWanted,
    },
    /// Remove it; refused while it runs unless forced.
    Destroy {
        /// Kill it if it runs.
        force: bool,
    },
    /// Send a signal to its program.
    Signal {
        /// Linux's number.
        signal: i32,
    },
    /// Take it out of routing, or put it back.
    SetCordoned {
        /// Whether it is out.
        cordoned: bool,
    },
    /// Change its labels; its version stays.
    SetLabels {
        /// How.
        change: LabelChange,
        /// Only if this is its version, or the one that it is about to be.
        #[serde(default)]
        instance: Option<InstanceId>,
    },
}

/// A command was accepted: it is journaled and will be carried out, whatever dies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The state before.
    pub previous_state: MachineState,
    /// The machine now.
    pub machine: HostMachine,
}

/// All that a host knows of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostMachine {
    /// The machine.
    pub id: MachineId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub region: Region,
    /// Its version.
    pub instance: InstanceId,
    /// The placement's epoch it follows.
    pub epoch: u64,
    /// Orders two answers.
    pub generation: Generation,
    /// Its state.
    pub state: MachineState,
    /// Whether it may get requests.
    pub ready: bool,
    /// Why it is not ready though it is started: "listens on 127.0.0.1:8000, expected 0.0.0.0:8080".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready_because: Option<String>,
    /// Whether it is out of routing.
    pub cordoned: bool,
    /// Its configuration.
    pub config: MachineConfig,
    /// The image, resolved.
    pub image_ref: ImageRef,
    /// Its private IPv6 address.
    pub private_ip: Ipv6Addr,
    /// Its private IPv4 address on this host.
    pub private_ipv4: Ipv4Addr,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// What happened, newest first, at most [`EVENTS_MAX`].
    pub events: Vec<MachineEvent>,
    /// What its checks say.
    pub checks: Vec<CheckStatus>,
    /// How its containers stand, if it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<crate::api::ContainerSummary>,
    /// The version of the app's secrets that its last boot saw; nothing before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_version: Option<u64>,
    /// Why it is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<crate::ApiError>,
    /// The version that its last update could not bring; it stayed what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<InstanceId>,
}

/// Labels that the platform itself reads; they go last when a record is too large.
const LABELS_KEPT: [&str; 5] = [
    "fly_process_group",
    "fly_platform_version",
    "fly_release_id",
    "fly_release_version",
    crate::labels::WEIGHT,
];

impl HostMachine {
    /// Returns what the directory gets of it from its host, at most [`MACHINE_RECORD_BYTES_MAX`] of
    /// JSON: containers and labels are left out before anything that routing needs.
    #[must_use]
    pub fn record(&self, host: HostId) -> MachineRecord {
        let config = &self.config;
        let mut record = MachineRecord {
            id: self.id.clone(),
            org: self.org.clone(),
            app: self.app.clone(),
            name: self.name.clone(),
            host,
            region: self.region.clone(),
            instance: self.instance.clone(),
            generation: self.generation,
            state: self.state,
            ready: self.ready,
            cordoned: self.cordoned,
            private_ip: self.private_ip,
            private_ipv4: self.private_ipv4,
            services: config.services.clone(),
            metadata: config.metadata.clone(),
            skip_dns: config.dns.as_ref().is_some_and(|dns| dns.skip_registration),
            statics: config.statics.clone(),
            containers: self.containers.clone(),
            image: config.image_references().first().copied().unwrap_or_default().to_owned(),
            cpus: config.cpus(),
            cpu_kind: config.cpu_kind(),
            memory_mb: config.memory_mb(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        };
        if config.starts_by_other_means() {
            // Contract 4.5: no request wakes it.
            for service in &mut record.services {
                service.autostart = Some(false);
            }
        }
        if !fits(&record) {
            record.containers.clear();
        }
        if !fits(&record) {
            record.metadata.retain(|label, _| LABELS_KEPT.contains(&label.as_str()));
        }
        if !fits(&record) {
            record.metadata.clear();
        }
        if !fits(&record) {
            // Routing reads no check and no key that it does not know.
            for service in &mut record.services {
                service.checks.clear();
                service.other.clear();
                for port in &mut service.ports {
                    port.other.clear();
                }
            }
        }
        while !fits(&record) && record.services.pop().is_some() {}
        record
    }
}

fn fits(record: &MachineRecord) -> bool {
    serde_json::to_vec(record).is_ok_and(|json| json.len() <= MACHINE_RECORD_BYTES_MAX)
}

/// Who a connection out of a machine speaks for: the machine itself, as its host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIdentity {
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// The machine.
    pub machine: MachineId,
}

/// How many events of a machine are kept.
pub const EVENTS_MAX: usize = 50;

/// The header with the name of a file of an image.
pub const STATIC_NAME_HEADER: &str = "perch-static-name";

/// Query for a file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StaticQuery {
    /// The path of the request, without escapes.
    pub path: String,
}

/// Query of a list of machines.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachinesQuery {
    /// Only those of this app; else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
}

/// Query of a wait.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitQuery {
    /// Any of these, comma separated; `settled` and `ready` are understood too.
    pub states: String,
    /// Only what happened after this event counts; what is true now is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_event: Option<String>,
    /// Only of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// How long at most.
    pub timeout_ms: u64,
}

/// Query of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogsQuery {
    /// From this record on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
    /// Only that many of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// Keep the answer open.
    #[serde(default)]
    pub follow: bool,
}

/// Query of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatchQuery {
    /// Whether the watcher sends requests to machines and says when one is [`Drained`].
    #[serde(default)]
    pub drains: bool,
    /// The number under which it says what is under way ([`Loads`]): of its own, the same for its
    /// life. Without one no machine is stopped for want of requests while it watches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<u64>,
}

/// What is under way to machines through one edge, as far as it changed since it said so last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loads {
    /// The number of the edge's watch.
    pub edge: u64,
    /// Whether there is nothing under way to machines that are not named; else they are as before.
    #[serde(default)]
    pub all: bool,
    /// Machines to which something is, or was since.
    pub machines: Vec<MachineLoad>,
}

/// What is under way to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLoad {
    /// The machine.
    pub id: MachineId,
    /// Requests and connections under way now.
    pub in_flight: u32,
    /// The most that were at once since the last time.
    pub peak: u32,
}

/// The answer to [`WatchEvent::Rest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// The number of the edge's watch.
    pub edge: u64,
    /// The number of the question.
    pub question: u64,
    /// Whether nothing is under way to the machine through this edge, and nothing will be until
    /// the machine's record comes anew.
    pub is_idle: bool,
}

/// Why an edge answered in a machine's place, for the machine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeNote {
    /// One of [`crate::edge_code::EDGE_CODES`].
    pub code: String,
    /// How many such lines of the machine's app were left out before it.
    #[serde(default)]
    pub left_out: u64,
}

/// No request is under way any more to a machine that was seen not to be ready, and none will be
/// sent until it is seen to be ready again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The generation of the machine's record that said so.
    pub generation: Generation,
    /// The number of the edge's watch ([`WatchQuery::edge`]). Without one the word counts for all
    /// edges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<u64>,
}

/// One line of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchEvent {
    /// Everything there is; always the first line.
    Snapshot {
        /// All machines that are not destroyed.
        machines: Vec<MachineRecord>,
    },
    /// A machine is new or has changed.
    Changed {
        /// As it is now.
        machine: Box<MachineRecord>,
    },
    /// A machine is gone.
    Removed {
        /// Which.
        id: MachineId,
    },
    /// A machine is to be stopped because nothing uses it: whoever sends requests says by [`Rest`]
    /// whether that is so, and then sends it none.
    Rest {
        /// Which.
        id: MachineId,
        /// The number of the question.
        question: u64,
    },
    /// Nothing happened; the line is alive.
    Heartbeat,
}

/// A volume to make. Idempotent by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// The id, minted by the api.
    pub id: VolumeId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// The app's id.
    pub app_id: String,
    /// Its name.
    pub name: String,
    /// Its size in GiB.
    pub size_gb: u32,
    /// What it is made of.
    pub source: VolumeSource,
    /// How many days its snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is made every day.
    pub auto_backup: bool,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// Nothing: it is empty.
    Empty,
    /// A snapshot on the same host.
    Snapshot(SnapshotId),
    /// Another volume on the same host, as it is now.
    Volume(VolumeId),
}

/// What may be asked of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum VolumeCommand {
    /// Make it larger.
    Extend {
        /// The new size in GiB.
        size_gb: u32,
    },
    /// Change how its snapshots are kept and made.
    Update {
        /// How many days they are kept.
        #[serde(default)]
        snapshot_retention: Option<u32>,
        /// Whether one is made every day.
        #[serde(default)]
        auto_backup: Option<bool>,
    },
    /// Make a snapshot.
    Snapshot {
        /// The id, minted by the api.
        id: SnapshotId,
    },
    /// Destroy it; its data is kept for a day.
    Destroy,
}

/// A snapshot as its host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSnapshot {
    /// Whose.
    pub volume: VolumeId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Of which app.
    pub app: AppName,
    /// The size in GiB of a volume that is made of it, at least.
    pub size_gb: u32,
    /// The snapshot.
    pub snapshot: VolumeSnapshot,
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its id.
    pub id: HostId,
    /// Where it stands.
    pub region: Region,
    /// CPUs it has.
    pub cpus: u32,
    /// Memory it has in MiB.
    pub memory_mb: u64,
    /// What it found out about itself: one finding a line, for people.
    pub findings: Vec<String>,
}
