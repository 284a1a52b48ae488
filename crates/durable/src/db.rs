//! The file: one writer thread with group commit, a few readers, a lock and a reserve.
//!
//! Never retries a write that did not reach the disk: it stops taking writes instead, because
//! after a lost fsync nobody knows what is on the disk.

mod copy;
mod open;
mod reply;
mod reserve;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    cell::Cell,
    fmt,
    fs::File,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use rusqlite::{Connection, ErrorCode};

pub use self::copy::Frozen;
pub use self::reply::Pending;
use self::{reserve::Reserve, writer::Writer};
use crate::Error;

/// How many writes may wait for the writer thread.
pub const WRITE_QUEUE_MAX: usize = 1024;
/// How many idle connections for reading are kept.
const IDLE_READERS_MAX: usize = 4;
/// How much space is set aside for work that frees space.
pub const RESERVE_BYTES: u64 = 4 * 1024 * 1024;

/// How a file is opened.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The caller's schema: statement `n` takes the file from version `n` to `n + 1`. Only ever
    /// appended to.
    pub migrations: &'a [&'a str],
    /// Bytes set aside beside the file for work that frees space; 0 for none.
    pub reserve_bytes: u64,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { migrations: &[], reserve_bytes: RESERVE_BYTES }
    }
}

/// An open file. Clones share it; it closes, and its lock goes, with the last of them.
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What the writer thread and the handles share.
#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    full: AtomicBool,
    hook: Mutex<Option<Hook>>,
}

struct Inner {
    path: PathBuf,
    shared: Arc<Shared>,
    readers: Mutex<Vec<Connection>>,
    queue: Option<SyncSender<Box<dyn writer::Job>>>,
    writer: Option<JoinHandle<()>>,
    /// Held for as long as the file is open; dropped last.
    _lock: File,
}

impl Db {
    /// Opens or creates the file, with a schema of the caller's (see [`Options::migrations`]) and
    /// the usual reserve.
    ///
    /// # Errors
    /// When another process has it open, when a newer release wrote it, or on any I/O error.
    pub fn open(path: impl AsRef<Path>, migrations: &[&str]) -> Result<Self, Error> {
        Self::open_with(path, &Options { migrations, ..Options::default() })
    }

    /// Opens or creates the file.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &Options<'_>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        let lock = open::lock(&path)?;
        let reserve = Reserve::of(&path, options.reserve_bytes);
        let connection = match open::prepared(&path, options.migrations) {
            // The files beside a database that is open take room too.
            Err(error) if open::is_full(&error) => {
                reserve.release();
                open::prepared(&path, options.migrations)?
            }
            prepared => prepared?,
        };
        let has_room = reserve.open()?;
        open::sync_folder(&path)?;
        let shared = Arc::new(Shared::default());
        shared.full.store(!has_room, Ordering::Release);
        let (queue, jobs) = sync_channel(WRITE_QUEUE_MAX);
        let writer = Writer::new(connection, reserve, Arc::clone(&shared), jobs);
        let writer = std::thread::Builder::new()
            .name("durable-writer".to_owned())
            .spawn(move || writer.serve())
            .map_err(|source| Error::Open { path: path.clone(), source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                shared,
                readers: Mutex::default(),
                queue: Some(queue),
                writer: Some(writer),
                _lock: lock,
            }),
        })
    }

    /// Queues `work` for the next transaction and returns its result once that is on the disk:
    /// `.await` it, or call [`Pending::wait`].
    ///
    /// Several works share one commit when they come at once; each keeps or loses its changes on
    /// its own, by returning `Ok` or `Err`. The work happens even when the result is dropped.
    pub fn write<T, E, F>(&self, work: F) -> Pending<T, E>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, pending) = reply::pair();
        self.queue(Box::new(writer::Once::new(work, reply)));
        pending
    }

    /// Queues work that frees space or ends what has begun: on a full disk it is run once more
    /// after the reserve was released, where [`Db::write`] is refused with [`Error::Full`].
    pub fn write_reserved<T, E, F>(&self, work: F) -> Pending<T, E>
    where
        F: FnMut(&Tx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, pending) = reply::pair();
        self.queue(Box::new(writer::Repeatable::new(work, reply)));
        pending
    }

    /// Reads from one consistent snapshot of what is committed, on the caller's thread.
    ///
    /// # Errors
    /// What `work` returns, or the fault of opening a connection.
    pub fn read<T, E>(&self, work: impl FnOnce(&Snapshot<'_>) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Error>,
    {
        let idle = self.readers().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open::reader(&self.inner.path)?,
        };
        let result = {
            let transaction = connection
                .unchecked_transaction()
                .map_err(|source| Error::sql("begin read", source))?;
            work(&Snapshot { connection: &transaction })
        };
        let mut readers = self.readers();
        if readers.len() < IDLE_READERS_MAX {
            readers.push(connection);
        }
        drop(readers);
        result
    }

    /// Calls `hook` on the writer thread after every commit, before the writers hear of it. It
    /// must be quick and must not write. There is one hook; a second replaces the first.
    pub fn on_commit(&self, hook: impl Fn() + Send + Sync + 'static) {
        let mut slot = self.inner.shared.hook.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Arc::new(hook));
    }

    /// Returns whether the disk was full at the last write, so that only work that frees space is
    /// accepted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inner.shared.full.load(Ordering::Acquire)
    }

    /// Returns whether a write was lost, so that no more are taken. The process should end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inner.shared.stopped.load(Ordering::Acquire)
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, job: Box<dyn writer::Job>) {
        let Some(queue) = &self.inner.queue else {
            return job.settle(Err(Error::Stopped));
        };
        match queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                job.settle(Err(Error::QueueFull { limit: WRITE_QUEUE_MAX }));
            }
            Err(TrySendError::Disconnected(job)) => job.settle(Err(Error::Stopped)),
        }
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Db").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The queue first, so that the thread ends; then the thread, so that everything queued is
        // on the disk and the connection is closed before the lock goes.
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != std::thread::current().id()
            && writer.join().is_err()
        {
            tracing::error!("the database writer panicked");
        }
    }
}

/// A consistent state of the file to read from.
#[derive(Debug)]
pub struct Snapshot<'c> {
    connection: &'c Connection,
}

impl Snapshot<'_> {
    /// Returns the connection, for statements on tables of the caller's own schema.
    #[must_use]
    pub fn sql(&self) -> &Connection {
        self.connection
    }
}

/// A transaction. It reads what it wrote.
#[derive(Debug)]
pub struct Tx<'c> {
    snapshot: Snapshot<'c>,
    /// Whether a statement met a fault of the disk, so that the writer thread can tell it from a
    /// refusal by the caller's own rules.
    fault: Cell<Option<Fault>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Full,
    Disk,
}

impl Tx<'_> {
    /// Turns the result of a statement into one of this crate, noting faults of the disk.
    ///
    /// # Errors
    /// [`Error::Full`] on a full disk, else [`Error::Sql`].
    pub fn check<T>(
        &self,
        operation: &'static str,
        result: Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        result.map_err(|source| match fault(&source) {
            Some(Fault::Full) => {
                self.fault.set(Some(Fault::Full));
                Error::Full
            }
            Some(Fault::Disk) => {
                self.fault.set(Some(Fault::Disk));
                Error::sql(operation, source)
            }
            None => Error::sql(operation, source),
        })
    }
}

impl<'c> Deref for Tx<'c> {
    type Target = Snapshot<'c>;

    fn deref(&self) -> &Snapshot<'c> {
        &self.snapshot
    }
}

/// Growing the shared-memory file of the WAL is where a full disk may show first.
fn fault(error: &rusqlite::Error) -> Option<Fault> {
    let extended = error.sqlite_error().map(|fault| fault.extended_code);
    if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
        return Some(Fault::Full);
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Some(Fault::Full),
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::OutOfMemory
            | ErrorCode::CannotOpen,
        ) => Some(Fault::Disk),
        _ => None,
    }
}
