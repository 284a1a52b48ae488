//! What an agent and a monitor say to each other over the monitor's socket.
//!
//! Never removes or renames a field: a running machine keeps the monitor it started with, so a new
//! agent must understand every older one. What an older one does not know raises [`PROTOCOL`], and
//! [`Request::since`] says so: the agent then refuses by name what the monitor would not understand,
//! before it asks. Frames are those of [`crate::frame`]; one connection
//! carries one request after another, except that `exec` and `wait` keep theirs to themselves.

use std::path::PathBuf;

use perch_types::guest::{Ended, GuestExec, GuestStart, TerminalSize};
use perch_types::{InstanceId, MachineId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::containers::{ContainerStart, Containers};
use crate::spec::{BootSpec, ExitStatus};

/// The version of these messages. An agent speaks to monitors of this and every lower version, and
/// to those of a higher one that say they understand it.
///
/// 1 hangs up on what it does not know. 2 refuses that by name, and knows [`Request::Note`].
pub const PROTOCOL: u32 = 2;
/// The lowest version of agents that a monitor of this version understands.
pub const UNDERSTANDS_FROM: u32 = FIRST;
/// The version that said nothing of versions but its own.
const FIRST: u32 = 1;

const fn first() -> u32 {
    FIRST
}
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
    /// [`UNDERSTANDS_FROM`] of that monitor.
    #[serde(default = "first")]
    pub understands_from: u32,
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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The first message on the socket that the monitor was started with, and only there.
    Boot(Box<Boot>),
    /// Execute the program.
    Start(Box<GuestStart>),
    /// What one of several containers shall start with; comes for each before
    /// [`Request::StartContainers`], because all together may be more than a frame.
    PrepareContainer {
        /// Which.
        container: usize,
        /// With what.
        start: Box<ContainerStart>,
    },
    /// Execute the programs of the containers, in their order.
    StartContainers,
    /// Answer when the containers stand otherwise than at this counter.
    Containers {
        /// The counter of the last answer.
        seen: u64,
    },
    /// Whether a container's health checks pass.
    ContainerHealth {
        /// Which.
        container: usize,
        /// Which start of it they were about.
        start: u32,
        /// Whether they do.
        healthy: bool,
    },
    /// Stop a container that is not well.
    StopUnwell {
        /// Which.
        container: usize,
        /// Which start of it.
        start: u32,
    },
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
    /// A line for the machine's log.
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

impl Request {
    /// Returns the lowest version of a monitor that understands it.
    #[must_use]
    pub const fn since(&self) -> u32 {
        match self {
            Self::Boot(_)
            | Self::Start(_)
            | Self::Signal { .. }
            | Self::Stop { .. }
            | Self::Kill
            | Self::Freeze
            | Self::Thaw
            | Self::Wait
            | Self::Stats
            | Self::Exec(_)
            | Self::ExecFrame(_) => FIRST,
            Self::Note { .. }
            | Self::PrepareContainer { .. }
            | Self::StartContainers
            | Self::Containers { .. }
            | Self::ContainerHealth { .. }
            | Self::StopUnwell { .. } => 2,
        }
    }

    /// Understands what an agent sent; else says what of it is not known here.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub fn understood(received: Value) -> Result<Self, String> {
        let verb = match &received {
            Value::String(verb) => Some(verb.clone()),
            Value::Object(fields) => fields.keys().next().cloned(),
            _ => None,
        };
        serde_json::from_value(received).map_err(|error| {
            let verb = verb.unwrap_or_default();
            format!("this monitor, of protocol {PROTOCOL}, does not understand `{verb}`: {error}")
        })
    }
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
    /// How the containers stand.
    Containers(Containers),
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

#[cfg(test)]
mod tests {
    use perch_types::Secret;

    use super::*;

    /// What was said in version 1, as it was on the wire.
    const FIRST_WORDS: &str = include_str!("protocol/version_1.jsonl");

    fn lines(kind: &str) -> Vec<Value> {
        let lines = FIRST_WORDS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line.get(kind).cloned()).collect()
    }

    fn first_requests() -> Vec<Request> {
        let start = GuestStart {
            argv: vec!["/bin/server".to_owned()],
            env: [("A".to_owned(), Secret::new("b"))].into(),
            user: "web".to_owned(),
            ..GuestStart::default()
        };
        let exec = GuestExec { argv: vec!["ls".to_owned()], ..GuestExec::default() };
        vec![
            Request::Start(Box::new(start)),
            Request::Signal { signal: 1 },
            Request::Stop { signal: 15, grace_ms: 5000 },
            Request::Kill,
            Request::Freeze,
            Request::Thaw,
            Request::Wait,
            Request::Stats,
            Request::Exec(Box::new(exec)),
            Request::ExecFrame(ExecFrame::Stdin("aGk=".to_owned())),
            Request::ExecFrame(ExecFrame::Eof),
            Request::ExecFrame(ExecFrame::Resize(TerminalSize { rows: 24, cols: 80 })),
            Request::ExecFrame(ExecFrame::Signal(2)),
        ]
    }

    /// A monitor of version 1 gets to hear nothing that it does not know.
    #[test]
    fn requests_to_the_first_version_are_said_in_its_words() {
        let said = first_requests();
        assert!(said.iter().all(|request| request.since() == FIRST));
        let said: Vec<Value> =
            said.iter().map(|request| serde_json::to_value(request).unwrap()).collect();
        assert_eq!(said, lines("request"));
        for line in lines("request") {
            Request::understood(line).unwrap();
        }
    }

    #[test]
    fn answers_of_the_first_version_are_understood() {
        for line in lines("answer") {
            let answer: Answer = serde_json::from_value(line.clone()).unwrap();
            match answer {
                Answer::Hello(info) => assert_eq!((info.protocol, info.understands_from), (1, 1)),
                Answer::Ended(status) => assert!(!status.forks_refused),
                Answer::Done
                | Answer::Refused { .. }
                | Answer::NotExecutable { .. }
                | Answer::Containers(_)
                | Answer::Stats(_)
                | Answer::ExecFrame(_) => {}
            }
        }
        assert!(lines("answer").len() > 10);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, words) in [
            (r#"{"teleport":{"to":"mars"}}"#, "`teleport`"),
            (r#""dance""#, "`dance`"),
            (r#"{"stop":{"signal":15,"grace_ms":1,"softly":true}}"#, "softly"),
            (r#"{"stop":{"signal":15}}"#, "grace_ms"),
            ("7", "protocol 2"),
        ] {
            let reason = Request::understood(serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(reason.contains(words), "{text}: {reason}");
        }
    }
}
