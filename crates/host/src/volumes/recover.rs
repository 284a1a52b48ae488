//! What an earlier agent left of volumes: writing goes on first, then what was begun.
//!
//! Never removes a disk that no record names: the records may be older than the disks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perch_durable::{Journal, OpenRun};
use perch_types::VolumeId;

use super::record::SnapshotRow;
use super::run::Intent;
use super::{Entry, Turn};
use crate::error::Error;
use crate::schema::{SNAPSHOTS, VOLUMES};
use crate::shared::Shared;

/// How long a run that goes on waits until nothing else is done to its source.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl Shared {
    /// Reads the volumes and goes on with their runs, which are taken out of `runs`.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub(crate) async fn recover_volumes(
        self: &Arc<Self>,
        runs: &mut BTreeMap<String, OpenRun>,
    ) -> Result<(), Error> {
        let state = |source| Error::State { source };
        let volumes = self.db.read(|snapshot| VOLUMES.list(snapshot)).map_err(state)?;
        let snapshots = self.db.read(|snapshot| SNAPSHOTS.list(snapshot)).map_err(state)?;
        for key in volumes.unreadable.iter().chain(&snapshots.unreadable) {
            tracing::error!(key = key.key, reason = key.reason, "record cannot be read");
        }
        let mut ids = Vec::new();
        for (id, mut row) in volumes.records {
            row.record.generation = self.next_generation();
            self.volumes.put(row);
            ids.push(id);
        }
        for (_, snapshot) in snapshots.records {
            let snapshot: SnapshotRow = snapshot;
            self.volumes.put_snapshot(snapshot);
        }
        let mine: Vec<(VolumeId, OpenRun)> =
            ids.iter().filter_map(|id| Some((id.clone(), runs.remove(id.as_str())?))).collect();
        // First of all: a machine may be waiting to write.
        for (id, open) in &mine {
            self.thaw_after(id, open).await;
        }
        // Before any machine is started: it may mount what is not there.
        self.compare_with_pool(&ids).await.map_err(state)?;
        // All turns before the first run: one may want another's volume as its source.
        let turns = mine.into_iter().filter_map(|(id, open)| {
            let entry = self.volumes.entry(&id).ok()?;
            let turn = entry.try_turn()?;
            Some((entry, turn, open))
        });
        let turns: Vec<(Arc<Entry>, Turn, OpenRun)> = turns.collect();
        for (entry, turn, open) in turns {
            self.resume_volume(entry, turn, open);
        }
        self.look_at_room().await;
        Ok(())
    }

    async fn thaw_after(&self, id: &VolumeId, open: &OpenRun) {
        let intent = serde_json::from_value(open.state().input.clone());
        let frozen = match &intent {
            Ok(Intent::Fork { source }) => source,
            Ok(
                Intent::Create
                | Intent::Restore { .. }
                | Intent::Extend { .. }
                | Intent::Snapshot { .. }
                | Intent::Expire { .. }
                | Intent::Purge,
            )
            | Err(_) => id,
        };
        if let Err(fault) = self.effects.volumes.thaw(frozen).await {
            tracing::error!(volume = %frozen, %fault, "volume may be frozen");
        }
    }

    /// Goes on with a run that has stopped: it was parked, or its journal could not be written. What
    /// it met may have changed. Its state alone does not tell: a volume that is copied is as usable
    /// as before. Returns whether something has to end before anything else is done to the volume.
    pub(super) fn retry_volume(self: &Arc<Self>, id: &VolumeId) -> bool {
        let Ok(entry) = self.volumes.entry(id) else { return true };
        // Whoever drives a run has the turn; with it in hand, a run that is found is nobody's.
        let Some(turn) = entry.try_turn() else { return true };
        let found = self
            .db
            .read(|snapshot| Journal::unfinished_of(snapshot, id.as_str()))
            .and_then(|run| run.map(|run| self.journal.open(run)).transpose());
        match found {
            Ok(Some(open)) => {
                self.resume_volume(entry, turn, open);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!(volume = %id, %error, "run cannot be opened");
                true
            }
        }
    }

    fn resume_volume(self: &Arc<Self>, entry: Arc<Entry>, turn: Turn, mut open: OpenRun) {
        let id = entry.known().row.record.id;
        let intent: Intent = match serde_json::from_value(open.state().input.clone()) {
            Ok(intent) => intent,
            Err(error) => {
                tracing::error!(volume = %id, %error, "run cannot be read");
                return;
            }
        };
        if open.state().parked.is_some() {
            let at_ms = i64::try_from(self.effects.clock.boot_ms()).unwrap_or(i64::MAX);
            if let Err(error) = open.unpark(at_ms) {
                tracing::warn!(volume = %id, %error, "run stays parked");
            }
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut turns = vec![turn];
            // A source is whole, so it never waits for what is made of it.
            if let Some(source) = shared.source_of_run(&intent) {
                let waited = tokio::select! {
                    biased;
                    () = shared.stopping.cancelled() => return,
                    waited = tokio::time::timeout(SOURCE_TIMEOUT, source.turn()) => waited,
                };
                let Ok(turn) = waited else {
                    tracing::warn!(volume = %id, "run waits for its source");
                    return;
                };
                turns.push(turn);
            }
            let driver = Arc::clone(&shared);
            let work = async move { driver.drive_volume(&entry, open, intent).await };
            if let Err(error) = shared.with_turns(&id, turns, work).await {
                tracing::warn!(volume = %id, %error, "run that had stopped did not succeed");
            }
        });
    }

    /// Returns the other volume that a run reads; nothing when that is no more.
    fn source_of_run(&self, intent: &Intent) -> Option<Arc<Entry>> {
        let source = match intent {
            Intent::Fork { source } => source.clone(),
            Intent::Restore { snapshot } => self.volumes.snapshot(snapshot)?.0.record.id,
            Intent::Create
            | Intent::Extend { .. }
            | Intent::Snapshot { .. }
            | Intent::Expire { .. }
            | Intent::Purge => return None,
        };
        self.volumes.entry(&source).ok()
    }
}
