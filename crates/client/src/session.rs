//! An exec session: frames over a connection that was upgraded.
//!
//! Never knows a terminal; the frames are `types::exec`'s.

use std::fmt;

use bytes::{Buf as _, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use perch_types::exec::{Frame, decode, encode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::error::Error;

/// An open session. Dropping it ends the program.
pub struct Session {
    io: TokioIo<Upgraded>,
    url: String,
}

/// The side that hears.
pub struct FrameReader {
    io: ReadHalf<TokioIo<Upgraded>>,
    buffer: BytesMut,
    url: String,
}

/// The side that speaks.
pub struct FrameWriter {
    io: WriteHalf<TokioIo<Upgraded>>,
    url: String,
}

macro_rules! opaque_debug {
    ($($name:ident),+) => { $(impl fmt::Debug for $name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct(stringify!($name)).field("url", &self.url).finish_non_exhaustive()
        }
    })+ };
}

opaque_debug!(Session, FrameReader, FrameWriter);

impl Session {
    pub(crate) fn new(upgraded: Upgraded, url: String) -> Self {
        Self { io: TokioIo::new(upgraded), url }
    }

    /// Returns both sides, for two tasks.
    #[must_use]
    pub fn split(self) -> (FrameReader, FrameWriter) {
        let (read, write) = tokio::io::split(self.io);
        let reader = FrameReader { io: read, buffer: BytesMut::new(), url: self.url.clone() };
        (reader, FrameWriter { io: write, url: self.url })
    }

    /// Returns the bytes themselves, for a proxy.
    #[must_use]
    pub fn into_io(self) -> TokioIo<Upgraded> {
        self.io
    }
}

impl FrameReader {
    /// Returns the next frame; `None` when the other side has closed. May be dropped and called
    /// again without losing a frame.
    ///
    /// # Errors
    /// When the connection breaks or what comes is no frame.
    pub async fn receive(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let decoded = decode(&self.buffer).map_err(|source| Error::Protocol {
                url: self.url.clone(),
                source: Box::new(source),
            })?;
            if let Some((frame, used)) = decoded {
                self.buffer.advance(used);
                return Ok(Some(frame));
            }
            let read = self.io.read_buf(&mut self.buffer).await;
            if read.map_err(|source| interrupted(&self.url, source))? == 0 {
                return Ok(None);
            }
        }
    }
}

impl FrameWriter {
    /// Sends a frame. Not to be dropped half-way.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), Error> {
        let bytes = encode(frame);
        self.io.write_all(&bytes).await.map_err(|source| interrupted(&self.url, source))?;
        self.io.flush().await.map_err(|source| interrupted(&self.url, source))
    }
}

fn interrupted(url: &str, source: std::io::Error) -> Error {
    Error::Interrupted { url: url.to_owned(), source: Box::new(source) }
}
