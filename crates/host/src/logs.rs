//! Machines' logs as the API gives them.
//!
//! Never interprets a line; bytes that are no UTF-8 are replaced.

use perch_runtime::log::{self, Record, Stream};
use perch_types::api::{LogRecord, LogStream};
use perch_types::host::LogsQuery;
use perch_types::{ApiError, MachineId, Region, Timestamp};

use crate::effects::Fault;

/// How many records one answer has at most, unless it is followed.
pub(crate) const RECORDS_MAX: u64 = 10_000;
/// Records taken at once while following.
const BATCH_MAX: usize = 256;

/// One machine's log.
#[derive(Debug)]
pub(crate) struct Log {
    /// The folder of its segments.
    pub(crate) dir: std::path::PathBuf,
    /// Whose it is.
    pub(crate) machine: MachineId,
    /// Where it ran.
    pub(crate) region: Region,
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
        let mut records = match query.from_seq {
            Some(from_seq) => log::read(&self.dir, from_seq, limit).map_err(fault)?,
            None => log::tail(&self.dir, limit).map_err(fault)?,
        };
        if let (Some(from_seq), Some(_)) = (query.from_seq, query.last) {
            records.retain(|record| record.seq >= from_seq);
        }
        let next = match records.last() {
            Some(last) => last.seq.saturating_add(1),
            None => match query.from_seq {
                Some(from_seq) => from_seq,
                None => log::next_seq(&self.dir).map_err(fault)?,
            },
        };
        Ok((records.into_iter().map(|record| self.record(&record)).collect(), next))
    }

    /// Starts to follow the log from a number on.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(crate) fn follow(self, from_seq: u64) -> Result<Following, ApiError> {
        // A machine that has never run has no folder yet.
        drop(std::fs::create_dir_all(&self.dir));
        let follower =
            log::Follower::new(&self.dir, from_seq).map_err(|error| Fault::from(error).error)?;
        Ok(Following { follower, log: self })
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
}

impl Following {
    /// Waits for more records.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<LogRecord>, ApiError> {
        let records =
            self.follower.next(BATCH_MAX).await.map_err(|error| Fault::from(error).error)?;
        Ok(records.iter().map(|record| self.log.record(record)).collect())
    }
}
