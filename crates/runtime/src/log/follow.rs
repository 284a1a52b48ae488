//! Waits for new records of a log.
//!
//! Never asks the monitor: the file system tells when a segment grew.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::{Cursor, Record};
use crate::Error;

/// Notes of the file system taken up at once.
const NOTES_BYTES: usize = 4096;

/// Reads a log and waits for more.
#[derive(Debug)]
pub struct Follower {
    cursor: Cursor,
    notes: AsyncFd<OwnedFd>,
}

impl Follower {
    /// Follows a log from a record's number on. The folder has to be there.
    ///
    /// # Errors
    /// The folder cannot be watched.
    pub fn new(dir: &Path, from_seq: u64) -> Result<Self, Error> {
        let watch = || Error::file("watch", dir);
        let notes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|source| watch()(std::io::Error::from(source)))?;
        inotify::add_watch(&notes, dir, WatchFlags::MODIFY | WatchFlags::CREATE)
            .map_err(|source| watch()(std::io::Error::from(source)))?;
        let notes = crate::process::awaitable(notes).map_err(Error::file("watch", dir))?;
        Ok(Self { cursor: Cursor::new(dir, from_seq), notes })
    }

    /// Returns the next records, at least one, at most `limit`; waits until there are some. May
    /// be dropped and called again.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Record>, Error> {
        loop {
            let records = self.cursor.read(limit.max(1))?;
            if !records.is_empty() {
                return Ok(records);
            }
            let mut ready = self.notes.readable().await.map_err(Error::system("watch a log"))?;
            let mut notes = [0; NOTES_BYTES];
            match rustix::io::read(self.notes.get_ref(), &mut notes) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(Error::system("watch a log")(error)),
            }
        }
    }
}
