//! What a builder is told at its start, and every limit it keeps to.
//!
//! Never reads a file or the environment: the daemon fills this in.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first id of the range that builds run in, on the host.
///
/// Half-way up the 32 bits: far above what distributions give out in `/etc/subuid` and what
/// machines get, and below the ids that some programs take for negative numbers is not needed.
pub const BUILD_IDS_FIRST: u32 = 0x8000_0000;
/// How many ids the range has.
pub const BUILD_IDS: u32 = 65_536;
/// Entries of an unpacked context.
pub const CONTEXT_ENTRIES_MAX: u64 = 200_000;
/// Bytes of an unpacked context, all files together.
pub const CONTEXT_UNPACKED_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// How long a context may take to unpack.
pub const UNPACK_TIME_MAX: Duration = Duration::from_mins(5);
/// How long the push of an image may take.
pub const PUSH_TIME_MAX: Duration = Duration::from_mins(15);
/// Bytes of a Dockerfile.
pub const DOCKERFILE_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of one line of output; the rest of a longer one is left out.
pub const LINE_BYTES_MAX: usize = 4096;
/// Lines that a build may print; later ones are counted and left out.
pub const LOG_LINES_MAX: u64 = 200_000;
/// Events that wait for a slow reader before the build itself waits.
pub const EVENTS_WAITING_MAX: usize = 256;
/// Last lines of output that go into the error of a failed build.
pub const FAILURE_LINES: usize = 20;
/// Build arguments of one request.
pub const ARGUMENTS_MAX: usize = 128;
/// Builds at once that the address range has room for.
pub const BUILDS_AT_ONCE_MAX: usize = 32;

/// What a builder is told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the disk of builds and the state of cages are kept. May be closed to other users.
    pub data_dir: PathBuf,
    /// Where the root folder of cages is made. Every folder above it must be searchable by
    /// everyone, because a cage has no right on the host: `/run/perch-build`.
    pub run_dir: PathBuf,
    /// The platform's registry as `address:port`, reached without TLS on loopback.
    pub registry: String,
    /// The certificates that builds trust.
    pub ca_bundle: PathBuf,
    /// Names what belongs to this builder: its nftables table, its cgroup, the start of the names
    /// of its interfaces. Up to 10 letters, digits and underscores.
    pub instance: String,
    /// The first address of the /24 that builds get addresses of; seen by no other network.
    pub addresses: Ipv4Addr,
    /// Private address ranges that builds may reach all the same: a company's mirror or proxy.
    #[serde(default)]
    pub open_networks: Vec<String>,
    /// The limits that an operator may change.
    #[serde(default)]
    pub limits: Limits,
}

impl Config {
    /// Returns a configuration with the usual values for everything but where things are.
    #[must_use]
    pub fn new(data_dir: PathBuf, registry: String) -> Self {
        Self {
            data_dir,
            run_dir: PathBuf::from("/run/perch-build"),
            registry,
            ca_bundle: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
            instance: "perch_b".to_owned(),
            addresses: Ipv4Addr::new(100, 127, 240, 0),
            open_networks: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// The limits that an operator may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Builds at once.
    pub builds_max: usize,
    /// Builds that may wait for their turn; more are refused.
    pub builds_waiting_max: usize,
    /// Thousandths of a core that one build may use.
    pub cpu_millicores: u32,
    /// Memory of one build in bytes, its temporary files in memory included.
    pub memory_bytes: u64,
    /// Processes and threads of one build.
    pub pids_max: u32,
    /// Seconds that one build may take, without waiting and without the push.
    pub time_s_max: u64,
    /// Bytes of the disk that all builds share; a file of this size, sparse at first.
    pub disk_bytes: u64,
    /// Bytes that the layers of one app may take between builds.
    pub store_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            builds_max: 2,
            builds_waiting_max: 16,
            cpu_millicores: 2000,
            memory_bytes: 4 * GIB,
            pids_max: 2048,
            time_s_max: 30 * 60,
            disk_bytes: 40 * GIB,
            store_bytes_max: 8 * GIB,
        }
    }
}
