//! Runs on the disk: begin, append, end, and what is left unfinished after a crash.
//!
//! Never decides what a run does next (see [`crate::next`]) and never runs a step.

use rusqlite::{OptionalExtension as _, Row, params};

use crate::{
    Db, Error, Event, NewRun, Outcome, RunId, RunState, Snapshot, Step, Tx, run::InvalidRun,
    run::RUN_INPUT_BYTES_MAX,
};

/// How many finished runs are kept for an owner.
pub const HISTORY_PER_OWNER_MAX: u32 = 16;

const COLUMNS: &str = "id, owner, kind, input, steps, point_of_no_return, began_ms";

/// The journal of a file.
#[derive(Debug, Clone)]
pub struct Journal {
    db: Db,
}

/// A run in the hands of one driver: its state, and the events that no commit covers yet.
#[derive(Debug)]
pub struct OpenRun {
    state: RunState,
    pending: Vec<(i64, Event)>,
    written: i64,
}

/// What a crash left.
#[derive(Debug)]
pub struct Recovered {
    /// The unfinished runs, oldest first: [`crate::drive`] each, also the parked ones (which
    /// returns at once).
    pub runs: Vec<OpenRun>,
    /// Runs that this release cannot read. They stay as they are.
    pub unreadable: Vec<UnreadableRun>,
}

/// A run that this release cannot read.
#[derive(Debug)]
pub struct UnreadableRun {
    /// Its number.
    pub id: RunId,
    /// Whose it is.
    pub owner: String,
    /// What it does.
    pub kind: String,
    /// Why it cannot be read.
    pub error: Error,
}

impl OpenRun {
    /// Returns where the run stands.
    #[must_use]
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Notes an event. It is on the disk after the next flush.
    ///
    /// # Errors
    /// When the event does not fit where the run stands.
    pub fn record(&mut self, event: Event, at_ms: i64) -> Result<(), Error> {
        self.state.apply(&event).map_err(|source| self.invalid(source))?;
        self.pending.push((at_ms, event));
        Ok(())
    }

    /// Notes that a step is about to have its first effect.
    ///
    /// # Errors
    /// As [`OpenRun::record`], also for those below.
    pub fn step_started(&mut self, step: &str, at_ms: i64) -> Result<(), Error> {
        self.record(Event::StepStarted { step: step.to_owned() }, at_ms)
    }

    /// Notes that a step reached its goal.
    ///
    /// # Errors
    /// As [`OpenRun::record`].
    pub fn step_done(
        &mut self,
        step: &str,
        output: serde_json::Value,
        at_ms: i64,
    ) -> Result<(), Error> {
        self.record(Event::StepDone { step: step.to_owned(), output }, at_ms)
    }

    /// Notes that a step is given up, so that the run is undone.
    ///
    /// # Errors
    /// As [`OpenRun::record`]; also at or behind the point of no return.
    pub fn step_failed(&mut self, step: &str, message: &str, at_ms: i64) -> Result<(), Error> {
        let (step, message) = (step.to_owned(), message.to_owned());
        self.record(Event::StepFailed { step, message }, at_ms)
    }

    /// Notes that a step is about to be undone.
    ///
    /// # Errors
    /// As [`OpenRun::record`].
    pub fn undo_started(&mut self, step: &str, at_ms: i64) -> Result<(), Error> {
        self.record(Event::UndoStarted { step: step.to_owned() }, at_ms)
    }

    /// Notes that a step left nothing behind.
    ///
    /// # Errors
    /// As [`OpenRun::record`].
    pub fn undo_done(&mut self, step: &str, at_ms: i64) -> Result<(), Error> {
        self.record(Event::UndoDone { step: step.to_owned() }, at_ms)
    }

    /// Asks for the run to be undone.
    ///
    /// # Errors
    /// As [`OpenRun::record`]; also once the run can only go forward.
    pub fn abandon(&mut self, message: &str, at_ms: i64) -> Result<(), Error> {
        self.record(Event::Abandoned { message: message.to_owned() }, at_ms)
    }

    /// Lets a parked run try again, as an operator's decision.
    ///
    /// # Errors
    /// As [`OpenRun::record`].
    pub fn unpark(&mut self, at_ms: i64) -> Result<(), Error> {
        self.record(Event::Unparked, at_ms)
    }

    /// Notes how the run ended.
    ///
    /// # Errors
    /// As [`OpenRun::record`].
    pub fn finish(&mut self, outcome: Outcome, at_ms: i64) -> Result<(), Error> {
        self.record(Event::Finished { outcome }, at_ms)
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn into_state(self) -> RunState {
        self.state
    }

    /// Takes what is to be written: for [`Unwritten::append`] inside a transaction.
    #[must_use]
    pub(crate) fn take_unwritten(&mut self) -> Unwritten {
        let first = self.written;
        let events = std::mem::take(&mut self.pending);
        self.written += i64::try_from(events.len()).unwrap_or(i64::MAX);
        Unwritten { run: self.state.id, owner: self.state.owner.clone(), first, events }
    }

    fn invalid(&self, source: InvalidRun) -> Error {
        Error::Run { owner: self.state.owner.clone(), source }
    }
}

/// Events on their way to the disk.
#[derive(Debug)]
pub(crate) struct Unwritten {
    run: RunId,
    owner: String,
    first: i64,
    events: Vec<(i64, Event)>,
}

impl Unwritten {
    pub(crate) fn append(&self, tx: &Tx<'_>) -> Result<(), Error> {
        for (sequence, (at_ms, event)) in (self.first..).zip(&self.events) {
            let text = encode("event of", &self.run, event)?;
            let written = tx
                .sql()
                .prepare_cached(
                    "INSERT INTO run_events (run, sequence, at_ms, event) VALUES (?, ?, ?, ?)",
                )
                .and_then(|mut insert| insert.execute(params![self.run.0, sequence, at_ms, text]));
            tx.check("append to journal", written)?;
            if matches!(event, Event::Finished { .. }) {
                self.end(tx, *at_ms)?;
            }
        }
        Ok(())
    }

    fn end(&self, tx: &Tx<'_>, at_ms: i64) -> Result<(), Error> {
        let ended = tx
            .sql()
            .prepare_cached("UPDATE runs SET finished_ms = ? WHERE id = ?")
            .and_then(|mut update| update.execute(params![at_ms, self.run.0]));
        tx.check("end run", ended)?;
        let pruned = tx
            .sql()
            .prepare_cached(
                "DELETE FROM runs WHERE owner = ?1 AND finished_ms IS NOT NULL AND id <= (
                     SELECT id FROM runs WHERE owner = ?1 AND finished_ms IS NOT NULL
                     ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )
            .and_then(|mut delete| delete.execute(params![self.owner, HISTORY_PER_OWNER_MAX]));
        tx.check("prune history", pruned).map(drop)
    }
}

impl Journal {
    /// Returns the journal of a file.
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// Returns the file.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Writes a new run, inside a transaction of the caller's, so that the record it is about
    /// commits with it. The run may be driven once that transaction is committed, never before.
    ///
    /// # Errors
    /// When the plan breaks a rule, when the owner has an unfinished run, or on a fault of the
    /// file.
    pub fn begin(tx: &Tx<'_>, run: NewRun, at_ms: i64) -> Result<OpenRun, Error> {
        let owner = run.owner.clone();
        let run = run.validated().map_err(|source| Error::Run { owner: owner.clone(), source })?;
        if let Some(busy) = Self::unfinished_of(tx, &owner)? {
            return Err(Error::OwnerBusy { owner, run: busy });
        }
        let steps = encode("steps for", &owner, &run.steps)?;
        let input = encode("input for", &owner, &run.input)?;
        if input.len() > RUN_INPUT_BYTES_MAX {
            let source = InvalidRun::InputSize { bytes: input.len() };
            return Err(Error::Run { owner, source });
        }
        let point = run.point_of_no_return.and_then(|index| i64::try_from(index).ok());
        let written = tx
            .sql()
            .prepare_cached(
                "INSERT INTO runs (owner, kind, input, steps, point_of_no_return, began_ms)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .and_then(|mut insert| {
                insert.execute(params![owner, run.kind, input, steps, point, at_ms])
            });
        tx.check("begin run", written)?;
        let id = RunId(tx.sql().last_insert_rowid());
        Ok(OpenRun { state: run.into_state(id, at_ms), pending: Vec::new(), written: 0 })
    }

    /// Writes a new run in a transaction of its own.
    ///
    /// # Errors
    /// As [`Journal::begin`].
    pub async fn begin_alone(&self, run: NewRun, at_ms: i64) -> Result<OpenRun, Error> {
        self.db.write(move |tx| Self::begin(tx, run, at_ms)).await
    }

    /// Writes what the run noted, in a transaction of its own.
    ///
    /// # Errors
    /// When it does not reach the disk. The run must not go on then.
    pub async fn flush(&self, run: &mut OpenRun) -> Result<(), Error> {
        self.flush_with(run, |_| Ok(())).await
    }

    /// Writes what the run noted, and what `extra` writes beside it, in one transaction. It may
    /// use the reserved space and so may call `extra` twice.
    ///
    /// # Errors
    /// As [`Journal::flush`].
    pub async fn flush_with(
        &self,
        run: &mut OpenRun,
        mut extra: impl FnMut(&Tx<'_>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let unwritten = run.take_unwritten();
        self.db
            .write_reserved(move |tx| {
                unwritten.append(tx)?;
                extra(tx)
            })
            .await
    }

    /// Returns the owner's unfinished run, if it has one.
    ///
    /// # Errors
    /// On a fault of the file.
    pub fn unfinished_of(snapshot: &Snapshot<'_>, owner: &str) -> Result<Option<RunId>, Error> {
        snapshot
            .sql()
            .prepare_cached("SELECT id FROM runs WHERE owner = ? AND finished_ms IS NULL")
            .and_then(|mut query| query.query_row([owner], |row| row.get(0)).optional())
            .map(|id| id.map(RunId))
            .map_err(|source| Error::sql("look for unfinished run", source))
    }

    /// Returns what a crash left: call it once, before anything is driven.
    ///
    /// # Errors
    /// On a fault of the file; runs that cannot be read are reported beside the others.
    pub fn unfinished(&self) -> Result<Recovered, Error> {
        self.db.read(|snapshot| {
            let rows = rows(snapshot, "finished_ms IS NULL", [])?;
            let mut recovered = Recovered { runs: Vec::new(), unreadable: Vec::new() };
            for row in rows {
                match open(snapshot, &row) {
                    Ok(run) => recovered.runs.push(run),
                    Err(error) => recovered.unreadable.push(UnreadableRun {
                        id: RunId(row.id),
                        owner: row.owner,
                        kind: row.kind,
                        error,
                    }),
                }
            }
            Ok(recovered)
        })
    }

    /// Opens an unfinished run that no driver holds: a parked one, or one whose driver was
    /// dropped. What may have started counts as started.
    ///
    /// # Errors
    /// When there is no such run or it cannot be read.
    pub fn open(&self, run: RunId) -> Result<OpenRun, Error> {
        self.db.read(|snapshot| {
            let rows = rows(snapshot, "finished_ms IS NULL AND id = ?", [run.0])?;
            let row = rows.first().ok_or(Error::NoSuchRun { run })?;
            open(snapshot, row)
        })
    }

    /// Returns an owner's finished runs, newest first (at most [`HISTORY_PER_OWNER_MAX`]), without
    /// those that cannot be read.
    ///
    /// # Errors
    /// On a fault of the file.
    pub fn history(snapshot: &Snapshot<'_>, owner: &str) -> Result<Vec<RunState>, Error> {
        let mut rows = rows(snapshot, "finished_ms IS NOT NULL AND owner = ?", [owner])?;
        rows.reverse();
        Ok(rows
            .iter()
            .filter_map(|row| load(snapshot, row).ok())
            .map(|(state, ..)| state)
            .collect())
    }

    /// Forgets an owner's finished runs: for an owner that is no more.
    ///
    /// # Errors
    /// On a fault of the file.
    pub fn forget(tx: &Tx<'_>, owner: &str) -> Result<(), Error> {
        let deleted = tx
            .sql()
            .prepare_cached("DELETE FROM runs WHERE owner = ? AND finished_ms IS NOT NULL")
            .and_then(|mut delete| delete.execute([owner]));
        tx.check("forget runs", deleted).map(drop)
    }
}

struct RunRow {
    id: i64,
    owner: String,
    kind: String,
    input: String,
    steps: String,
    point_of_no_return: Option<i64>,
    began_ms: i64,
}

impl RunRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            owner: row.get(1)?,
            kind: row.get(2)?,
            input: row.get(3)?,
            steps: row.get(4)?,
            point_of_no_return: row.get(5)?,
            began_ms: row.get(6)?,
        })
    }
}

fn rows(
    snapshot: &Snapshot<'_>,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<RunRow>, Error> {
    let query = format!("SELECT {COLUMNS} FROM runs WHERE {condition} ORDER BY id");
    let scan = || -> rusqlite::Result<Vec<RunRow>> {
        snapshot.sql().prepare_cached(&query)?.query_map(parameters, RunRow::read)?.collect()
    };
    scan().map_err(|source| Error::sql("read runs", source))
}

/// Opens a run as it may stand after a crash.
fn open(snapshot: &Snapshot<'_>, row: &RunRow) -> Result<OpenRun, Error> {
    let (state, written, last_ms) = load(snapshot, row)?;
    let perhaps = state.perhaps_started();
    let mut run = OpenRun { state, pending: Vec::new(), written };
    // As events, so that they are on the disk with whatever comes next: else a second crash,
    // while undoing, would forget them.
    for step in perhaps {
        run.step_started(&step, last_ms)?;
    }
    Ok(run)
}

fn load(snapshot: &Snapshot<'_>, row: &RunRow) -> Result<(RunState, i64, i64), Error> {
    let id = RunId(row.id);
    let steps: Vec<Step> = decode("steps of", id, &row.steps)?;
    let invalid = |source| Error::Run { owner: row.owner.clone(), source };
    let run = NewRun {
        owner: row.owner.clone(),
        kind: row.kind.clone(),
        input: decode("input of", id, &row.input)?,
        steps,
        point_of_no_return: row.point_of_no_return.and_then(|index| usize::try_from(index).ok()),
    };
    let mut state = run.validated().map_err(invalid)?.into_state(id, row.began_ms);
    let (mut written, mut last_ms) = (0, row.began_ms);
    let scan = || -> rusqlite::Result<Vec<(i64, i64, String)>> {
        snapshot
            .sql()
            .prepare_cached(
                "SELECT sequence, at_ms, event FROM run_events WHERE run = ? ORDER BY sequence",
            )?
            .query_map([row.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect()
    };
    for (sequence, at_ms, text) in scan().map_err(|source| Error::sql("read journal", source))? {
        let event: Event = decode("event of", id, &text)?;
        state.apply(&event).map_err(invalid)?;
        (written, last_ms) = (sequence + 1, at_ms);
    }
    Ok((state, written, last_ms))
}

fn encode<T: serde::Serialize>(
    what: &'static str,
    key: &impl ToString,
    value: &T,
) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Encode {
        what,
        key: key.to_string(),
        source,
    })
}

fn decode<T: serde::de::DeserializeOwned>(
    what: &'static str,
    id: RunId,
    text: &str,
) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Decode {
        what,
        key: id.to_string(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
