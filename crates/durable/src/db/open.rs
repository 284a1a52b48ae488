//! Opening: the lock, the connections and their settings, the migrations.
//!
//! Never opens a file that a newer release wrote, nor one that another process has open.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};

use super::{Fault, fault};
use crate::Error;

/// The journal's and the tables' own schema; only ever appended to.
const OWN_MIGRATIONS: &[&str] = &[include_str!("own_1.sql")];
/// Longer than any transaction of ours; only a stray tool can make a connection wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many prepared statements a connection keeps.
const STATEMENTS_MAX: usize = 64;
/// What is left of the WAL after a checkpoint.
const WAL_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// Returns the path of a companion file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn lock(database: &Path) -> Result<File, Error> {
    let path = beside(database, ".lock");
    let opened =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|source| Error::Open { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path }),
        Err(error) => Err(Error::Open { path, source: error.into() }),
    }
}

/// Makes the names of new files as durable as their content.
pub(super) fn sync_folder(database: &Path) -> Result<(), Error> {
    let folder = match database.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::Open { path: folder.to_path_buf(), source })
}

/// Opens the connection that writes, with both schemas up to date.
pub(super) fn prepared(path: &Path, migrations: &[&str]) -> Result<Connection, Error> {
    let connection = writer(path)?;
    migrate(&connection, path, migrations)?;
    Ok(connection)
}

/// Returns whether the disk had no room for what opening takes.
pub(super) fn is_full(error: &Error) -> bool {
    if let Error::Open { source, .. } = error {
        return source.kind() == std::io::ErrorKind::StorageFull;
    }
    if let Error::OpenDatabase { source, .. }
    | Error::Migrate { source, .. }
    | Error::Sql { source, .. } = error
    {
        return fault(source) == Some(Fault::Full);
    }
    false
}

fn writer(path: &Path) -> Result<Connection, Error> {
    // Made here rather than by SQLite, so that nobody else can ever read it.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::Open { path: path.to_path_buf(), source })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    connect(path, flags, |connection| {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)
    })
}

pub(super) fn reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    connect(path, flags, |_| Ok(()))
}

fn connect(
    path: &Path,
    flags: OpenFlags,
    more: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<Connection, Error> {
    let settle = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        more(connection)
    };
    Connection::open_with_flags(path, flags)
        .and_then(|connection| settle(&connection).map(|()| connection))
        .map_err(|source| Error::OpenDatabase { path: path.to_path_buf(), source })
}

/// Brings both schemas up to date: the crate's own, counted in a table of its own, and the
/// caller's, counted in `user_version`.
fn migrate(connection: &Connection, path: &Path, migrations: &[&str]) -> Result<(), Error> {
    let own = own_version(connection)?;
    let callers: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| Error::sql("read schema version", source))?;
    // Both are looked at before either is touched.
    let own_pending = pending(path, "own", own, OWN_MIGRATIONS)?;
    let callers_pending = pending(path, "application", callers, migrations)?;
    for (version, statements) in own_pending {
        apply(connection, version, statements, "UPDATE durable_schema SET version = ")?;
    }
    for (version, statements) in callers_pending {
        apply(connection, version, statements, "PRAGMA user_version = ")?;
    }
    Ok(())
}

fn own_version(connection: &Connection) -> Result<i64, Error> {
    let exists: bool = connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'durable_schema')",
            [],
            |row| row.get(0),
        )
        .map_err(|source| Error::sql("look for schema version", source))?;
    if !exists {
        return Ok(0);
    }
    connection
        .query_row("SELECT version FROM durable_schema", [], |row| row.get(0))
        .map_err(|source| Error::sql("read own schema version", source))
}

fn pending<'m>(
    path: &Path,
    schema: &'static str,
    found: i64,
    migrations: &[&'m str],
) -> Result<Vec<(i64, &'m str)>, Error> {
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(Error::NewerSchema { path: path.to_path_buf(), schema, found, known });
    }
    Ok((1..).zip(migrations.iter().copied()).filter(|(version, _)| *version > found).collect())
}

fn apply(
    connection: &Connection,
    version: i64,
    statements: &str,
    count: &str,
) -> Result<(), Error> {
    let step = || -> rusqlite::Result<()> {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(statements)?;
        transaction.execute_batch(&format!("{count}{version}"))?;
        transaction.commit()
    };
    step().map_err(|source| Error::Migrate { version, source })
}
