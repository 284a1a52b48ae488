//! The end of a log at which records are added.
//!
//! Never grows a log beyond its limit, and never trusts the end of a file: a record that a crash
//! cut off is cut away.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{LINE_BYTES_MAX, Record, Stream, segment_path, segments};
use crate::Error;

/// The smallest limit of a log: two segments of a few lines.
const BYTES_MIN: u64 = 64 * 1024;

/// Adds records to a log. There is one at a time.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    segment_bytes_max: u64,
    file: File,
    bytes: u64,
    next: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// Opens a log, making it if it is not there.
    ///
    /// # Errors
    /// The folder or a file in it cannot be used.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let (first, next, bytes) = match segments(dir)?.pop() {
            None => (1, 1, 0),
            Some((first, path)) => {
                let (next, bytes) = whole(first, &path)?;
                (first, next, bytes)
            }
        };
        let path = segment_path(dir, first);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        file.set_len(bytes).map_err(Error::file("truncate", path))?;
        Ok(Self {
            dir: dir.to_owned(),
            segment_bytes_max: bytes_max.max(BYTES_MIN) / 2,
            file,
            bytes,
            next,
            buffer: Vec::new(),
        })
    }

    /// Adds a line, which is written by the next [`Writer::flush`]; returns its number.
    ///
    /// # Errors
    /// A new segment was due and could not be made.
    pub fn add(&mut self, record: Record) -> Result<u64, Error> {
        let mut record = record;
        record.line.truncate(LINE_BYTES_MAX);
        record.seq = self.next;
        if self.bytes > 0
            && self.bytes.saturating_add(record.encoded_bytes()) > self.segment_bytes_max
        {
            self.rotate()?;
        }
        record.encode(&mut self.buffer);
        self.bytes = self.bytes.saturating_add(record.encoded_bytes());
        self.next = self.next.saturating_add(1);
        Ok(record.seq)
    }

    /// Adds a line of the platform itself.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn system(&mut self, unix_ms: u64, text: &str) -> Result<u64, Error> {
        self.add(Record {
            seq: 0,
            unix_ms,
            stream: Stream::System,
            continues: false,
            dropped_before: 0,
            container: None,
            process: None,
            line: text.as_bytes().to_vec(),
        })
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// The disk's. What could not be written whole is cut away and lost.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        if result.is_err() {
            let first = segments(&self.dir)?.pop().map_or(1, |(first, _)| first);
            let (next, bytes) = whole(first, &segment_path(&self.dir, first))?;
            self.next = next;
            self.bytes = bytes;
            self.file.set_len(bytes).map_err(Error::file("truncate", &self.dir))?;
        }
        result.map_err(Error::file("write", &self.dir))
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.flush()?;
        let path = segment_path(&self.dir, self.next);
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::file("create", path))?;
        self.bytes = 0;
        let mut all = segments(&self.dir)?;
        all.truncate(all.len().saturating_sub(2));
        for (_, path) in all {
            fs::remove_file(&path).map_err(Error::file("remove", path))?;
        }
        Ok(())
    }
}

/// Returns the number after the last whole record of a segment, and the bytes up to there.
fn whole(first: u64, path: &Path) -> Result<(u64, u64), Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut file = std::io::BufReader::new(file);
    let mut next = first;
    let mut bytes = 0_u64;
    while let Some(record) = Record::decode(&mut file).map_err(Error::file("read", path))? {
        next = record.seq.saturating_add(1);
        bytes = bytes.saturating_add(record.encoded_bytes());
    }
    Ok((next, bytes))
}
