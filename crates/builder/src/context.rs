//! Judges a build context while it is unpacked, from what `tar` says about each entry.
//!
//! Never parses the archive itself: that happens in a cage without network and without the store,
//! which can write nowhere but into the folder that the context gets (security F8).

use crate::config::{CONTEXT_ENTRIES_MAX, CONTEXT_UNPACKED_BYTES_MAX};

/// Why a context is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Too many entries.
    #[error("the build context has more than {CONTEXT_ENTRIES_MAX} entries")]
    Entries,
    /// Too many bytes.
    #[error("the build context unpacks to more than {CONTEXT_UNPACKED_BYTES_MAX} bytes")]
    Bytes,
    /// A device, a fifo or the like.
    #[error("the build context has an entry that is no file, folder or link: `{0}`")]
    Kind(String),
    /// `tar` stopped.
    #[error("the build context is no archive that `tar` can read: {0}")]
    Archive(String),
}

/// What has been unpacked so far.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    entries: u64,
    bytes: u64,
}

impl Unpacked {
    /// Counts an entry from its line in `tar`'s long list (`-vv --numeric-owner`), such as
    /// `-rw-r--r-- 0/0 12 2026-01-01 00:00 name`. Lines that are no entry are left alone.
    pub(crate) fn admit(&mut self, line: &str) -> Result<(), ContextError> {
        let mut words = line.split_ascii_whitespace();
        let Some(mode) = words.next() else {
            return Ok(());
        };
        let Some(owner) = words.next() else {
            return Ok(());
        };
        if mode.len() < 10 || !owner.contains('/') {
            return Ok(());
        }
        match mode.as_bytes().first() {
            Some(b'-' | b'd' | b'l' | b'h' | b'C') => {}
            _ => return Err(ContextError::Kind(line.chars().take(200).collect())),
        }
        self.entries += 1;
        self.bytes =
            self.bytes.saturating_add(words.next().and_then(|n| n.parse().ok()).unwrap_or(0));
        if self.entries > CONTEXT_ENTRIES_MAX {
            return Err(ContextError::Entries);
        }
        if self.bytes > CONTEXT_UNPACKED_BYTES_MAX {
            return Err(ContextError::Bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_and_links_are_counted_and_other_kinds_refused() {
        let mut seen = Unpacked::default();
        for line in [
            "-rw-r--r-- 0/0               5 2026-11-23 23:42 ./a",
            "drwxr-xr-x 1000/1000         0 2026-11-23 23:42 ./",
            "lrwxrwxrwx 0/0               0 2026-11-23 23:42 l -> /etc/passwd",
            "hrw-r--r-- 0/0               0 2026-11-23 23:42 h link to a",
            "tar: Removing leading `/' from member names",
        ] {
            assert_eq!(seen.admit(line), Ok(()), "{line}");
        }
        assert_eq!((seen.entries, seen.bytes), (4, 5));
        for line in [
            "crw-r--r-- 0/0             1,3 2026-11-23 23:42 null",
            "brw-r--r-- 0/0             8,0 2026-11-23 23:42 sda",
            "prw-r--r-- 0/0               0 2026-11-23 23:42 fifo",
        ] {
            assert_eq!(seen.admit(line), Err(ContextError::Kind(line.to_owned())));
        }
    }

    #[test]
    fn more_bytes_or_entries_than_the_limit_are_refused() {
        let mut seen = Unpacked::default();
        let line = format!("-rw-r--r-- 0/0 {CONTEXT_UNPACKED_BYTES_MAX} 2026-11-23 23:42 a");
        assert_eq!(seen.admit(&line), Ok(()));
        assert_eq!(seen.admit("-rw-r--r-- 0/0 1 2026-11-23 23:42 b"), Err(ContextError::Bytes));
        let mut seen = Unpacked { entries: CONTEXT_ENTRIES_MAX, bytes: 0 };
        assert_eq!(seen.admit("-rw-r--r-- 0/0 0 2026-11-23 23:42 b"), Err(ContextError::Entries));
    }
}
