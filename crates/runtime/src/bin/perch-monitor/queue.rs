//! Log records on their way to the disk.
//!
//! Never makes the machine wait for the disk: what does not fit is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use perch_runtime::log::{Record, Stream, Writer};

use crate::clock;
use crate::lines::Rate;

/// The most bytes that wait for the disk.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// What a record takes besides its line.
const RECORD_BYTES: usize = 64;

/// Records that wait, and what was dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct State {
    records: VecDeque<Record>,
    bytes: usize,
    rate: Rate,
    dropped_since: u64,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(bytes_per_second_max: u64) -> Self {
        let state = State {
            records: VecDeque::new(),
            bytes: 0,
            rate: Rate::new(bytes_per_second_max),
            dropped_since: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), dropped: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many lines were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds a line of the machine, if the limits allow.
    pub(crate) fn add(&self, mut record: Record) {
        let cost = record.line.len().saturating_add(RECORD_BYTES);
        let mut state = self.state();
        let fits = state.bytes.saturating_add(cost) <= WAITING_BYTES_MAX;
        if !fits || !state.rate.admit(cost, clock::boot_ms()) {
            state.dropped_since = state.dropped_since.saturating_add(1);
            self.count_dropped();
            return;
        }
        record.dropped_before = std::mem::take(&mut state.dropped_since);
        state.bytes = state.bytes.saturating_add(cost);
        state.records.push_back(record);
        self.changed.notify_one();
    }

    /// Adds a line of the platform, whatever the limits.
    pub(crate) fn system(&self, text: &str) {
        let mut state = self.state();
        let record = Record {
            seq: 0,
            unix_ms: clock::unix_ms(),
            stream: Stream::System,
            continues: false,
            dropped_before: std::mem::take(&mut state.dropped_since),
            container: None,
            process: None,
            line: text.as_bytes().to_vec(),
        };
        state.bytes = state.bytes.saturating_add(record.line.len()).saturating_add(RECORD_BYTES);
        state.records.push_back(record);
        self.changed.notify_one();
    }

    /// Lets [`Queue::drain`] return once everything is written.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    fn take(&self) -> Option<VecDeque<Record>> {
        let mut state = self.state();
        while state.records.is_empty() {
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.bytes = 0;
        Some(std::mem::take(&mut state.records))
    }

    /// Writes what comes until the queue is closed. A disk that refuses loses lines, which count
    /// as dropped; the machine goes on.
    pub(crate) fn drain(&self, writer: &mut Writer) {
        while let Some(records) = self.take() {
            for record in records {
                if writer.add(record).is_err() {
                    self.count_dropped();
                }
            }
            if writer.flush().is_err() {
                self.count_dropped();
            }
        }
    }
}
