//! What the monitor and PID 1 of a machine say to each other over their socket.
//!
//! Never trusted by the monitor: whatever comes from inside is limited in size, rate and shape
//! before it is read. Frames are a big-endian `u32` length and that many bytes of JSON; descriptors
//! travel beside the first byte of the frame that announces them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Secret;

/// The version of these messages. Fields are only ever added.
pub const PROTOCOL: u32 = 1;
/// The longest frame from the monitor to init, in bytes: an environment fits well.
pub const TO_GUEST_BYTES_MAX: usize = 1024 * 1024;
/// The longest frame from init to the monitor, in bytes.
pub const FROM_GUEST_BYTES_MAX: usize = 16 * 1024;
/// The longest reason that init gives, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;
/// How many main processes there may be.
pub const PROCESSES_MAX: usize = 8;
/// The most descriptors that come along with one message to init: two outputs of each process.
pub const TO_GUEST_DESCRIPTORS_MAX: usize = 2 * PROCESSES_MAX;
/// The most bytes of [`GuestStart::files`] together, as they are written.
pub const FILES_BYTES_MAX: usize = 512 * 1024;
/// How many programs may run by [`ToGuest::Exec`] at once.
pub const EXECS_MAX: usize = 16;
/// The descriptor at which init finds its socket.
pub const SOCKET_FD: i32 = 3;
/// The folders of a machine with the socket of its API, each under its platform's name.
pub const API_FOLDERS: [&str; 2] = ["/.fly", "/.perch"];
/// The socket's name in each.
pub const API_SOCKET: &str = "api";
/// The exit code when a program could not be executed (as shells do).
pub const CODE_NOT_EXECUTABLE: i32 = 126;
/// The exit code when there is no such program (as shells do).
pub const CODE_NOT_FOUND: i32 = 127;

/// Everything that the program of a machine is started with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestStart {
    /// The program and its arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// The whole environment; `PATH` and `HOME` get defaults.
    #[serde(default)]
    pub env: BTreeMap<String, Secret>,
    /// `name`, `uid`, `uid:gid` or `name:group`, as in an image's configuration; empty is root.
    #[serde(default)]
    pub user: String,
    /// The working directory, made if missing; empty is `/`.
    #[serde(default)]
    pub cwd: String,
    /// Whether the program gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// The text of `/etc/hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The text of `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    /// The text of `/etc/resolv.conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<String>,
    /// The main processes when there are several; then `argv` is of no use, and environment, user
    /// and folder are what they start from. None has a terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<GuestProcess>,
    /// Whether standard output and error of each of them come along as descriptors, so that what
    /// they say can be told apart; else they are init's own. The monitor sets it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outputs: bool,
    /// Whether init outlives the program: it kills what the program left, reports its end and waits
    /// for another start. The monitor ends it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
    /// The signal that asks the others to end when the first of several has ended.
    #[serde(default)]
    pub stop_signal: i32,
    /// How long they may take then, in milliseconds.
    #[serde(default)]
    pub stop_grace_ms: u64,
    /// Files that are written before the program starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<GuestFile>,
}

/// One of several main processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestProcess {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// As in [`GuestStart::user`]; `None` is the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment over [`GuestStart::env`].
    #[serde(default)]
    pub env: BTreeMap<String, Secret>,
    /// Variables of [`GuestStart::env`] that it does not get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

/// A file that init writes, as root of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestFile {
    /// Where, absolute.
    pub path: String,
    /// Its content in base64.
    pub content: Secret,
    /// Its permissions.
    pub mode: u32,
}

/// A further program to run inside a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestExec {
    /// The program and its arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Environment over the one that the main program was started with.
    #[serde(default)]
    pub env: BTreeMap<String, Secret>,
    /// As in [`GuestStart::user`]; `None` is the main program's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The working directory; `None` is the main program's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
    /// The container, of a machine that has several; `None` is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// How a process ended: by its own exit code or by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// What the monitor asks of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// Start the main program; comes first, and again only when [`GuestStart::stays`] was set and
    /// the program has ended.
    Start(Box<GuestStart>),
    /// Run a further program. Without a terminal three descriptors come along: its standard input,
    /// output and error.
    Exec {
        /// A number for the answers, unique in the life of the machine.
        id: u32,
        /// What to run.
        exec: Box<GuestExec>,
    },
    /// Send a signal to the main program.
    Signal {
        /// Linux's number of the signal.
        signal: i32,
    },
    /// Send a signal to the process group of a further program.
    SignalExec {
        /// Which one.
        id: u32,
        /// Linux's number of the signal.
        signal: i32,
    },
}

/// What init reports to the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// Comes first: init runs and waits for [`ToGuest::Start`].
    Hello {
        /// [`PROTOCOL`] of that init.
        protocol: u32,
    },
    /// The main program was executed. With a terminal its master comes along.
    Started,
    /// The main program could not be executed; init ends unless it stays.
    StartFailed {
        /// [`CODE_NOT_FOUND`] or [`CODE_NOT_EXECUTABLE`].
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
    /// The first of several main processes ended; the others are asked to.
    ProcessEnded {
        /// Which one, in the order of [`GuestStart::processes`].
        process: u32,
        /// How.
        ended: Ended,
    },
    /// The main program ended; init ends unless it stays, and everything else with it. Of several
    /// processes it is the end of the first that ended.
    Ended(Ended),
    /// A further program was executed. With a terminal its master comes along.
    ExecStarted {
        /// Which one.
        id: u32,
    },
    /// A further program could not be executed.
    ExecFailed {
        /// Which one.
        id: u32,
        /// [`CODE_NOT_FOUND`] or [`CODE_NOT_EXECUTABLE`].
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
    /// A further program ended.
    ExecEnded {
        /// Which one.
        id: u32,
        /// How.
        ended: Ended,
    },
}

/// A frame that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// It is longer than its limit.
    #[error("a frame of {0} bytes is longer than its limit")]
    TooLong(usize),
    /// It is not of the shape of a message.
    #[error("a frame of another shape: {0}")]
    Shape(String),
}

/// The length of a frame's head, in bytes.
const HEAD_BYTES: usize = 4;

/// Returns the frame of a message.
///
/// # Errors
/// The message is longer than `bytes_max`.
pub fn encode<T: Serialize>(message: &T, bytes_max: usize) -> Result<Vec<u8>, FrameFault> {
    let body = serde_json::to_vec(message).map_err(|error| FrameFault::Shape(error.to_string()))?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > bytes_max {
        return Err(FrameFault::TooLong(body.len()));
    }
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

/// Bytes as they arrive, out of which come messages.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next message out, if it is there whole.
    ///
    /// # Errors
    /// It is longer than `bytes_max`, which shows before its bytes arrive, or of another shape.
    /// Nothing more can be read after that.
    pub fn next<T: serde::de::DeserializeOwned>(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<T>, FrameFault> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > bytes_max {
            return Err(FrameFault::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message =
            serde_json::from_slice(body).map_err(|error| FrameFault::Shape(error.to_string()))?;
        self.bytes.drain(..length.saturating_add(HEAD_BYTES));
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_or_refused(pieces: Vec<Vec<u8>>) {
            let mut buffer = FrameBuffer::default();
            for piece in &pieces {
                buffer.push(piece);
                if buffer.next::<FromGuest>(FROM_GUEST_BYTES_MAX).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn a_message_comes_out_whole_however_it_was_cut(reason: String, cut in 0_usize..64) {
            let sent = FromGuest::ExecFailed { id: 7, code: 126, reason };
            let frame = encode(&sent, TO_GUEST_BYTES_MAX).unwrap();
            let cut = cut.min(frame.len());
            let mut buffer = FrameBuffer::default();
            buffer.push(&frame[..cut]);
            let early = buffer.next::<FromGuest>(TO_GUEST_BYTES_MAX).unwrap();
            proptest::prop_assert!(cut == frame.len() || early.is_none());
            buffer.push(&frame[cut..]);
            let late = buffer.next(TO_GUEST_BYTES_MAX).unwrap();
            proptest::prop_assert_eq!(early.or(late), Some(sent));
        }
    }

    #[test]
    fn a_frame_longer_than_its_limit_is_refused_by_its_head_alone() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&[0, 1, 0, 0]);
        assert_eq!(buffer.next::<FromGuest>(16), Err(FrameFault::TooLong(65_536)));
    }

    #[test]
    fn an_environment_is_not_shown_by_debug() {
        let env = BTreeMap::from([("TOKEN".to_owned(), Secret::new("hunter2"))]);
        let start = ToGuest::Start(Box::new(GuestStart { env, ..GuestStart::default() }));
        assert!(!format!("{start:?}").contains("hunter2"));
        let text = serde_json::to_string(&start).unwrap();
        assert_eq!(serde_json::from_str::<ToGuest>(&text).unwrap(), start);
    }
}
