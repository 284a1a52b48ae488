//! Frames of an exec session over an upgraded connection.
//!
//! Never touches a socket: [`encode`] and [`decode`] turn frames into bytes and back.
//!
//! A frame is one byte of kind, four bytes of length (big endian), then the payload. The same
//! frames go from the CLI through the api and the host to the machine.

use serde::{Deserialize, Serialize};

/// The protocol's name in the `Upgrade` header.
pub const UPGRADE: &str = "perch-exec/1";
/// The longest payload of a frame.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 5;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal; stderr then arrives as stdout.
    #[serde(default)]
    pub tty: bool,
    /// Rows of the terminal.
    #[serde(default)]
    pub rows: u16,
    /// Columns of the terminal.
    #[serde(default)]
    pub cols: u16,
    /// The container, of a machine that has several; the first that runs when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// One message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for the program.
    Stdin(Vec<u8>),
    /// Nothing more will be written to the program.
    StdinEnd,
    /// Bytes that the program wrote.
    Stdout(Vec<u8>),
    /// Bytes that the program wrote to its standard error.
    Stderr(Vec<u8>),
    /// The program ended; the last frame.
    Exit(ExecExit),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// The session could not be carried on; the last frame. The text says why.
    Error(String),
}

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecExit {
    /// The exit code; 128 + the signal when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind is not known.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// The payload is over [`PAYLOAD_BYTES_MAX`].
    #[error("frame of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// The payload is not what its kind asks for.
    #[error("frame of kind {0} has a broken payload")]
    Payload(u8),
}

/// Returns the bytes of a frame. Payloads over the limit must be split by the caller.
#[must_use]
pub fn encode(frame: &Frame) -> Vec<u8> {
    let json = |value: serde_json::Result<Vec<u8>>| value.unwrap_or_default();
    let (kind, payload) = match frame {
        Frame::Stdin(bytes) => (0, bytes.clone()),
        Frame::Stdout(bytes) => (1, bytes.clone()),
        Frame::Stderr(bytes) => (2, bytes.clone()),
        Frame::Exit(exit) => (3, json(serde_json::to_vec(exit))),
        Frame::StdinEnd => (4, Vec::new()),
        Frame::Resize(size) => (5, json(serde_json::to_vec(size))),
        Frame::Error(text) => (6, text.clone().into_bytes()),
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Takes one frame off the front of `bytes`; `None` when it is not whole yet.
///
/// # Errors
/// When the bytes can never become a frame; the session must end.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Ok(None);
    };
    let (kind, length) = match header {
        [kind, a, b, c, d] => (*kind, u32::from_be_bytes([*a, *b, *c, *d])),
        _ => return Ok(None),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let broken = |_| FrameError::Payload(kind);
    let frame = match kind {
        0 => Frame::Stdin(payload.to_vec()),
        1 => Frame::Stdout(payload.to_vec()),
        2 => Frame::Stderr(payload.to_vec()),
        3 => Frame::Exit(serde_json::from_slice(payload).map_err(broken)?),
        4 => Frame::StdinEnd,
        5 => Frame::Resize(serde_json::from_slice(payload).map_err(broken)?),
        6 => Frame::Error(String::from_utf8_lossy(payload).into_owned()),
        _ => return Err(FrameError::Kind(kind)),
    };
    Ok(Some((frame, HEADER_BYTES + length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_an_error_or_not_whole(bytes: Vec<u8>) {
            if let Ok(Some((_, used))) = decode(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }

        #[test]
        fn what_was_encoded_is_decoded(payload: Vec<u8>, rows: u16, code: i32) {
            for frame in [
                Frame::Stdin(payload.clone()),
                Frame::Stderr(payload),
                Frame::StdinEnd,
                Frame::Resize(TerminalSize { rows, cols: 80 }),
                Frame::Exit(ExecExit { exit_code: code, exit_signal: Some(9) }),
            ] {
                let bytes = encode(&frame);
                prop_assert_eq!(decode(&bytes).unwrap(), Some((frame, bytes.len())));
                prop_assert_eq!(decode(&bytes[..bytes.len() - 1]).unwrap_or(None), None);
            }
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        assert_eq!(decode(&[0, 255, 255, 255, 255]), Err(FrameError::TooLong(0xffff_ffff)));
        assert_eq!(decode(&[9, 0, 0, 0, 0]), Err(FrameError::Kind(9)));
    }
}
