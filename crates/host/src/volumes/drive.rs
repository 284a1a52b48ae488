//! A volume's run from its beginning to its end, in the volume's turn.
//!
//! Never decides what is asked for: that was admitted.

use std::sync::Arc;
use std::time::Duration;

use perch_durable::{Ended, Journal, OpenRun, drive};
use perch_types::directory::VolumeRecord;
use perch_types::{ApiError, Code, VolumeId};

use super::record::{SnapshotRow, VolumeRow};
use super::run::{Intent, Left, Work, keep_changes};
use super::{Admission, Entry, Turn};
use crate::schema::{SNAPSHOTS, VOLUMES};
use crate::shared::Shared;

/// How long an answer waits for the end of what was asked for; it goes on without the answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// With what a run begins.
#[derive(Debug)]
pub(super) struct Start {
    /// The volume.
    pub(super) entry: Arc<Entry>,
    /// Its turn, and that of what it is made of.
    pub(super) turns: Vec<Turn>,
    /// What is to be done.
    pub(super) intent: Intent,
    /// The snapshot that is to be made.
    pub(super) snapshot: Option<SnapshotRow>,
    /// What it may take of the pool.
    pub(super) admission: Option<Admission>,
}

impl Shared {
    /// Begins a run of a volume and waits for its end.
    pub(super) async fn run_volume(
        self: &Arc<Self>,
        start: Start,
    ) -> Result<VolumeRecord, ApiError> {
        let Start { entry, turns, intent, snapshot, mut admission } = start;
        let mut row = entry.known().row;
        row.record.state = intent.under_way(row.record.state);
        (row.record.generation, row.record.updated_at) = self.stamps().stamp();
        let (shared, id) = (Arc::clone(self), row.record.id.clone());
        // From before the first write: a caller that goes away leaves no run that only the file
        // knows.
        let work = async move {
            let open = shared.begin_volume_run(row.clone(), snapshot.clone(), &intent).await?;
            if intent.makes_volume() {
                shared.volumes.put_new(&entry);
            }
            shared.took(vec![row]);
            if let Some(snapshot) = snapshot {
                shared.volumes.put_snapshot(snapshot);
            }
            if let Some(admission) = &mut admission {
                admission.is_known();
            }
            shared.drive_volume(&entry, open, intent).await
        };
        self.with_turns(&id, turns, Box::pin(work)).await
    }

    /// Does something to a volume in a task that has the turns for it: they last as long as it
    /// does, whatever becomes of the caller. The answer comes at its end, or before when that takes
    /// long.
    pub(super) async fn with_turns(
        self: &Arc<Self>,
        id: &VolumeId,
        turns: Vec<Turn>,
        work: impl Future<Output = Result<VolumeRecord, ApiError>> + Send + 'static,
    ) -> Result<VolumeRecord, ApiError> {
        let stopping = self.stopping.clone();
        let driving = self.tasks.spawn(async move {
            let _turns = turns;
            tokio::select! {
                biased;
                // As good as a crash: the next agent goes on with it.
                () = stopping.cancelled() => {
                    Err(ApiError::new(Code::Unavailable, "the server's agent is ending"))
                }
                done = work => done,
            }
        });
        match tokio::time::timeout(ANSWER_TIMEOUT, driving).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ApiError::new(Code::Internal, "the volume's run was given up")),
            Err(_) => self.volumes.entry(id).map(|entry| entry.known().row.record),
        }
    }

    async fn begin_volume_run(
        &self,
        row: VolumeRow,
        snapshot: Option<SnapshotRow>,
        intent: &Intent,
    ) -> Result<OpenRun, ApiError> {
        let at_ms = i64::try_from(self.effects.clock.boot_ms()).unwrap_or(i64::MAX);
        let id = row.record.id.clone();
        let run = intent.new_run(&id);
        let frees = matches!(intent, Intent::Purge | Intent::Expire { .. });
        let work = move |tx: &perch_durable::Tx<'_>| {
            let mut row = row.clone();
            if let Some(now) = VOLUMES.get(tx, &row.record.id)? {
                keep_changes(&mut row, &now);
            }
            VOLUMES.put(tx, &row.record.id, &row)?;
            if let Some(snapshot) = &snapshot {
                SNAPSHOTS.put(tx, &snapshot.id, snapshot)?;
            }
            Journal::begin(tx, run.clone(), at_ms)
        };
        let begun: Result<_, perch_durable::Error> = if frees {
            self.db.write_reserved(work).await
        } else {
            self.db.write(move |tx| work(tx)).await
        };
        begun.map_err(|error| match error {
            perch_durable::Error::OwnerBusy { .. } => unfinished(&id),
            error => self.db_error(&error),
        })
    }

    /// Drives a run that has begun, in a task that has the turns for it.
    pub(super) async fn drive_volume(
        self: &Arc<Self>,
        entry: &Entry,
        open: OpenRun,
        intent: Intent,
    ) -> Result<VolumeRecord, ApiError> {
        let known = entry.known();
        let id = known.row.record.id.clone();
        let mut work = Work {
            shared: Arc::clone(self),
            intent,
            row: known.row,
            snapshots: known.snapshots,
            fault: None,
            left: None,
        };
        let ended = drive(&self.journal, open, &mut work).await;
        self.volume_run_ended(&id, ended.map(|(ended, _)| ended), work)
    }

    fn volume_run_ended(
        &self,
        id: &VolumeId,
        ended: Result<Ended, perch_durable::Error>,
        work: Work,
    ) -> Result<VolumeRecord, ApiError> {
        let kind = work.intent.clone();
        let ended = ended.map_err(|error| self.db_error(&error))?;
        if let Some(left) = work.left {
            self.take_left(id, left);
        }
        match ended {
            Ended::Done => {
                Ok(self.volumes.entry(id).map_or(work.row.record, |entry| entry.known().row.record))
            }
            Ended::Undone(failure) => {
                tracing::warn!(volume = %id, run = ?kind, %failure, "run was undone");
                Err(work.fault.unwrap_or_else(|| ApiError::new(Code::Internal, failure.message)))
            }
            Ended::Parked { why } => {
                tracing::error!(volume = %id, run = ?kind, why, "run cannot go on");
                Err(work.fault.unwrap_or_else(|| ApiError::new(Code::Internal, why)))
            }
        }
    }

    fn take_left(&self, id: &VolumeId, left: Left) {
        for snapshot in &left.gone {
            self.volumes.forget_snapshot(id, snapshot);
        }
        if let Some(made) = left.made {
            self.volumes.put_snapshot(made);
        }
        // Read again: a machine may have taken or left it meanwhile.
        let row = self.db.read(|snapshot| VOLUMES.get(snapshot, id));
        match (left.row, row) {
            (Some(_), Ok(Some(row))) => self.took(vec![row]),
            (Some(row), _) => self.took(vec![row]),
            (None, _) => {
                self.volumes.forget(id);
                self.dirty.notify_one();
            }
        }
    }
}

/// Waits until nobody else does something to a volume, for as long as somebody waits for an answer.
pub(super) async fn turn_of(entry: &Entry) -> Result<Turn, ApiError> {
    tokio::time::timeout(ANSWER_TIMEOUT, entry.turn()).await.map_err(|_| {
        let id = entry.known().row.record.id;
        ApiError::new(Code::Conflict, format!("volume {id} is still being copied or changed"))
            .with_hint("try again when that is done")
    })
}

/// Returns why nothing is begun with a volume of which something has not ended that nobody drives
/// now: it met a fault, and is gone on with when the volume is tended.
fn unfinished(id: &VolumeId) -> ApiError {
    let text = format!("volume {id}: what was begun before has met a fault and has not ended");
    ApiError::new(Code::Conflict, text).with_hint(
        "the server goes on with it by itself: try again in a minute; the server's log says what \
         it met",
    )
}
