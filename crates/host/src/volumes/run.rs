//! One run of a volume: its steps, and what the records become at its end.
//!
//! Never decides whether it may be done: `command` did. Every step may run twice: disks are made
//! beside their place and moved there, a file system only grows, what is gone is gone, and a copy
//! first lets go on what an earlier one may have stopped: nobody else can be copying then, because
//! the run has the turn of what it copies.

use std::sync::Arc;

use perch_durable::{
    Executor, Extra, Moment, NewRun, Outcome, RunState, Step, StepContext, StepError,
};
use perch_types::volume::{GIB, VolumeState, VolumeUsage};
use perch_types::{ApiError, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::{SnapshotRow, VolumeRow};
use crate::effects::{Disk, Fault};
use crate::schema::{SNAPSHOTS, VOLUMES};
use crate::shared::Shared;

/// What a run is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "intent")]
pub enum Intent {
    /// An empty volume is made.
    Create,
    /// A volume is made of a snapshot.
    Restore {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A volume is made of another.
    Fork {
        /// Which.
        source: VolumeId,
    },
    /// It grows.
    Extend {
        /// The new size in GiB.
        size_gb: u32,
    },
    /// A snapshot of it is made.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Whether it is the daily one.
        is_daily: bool,
    },
    /// A snapshot of it is removed.
    Expire {
        /// Which.
        snapshot: SnapshotId,
    },
    /// It is removed with its snapshots.
    Purge,
}

/// The names of the steps in the journal.
const MAKE: &str = "volume make";
const COPY: &str = "volume copy";
const GROW: &str = "volume grow";
const REMOVE: &str = "volume remove";

impl Intent {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Create => "volume create",
            Self::Restore { .. } => "volume restore",
            Self::Fork { .. } => "volume fork",
            Self::Extend { .. } => "volume extend",
            Self::Snapshot { .. } => "volume snapshot",
            Self::Expire { .. } => "snapshot expire",
            Self::Purge => "volume purge",
        }
    }

    const fn steps(&self) -> &'static [&'static str] {
        match self {
            Self::Create => &[MAKE],
            Self::Restore { .. } | Self::Fork { .. } => &[COPY, GROW],
            Self::Extend { .. } => &[GROW],
            Self::Snapshot { .. } => &[COPY],
            Self::Expire { .. } | Self::Purge => &[REMOVE],
        }
    }

    /// Returns whether the volume is made by it.
    #[must_use]
    pub const fn makes_volume(&self) -> bool {
        matches!(self, Self::Create | Self::Restore { .. } | Self::Fork { .. })
    }

    /// Returns the run for the journal. What makes something has an undo; a volume that grows, and
    /// what is removed, only go forward.
    #[must_use]
    pub fn new_run(&self, volume: &VolumeId) -> NewRun {
        NewRun {
            owner: volume.to_string(),
            kind: self.kind().to_owned(),
            input: serde_json::to_value(self).unwrap_or_default(),
            steps: self.steps().iter().map(|name| Step::shared(*name)).collect(),
            point_of_no_return: match self {
                Self::Create | Self::Restore { .. } | Self::Fork { .. } | Self::Snapshot { .. } => {
                    None
                }
                Self::Extend { .. } | Self::Expire { .. } | Self::Purge => Some(0),
            },
        }
    }

    /// Returns the volume's state while the run is under way.
    #[must_use]
    pub const fn under_way(&self, before: VolumeState) -> VolumeState {
        match self {
            Self::Create => VolumeState::Creating,
            Self::Restore { .. } => VolumeState::Restoring,
            Self::Fork { .. } => VolumeState::Hydrating,
            Self::Extend { .. } => VolumeState::Extending,
            Self::Snapshot { .. } | Self::Expire { .. } => before,
            Self::Purge => VolumeState::Destroying,
        }
    }
}

/// What a run has in its hands.
#[derive(Debug)]
pub struct Work {
    /// The host.
    pub shared: Arc<Shared>,
    /// What it is for.
    pub intent: Intent,
    /// The volume as it was when the run began.
    pub row: VolumeRow,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotRow>,
    /// Why it was given up, with its code.
    pub fault: Option<ApiError>,
    /// What the end made of the records.
    pub left: Option<Left>,
}

/// What the end of a run made of the records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Left {
    /// The volume; nothing when it is no more.
    pub row: Option<VolumeRow>,
    /// A snapshot that is whole now.
    pub made: Option<SnapshotRow>,
    /// Snapshots that are no more.
    pub gone: Vec<SnapshotId>,
}

impl Work {
    fn id(&self) -> &VolumeId {
        &self.row.record.id
    }

    fn disk(&self) -> Disk {
        Disk::Volume(self.id().clone())
    }

    /// Returns from what and to what a copy goes.
    fn copied(&self) -> Option<(Disk, Disk)> {
        match &self.intent {
            Intent::Restore { snapshot } => Some((Disk::Snapshot(snapshot.clone()), self.disk())),
            Intent::Fork { source } => Some((Disk::Volume(source.clone()), self.disk())),
            Intent::Snapshot { snapshot, .. } => {
                Some((self.disk(), Disk::Snapshot(snapshot.clone())))
            }
            Intent::Create | Intent::Extend { .. } | Intent::Expire { .. } | Intent::Purge => None,
        }
    }

    fn bytes(&self) -> u64 {
        let size_gb = match &self.intent {
            Intent::Extend { size_gb } => *size_gb,
            Intent::Create
            | Intent::Restore { .. }
            | Intent::Fork { .. }
            | Intent::Snapshot { .. }
            | Intent::Expire { .. }
            | Intent::Purge => self.row.record.size_gb,
        };
        u64::from(size_gb).saturating_mul(GIB)
    }

    async fn step(&self, step: &str) -> Result<Value, Fault> {
        let disks = &self.shared.effects.volumes;
        if step == GROW && self.has_nothing_to_grow().await? {
            return Ok(Value::Null);
        }
        let usage = match step {
            MAKE => disks.make(self.id(), self.bytes()).await?,
            GROW => disks.grow(self.id(), self.bytes()).await?,
            COPY => {
                let Some((from, to)) = self.copied() else { return Ok(Value::Null) };
                if let Disk::Volume(source) = &from {
                    disks.thaw(source).await?;
                }
                disks.copy(&from, &to).await?
            }
            _ => {
                for disk in self.removed() {
                    disks.remove(&disk).await?;
                }
                return Ok(Value::Null);
            }
        };
        Ok(serde_json::to_value(usage).unwrap_or_default())
    }

    /// Returns whether a volume was to grow that was destroyed while the run could not go on, or
    /// that has no image.
    async fn has_nothing_to_grow(&self) -> Result<bool, Fault> {
        if !matches!(self.intent, Intent::Extend { .. }) {
            return Ok(false);
        }
        let is_going = self.row.record.state.is_going();
        Ok(is_going || !self.shared.effects.volumes.is_there(&self.disk()).await?)
    }

    /// Returns what the run removes.
    fn removed(&self) -> Vec<Disk> {
        match &self.intent {
            Intent::Expire { snapshot } => vec![Disk::Snapshot(snapshot.clone())],
            Intent::Purge => {
                let snapshots = self.snapshots.iter();
                let disks = snapshots.map(|snapshot| Disk::Snapshot(snapshot.id.clone()));
                disks.chain([self.disk()]).collect()
            }
            Intent::Create
            | Intent::Restore { .. }
            | Intent::Fork { .. }
            | Intent::Extend { .. }
            | Intent::Snapshot { .. } => Vec::new(),
        }
    }

    async fn unstep(&self, step: &str) -> Result<(), Fault> {
        let disks = &self.shared.effects.volumes;
        match (step, self.copied()) {
            (MAKE, _) => disks.remove(&self.disk()).await,
            (COPY, Some((from, to))) => {
                if let Disk::Volume(source) = &from {
                    disks.thaw(source).await?;
                }
                disks.remove(&to).await
            }
            // Its disk goes with the copy.
            _ => Ok(()),
        }
    }

    fn at_end(&self, outcome: &Outcome, run: &RunState) -> Left {
        let mut row = self.row.clone();
        // One that was destroyed while this could not go on stays so.
        let is_going = row.record.state.is_going();
        let stamp = self.shared.stamps().stamp();
        (row.record.generation, row.record.updated_at) = stamp;
        let usage = |step: &str| run.output::<VolumeUsage>(step);
        let is_done = matches!(outcome, Outcome::Done);
        let mut left = Left::default();
        match &self.intent {
            Intent::Create | Intent::Restore { .. } | Intent::Fork { .. } if !is_done => {
                return left;
            }
            Intent::Create | Intent::Restore { .. } | Intent::Fork { .. } => {
                let last = usage(GROW).or_else(|| usage(MAKE));
                row.record.usage = last.unwrap_or(row.record.usage);
                if !is_going {
                    row.record.state = VolumeState::Created;
                }
            }
            Intent::Extend { .. } if is_going => {}
            Intent::Extend { size_gb } => match usage(GROW) {
                Some(usage) => {
                    row.record.size_gb = *size_gb;
                    row.record.usage = usage;
                    row.record.state = VolumeState::Created;
                }
                None => row.record.state = VolumeState::Recovering,
            },
            Intent::Snapshot { snapshot, is_daily } => {
                let known = self.snapshots.iter().find(|known| known.id == *snapshot);
                match known.filter(|_| is_done) {
                    Some(known) => {
                        let usage = usage(COPY).unwrap_or_default();
                        left.made = Some(SnapshotRow { usage, is_whole: true, ..known.clone() });
                        row.record.usage = usage;
                        row.record.snapshot_error = None;
                        if *is_daily {
                            row.backed_up_unix_ms = stamp.1.unix_ms();
                        }
                    }
                    None => left.gone.push(snapshot.clone()),
                }
            }
            Intent::Expire { snapshot } => left.gone.push(snapshot.clone()),
            Intent::Purge => {
                left.gone.extend(self.snapshots.iter().map(|snapshot| snapshot.id.clone()));
                return left;
            }
        }
        left.row = Some(row);
        left
    }
}

/// Keeps what a machine or an update changed since a row was read.
pub(super) fn keep_changes(row: &mut VolumeRow, now: &VolumeRow) {
    row.record.attached.clone_from(&now.record.attached);
    row.record.snapshot_retention = now.record.snapshot_retention;
    row.record.auto_backup = now.record.auto_backup;
}

/// Writes what a run left. What a machine or an update changed meanwhile stays.
fn write(
    tx: &perch_durable::Tx<'_>,
    id: &VolumeId,
    left: &mut Left,
) -> Result<(), perch_durable::Error> {
    for snapshot in &left.gone {
        SNAPSHOTS.delete(tx, snapshot)?;
    }
    if let Some(made) = &left.made {
        SNAPSHOTS.put(tx, &made.id, made)?;
    }
    match &mut left.row {
        Some(row) => {
            if let Some(now) = VOLUMES.get(tx, id)? {
                keep_changes(row, &now);
            }
            VOLUMES.put(tx, id, row)
        }
        None => VOLUMES.delete(tx, id).map(drop),
    }
}

impl Executor for Work {
    fn knows(&self, step: &str) -> bool {
        [MAKE, COPY, GROW, REMOVE].contains(&step)
    }

    async fn run(&mut self, context: StepContext<'_>) -> Result<Value, StepError> {
        let began = std::time::Instant::now();
        let result = self.step(context.step).await;
        let name = [MAKE, COPY, GROW].into_iter().find(|name| *name == context.step);
        self.shared.note_step(name.unwrap_or(REMOVE), began.elapsed().as_secs_f64() * 1e3);
        if result.is_err() {
            self.shared.unless_ending().await;
        }
        result.map_err(|fault| {
            self.fault = Some(fault.error.clone());
            fault.into()
        })
    }

    async fn undo(&mut self, context: StepContext<'_>) -> Result<(), StepError> {
        let result = self.unstep(context.step).await;
        if result.is_err() {
            self.shared.unless_ending().await;
        }
        result.map_err(StepError::from)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX)
    }

    async fn pause(&mut self, pause_ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
    }

    fn beside(&mut self, moment: Moment<'_>, run: &RunState) -> Option<Extra> {
        match moment {
            Moment::End(outcome) => {
                let left = self.at_end(outcome, run);
                self.left = Some(left.clone());
                let (id, mut left) = (self.id().clone(), left);
                Some(Box::new(move |tx| write(tx, &id, &mut left)))
            }
            Moment::Step(_) | Moment::Undo(_) | Moment::Parked(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
