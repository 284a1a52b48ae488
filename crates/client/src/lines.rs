//! Answers that are lines of JSON.
//!
//! Never holds more than one line beyond its limit, and never takes the end of a broken
//! connection for the end of the answer.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// The longest line of an ordinary answer, in bytes.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;
/// The longest line of a watch, whose snapshot holds every machine of a host, in bytes.
pub const SNAPSHOT_LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A line went over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {limit_bytes} bytes")]
pub struct LineTooLong {
    /// The limit.
    pub limit_bytes: usize,
}

/// Cuts bytes into lines.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: BytesMut,
    // Bytes at the front that are known to hold no line break.
    searched: usize,
    limit_bytes: usize,
}

impl LineDecoder {
    /// Makes a decoder of lines up to `limit_bytes` long, their end not counted.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, limit_bytes }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole line that is not empty, without its end.
    ///
    /// # Errors
    /// When a line is over the limit; the decoder is then of no more use.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, LineTooLong> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let found = unsearched.iter().position(|byte| *byte == b'\n');
            let length = self.searched + found.unwrap_or(unsearched.len());
            if length > self.limit_bytes {
                return Err(LineTooLong { limit_bytes: self.limit_bytes });
            }
            if found.is_none() {
                self.searched = length;
                return Ok(None);
            }
            let mut line = self.buffer.split_to(length + 1);
            self.searched = 0;
            line.truncate(length);
            if line.last() == Some(&b'\r') {
                line.truncate(length - 1);
            }
            if !line.is_empty() {
                return Ok(Some(line.freeze()));
            }
        }
    }

    /// Returns whether bytes of a line without an end are left.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// An answer that comes line by line. Dropping it ends the request.
pub struct Lines<T> {
    body: Incoming,
    decoder: LineDecoder,
    idle_timeout: Option<Duration>,
    url: String,
    ended: bool,
    item: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The bytes stopped in the middle of a line.
#[derive(Debug, thiserror::Error)]
#[error("the answer ended within a line")]
struct Unfinished;

/// Nothing came for longer than was agreed.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s", .0.as_secs())]
struct Silent(Duration);

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) fn new(
        body: Incoming,
        url: String,
        limit_bytes: usize,
        idle_timeout: Option<Duration>,
    ) -> Self {
        let decoder = LineDecoder::new(limit_bytes);
        Self { body, decoder, idle_timeout, url, ended: false, item: PhantomData }
    }

    /// Returns the next line; `None` after the last. May be dropped and called again without
    /// losing a line.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        if self.ended {
            return None;
        }
        let next = self.read().await.transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }

    /// Returns the lines as a stream.
    pub fn into_stream(self) -> impl futures_util::Stream<Item = Result<T, Error>> + Send
    where
        T: Send,
    {
        futures_util::stream::unfold(self, |mut lines| async move {
            lines.next().await.map(|line| (line, lines))
        })
    }

    async fn read(&mut self) -> Result<Option<T>, Error> {
        loop {
            let line = self.decoder.next_line().map_err(|source| self.protocol(source))?;
            if let Some(line) = line {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|source| self.protocol(source));
            }
            match self.frame().await? {
                Some(frame) => {
                    if let Some(data) = frame.data_ref() {
                        self.decoder.push(data);
                    }
                }
                None if self.decoder.has_rest() => return Err(self.interrupted(Unfinished)),
                None => return Ok(None),
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<hyper::body::Frame<Bytes>>, Error> {
        let frame = match self.idle_timeout {
            None => self.body.frame().await,
            Some(idle) => match tokio::time::timeout(idle, self.body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Err(self.interrupted(Silent(idle))),
            },
        };
        frame.transpose().map_err(|source| self.interrupted(source))
    }

    fn protocol(&self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Protocol { url: self.url.clone(), source: Box::new(source) }
    }

    fn interrupted(&self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Interrupted { url: self.url.clone(), source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut LineDecoder) -> Result<Vec<Vec<u8>>, LineTooLong> {
        let mut lines = Vec::new();
        while let Some(line) = decoder.next_line()? {
            lines.push(line.to_vec());
        }
        Ok(lines)
    }

    #[test]
    fn lines_are_cut_and_empty_ones_are_not_lines() {
        let mut decoder = LineDecoder::new(10);
        decoder.push(b"{}\r\n\n\r\n[1]\n");
        decoder.push(b"half");
        assert_eq!(all(&mut decoder).unwrap(), [b"{}".to_vec(), b"[1]".to_vec()]);
        assert!(decoder.has_rest());
    }

    #[test]
    fn a_line_over_the_limit_is_refused_before_its_end_is_seen() {
        let mut decoder = LineDecoder::new(4);
        decoder.push(b"1234\n");
        assert_eq!(all(&mut decoder).unwrap(), [b"1234".to_vec()]);
        decoder.push(b"12345");
        assert_eq!(decoder.next_line(), Err(LineTooLong { limit_bytes: 4 }));
    }

    proptest! {
        #[test]
        fn the_cut_does_not_depend_on_how_the_bytes_came(
            lines in prop::collection::vec("[^\r\n]{1,20}", 0..20),
            sizes in prop::collection::vec(1_usize..9, 1..40),
        ) {
            let bytes = lines.iter().flat_map(|l| [l.as_bytes(), b"\n"].concat()).collect::<Vec<_>>();
            let mut decoder = LineDecoder::new(1000);
            let mut found = Vec::new();
            let mut rest = bytes.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*size).min(rest.len()));
                decoder.push(now);
                found.extend(all(&mut decoder).unwrap());
                rest = later;
            }
            let expected: Vec<_> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(!decoder.has_rest());
        }

        #[test]
        fn any_bytes_are_cut_without_a_line_over_the_limit(bytes: Vec<u8>) {
            let mut decoder = LineDecoder::new(16);
            decoder.push(&bytes);
            while let Ok(Some(line)) = decoder.next_line() {
                prop_assert!(!line.is_empty() && line.len() <= 16 && !line.contains(&b'\n'));
            }
        }
    }
}
