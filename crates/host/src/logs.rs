//! Machines' logs as the API gives them.
//!
//! Never interprets a line; bytes that are no UTF-8 are replaced.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

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
    /// When it cannot be watched.
    pub(crate) fn follow(self, from_seq: u64) -> Result<Following, ApiError> {
        // A machine that has never run has no folder yet. What is wrong shows in the next step.
        drop(DirBuilder::new().recursive(true).mode(0o700).create(&self.dir));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perch_runtime::log::Writer;

    use super::*;

    /// Whoever begins to follow while the first line is written gets it, whichever comes first.
    #[tokio::test]
    async fn a_line_written_while_following_begins_is_not_skipped() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..200_u32 {
            let dir = folder.path().join(round.to_string());
            let log = Log {
                dir: dir.clone(),
                machine: MachineId::from_bits(1),
                region: "loc".parse().unwrap(),
            };
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
