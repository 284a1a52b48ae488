//! Volumes and snapshots whose images are not in the pool: they are told as such, and no machine is
//! started on them, until an operator puts the image back or somebody destroys them.
//!
//! Never removes a record and makes no image: after `perchd restore` the records are there, and the
//! disks may follow.

use std::sync::Arc;

use perch_types::volume::VolumeState;
use perch_types::{ApiError, MachineConfig, SnapshotId, VolumeId};

use super::{Known, change, mounts_of};
use crate::effects::{Disk, Fault};
use crate::schema::SNAPSHOTS;
use crate::shared::Shared;

/// How many volumes a finding names.
const NAMED_MAX: usize = 8;

/// What is told otherwise than it is.
#[derive(Debug, Default)]
struct News {
    /// Volumes and the state that is theirs.
    volumes: Vec<(VolumeId, VolumeState)>,
    /// Snapshots and whether they are lost.
    snapshots: Vec<(SnapshotId, bool)>,
}

/// Returns the state that a volume is in, whose image is there or not, if it is another. A volume
/// that is being made or removed has an image or has none.
const fn news_of(state: VolumeState, is_there: bool) -> Option<VolumeState> {
    match (state, is_there) {
        (VolumeState::Created | VolumeState::Extending, false) => Some(VolumeState::Recovering),
        (VolumeState::Recovering, true) => Some(VolumeState::Created),
        _ => None,
    }
}

impl Shared {
    /// Compares what is said of volumes and their snapshots with the pool. One that somebody does
    /// something to is left out: its image comes and goes with that.
    ///
    /// # Errors
    /// When what was found cannot be written.
    pub(super) async fn compare_with_pool(
        self: &Arc<Self>,
        ids: &[VolumeId],
    ) -> Result<(), perch_durable::Error> {
        let (mut turns, mut news) = (Vec::new(), News::default());
        for id in ids {
            let Ok(entry) = self.volumes.entry(id) else { continue };
            let Some(turn) = entry.try_turn() else { continue };
            turns.push(turn);
            if let Err(fault) = self.look_for_images(&entry.known(), &mut news).await {
                // Nobody knows: what was said stays.
                tracing::warn!(volume = %id, %fault, "image cannot be looked for");
            }
        }
        if news.volumes.is_empty() && news.snapshots.is_empty() {
            return Ok(());
        }
        self.take_news(news).await
    }

    async fn look_for_images(&self, known: &Known, news: &mut News) -> Result<(), Fault> {
        let disks = &self.effects.volumes;
        let record = &known.row.record;
        let is_there = disks.is_there(&Disk::Volume(record.id.clone())).await?;
        if let Some(state) = news_of(record.state, is_there) {
            news.volumes.push((record.id.clone(), state));
        }
        for snapshot in known.snapshots.iter().filter(|one| one.is_whole) {
            let is_lost = !disks.is_there(&Disk::Snapshot(snapshot.id.clone())).await?;
            if is_lost != snapshot.is_lost {
                news.snapshots.push((snapshot.id.clone(), is_lost));
            }
        }
        Ok(())
    }

    async fn take_news(self: &Arc<Self>, news: News) -> Result<(), perch_durable::Error> {
        for (id, state) in &news.volumes {
            let path = self.effects.volumes.image(id);
            let image = path.display();
            if *state == VolumeState::Recovering {
                tracing::error!(volume = %id, %image, "image of a volume is missing");
            } else {
                tracing::info!(volume = %id, %image, "image of a volume is back");
            }
        }
        let stamps = self.stamps();
        let written: Result<_, perch_durable::Error> = self
            .db
            .write_reserved(move |tx| {
                let (mut rows, mut snapshots) = (Vec::new(), Vec::new());
                for (id, state) in &news.volumes {
                    rows.extend(change(tx, id, stamps.stamp(), |row| row.record.state = *state)?);
                }
                for (id, is_lost) in &news.snapshots {
                    let Some(mut snapshot) = SNAPSHOTS.get(tx, id)? else { continue };
                    snapshot.is_lost = *is_lost;
                    SNAPSHOTS.put(tx, id, &snapshot)?;
                    snapshots.push(snapshot);
                }
                Ok((rows, snapshots))
            })
            .await;
        let (rows, snapshots) = written?;
        self.took(rows);
        for snapshot in snapshots {
            self.volumes.put_snapshot(snapshot);
        }
        Ok(())
    }

    /// Refuses a boot that mounts a volume without an image, with what can be done about it.
    ///
    /// # Errors
    /// The first such volume.
    pub(crate) fn check_disks(&self, config: &MachineConfig) -> Result<(), ApiError> {
        for (id, _) in mounts_of(config) {
            let Ok(entry) = self.volumes.entry(&id) else { continue };
            let state = entry.known().row.record.state;
            if state == VolumeState::Recovering {
                return Err(ApiError::volume_state(id.as_str(), state));
            }
        }
        Ok(())
    }

    /// Returns which volumes have no image, as a finding.
    pub(crate) fn lost_volumes(&self) -> Option<String> {
        let all = self.volumes.all();
        let lost = |known: &&Known| known.row.record.state == VolumeState::Recovering;
        let ids: Vec<&str> =
            all.iter().filter(lost).map(|known| known.row.record.id.as_str()).collect();
        let named = ids.get(..NAMED_MAX).unwrap_or(&ids).join(", ");
        let more = if ids.len() > NAMED_MAX { ", ..." } else { "" };
        (!ids.is_empty()).then(|| format!("volumes: {} without an image: {named}{more}", ids.len()))
    }
}
