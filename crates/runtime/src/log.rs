//! A machine's log: numbered records in segment files of limited size.
//!
//! Never interprets what a machine wrote: one line is one record, its bytes as they came.
//!
//! A segment is named after the number of its first record. There are at most two; when the newer
//! one reaches half of the limit, the older one goes.

mod follow;
mod writer;

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::Error;
pub use follow::Follower;
pub use writer::Writer;

/// The longest piece of a line in one record, in bytes; a longer line takes several records.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// The most records that one read returns.
pub const RECORDS_MAX: usize = 10_000;
/// The length of a record's head: length of the line, number, time, stream, dropped.
const HEAD_BYTES: usize = 4 + 8 + 8 + 1 + 8;
/// Set beside the stream when the line goes on in the next record.
const CONTINUES: u8 = 0x80;
/// Set beside the stream when the name of a container stands before the line: its length in one
/// byte, and its bytes.
const NAMED: u8 = 0x40;
/// Set beside the stream when the number of a process stands before the line, in one byte, behind
/// the name of a container if there is one.
const NUMBERED: u8 = 0x20;
/// The most bytes that stand before a line.
const PREFIX_BYTES_MAX: usize = 1 + 255 + 1;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The program's standard output, or its terminal.
    Stdout,
    /// The program's standard error.
    Stderr,
    /// The platform itself: started, killed, out of memory.
    System,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, without gaps, from 1 on, over all boots of the machine.
    pub seq: u64,
    /// When it was read, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line goes on in the next record of the stream.
    pub continues: bool,
    /// How many lines were dropped right before it because they came too fast.
    pub dropped_before: u64,
    /// The container that wrote it, of a machine that has several.
    pub container: Option<String>,
    /// The main process that wrote it, of a machine that has several, in their order.
    pub process: Option<u8>,
    /// The line without its end, at most [`LINE_BYTES_MAX`]; any bytes at all.
    pub line: Vec<u8>,
}

impl Stream {
    const fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::System => 3,
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::System),
            _ => None,
        }
    }
}

impl Record {
    fn encode(&self, to: &mut Vec<u8>) {
        let line = self.line.get(..LINE_BYTES_MAX).unwrap_or(&self.line);
        let prefix = self.prefix();
        let length = u32::try_from(line.len().saturating_add(prefix.len())).unwrap_or_default();
        let continues = if self.continues { CONTINUES } else { 0 };
        let named = if self.container.is_some() { NAMED } else { 0 };
        let numbered = if self.process.is_some() { NUMBERED } else { 0 };
        to.extend(length.to_be_bytes());
        to.extend(self.seq.to_be_bytes());
        to.extend(self.unix_ms.to_be_bytes());
        to.push(self.stream.byte() | continues | named | numbered);
        to.extend(self.dropped_before.to_be_bytes());
        to.extend(prefix);
        to.extend(line);
    }

    /// Returns what stands before the line.
    fn prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::new();
        if let Some(name) = &self.container {
            let length = u8::try_from(name.len()).unwrap_or_default();
            prefix.push(length);
            prefix.extend(name.bytes().take(usize::from(length)));
        }
        prefix.extend(self.process);
        prefix
    }

    /// Reads the next record; `None` at the end or at one that is not written whole.
    fn decode(from: &mut impl io::Read) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES];
        if !filled(from, &mut head)? {
            return Ok(None);
        }
        let (length, rest) = head.split_at(4);
        let (seq, rest) = rest.split_at(8);
        let (unix_ms, rest) = rest.split_at(8);
        let (stream, dropped) = rest.split_at(1);
        let length = usize::try_from(big_endian(length)).unwrap_or(usize::MAX);
        let byte = stream.first().copied().unwrap_or_default();
        let Some(stream) = Stream::of(byte & !CONTINUES & !NAMED & !NUMBERED) else {
            return Ok(None);
        };
        if length > LINE_BYTES_MAX.saturating_add(PREFIX_BYTES_MAX) {
            return Ok(None);
        }
        let mut line = vec![0; length];
        if !filled(from, &mut line)? {
            return Ok(None);
        }
        let mut rest = line.as_slice();
        let mut container = None;
        if byte & NAMED != 0 {
            let Some((length, named)) = rest.split_first() else {
                return Ok(None);
            };
            let Some((name, line)) = named.split_at_checked(usize::from(*length)) else {
                return Ok(None);
            };
            container = Some(String::from_utf8_lossy(name).into_owned());
            rest = line;
        }
        let mut process = None;
        if byte & NUMBERED != 0 {
            let Some((number, line)) = rest.split_first() else {
                return Ok(None);
            };
            process = Some(*number);
            rest = line;
        }
        let prefix = line.len().saturating_sub(rest.len());
        line.drain(..prefix);
        Ok(Some(Self {
            seq: big_endian(seq),
            unix_ms: big_endian(unix_ms),
            stream,
            continues: byte & CONTINUES != 0,
            dropped_before: big_endian(dropped),
            container,
            process,
            line,
        }))
    }

    fn encoded_bytes(&self) -> u64 {
        let bytes = HEAD_BYTES.saturating_add(self.prefix().len()).saturating_add(self.line.len());
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn filled(from: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns up to `limit` records (at most [`RECORDS_MAX`]) from number `from_seq` on. Those that
/// were rotated away are skipped: the first number shows it.
///
/// # Errors
/// The log cannot be read. A log that is not there is empty.
pub fn read(dir: &Path, from_seq: u64, limit: usize) -> Result<Vec<Record>, Error> {
    Cursor::new(dir, from_seq).read(limit)
}

/// Returns the last `count` records (at most [`RECORDS_MAX`]).
///
/// # Errors
/// As [`read`].
pub fn tail(dir: &Path, count: usize) -> Result<Vec<Record>, Error> {
    let count = count.min(RECORDS_MAX);
    let next = next_seq(dir)?;
    read(dir, next.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX)), count)
}

/// Returns the number that the next record will get.
///
/// # Errors
/// As [`read`].
pub fn next_seq(dir: &Path) -> Result<u64, Error> {
    let Some((first, path)) = segments(dir)?.pop() else {
        return Ok(1);
    };
    let error = Error::file("read", &path);
    let mut file = BufReader::new(match File::open(&path) {
        Ok(file) => file,
        Err(source) => return Err(error(source)),
    });
    let mut next = first;
    while let Some(record) = Record::decode(&mut file).map_err(Error::file("read", &path))? {
        next = record.seq.saturating_add(1);
    }
    Ok(next)
}

/// The segments with the numbers of their first records, oldest first.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("list", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("list", dir))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".log"))
            .and_then(|name| name.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// A place in a log, read from again and again.
#[derive(Debug)]
pub struct Cursor {
    dir: PathBuf,
    next: u64,
    at: Option<(u64, u64)>,
}

impl Cursor {
    /// Starts at a record's number, whether it is there yet or not.
    #[must_use]
    pub fn new(dir: &Path, from_seq: u64) -> Self {
        Self { dir: dir.to_owned(), next: from_seq, at: None }
    }

    /// Returns the records that came since, at most `limit` or [`RECORDS_MAX`].
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(&mut self, limit: usize) -> Result<Vec<Record>, Error> {
        let limit = limit.min(RECORDS_MAX);
        let mut found = Vec::new();
        let all = segments(&self.dir)?;
        for (index, (first, path)) in all.iter().enumerate() {
            let past = all.get(index.saturating_add(1)).is_some_and(|(next, _)| *next <= self.next);
            if past {
                continue;
            }
            self.read_segment(*first, path, limit, &mut found)?;
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    fn read_segment(
        &mut self,
        first: u64,
        path: &Path,
        limit: usize,
        found: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let file = match File::open(path) {
            Ok(file) => file,
            // Rotated away between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::file("open", path)(error)),
        };
        let mut offset = match self.at {
            Some((at, offset)) if at == first => offset,
            _ => 0,
        };
        let mut file = BufReader::new(file);
        file.seek(SeekFrom::Start(offset)).map_err(Error::file("read", path))?;
        while found.len() < limit {
            let decoded = Record::decode(&mut file.by_ref()).map_err(Error::file("read", path))?;
            let Some(record) = decoded else { break };
            offset = offset.saturating_add(record.encoded_bytes());
            if record.seq >= self.next {
                self.next = record.seq.saturating_add(1);
                found.push(record);
            }
        }
        self.at = Some((first, offset));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
