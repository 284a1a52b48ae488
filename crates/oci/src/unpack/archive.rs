//! A reader of tar entries: ustar, GNU long names and PAX records.
//!
//! Never keeps more of an archive in memory than one entry's headers, and never guesses: a broken
//! checksum, record or size ends the layer. Sparse files are refused. A reader of its own because
//! PAX values may contain line ends (capabilities do), which change how every later record and
//! even the entry's size is read by a parser that splits at them.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::Fault;
use crate::limits::EXTENDED_HEADER_BYTES_MAX;

const BLOCK_BYTES: u64 = 512;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    /// A device node, fifo or socket.
    Special,
}

/// One entry, with its PAX records applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) size_bytes: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads entries one after the other; the bytes of a file are read by [`Archive::content`].
#[derive(Debug)]
pub(super) struct Archive<R> {
    source: R,
    /// Content of the current entry that was not read yet, and the padding after it.
    content_left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, content_left: 0, padding: 0 }
    }

    /// Returns the next entry, or nothing at the archive's end.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Fault> {
        self.skip(self.content_left.saturating_add(self.padding))?;
        (self.content_left, self.padding) = (0, 0);
        let mut local = Records::new();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| broken("an entry's size"))?;
            match header.entry_type() {
                EntryType::XHeader => local = parse_records(&self.extended(size)?)?,
                // Layers have no use for archive-wide records, and other tools pass over them.
                EntryType::XGlobalHeader => drop(self.extended(size)?),
                EntryType::GNULongName => long_path = Some(text(self.extended(size)?)),
                EntryType::GNULongLink => long_link = Some(text(self.extended(size)?)),
                EntryType::GNUSparse => return Err(broken("a sparse file, not supported,")),
                _ => {
                    let mut entry = from_header(&header, size)?;
                    entry.path = long_path.unwrap_or(entry.path);
                    entry.link = long_link.unwrap_or(entry.link);
                    apply_records(&mut entry, local)?;
                    // Before there were types, a name that ends in a slash was a folder. Only the
                    // whole name tells: a header may hold but the beginning of a long one.
                    if entry.kind == Kind::File && entry.path.ends_with(b"/") {
                        (entry.kind, entry.size_bytes) = (Kind::Folder, 0);
                    }
                    self.content_left = entry.size_bytes;
                    self.padding = padding(entry.size_bytes);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads the current entry's content.
    pub(super) fn content(&mut self) -> Content<'_, R> {
        Content { archive: self }
    }

    /// Reads what follows the archive, so that the whole stream is hashed.
    pub(super) fn drain(mut self) -> Result<(), Fault> {
        io::copy(&mut self.source, &mut io::sink()).map_err(|error| unpacked(&error))?;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest).map_err(|error| unpacked(&error))? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(broken("a header cut short")),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(broken("a header's checksum"));
        }
        Ok(Some(header))
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > EXTENDED_HEADER_BYTES_MAX {
            return Err(Fault::over("an extended header", EXTENDED_HEADER_BYTES_MAX));
        }
        let mut bytes = Vec::new();
        let read = (&mut self.source)
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(|error| unpacked(&error))?;
        if read as u64 != size {
            return Err(broken("an extended header cut short"));
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), Fault> {
        let skipped = io::copy(&mut (&mut self.source).take(count), &mut io::sink())
            .map_err(|error| unpacked(&error))?;
        if skipped == count { Ok(()) } else { Err(broken("an entry cut short")) }
    }
}

/// The bytes of one entry.
#[derive(Debug)]
pub(super) struct Content<'a, R> {
    archive: &'a mut Archive<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.archive.content_left).unwrap_or(usize::MAX);
        let take = buffer.len().min(left);
        let Some(part) = buffer.get_mut(..take).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        let count = self.archive.source.read(part)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.archive.content_left -= count as u64;
        Ok(count)
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

fn broken(what: &str) -> Fault {
    Fault::Invalid(format!("{what} in a layer is broken"))
}

/// Tells a fault of the packed stream from one that a limit put into it.
pub(super) fn unpacked(error: &io::Error) -> Fault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        Some(fault) => fault.clone(),
        None => Fault::Invalid(format!("the packed stream of a layer is broken: {error}")),
    }
}

fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn from_header(header: &Header, size: u64) -> Result<Entry, Fault> {
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Special,
        other => {
            return Err(broken(&format!("an entry of type {:#04x}", other.as_byte())));
        }
    };
    let path = header.path_bytes().into_owned();
    let old = header.as_old();
    Ok(Entry {
        kind,
        link: header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default(),
        mode: or_blank(header.mode(), &old.mode).ok_or_else(|| broken("an entry's mode"))? & 0o7777,
        uid: or_blank(header.uid(), &old.uid).ok_or_else(|| broken("an entry's owner"))?,
        gid: or_blank(header.gid(), &old.gid).ok_or_else(|| broken("an entry's group"))?,
        mtime_s: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
        mtime_ns: 0,
        // Links and folders have no content, whatever their header says.
        size_bytes: if kind == Kind::File { size } else { 0 },
        path,
        xattrs: Vec::new(),
    })
}

/// Returns a number, 0 for a field that was left blank, as other readers do.
fn or_blank<T: Default>(number: io::Result<T>, field: &[u8]) -> Option<T> {
    let blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    number.ok().or_else(|| blank.then(T::default))
}

/// Parses `LENGTH KEY=VALUE\n`, LENGTH counting the whole record (POSIX.1-2001, pax).
fn parse_records(mut bytes: &[u8]) -> Result<Records, Fault> {
    let mut records = Records::new();
    while !bytes.is_empty() && bytes.first() != Some(&0) {
        let record = || broken("an extended header's record");
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(record)?;
        let length: usize = bytes
            .get(..space)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(record)?;
        let body = bytes
            .get(space + 1..length)
            .and_then(|body| body.strip_suffix(b"\n"))
            .ok_or_else(record)?;
        let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(record)?;
        let (key, value) = body.split_at(equals);
        records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(records)
}

fn apply_records(entry: &mut Entry, records: Records) -> Result<(), Fault> {
    for (key, value) in records {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            entry.xattrs.retain(|(known, _)| known != name);
            entry.xattrs.push((name.to_vec(), value));
            continue;
        }
        let number = || -> Result<u64, Fault> {
            std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| broken("a number of an extended header"))
        };
        match key.as_slice() {
            b"path" => entry.path = value,
            b"linkpath" => entry.link = value,
            b"uid" => entry.uid = number()?,
            b"gid" => entry.gid = number()?,
            b"size" if entry.kind == Kind::File => entry.size_bytes = number()?,
            b"mtime" => (entry.mtime_s, entry.mtime_ns) = parse_time(&value),
            sparse if sparse.starts_with(b"GNU.sparse.") => {
                return Err(broken("a sparse file, not supported,"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Parses `SECONDS[.FRACTION]`; times before 1970 become 1970.
fn parse_time(value: &[u8]) -> (i64, u32) {
    let text = String::from_utf8_lossy(value);
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let seconds = seconds.parse::<i64>().unwrap_or(0);
    if seconds < 0 || text.starts_with('-') {
        return (0, 0);
    }
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    (seconds, nine.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_may_hold_line_ends_and_the_last_one_wins() {
        let bytes = b"29 SCHILY.xattr.user.a=x\ny\nz\n14 path=first\n15 path=second\n";
        let records = parse_records(bytes).expect("records");
        assert_eq!(records.len(), 3);
        let mut entry = from_header(&Header::new_gnu(), 0).expect("entry");
        apply_records(&mut entry, records).expect("apply");
        assert_eq!(entry.path, b"second");
        assert_eq!(entry.xattrs, vec![(b"user.a".to_vec(), b"x\ny\nz".to_vec())]);
    }

    #[test]
    fn only_the_whole_name_tells_a_folder() {
        let folder = format!("{}/", "f".repeat(99));
        let block = |kind, name: &str, content: &[u8]| {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..name.len().min(100)]
                .copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            header.set_cksum();
            let mut all = header.as_bytes().to_vec();
            all.extend_from_slice(content);
            all.resize(all.len().next_multiple_of(512), 0);
            all
        };
        let long = format!("{folder}file");
        let record = format!("114 path={long}\n");
        let archives = [
            [block(EntryType::GNULongName, "././@LongLink", long.as_bytes())],
            [block(EntryType::XHeader, "pax", record.as_bytes())],
        ];
        for before in archives {
            let after = block(EntryType::Regular, &folder, b"");
            let bytes =
                [before.concat(), block(EntryType::Regular, &long, b"content"), after].concat();
            let mut archive = Archive::new(bytes.as_slice());
            let entry = archive.next_entry().expect("entry").expect("a file");
            assert_eq!((entry.kind, entry.size_bytes), (Kind::File, 7));
            assert_eq!(entry.path, long.as_bytes());
            let entry = archive.next_entry().expect("entry").expect("a folder");
            assert_eq!((entry.kind, entry.size_bytes), (Kind::Folder, 0));
        }
    }

    #[test]
    fn broken_records_are_refused() {
        for bytes in [&b"9 path=x"[..], b"x path=x\n", b"3 a\n", b"99 path=x\n", b"0 a=b\n"] {
            assert!(parse_records(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_fall_over(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)
        ) {
            let mut archive = Archive::new(bytes.as_slice());
            while let Ok(Some(_)) = archive.next_entry() {}
            let _either = parse_records(&bytes);
        }
    }
}
