//! What an agent and a monitor say to each other over the monitor's socket.
//!
//! Never removes or renames a field: a running machine keeps the monitor it started with, so a new
//! agent must understand every older one. Frames are those of [`crate::frame`]; one connection
//! carries one request after another, except that `exec` and `wait` keep theirs to themselves.

use std::path::PathBuf;

use perch_types::guest::{Ended, GuestExec, GuestStart, TerminalSize};
use perch_types::{InstanceId, MachineId};
use serde::{Deserialize, Serialize};

use crate::spec::{BootSpec, ExitStatus};

/// The version of these messages. An agent speaks to monitors of this and every lower version.
pub const PROTOCOL: u32 = 1;
/// The longest frame in either direction, in bytes.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How many agents may be connected to a monitor at once.
pub const CLIENTS_MAX: usize = 32;
/// The most bytes of a stream in one frame.
pub const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// Who runs: what a monitor says first on every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// [`PROTOCOL`] of that monitor.
    pub protocol: u32,
    /// The machine.
    pub machine: MachineId,
    /// Its version.
    pub instance: InstanceId,
    /// Its boot.
    pub boot: u64,
    /// The server's own boot id: process ids mean nothing after another.
    pub host_boot: String,
    /// The monitor.
    pub monitor: ProcessInfo,
    /// PID 1 of the machine, as the host sees it.
    pub init: ProcessInfo,
    /// The machine's cgroup, relative to the root of a hierarchy.
    pub cgroup: String,
}

/// A process, told from later ones of the same id by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since the server booted.
    pub start_ticks: u64,
}

/// What a machine uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// The limit.
    pub memory_max_bytes: u64,
    /// CPU time since the boot, in microseconds.
    pub cpu_us: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes killed for want of memory since the boot.
    pub oom_kills: u64,
    /// Log lines dropped since the boot.
    #[serde(default)]
    pub log_dropped: u64,
}

/// What a monitor is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Boot {
    /// The machine.
    pub spec: BootSpec,
    /// The binary of its PID 1.
    pub init: PathBuf,
    /// The folder in every cgroup hierarchy below which monitors and machines live, relative to
    /// its root: a delegated slice outside the agent's own cgroup.
    pub cgroup: String,
}

/// What an agent asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first message on the socket that the monitor was started with, and only there.
    Boot(Box<Boot>),
    /// Execute the program.
    Start(Box<GuestStart>),
    /// A signal to the main program.
    Signal {
        /// Which.
        signal: i32,
    },
    /// A signal now, the end after the grace.
    Stop {
        /// Which.
        signal: i32,
        /// The grace.
        grace_ms: u64,
    },
    /// Kill everything.
    Kill,
    /// Stop where they are.
    Freeze,
    /// Go on.
    Thaw,
    /// A line for the machine's log. Monitors of an earlier release hang up on it.
    Note {
        /// The line.
        text: String,
    },
    /// Answer when it has ended.
    Wait,
    /// What it uses.
    Stats,
    /// Run a program; frames of [`ExecFrame`] follow both ways.
    Exec(Box<GuestExec>),
    /// A frame of an exec that was accepted.
    ExecFrame(ExecFrame),
}

/// What a monitor answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// First on every connection.
    Hello(Box<InstanceInfo>),
    /// Done.
    Done,
    /// Not done.
    Refused {
        /// Why: the chain of causes.
        reason: String,
    },
    /// The program could not be executed.
    NotExecutable {
        /// 126 or 127.
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
    /// It has ended.
    Ended(Box<ExitStatus>),
    /// What it uses.
    Stats(Stats),
    /// A frame of an exec.
    ExecFrame(ExecFrame),
}

/// A piece of a program's streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecFrame {
    /// To its input, in base64.
    Stdin(String),
    /// No more input.
    Eof,
    /// Another size.
    Resize(TerminalSize),
    /// A signal to its process group.
    Signal(i32),
    /// From its output, in base64.
    Stdout(String),
    /// From its error output, in base64.
    Stderr(String),
    /// It ended, after everything it wrote.
    Ended(Ended),
    /// It could not be executed.
    Failed {
        /// 126 or 127.
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
}
