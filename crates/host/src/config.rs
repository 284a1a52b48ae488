//! How a host is set up.
//!
//! Never read from a file here: the daemon parses, this says what is needed.

use std::path::PathBuf;
use std::time::Duration;

use perch_runtime::LogLimits;
use perch_types::{HostId, Region, Secret};

use crate::cache::CachePolicy;
use crate::network::NetworkConfig;
use crate::volumes::pool::PoolConfig;

/// The first user id of the first machine when nothing else was said.
pub const UID_BASE_DEFAULT: u32 = 0x1000_0000;
/// Free bytes below which nothing new is made, when nothing else was said.
pub const DISK_RESERVE_BYTES: u64 = 1024 * 1024 * 1024;
/// How long requests under way may go on before the signal, when nothing else was said.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Machines of one host when nothing else was said.
pub const MACHINES_MAX: usize = 4096;

/// Volumes of one host when nothing else was said.
pub const VOLUMES_MAX: usize = 4096;

/// How a host is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// This server's id, minted once by the daemon; the same in the directory and at the edge.
    pub id: HostId,
    /// What outlives a restart of the server: state, images, layers, logs.
    pub data_dir: PathBuf,
    /// What need not (a tmpfs): sockets.
    pub run_dir: PathBuf,
    /// Where it stands.
    pub region: Region,
    /// The folder in every cgroup hierarchy for monitors and machines.
    pub cgroup: String,
    /// Interfaces, rules and private IPv4 addresses.
    pub network: NetworkConfig,
    /// The first user id of the first machine.
    pub uid_base: u32,
    /// The monitor's binary, as built.
    pub monitor: PathBuf,
    /// The binary of PID 1, as built.
    pub init: PathBuf,
    /// The platform's registry.
    pub registry: Option<PlatformRegistry>,
    /// The API for machines themselves.
    pub machine_api: Option<MachineApi>,
    /// In whose name layers of images are unpacked.
    pub unpack: perch_oci::Privilege,
    /// What others keep on the same disk, by what it is called: for the account of it only.
    pub others: Vec<(String, PathBuf)>,
    /// Where volumes are.
    pub pool: PoolConfig,
    /// What it may use.
    pub limits: Limits,
}

/// How connections get from inside a machine to the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineApi {
    /// The socket of this agent to which monitors bring them.
    pub monitors: PathBuf,
    /// The socket of the API's process to which this agent passes them on.
    pub api: PathBuf,
}

/// The platform's registry as this host reaches it.
#[derive(Debug, Clone)]
pub struct PlatformRegistry {
    /// `http://127.0.0.1:4280`.
    pub endpoint: String,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// What a host may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Free bytes of the data folder below which nothing new is made.
    pub disk_reserve_bytes: u64,
    /// Machines.
    pub machines_max: usize,
    /// Volumes.
    pub volumes_max: usize,
    /// Memory that machines may be promised, as a multiple of what the server has. Machines that
    /// idle use a fraction of theirs; more than 1 relies on that.
    pub memory_overcommit: f64,
    /// A machine's log.
    pub log: LogLimits,
    /// How long requests under way may go on before a machine that is stopped or updated gets
    /// its signal.
    pub drain: Duration,
    /// Images that no machine names.
    pub cache: CachePolicy,
    /// How long nothing uses a machine before it is stopped or suspended, if it may be.
    pub autostop_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            machines_max: MACHINES_MAX,
            volumes_max: VOLUMES_MAX,
            memory_overcommit: 1.0,
            log: LogLimits::default(),
            drain: DRAIN_TIMEOUT,
            cache: CachePolicy::default(),
            autostop_idle: crate::autostop::IDLE_DEFAULT,
        }
    }
}
