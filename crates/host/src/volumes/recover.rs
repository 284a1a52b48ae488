//! What an earlier agent left of volumes: writing goes on first, then what was begun.
//!
//! Never removes a disk that no record names: the records may be older than the disks.

use std::collections::BTreeMap;
use std::sync::Arc;

use perch_durable::{Journal, OpenRun};
use perch_types::VolumeId;

use super::record::SnapshotRow;
use super::run::Intent;
use super::{Entry, Turn};
use crate::error::Error;
use crate::schema::{SNAPSHOTS, VOLUMES};
use crate::shared::Shared;

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
        let mine: Vec<(VolumeId, OpenRun)> = ids
            .into_iter()
            .filter_map(|id| Some((id.clone(), runs.remove(id.as_str())?)))
            .collect();
        // First of all: a machine may be waiting to write.
        for (id, open) in &mine {
            self.thaw_after(id, open).await;
        }
        for (id, open) in mine {
            // Nobody else has begun yet.
            let Ok(entry) = self.volumes.entry(&id) else { continue };
            let turn = entry.try_turn();
            self.resume_volume((entry, turn), open);
        }
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
    /// as before. Returns whether there was such a run.
    pub(super) fn retry_volume(self: &Arc<Self>, id: &VolumeId) -> bool {
        let Ok(entry) = self.volumes.entry(id) else { return false };
        // Whoever drives a run has the turn; with it in hand, a run that is found is nobody's.
        let Some(turn) = entry.try_turn() else { return false };
        let found = self
            .db
            .read(|snapshot| Journal::unfinished_of(snapshot, id.as_str()))
            .and_then(|run| run.map(|run| self.journal.open(run)).transpose());
        match found {
            Ok(Some(open)) => {
                self.resume_volume((entry, Some(turn)), open);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!(volume = %id, %error, "run cannot be opened");
                false
            }
        }
    }

    fn resume_volume(
        self: &Arc<Self>,
        (entry, turn): (Arc<Entry>, Option<Turn>),
        mut open: OpenRun,
    ) {
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
            let turn = match turn {
                Some(turn) => turn,
                None => entry.turn().await,
            };
            if let Err(error) = shared.drive_volume((entry, vec![turn]), open, intent).await {
                tracing::warn!(volume = %id, %error, "run that had stopped did not succeed");
            }
        });
    }
}
