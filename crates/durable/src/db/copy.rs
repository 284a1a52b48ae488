//! A copy of the file as it is at one moment, while its owner goes on writing.
//!
//! Never writes to the original, never takes its lock, and never holds its writer up.

use std::{
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, backup::Backup};

use super::{Snapshot, open};
use crate::Error;

/// All pages in one go: the moment is held by a transaction, so nothing is won by pausing.
const ALL_PAGES: i32 = -1;

/// A file at one moment. Two that are frozen one right after the other show the same moment, as
/// near as two files can.
pub struct Frozen {
    path: PathBuf,
    connection: Connection,
}

impl Frozen {
    /// Holds on to the file as it is now; another process may have it open.
    ///
    /// # Errors
    /// When it is not there or not a database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        let connection = open::reader(&path)?;
        // The transaction begins with its first read.
        let begin = || -> rusqlite::Result<()> {
            connection.execute_batch("BEGIN")?;
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        };
        begin().map_err(|source| Error::OpenDatabase { path: path.clone(), source })?;
        Ok(Self { path, connection })
    }

    /// Reads from it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { connection: &self.connection }
    }

    /// Writes a copy into a new file that only its owner can read, and looks that it is whole.
    ///
    /// # Errors
    /// When the file is there already, when there is no room, or when the original is damaged.
    pub fn copy_to(&self, target: impl AsRef<Path>) -> Result<(), Error> {
        let target = target.as_ref();
        let fault = |source| Error::Open { path: target.to_path_buf(), source };
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(fault)?;
        let complaint = self.copy(target).map_err(|source| Error::sql("copy database", source))?;
        if complaint != "ok" {
            return Err(Error::Damaged { path: self.path.clone(), complaint });
        }
        File::open(target).and_then(|file| file.sync_all()).map_err(fault)
    }

    /// Returns what SQLite says of the copy.
    fn copy(&self, target: &Path) -> rusqlite::Result<String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut copy = Connection::open_with_flags(target, flags)?;
        Backup::new(&self.connection, &mut copy)?.step(ALL_PAGES)?;
        // One file, with nothing beside it.
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        let verdict = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(verdict)
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Frozen").field("path", &self.path).finish_non_exhaustive()
    }
}
