//! Reading the tables.
//!
//! Never writes.

use bytes::Bytes;
use perch_durable::{Error as FileError, Snapshot};
use rusqlite::{OptionalExtension as _, Row, params};

use crate::{Entry, Error, Event, LIST_ENTRIES_MAX, LeaseId, Revision, key};

/// Where the directory stands.
pub(super) struct Position {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
}

impl Position {
    /// Refuses a watch whose history is gone.
    pub(super) fn check(&self, from: Revision) -> Result<(), Error> {
        if from > self.compacted {
            return Ok(());
        }
        Err(Error::Compacted { from, oldest: self.compacted.next() })
    }
}

/// SQLite has no unsigned numbers; ours never come near the border.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    row.get::<_, i64>(column).map(|number| Revision(u64::try_from(number).unwrap_or(0)))
}

pub(super) fn position(snapshot: &Snapshot<'_>) -> Result<Position, Error> {
    let found = snapshot
        .sql()
        .prepare_cached("SELECT revision, compacted FROM meta WHERE id = 1")
        .and_then(|mut query| {
            query.query_row([], |row| {
                Ok(Position { revision: revision(row, 0)?, compacted: revision(row, 1)? })
            })
        });
    Ok(found.map_err(|source| FileError::sql("read revision", source))?)
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        revision: revision(row, 2)?,
    })
}

pub(super) fn entry(snapshot: &Snapshot<'_>, key: &str) -> Result<Option<Entry>, Error> {
    let found = snapshot
        .sql()
        .prepare_cached("SELECT key, value, revision FROM documents WHERE key = ?")
        .and_then(|mut query| query.query_row([key], read_entry).optional());
    Ok(found.map_err(|source| FileError::sql("read document", source))?)
}

pub(super) fn entries(snapshot: &Snapshot<'_>, prefix: &str) -> Result<Vec<Entry>, Error> {
    let limit = LIST_ENTRIES_MAX;
    let most = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let scan = || -> rusqlite::Result<Vec<Entry>> {
        snapshot
            .sql()
            .prepare_cached(
                "SELECT key, value, revision FROM documents WHERE key >= ? AND key < ?
                 ORDER BY key LIMIT ?",
            )?
            .query_map(params![prefix, key::behind(prefix), most], read_entry)?
            .collect()
    };
    let entries = scan().map_err(|source| FileError::sql("list documents", source))?;
    if entries.len() > limit {
        return Err(Error::TooMany { prefix: prefix.to_owned(), limit });
    }
    Ok(entries)
}

pub(super) fn leases(snapshot: &Snapshot<'_>) -> Result<Vec<(LeaseId, u32)>, Error> {
    let scan = || -> rusqlite::Result<Vec<(LeaseId, u32)>> {
        snapshot
            .sql()
            .prepare_cached("SELECT id, ttl_s FROM leases")?
            .query_map([], |row| Ok((LeaseId(revision(row, 0)?.0), row.get(1)?)))?
            .collect()
    };
    Ok(scan().map_err(|source| FileError::sql("read leases", source))?)
}

/// A place in the history: a revision, and a change within it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) revision: Revision,
    pub(super) ordinal: i64,
}

/// Returns up to `limit` changes from a place on, with the place behind each.
pub(super) fn changes(
    snapshot: &Snapshot<'_>,
    prefix: &str,
    from: Place,
    limit: usize,
) -> Result<Vec<(Event, Place)>, Error> {
    let scan = || -> rusqlite::Result<Vec<(Event, Place)>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (number, ordinal) = (signed(from.revision.0), from.ordinal);
        snapshot
            .sql()
            .prepare_cached(
                "SELECT revision, ordinal, key, value FROM changes
                 WHERE (revision, ordinal) >= (?, ?) AND key >= ? AND key < ?
                 ORDER BY revision, ordinal LIMIT ?",
            )?
            .query_map(params![number, ordinal, prefix, key::behind(prefix), limit], |row| {
                let at = revision(row, 0)?;
                let value: Option<Vec<u8>> = row.get(3)?;
                let event = Event { key: row.get(2)?, value: value.map(Bytes::from), revision: at };
                Ok((event, Place { revision: at, ordinal: row.get::<_, i64>(1)? + 1 }))
            })?
            .collect()
    };
    Ok(scan().map_err(|source| FileError::sql("read changes", source))?)
}
