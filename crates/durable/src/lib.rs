//! One SQLite file per host: typed tables, migrations, and the step journal that makes work
//! survive a crash.
//!
//! Never knows what a machine is, never reads a clock (times come in as milliseconds) and never
//! needs an async runtime: the futures of this crate run on any.
//!
//! - [`Db`] is the file. A committed transaction is the only definition of "happened".
//! - [`Table`] keeps typed records in it.
//! - [`RunState`] and [`next`] are the pure core that decides what a journaled run does next.
//! - [`Journal`] writes and reads runs, [`drive`] carries one out.
//! - [`testing`] puts any run through three harnesses with one line.
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

mod db;
mod drive;
mod error;
mod journal;
mod run;
mod table;
pub mod testing;

pub use db::{Db, Frozen, Options, Pending, RESERVE_BYTES, Snapshot, Tx, WRITE_QUEUE_MAX};
pub use drive::{Ended, Executor, Extra, Moment, Retry, StepContext, StepError, drive};
pub use error::Error;
pub use journal::{HISTORY_PER_OWNER_MAX, Journal, OpenRun, Recovered, UnreadableRun};
pub use run::{
    Action, Commit, Event, Failure, InvalidRun, NewRun, Outcome, RUN_INPUT_BYTES_MAX,
    RUN_STEPS_MAX, RunId, RunState, Status, Step, StepState, next,
};
pub use table::{Listed, Table, Unreadable};
