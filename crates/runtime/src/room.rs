//! What a machine has filled up, seen from outside: its writable layer, and its log.
//!
//! Never walks a tree of the machine's: its root is measured as a whole.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// What a file system has left when programs meet its end: a little stays for its own records.
pub const FULL_BYTES: u64 = 1 << 20;

/// How far a log was written: its newest segment, and the bytes of that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LogMark(OsString, u64);

impl LogMark {
    /// Looks at the segments in a folder; nothing when there are none.
    pub(crate) fn of(dir: &Path) -> Option<Self> {
        let segments = fs::read_dir(dir).ok()?.flatten();
        let marks = segments.filter_map(|segment| {
            let bytes = segment.metadata().ok()?.len();
            Some(Self(segment.file_name(), bytes))
        });
        marks.max()
    }
}

/// Returns whether the root file system of a process is full. One that is gone has none.
pub(crate) fn is_root_full(pid: i32) -> bool {
    let found = rustix::fs::statvfs(format!("/proc/{pid}/root"));
    found.is_ok_and(|found| {
        found.f_blocks > 0 && found.f_bavail.saturating_mul(found.f_frsize) < FULL_BYTES
    })
}
