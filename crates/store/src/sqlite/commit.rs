//! One change of the directory: documents, history and revision in one transaction.
//!
//! Never moves the revision when nothing changed.

use perch_durable::{Error as FileError, Tx};
use rusqlite::{OptionalExtension as _, params};

use super::rows::{self, Position, signed};
use crate::{Compare, Error, FREEING_MAKES, LeaseId, Op, Purpose, Revision};

/// How many revisions of history one change lets go: more would write a lot at once, and there
/// may be no room for it.
const COMPACTED_MAX: u64 = 200;

/// A change in the making.
pub(super) struct Change<'t, 'c> {
    tx: &'t Tx<'c>,
    purpose: Purpose,
    position: Position,
    changed: i64,
}

impl<'t, 'c> Change<'t, 'c> {
    pub(super) fn begin(tx: &'t Tx<'c>, purpose: Purpose) -> Result<Self, Error> {
        Ok(Self { tx, purpose, position: rows::position(tx)?, changed: 0 })
    }

    /// Returns the compares that do not hold.
    pub(super) fn refused(
        &self,
        compares: &[Compare],
    ) -> Result<Vec<(String, Option<Revision>)>, Error> {
        let mut refused = Vec::new();
        for compare in compares {
            let found = self.revision_of(compare.key())?;
            if !compare.holds(found) {
                refused.push((compare.key().to_owned(), found));
            }
        }
        Ok(refused)
    }

    pub(super) fn apply(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Put { key, value, lease } => {
                self.check_purpose(key)?;
                self.put(key, value, *lease)
            }
            Op::Delete { key } => self.delete(key),
        }
    }

    /// Keeps the reserve from what is new.
    fn check_purpose(&self, key: &str) -> Result<(), Error> {
        let may_make = match self.purpose {
            Purpose::Ordinary => true,
            Purpose::Freeing => FREEING_MAKES.iter().any(|prefix| key.starts_with(prefix)),
        };
        if may_make || self.revision_of(key)?.is_some() {
            return Ok(());
        }
        Err(Error::InvalidTxn { reason: format!("it is to free space and makes {key}") })
    }

    pub(super) fn grant(&mut self, ttl_s: u32) -> Result<LeaseId, Error> {
        let made = self
            .tx
            .sql()
            .prepare_cached("INSERT INTO leases (ttl_s) VALUES (?)")
            .and_then(|mut insert| insert.insert([ttl_s]));
        let id = self.tx.check("grant lease", made)?;
        Ok(LeaseId(u64::try_from(id).unwrap_or(0)))
    }

    /// Ends a lease and deletes its keys.
    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        let id = signed(lease.0);
        let scan = || -> rusqlite::Result<Vec<String>> {
            self.tx
                .sql()
                .prepare_cached("SELECT key FROM documents WHERE lease = ? ORDER BY key")?
                .query_map([id], |row| row.get(0))?
                .collect()
        };
        let keys = scan().map_err(|source| FileError::sql("read leased keys", source))?;
        for key in keys {
            self.delete(&key)?;
        }
        let gone = self
            .tx
            .sql()
            .prepare_cached("DELETE FROM leases WHERE id = ?")
            .and_then(|mut delete| delete.execute([id]));
        self.tx.check("end lease", gone)?;
        Ok(())
    }

    /// Writes the revision and returns it; lets old history go.
    pub(super) fn finish(self, changes_max: u64) -> Result<Revision, Error> {
        if self.changed == 0 {
            return Ok(self.position.revision);
        }
        let revision = self.position.revision.next();
        let written = self
            .tx
            .sql()
            .prepare_cached("UPDATE meta SET revision = ? WHERE id = 1")
            .and_then(|mut update| update.execute([signed(revision.0)]));
        self.tx.check("write revision", written)?;
        // A tenth more than the limit, so that most changes have nothing to let go.
        let kept = revision.0.saturating_sub(self.position.compacted.0);
        if kept > changes_max.saturating_add(changes_max / 10) {
            let newest = revision.0.saturating_sub(changes_max);
            let most = self.position.compacted.0.saturating_add(COMPACTED_MAX);
            self.compact(Revision(newest.min(most)))?;
        }
        Ok(revision)
    }

    fn compact(&self, newest: Revision) -> Result<(), Error> {
        let newest = signed(newest.0);
        let sql = self.tx.sql();
        let gone = sql
            .prepare_cached("DELETE FROM changes WHERE revision <= ?")
            .and_then(|mut delete| delete.execute([newest]));
        self.tx.check("compact history", gone)?;
        let noted = sql
            .prepare_cached("UPDATE meta SET compacted = ? WHERE id = 1")
            .and_then(|mut update| update.execute([newest]));
        self.tx.check("note compaction", noted)?;
        Ok(())
    }

    fn revision_of(&self, key: &str) -> Result<Option<Revision>, Error> {
        let found =
            self.tx.sql().prepare_cached("SELECT revision FROM documents WHERE key = ?").and_then(
                |mut query| query.query_row([key], |row| rows::revision(row, 0)).optional(),
            );
        Ok(found.map_err(|source| FileError::sql("read revision of document", source))?)
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<(), Error> {
        if let Some(lease) = lease {
            self.check_lease(lease)?;
        }
        let revision = signed(self.position.revision.next().0);
        let lease = lease.map(|lease| signed(lease.0));
        let written = self
            .tx
            .sql()
            .prepare_cached(
                "INSERT INTO documents (key, value, revision, lease) VALUES (?, ?, ?, ?)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value,
                     revision = excluded.revision, lease = excluded.lease",
            )
            .and_then(|mut insert| insert.execute(params![key, value, revision, lease]));
        self.tx.check("write document", written)?;
        self.note(key, Some(value))
    }

    fn delete(&mut self, key: &str) -> Result<(), Error> {
        let deleted = self
            .tx
            .sql()
            .prepare_cached("DELETE FROM documents WHERE key = ?")
            .and_then(|mut delete| delete.execute([key]));
        if self.tx.check("delete document", deleted)? == 0 {
            return Ok(());
        }
        self.note(key, None)
    }

    fn note(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        let revision = signed(self.position.revision.next().0);
        let noted = self
            .tx
            .sql()
            .prepare_cached(
                "INSERT INTO changes (revision, ordinal, key, value) VALUES (?, ?, ?, ?)",
            )
            .and_then(|mut insert| insert.execute(params![revision, self.changed, key, value]));
        self.tx.check("note change", noted)?;
        self.changed += 1;
        Ok(())
    }

    fn check_lease(&self, lease: LeaseId) -> Result<(), Error> {
        let exists = self
            .tx
            .sql()
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM leases WHERE id = ?)")
            .and_then(|mut query| query.query_row([signed(lease.0)], |row| row.get(0)));
        let exists: bool = exists.map_err(|source| FileError::sql("read lease", source))?;
        if exists { Ok(()) } else { Err(Error::NoSuchLease { lease }) }
    }
}
