//! The writer thread: takes what is queued, commits it as one transaction, answers.
//!
//! Never answers before the commit, and never keeps half of a piece of work.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering, mpsc::Receiver},
};

use rusqlite::Connection;

use super::{Fault, Shared, Snapshot, Tx, fault, reply::Reply, reserve::Reserve};
use crate::Error;

/// How many pieces of work share one commit.
const BATCH_MAX: usize = 128;
/// How many pages the WAL holds before they move into the database.
const WAL_PAGES_MAX: u32 = 1000;
/// How many while the disk is full: a WAL that grows would use the reserve up by itself.
const WAL_PAGES_WHEN_FULL_MAX: u32 = 64;

/// A piece of work on its way to the disk.
pub(super) trait Job: Send {
    /// Does the work; returns whether its changes are to be kept.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Returns whether it may be run again, and may use the reserve.
    fn is_reserved(&self) -> bool;
    /// Answers, with the work's own result if the commit succeeded or the work refused.
    fn settle(self: Box<Self>, commit: Result<(), Error>);
}

fn guarded<T, E: From<Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::Panicked.into()))
}

fn settle<T, E: From<Error>>(
    result: Option<Result<T, E>>,
    reply: Reply<T, E>,
    commit: Result<(), Error>,
) {
    reply.send(match (result, commit) {
        (Some(Err(error)), _) => Err(error),
        (_, Err(error)) => Err(error.into()),
        (Some(Ok(value)), Ok(())) => Ok(value),
        (None, Ok(())) => Err(Error::Stopped.into()),
    });
}

/// Work that is run at most once.
pub(super) struct Once<F, T, E> {
    work: Option<F>,
    result: Option<Result<T, E>>,
    reply: Reply<T, E>,
}

impl<F, T, E> Once<F, T, E> {
    pub(super) fn new(work: F, reply: Reply<T, E>) -> Self {
        Self { work: Some(work), result: None, reply }
    }
}

impl<F, T, E> Job for Once<F, T, E>
where
    F: FnOnce(&Tx<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        if let Some(work) = self.work.take() {
            self.result = Some(guarded(|| work(tx)));
        }
        matches!(self.result, Some(Ok(_)))
    }

    fn is_reserved(&self) -> bool {
        false
    }

    fn settle(self: Box<Self>, commit: Result<(), Error>) {
        let this = *self;
        settle(this.result, this.reply, commit);
    }
}

/// Work that may be run again when the first attempt met a full disk.
pub(super) struct Repeatable<F, T, E> {
    work: F,
    result: Option<Result<T, E>>,
    reply: Reply<T, E>,
}

impl<F, T, E> Repeatable<F, T, E> {
    pub(super) fn new(work: F, reply: Reply<T, E>) -> Self {
        Self { work, result: None, reply }
    }
}

impl<F, T, E> Job for Repeatable<F, T, E>
where
    F: FnMut(&Tx<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let work = &mut self.work;
        self.result = Some(guarded(|| work(tx)));
        matches!(self.result, Some(Ok(_)))
    }

    fn is_reserved(&self) -> bool {
        true
    }

    fn settle(self: Box<Self>, commit: Result<(), Error>) {
        let this = *self;
        settle(this.result, this.reply, commit);
    }
}

/// Why a batch is not on the disk.
enum Lost {
    Full,
    Disk(rusqlite::Error),
}

impl From<rusqlite::Error> for Lost {
    fn from(error: rusqlite::Error) -> Self {
        match fault(&error) {
            Some(Fault::Full) => Self::Full,
            Some(Fault::Disk) | None => Self::Disk(error),
        }
    }
}

pub(super) struct Writer {
    connection: Connection,
    reserve: Reserve,
    shared: Arc<Shared>,
    queue: Receiver<Box<dyn Job>>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        reserve: Reserve,
        shared: Arc<Shared>,
        queue: Receiver<Box<dyn Job>>,
    ) -> Self {
        Self { connection, reserve, shared, queue }
    }

    pub(super) fn serve(self) {
        while let Ok(first) = self.queue.recv() {
            let mut jobs = vec![first];
            jobs.extend(self.queue.try_iter().take(BATCH_MAX - 1));
            self.commit(jobs);
        }
    }

    fn commit(&self, mut jobs: Vec<Box<dyn Job>>) {
        if self.shared.stopped.load(Ordering::Acquire) {
            return refuse(jobs, || Error::Stopped);
        }
        if self.shared.full.load(Ordering::Acquire) {
            jobs = self.while_full(jobs);
        }
        match self.attempt(&mut jobs) {
            Ok(()) => self.happened(jobs),
            Err(Lost::Full) => self.on_full(jobs),
            Err(Lost::Disk(error)) => self.stop(jobs, error),
        }
    }

    /// Sees whether there is room again; if not, only work that frees space goes on.
    fn while_full(&self, jobs: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        if jobs.iter().all(|job| job.is_reserved()) {
            return jobs;
        }
        if self.reserve.take().is_ok() {
            tracing::info!("there is room on the database's disk again");
            self.shared.full.store(false, Ordering::Release);
            self.limit_wal(WAL_PAGES_MAX);
            return jobs;
        }
        let (reserved, ordinary) = jobs.into_iter().partition(|job| job.is_reserved());
        refuse(ordinary, || Error::Full);
        reserved
    }

    fn on_full(&self, jobs: Vec<Box<dyn Job>>) {
        if !self.shared.full.swap(true, Ordering::AcqRel) {
            tracing::error!("the database's disk is full: only work that frees space is accepted");
        }
        self.reserve.release();
        self.limit_wal(WAL_PAGES_WHEN_FULL_MAX);
        let (mut reserved, ordinary): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.is_reserved());
        refuse(ordinary, || Error::Full);
        match self.attempt(&mut reserved) {
            Ok(()) => self.happened(reserved),
            Err(Lost::Full) => refuse(reserved, || Error::Full),
            Err(Lost::Disk(error)) => self.stop(reserved, error),
        }
    }

    fn limit_wal(&self, pages: u32) {
        if let Err(error) = self.connection.pragma_update(None, "wal_autocheckpoint", pages) {
            tracing::warn!(%error, "cannot limit the database's WAL");
        }
    }

    fn happened(&self, jobs: Vec<Box<dyn Job>>) {
        let hook = self.shared.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook();
        }
        for job in jobs {
            job.settle(Ok(()));
        }
    }

    fn stop(&self, jobs: Vec<Box<dyn Job>>, error: rusqlite::Error) {
        tracing::error!(%error, "a write did not reach the disk: no more are accepted");
        self.shared.stopped.store(true, Ordering::Release);
        let source = Arc::new(error);
        refuse(jobs, || Error::Commit { source: Arc::clone(&source) });
    }

    /// Runs every job in one transaction and commits it.
    fn attempt(&self, jobs: &mut [Box<dyn Job>]) -> Result<(), Lost> {
        if jobs.is_empty() {
            return Ok(());
        }
        self.execute("BEGIN IMMEDIATE")?;
        let result = self.run(jobs).and_then(|()| Ok(self.execute("COMMIT")?));
        if result.is_err() && !self.connection.is_autocommit() {
            self.execute("ROLLBACK")?;
        }
        result
    }

    fn run(&self, jobs: &mut [Box<dyn Job>]) -> Result<(), Lost> {
        for job in jobs {
            self.execute("SAVEPOINT job")?;
            let tx =
                Tx { snapshot: Snapshot { connection: &self.connection }, fault: Cell::new(None) };
            let keep = job.run(&tx);
            match tx.fault.get() {
                Some(Fault::Full) => return Err(Lost::Full),
                Some(Fault::Disk) => return Err(Lost::Disk(broken())),
                // SQLite itself gave up the transaction, and with it the work of others.
                None if self.connection.is_autocommit() => return Err(Lost::Disk(broken())),
                None => {}
            }
            if !keep {
                self.execute("ROLLBACK TO job")?;
            }
            self.execute("RELEASE job")?;
        }
        Ok(())
    }

    fn execute(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(statement)?.execute([]).map(|_| ())
    }
}

/// The fault itself went to the caller whose statement met it.
fn broken() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
        Some("a statement met a fault of the disk".to_owned()),
    )
}

fn refuse(jobs: Vec<Box<dyn Job>>, error: impl Fn() -> Error) {
    for job in jobs {
        job.settle(Err(error()));
    }
}
