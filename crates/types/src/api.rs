//! Bodies of the public API (contract sections 1.2 to 1.7 and 1.11).
//!
//! Never more than shapes; names and optionality follow the contract to the letter.

mod answers;
mod identity;
mod lease;
mod machine;
mod placements;
mod resources;
mod tokens;
mod wake;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{AppName, HostId, InstanceId, MachineId, OrgSlug, Region};
use crate::image::ImageRef;
use crate::machine_config::{MachineConfig, Signal, null_is_default};
use crate::state::MachineState;
use crate::time::{GoDuration, Timestamp};

pub use answers::Answers;
pub use identity::{
    AuthenticateTokens, AuthorizeTokens, Authorized, AuthorizedAccess, CaveatSet, CreateOidcToken,
    TokenAccess, TokenNonce, VerifiedToken,
};
pub use lease::{Lease, LeaseReleased, LeaseReply, LeaseRequest};
pub use machine::{
    MachineVersion, MetadataValue, OrgMachine, OrgMachineConfig, OrgMachines, SetMetadata,
    UpdateMetadata,
};
pub use placements::{Placements, PlacementsRequest, RegionPlacement};
pub use resources::{
    ListenSocket, MachineMemory, ProcessStat, ReclaimMemory, ReclaimedMemory, SetMemory,
};
pub use tokens::{CreateDeployToken, CreatedToken, TokenInfo, TokensCurrent};
pub use wake::WakeTimes;

/// An app as answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// The app's id.
    pub id: String,
    /// A number for clients that want one.
    pub internal_numeric_id: u64,
    /// The name.
    pub name: AppName,
    /// How many machines it has.
    pub machine_count: u64,
    /// How many volumes it has.
    pub volume_count: u64,
    /// Its private network.
    pub network: String,
    /// `pending` without machines, `suspended` while none of them runs, else `deployed`.
    pub status: String,
    /// What it is for, as whoever made it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_role: Option<String>,
    /// Who owns it.
    pub organization: Organization,
    /// When it was made.
    pub created_at: Timestamp,
    /// The name at which the edge serves it.
    pub hostname: String,
    /// What a host name of one's own is to be an alias of: the same name.
    #[serde(default)]
    pub cname_target: String,
    /// How long its machines took to wake, if a request ever waited for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<WakeTimes>,
}

/// An organization as answered inside an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// The display name.
    pub name: String,
    /// The slug.
    pub slug: OrgSlug,
    /// A number for clients that want one.
    pub internal_numeric_id: u64,
}

/// Answer of the app list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Apps {
    /// How many.
    pub total_apps: u64,
    /// The apps, by name.
    pub apps: Vec<App>,
}

/// Body of an app's creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateApp {
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name, under its older key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// Who owns it; default `personal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// Its private network; default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What it is for; lists can be asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_role_id: Option<String>,
    /// Whether names below the app's lead to it too; refused when true: none does here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_subdomains: Option<bool>,
}

/// A machine as answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The machine's id.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: MachineState,
    /// Where it runs.
    pub region: Region,
    /// The image that it runs.
    pub image_ref: ImageRef,
    /// Its version.
    pub instance_id: InstanceId,
    /// Its version, under its older key.
    pub version: InstanceId,
    /// Its private IPv6 address.
    pub private_ip: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// Its configuration.
    pub config: MachineConfig,
    /// What happened, newest first.
    #[serde(default)]
    pub events: Vec<MachineEvent>,
    /// What its checks say.
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// The lease's nonce, when this call made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// `ok`, `unknown` or `unreachable`; always present (contract 1.14, point 1).
    pub host_status: HostStatus,
    /// Whether it is out of routing.
    #[serde(default)]
    pub cordoned: bool,
    /// How its containers stand, if it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerSummary>,
    /// The version of the app's secrets that its last boot saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_version: Option<u64>,
    /// How its version has answered requests, when one machine is asked for and an edge says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answers>,
}

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// Its name.
    pub name: String,
    /// `created`, `starting`, `started`, `stopping`, `restarting`, `stopped` or `failed`.
    pub state: String,
}

/// Whether the host of a machine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostStatus {
    /// It does.
    Ok,
    /// Nobody knows.
    Unknown,
    /// It does not.
    Unreachable,
}

/// Something that happened to a machine (contract 1.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// A ULID.
    pub id: String,
    /// `launch`, `start`, `exit`, `stop`, `update`, `destroy` ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The state it led to.
    pub status: String,
    /// `user` or `flyd`.
    pub source: String,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// More; an `exit` always has [`ExitRequest`] here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
}

/// The `request` of an `exit` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRequest {
    /// How it ended.
    pub exit_event: ExitEvent,
    /// How often it was started again since it was last started by hand.
    pub restart_count: u32,
}

/// How a machine's program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitEvent {
    /// The exit code as the platform reports it: the program's, or 128 + signal.
    pub exit_code: i32,
    /// The program's own exit code; -1 when a signal ended it.
    pub guest_exit_code: i32,
    /// The signal that ended it, 0 for none.
    pub guest_signal: i32,
    /// Whether the kernel killed it, or a part of it, for memory.
    pub oom_killed: bool,
    /// Whether a stop had been asked for.
    pub requested_stop: bool,
    /// Whether it is being started again.
    pub restarting: bool,
    /// The signal that was sent by a stop, 0 for none.
    pub signal: i32,
    /// When.
    pub exited_at: Timestamp,
    /// Why the program could not be run at all, such as "no such program".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Which of several main processes ended first, in the order of `config.processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// The container whose end it was, of a machine that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// What a check says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The check's name ([`crate::service::check_names`]).
    pub name: String,
    /// How it stands.
    pub status: CheckState,
    /// The last answer, cut.
    pub output: String,
    /// Since when.
    pub updated_at: Timestamp,
}

/// How a check stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// It passed.
    Passing,
    /// It is not known yet.
    Warning,
    /// It did not pass.
    Critical,
}

/// Body of a machine's creation and update (contract 1.3).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CreateMachineRequest {
    /// What to run.
    pub config: MachineConfig,
    /// A name; made up when absent. Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where; a code or a preference expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Lease it for that many seconds at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u64>,
    /// Prepare it, do not start it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub skip_launch: bool,
    /// Start it out of routing.
    #[serde(default, deserialize_with = "null_is_default")]
    pub skip_service_registration: bool,
    /// Update only: refuse unless this is its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// Run it without the app's secrets.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub skip_secrets: bool,
    /// Needs at least this version of the app's secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_secrets_version: Option<u64>,
    /// Whether its root disk is a log-structured virtual disk; refused when true: there is none
    /// here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsvd: Option<bool>,
}

/// Body of a stop.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StopRequest {
    /// Instead of the configured signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Instead of the configured time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
}

/// Answer of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartResponse {
    /// The state before.
    pub previous_state: MachineState,
    /// Whether it moved to another host.
    pub migrated: bool,
    /// That host, or nothing.
    pub new_host: String,
}

/// Answer of calls that have nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// Answer of a wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitResponse {
    /// Always true.
    pub ok: bool,
    /// The state that was reached.
    pub state: MachineState,
    /// The machine's version.
    pub version: InstanceId,
    /// The newest event's id.
    pub event_id: String,
}

/// Body of an exec (contract 1.3).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// One string, split as a shell splits words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// The words themselves; wins over `cmd`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What the program reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Seconds it may take; default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// The container, of a machine that has several; the first that runs when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Answer of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecResponse {
    /// The exit code.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
    /// What it wrote, cut at the limit.
    pub stdout: String,
    /// What it wrote to its standard error, cut at the limit.
    pub stderr: String,
}

/// Body of a signal: a name, or a number (`{"signal": 9}`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// `"SIGHUP"` or `1`: a [`Signal`], or its number.
    pub signal: Value,
}

/// A region as answered (contract 1.11).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionInfo {
    /// The code.
    pub code: Region,
    /// The place.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Whether it has a private network gateway.
    pub gateway_available: bool,
    /// Always false.
    pub requires_paid_plan: bool,
    /// Always false.
    pub deprecated: bool,
    /// The part of the world.
    pub geo_region: String,
}

/// Answer of the region list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Regions {
    /// The region nearest to the caller.
    pub nearest: Region,
    /// All.
    pub regions: Vec<RegionInfo>,
}

/// What this platform is (Perch's own).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The server's version.
    pub version: String,
    /// Apps are served at `<app>.<domain>`.
    pub domain: String,
    /// The port at which the edge serves plain HTTP.
    pub http_port: u16,
    /// The port at which the edge serves HTTPS, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u16>,
    /// The certificate, as PEM, of the server's own authority, which apps under its domain have
    /// theirs from. It may vouch for names of the domain alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_ca: Option<String>,
    /// The registry's address as seen from this server: `127.0.0.1:4280`.
    pub registry: String,
    /// The region of this server.
    pub region: Region,
}

/// What takes a server's disk, one kind of thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// `images`, `machine disks`, `machine logs`, `volumes`, `registry`, `builds`.
    pub kind: String,
    /// How many there are, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What they take, holes in files not counted.
    pub bytes: u64,
    /// What a prune would free of it.
    pub reclaimable_bytes: u64,
}

/// What takes a server's disk (Perch's own).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// The server.
    pub host: HostId,
    /// Bytes of the disk on which machines are.
    pub total_bytes: u64,
    /// Bytes of it that are free.
    pub free_bytes: u64,
    /// Kind by kind.
    pub uses: Vec<DiskUse>,
}

/// Answer of the list of servers' disks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SystemUsage {
    /// Of each server that answered.
    pub hosts: Vec<DiskUsage>,
}

/// What a prune deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pruned {
    /// Images that no machine named.
    pub images: u64,
    /// What they took.
    pub bytes: u64,
}

/// An image in the platform's registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// `base/library/python` or the app's name.
    pub repository: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Bytes of its newest tag's layers.
    pub size_bytes: u64,
}

/// Answer of the image list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Images {
    /// By repository.
    pub images: Vec<ImageInfo>,
}

/// One record of a machine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Grows by one with every record of a machine, dropped ones included.
    pub seq: u64,
    /// When it was written.
    pub timestamp: Timestamp,
    /// `stdout`, `stderr` or `system`.
    pub stream: LogStream,
    /// The line, without its end.
    pub message: String,
    /// The machine.
    pub machine: MachineId,
    /// Where it ran.
    pub region: Region,
    /// The container that wrote it, of a machine that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The main process that wrote it, of a machine that has several, in the order of
    /// `config.processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// Records dropped right before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

/// Where a log record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The program.
    Stdout,
    /// The program.
    Stderr,
    /// The platform.
    System,
}

/// Answer of the app's logs (contract 3.5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppLogs {
    /// Oldest first.
    pub data: Vec<AppLogEntry>,
    /// Where to go on.
    pub meta: AppLogsMeta,
}

/// Where to go on reading.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppLogsMeta {
    /// Give it back as `next_token`.
    pub next_token: String,
}

/// One entry of an app's logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppLogEntry {
    /// Which.
    pub id: String,
    /// The rest.
    pub attributes: AppLogAttributes,
}

/// One entry's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppLogAttributes {
    /// When.
    pub timestamp: Timestamp,
    /// The line.
    pub message: String,
    /// `info` or `error`.
    pub level: String,
    /// The machine.
    pub instance: String,
    /// Where it ran.
    pub region: String,
    /// Free-form: `instance`, `region` and `event`, and which `process_group`, `container` and
    /// `process` it is of, where there are several.
    #[serde(default)]
    pub meta: BTreeMap<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
