//! The directory in one SQLite file of one process.
//!
//! Never polls: a commit wakes the watchers, who read what happened from the file's history.

mod commit;
mod follow;
mod lease;
mod rows;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use perch_durable::{Db, Options, Tx};
use perch_types::clock::Clock;
use tokio::sync::watch;

use self::{commit::Change, lease::Leases};
use crate::{
    Compare, Entry, Error, LeaseId, Listing, Op, Purpose, Revision, Store, Txn, Watch, directory,
    key,
};

/// How many revisions of history are kept for watchers that fall behind or come back.
pub const CHANGES_MAX: u64 = 10_000;
/// How many while the disk is full: the history of what hosts tell would use the reserve up.
const CHANGES_WHEN_FULL_MAX: u64 = 128;

/// The directory in one file. It is closed when dropped; its watches end then.
pub struct SqliteStore {
    db: Db,
    changer: Changer,
    /// The revision of the newest commit, for watchers.
    latest: Arc<watch::Sender<u64>>,
    leases: Arc<Leases>,
}

impl SqliteStore {
    /// Opens or creates the file. Leases begin anew with their whole time. Must be called inside a
    /// tokio runtime, which ends the leases.
    ///
    /// # Errors
    /// When another process has it open, when a newer release wrote it, or on any I/O error.
    pub fn open(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        Self::open_with(path, clock, CHANGES_MAX)
    }

    /// Opens or creates the file with another limit of its history, in revisions.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with(
        path: impl AsRef<Path>,
        clock: Arc<dyn Clock>,
        changes_max: u64,
    ) -> Result<Self, Error> {
        let migrations = &[include_str!("sqlite/schema_1.sql")];
        let db = Db::open_with(path, &Options { migrations, ..Options::default() })?;
        let (revision, leases) = db.read(|snapshot| -> Result<_, Error> {
            Ok((rows::position(snapshot)?.revision, rows::leases(snapshot)?))
        })?;
        let latest = Arc::new(watch::Sender::new(revision.0));
        let written = Arc::new(AtomicU64::new(revision.0));
        // Weak, so that watches end when the store is dropped: they hold the file.
        let (waking, newest) = (Arc::downgrade(&latest), Arc::clone(&written));
        db.on_commit(move || {
            if let Some(latest) = waking.upgrade() {
                latest.send_replace(newest.load(Ordering::Acquire));
            }
        });
        let changer = Changer { db: db.clone(), written, changes_max };
        let leases = Arc::new(Leases::new(clock, changer.clone(), leases));
        lease::spawn_expiry(&leases);
        Ok(Self { db, changer, latest, leases })
    }
}

/// What it takes to write to the directory.
#[derive(Clone)]
struct Changer {
    db: Db,
    /// The revision of the newest transaction, committed or about to be.
    written: Arc<AtomicU64>,
    changes_max: u64,
}

impl Changer {
    /// Does `work` in a transaction, at the next revision if it changes anything. Work that frees
    /// is done again from the reserve when the disk was full.
    async fn change<T: Send + 'static>(
        &self,
        purpose: Purpose,
        mut work: impl FnMut(&mut Change<'_, '_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Revision), Error> {
        let written = Arc::clone(&self.written);
        let changes_max = if self.db.is_full() {
            self.changes_max.min(CHANGES_WHEN_FULL_MAX)
        } else {
            self.changes_max
        };
        let work = move |tx: &Tx<'_>| -> Result<(T, Revision), Error> {
            let mut change = Change::begin(tx, purpose)?;
            let value = work(&mut change)?;
            let revision = change.finish(changes_max)?;
            written.store(revision.0, Ordering::Release);
            Ok((value, revision))
        };
        match purpose {
            Purpose::Ordinary => self.db.write(work).await,
            Purpose::Freeing => self.db.write_reserved(work).await,
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        key::check(key)?;
        self.db.read(|snapshot| rows::entry(snapshot, key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        let (db, prefix) = (self.db.clone(), prefix.to_owned());
        let listed = tokio::task::spawn_blocking(move || {
            db.read(|snapshot| {
                let revision = rows::position(snapshot)?.revision;
                Ok(Listing { entries: rows::entries(snapshot, &prefix)?, revision })
            })
        });
        listed.await.unwrap_or_else(|error| {
            Err(Error::Unavailable { operation: "list", reason: error.to_string() })
        })
    }

    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error> {
        directory::check_txn(&compares, &ops)?;
        let work = move |change: &mut Change<'_, '_>| {
            let found = change.refused(&compares)?;
            if found.is_empty() {
                for op in &ops {
                    change.apply(op)?;
                }
            }
            Ok(found)
        };
        let (found, revision) = self.changer.change(purpose, work).await?;
        Ok(if found.is_empty() { Txn::Done { revision } } else { Txn::Refused { found } })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        key::check_prefix(prefix)?;
        self.db.read(|snapshot| rows::position(snapshot)?.check(from))?;
        let follow = follow::Follow::new(self.db.clone(), prefix, from, self.latest.subscribe());
        Ok(follow.into_stream().boxed())
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, Error> {
        directory::check_ttl(ttl_s)?;
        // By leases hosts tell that they are there: on a full disk too.
        let work = move |change: &mut Change<'_, '_>| change.grant(ttl_s);
        let (lease, _) = self.changer.change(Purpose::Freeing, work).await?;
        self.leases.begin(lease, ttl_s);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.leases.prolong(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        if !self.leases.end(lease) {
            return Err(Error::NoSuchLease { lease });
        }
        let work = move |change: &mut Change<'_, '_>| change.revoke(lease);
        self.changer.change(Purpose::Freeing, work).await?;
        Ok(())
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqliteStore").field("db", &self.db).finish_non_exhaustive()
    }
}
