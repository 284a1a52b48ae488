//! Frames: a big-endian `u32` length and that many bytes of JSON.
//!
//! Never reads a frame longer than its caller's limit, and never allocates for one before its
//! length was checked.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The length of a frame's head, in bytes.
pub const HEAD_BYTES: usize = 4;

/// Returns the frame of a message.
///
/// # Errors
/// The message is longer than `bytes_max`.
pub fn encode<T: Serialize>(message: &T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEAD_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len().saturating_sub(HEAD_BYTES);
    if length > bytes_max {
        return Err(too_long());
    }
    let head = u32::try_from(length).map_err(|_| too_long())?.to_be_bytes();
    frame.splice(..HEAD_BYTES, head);
    Ok(frame)
}

/// Returns the length that a head announces.
///
/// # Errors
/// It is more than `bytes_max`.
pub fn length(head: [u8; HEAD_BYTES], bytes_max: usize) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(head))
        .ok()
        .filter(|length| *length <= bytes_max)
        .ok_or_else(too_long)
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame is longer than its limit")
}

/// Writes one message.
///
/// # Errors
/// The stream's, or the message is too long.
pub fn write<T: Serialize>(
    stream: &mut impl Write,
    message: &T,
    bytes_max: usize,
) -> io::Result<()> {
    stream.write_all(&encode(message, bytes_max)?)
}

/// Reads one message.
///
/// # Errors
/// The stream's (`UnexpectedEof` at its end), or the message is too long or of another shape.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read, bytes_max: usize) -> io::Result<T> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; length(head, bytes_max)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one message without blocking the thread.
///
/// # Errors
/// As [`write`].
pub async fn send<T: Serialize + Sync, S: tokio::io::AsyncWrite + Unpin + Send>(
    stream: &mut S,
    message: &T,
    bytes_max: usize,
) -> io::Result<()> {
    stream.write_all(&encode(message, bytes_max)?).await
}

/// Reads one message without blocking the thread. Not cancel safe.
///
/// # Errors
/// As [`read`].
pub async fn receive<T: DeserializeOwned, S: tokio::io::AsyncRead + Unpin + Send>(
    stream: &mut S,
    bytes_max: usize,
) -> io::Result<T> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; length(head, bytes_max)?];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_longer_than_its_limit_is_neither_written_nor_read() {
        encode(&"x".repeat(10), 11).unwrap_err();
        let frame = encode(&"x".repeat(10), 12).unwrap();
        assert_eq!(read::<String>(&mut frame.as_slice(), 12).unwrap(), "xxxxxxxxxx");
        let error = read::<String>(&mut frame.as_slice(), 11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let huge = [0xff, 0xff, 0xff, 0xff];
        read::<String>(&mut huge.as_slice(), 1024).unwrap_err();
    }
}
