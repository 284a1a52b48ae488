//! Space set aside beside the file, so that a full disk can still be cleaned up.
//!
//! Never holds data: the file is only there to be removed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::open::beside;
use crate::Error;

/// How much is written at once where the filesystem cannot allocate.
const ZEROS_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Names the reserve of a file, whether it is there or not.
    pub(super) fn of(database: &Path, bytes: u64) -> Self {
        Self { path: beside(database, ".reserve"), bytes }
    }

    /// Makes sure that the space is set aside; returns whether it is. A disk that is full already
    /// does not keep the file from opening: then there is no reserve until there is room.
    pub(super) fn open(&self) -> Result<bool, Error> {
        match self.take() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
            Err(source) => Err(Error::Open { path: self.path.clone(), source }),
        }
    }

    /// Makes sure that the space is set aside. The last room of the disk never is: whoever frees
    /// space needs some of it.
    pub(super) fn take(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        if fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes) {
            return Ok(());
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let found = statvfs(folder.unwrap_or_else(|| Path::new(".")))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < self.bytes.saturating_add(self.bytes / 2) {
            return Err(ErrorKind::StorageFull.into());
        }
        let made = self.allocate();
        if made.is_err() {
            self.release();
        }
        made
    }

    /// Gives the space back to the disk.
    pub(super) fn release(&self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot release reserved space");
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.fill(&mut file)?;
            }
            Err(error) => return Err(error.into()),
        }
        file.sync_all()
    }

    fn fill(&self, file: &mut File) -> io::Result<()> {
        let zeros = io::Read::take(io::repeat(0), self.bytes);
        let mut zeros =
            io::BufReader::with_capacity(usize::try_from(ZEROS_BYTES).unwrap_or(usize::MAX), zeros);
        io::copy(&mut zeros, file)?;
        file.flush()
    }
}
