//! Machines' logs as the API gives them.
//!
//! Never interprets a line; bytes that are no UTF-8 are replaced.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use perch_runtime::log::{self, Record, Stream};
use perch_types::api::{LogRecord, LogStream};
use perch_types::host::LogsQuery;
use perch_types::{ApiError, Code, MachineId, Region, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::effects::Fault;

/// How many records one answer has at most, unless it is followed.
pub(crate) const RECORDS_MAX: u64 = 10_000;
/// Records taken at once while following.
const BATCH_MAX: usize = 256;
/// How many logs may be followed at once: each takes one of the watches that the kernel has for
/// all programs of root, 128 by default.
pub(crate) const FOLLOWERS_MAX: usize = 64;
/// How often a log that is followed in vain is looked for: its machine may be gone.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// One machine's log.
#[derive(Debug)]
pub(crate) struct Log {
    /// The folder of its segments.
    pub(crate) dir: std::path::PathBuf,
    /// Whose it is.
    pub(crate) machine: MachineId,
    /// Where it ran.
    pub(crate) region: Region,
    /// Places for those that are followed.
    pub(crate) followers: Arc<Semaphore>,
}

impl Log {
    /// Returns the records that a query asks for, and the number at which to go on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn read(&self, query: &LogsQuery) -> Result<(Vec<LogRecord>, u64), ApiError> {
        let limit = query.last.unwrap_or(RECORDS_MAX).min(RECORDS_MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let fault = |error| Fault::from(error).error;
        // Asked before the records are: one that comes in between must not be skipped.
        let end = match query.from_seq {
            Some(from_seq) => from_seq,
            None => log::next_seq(&self.dir).map_err(fault)?,
        };
        let mut records = match query.from_seq {
            Some(from_seq) => log::read(&self.dir, from_seq, limit).map_err(fault)?,
            None => log::tail(&self.dir, limit).map_err(fault)?,
        };
        if let (Some(from_seq), Some(_)) = (query.from_seq, query.last) {
            records.retain(|record| record.seq >= from_seq);
        }
        let next = records.last().map_or(end, |last| last.seq.saturating_add(1));
        Ok((records.into_iter().map(|record| self.record(&record)).collect(), next))
    }

    /// Starts to follow the log from a number on.
    ///
    /// # Errors
    /// When it cannot be watched, or [`FOLLOWERS_MAX`] logs are followed already.
    pub(crate) fn follow(self, from_seq: u64) -> Result<Following, ApiError> {
        let place = Arc::clone(&self.followers).try_acquire_owned().map_err(|_| {
            let text = format!("more than {FOLLOWERS_MAX} logs of this host are followed at once");
            ApiError::new(Code::RateLimited, text)
                .with_hint("read the log without following it, or try again in a while")
        })?;
        // A machine that has never run has no folder yet. What is wrong shows in the next step.
        drop(DirBuilder::new().recursive(true).mode(0o700).create(&self.dir));
        let follower =
            log::Follower::new(&self.dir, from_seq).map_err(|error| Fault::from(error).error)?;
        Ok(Following { follower, log: self, _place: place })
    }

    fn record(&self, record: &Record) -> LogRecord {
        LogRecord {
            seq: record.seq,
            timestamp: Timestamp::from_unix_ms(i64::try_from(record.unix_ms).unwrap_or(i64::MAX)),
            stream: match record.stream {
                Stream::Stdout => LogStream::Stdout,
                Stream::Stderr => LogStream::Stderr,
                Stream::System => LogStream::System,
            },
            message: String::from_utf8_lossy(&record.line).into_owned(),
            container: record.container.clone(),
            process: record.process.map(u32::from),
            machine: self.machine.clone(),
            region: self.region.clone(),
            dropped: record.dropped_before,
        }
    }
}

/// A log that is being followed.
#[derive(Debug)]
pub(crate) struct Following {
    follower: log::Follower,
    log: Log,
    _place: OwnedSemaphorePermit,
}

impl Following {
    /// Waits for more records; none means that the log is gone, and its machine with it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<LogRecord>, ApiError> {
        let records = loop {
            match tokio::time::timeout(LOOK_PERIOD, self.follower.next(BATCH_MAX)).await {
                Ok(records) => break records.map_err(|error| Fault::from(error).error)?,
                Err(_) if self.log.dir.exists() => {}
                Err(_) => break Vec::new(),
            }
        };
        Ok(records.iter().map(|record| self.log.record(record)).collect())
    }
}

#[cfg(test)]
mod tests {
    use perch_runtime::log::Writer;

    use super::*;

    fn log_in(dir: &std::path::Path, places: usize) -> Log {
        Log {
            dir: dir.to_owned(),
            machine: MachineId::from_bits(1),
            region: "loc".parse().unwrap(),
            followers: Arc::new(Semaphore::new(places)),
        }
    }

    #[tokio::test]
    async fn places_for_followers_are_few_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_in(folder.path(), 1);
        let again = Log { followers: Arc::clone(&log.followers), ..log_in(folder.path(), 0) };
        let once_more = Log { followers: Arc::clone(&log.followers), ..log_in(folder.path(), 0) };
        let following = log.follow(1).unwrap();
        assert_eq!(again.follow(1).unwrap_err().code, Code::RateLimited);
        drop(following);
        once_more.follow(1).unwrap();
    }

    #[tokio::test]
    async fn following_ends_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("log");
        let mut following = log_in(&dir, 1).follow(1).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        let limit = Duration::from_secs(20);
        let last = tokio::time::timeout(limit, following.next()).await;
        assert!(last.expect("it ends").unwrap().is_empty());
    }

    /// Whoever begins to follow while the first line is written gets it, whichever comes first.
    #[tokio::test]
    async fn a_line_written_while_following_begins_is_not_skipped() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..200_u32 {
            let dir = folder.path().join(round.to_string());
            let log = log_in(&dir, 1);
            let mut writer = Writer::open(&dir, 1 << 20).unwrap();
            let written = std::thread::spawn(move || {
                (0..round * 40).for_each(|_| std::hint::spin_loop());
                writer.system(1, "first").unwrap();
                writer.flush().unwrap();
            });
            let query = LogsQuery { from_seq: None, last: None, follow: true };
            let (found, next) = log.read(&query).unwrap();
            let mut following = log.follow(next).unwrap();
            if found.is_empty() {
                let limit = Duration::from_secs(10);
                let next = tokio::time::timeout(limit, following.next()).await;
                assert_eq!(next.expect("the line is skipped").unwrap().len(), 1);
            }
            written.join().unwrap();
        }
    }
}
