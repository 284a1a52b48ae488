//! Bodies about what a machine uses: processes and memory (contract 1.3).
//!
//! Never more than shapes.

use serde::{Deserialize, Serialize};

/// One process of a machine. Names and folders are the machine's own words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessStat {
    /// Its id inside the machine, or inside its container if there are several.
    pub pid: i32,
    /// Its container, of a machine that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// When it started, in seconds since 1970.
    pub stime: u64,
    /// How long it has run, in seconds.
    pub rtime: u64,
    /// Its command line, cut.
    pub command: String,
    /// Its working folder, cut.
    pub directory: String,
    /// Its share of one CPU since it started, in percent.
    pub cpu: u64,
    /// Its memory in bytes.
    pub rss: u64,
    /// Where it accepts connections.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A socket that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenSocket {
    /// `tcp`.
    pub proto: String,
    /// Address and port, as `0.0.0.0:8080` or `[::]:8080`.
    pub address: String,
}

/// A machine's memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineMemory {
    /// What it could use more.
    pub available_mb: u64,
    /// What it may use.
    pub limit_mb: u64,
}

/// Body of a change of the memory that a running machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMemory {
    /// What it may use, in MiB.
    pub limit_mb: u64,
}

/// Body of a reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReclaimMemory {
    /// How much to take back, in MiB.
    pub amount_mb: u64,
}

/// Answer of a reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReclaimedMemory {
    /// How much was taken back, in MiB; may be less or more than was asked for.
    pub actual_mb: u64,
}
