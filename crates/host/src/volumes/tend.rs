//! What happens to volumes by itself: they grow when a machine said so, daily snapshots are made,
//! old ones and destroyed volumes are removed, and their fullness is noted.
//!
//! Never takes input: it looks at what there is and runs again.

use std::sync::Arc;
use std::time::Duration;

use perch_types::machine_config::AutoExtend;
use perch_types::volume::{VolumeState, VolumeUsage};
use perch_types::{Code, SnapshotId, VolumeId};

use super::Known;
use super::drive::Start;
use super::run::Intent;
use crate::Host;
use crate::heartbeat::BEAT_MS;
use crate::shared::{Shared, random};

/// How many beats lie between two looks at volumes that do not grow by themselves.
const BEATS_PER_ROUND: u64 = 15;
/// How many beats lie between two looks at what all volumes may still write.
const BEATS_PER_LOOK: u64 = 60;
/// How much the fullness has to change to be noted, in parts of the whole.
const NOTED_PARTS: u64 = 200;
/// How much is kept of why a daily snapshot was not made.
const SNAPSHOT_ERROR_CHARS_MAX: usize = 500;

/// Runs until the agent ends.
pub(crate) async fn tend(shared: Arc<Shared>) {
    let mut beats = 0_u64;
    loop {
        let clock = shared.effects.clock.as_ref();
        shared.heartbeats.beat("volumes", clock.boot_ms());
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(BEAT_MS)) => {}
        }
        beats = beats.wrapping_add(1);
        // Each of many volumes may take its time.
        let work = std::pin::pin!(look(&shared, beats));
        shared.heartbeats.turning("volumes", clock, work).await;
    }
}

/// Does what is due at this beat.
async fn look(shared: &Arc<Shared>, beats: u64) {
    shared.grow_full_volumes().await;
    if beats.is_multiple_of(BEATS_PER_ROUND) {
        shared.tend_volumes().await;
    }
    if beats.is_multiple_of(BEATS_PER_LOOK) {
        shared.look_at_room().await;
    }
}

impl Host {
    /// Does now what is due by itself.
    pub async fn tend_volumes(&self) {
        self.shared.grow_full_volumes().await;
        self.shared.tend_volumes().await;
        self.shared.look_at_room().await;
    }
}

/// Returns the size that a volume should grow to.
fn grown(size_gb: u32, usage: &VolumeUsage, auto: AutoExtend) -> Option<u32> {
    let is_full = usage.used_percent() >= u64::from(auto.threshold_percent);
    let size = size_gb.saturating_add(auto.add_gb).min(auto.limit_gb);
    (is_full && size > size_gb).then_some(size)
}

impl Shared {
    /// Extends the volumes of running machines whose configuration says when.
    async fn grow_full_volumes(self: &Arc<Self>) {
        let machines = self.all();
        for handle in machines {
            let published = handle.published();
            if published.instance.is_none() {
                continue;
            }
            for mount in &published.machine.config.mounts {
                let (Some(auto), Ok(id)) = (mount.auto_extend(), mount.volume.parse::<VolumeId>())
                else {
                    continue;
                };
                self.grow_if_full(&id, auto).await;
            }
        }
    }

    async fn grow_if_full(self: &Arc<Self>, id: &VolumeId, auto: AutoExtend) {
        let Ok(entry) = self.volumes.entry(id) else { return };
        // This loop does not wait for a copy that takes long.
        if entry.try_turn().is_none() {
            return;
        }
        let record = entry.known().row.record;
        let usage = match self.effects.volumes.usage(id).await {
            Ok(Some(usage)) if record.state == VolumeState::Created => usage,
            Ok(_) => return,
            Err(fault) => {
                tracing::debug!(volume = %id, %fault, "volume cannot be measured");
                return;
            }
        };
        let Some(size_gb) = grown(record.size_gb, &usage, auto) else { return };
        match self.extend_volume(id, size_gb).await {
            Ok(_) => tracing::info!(volume = %id, size_gb, "full volume was extended"),
            Err(error) => tracing::warn!(volume = %id, %error, "full volume was not extended"),
        }
    }

    pub(super) async fn tend_volumes(self: &Arc<Self>) {
        for known in self.volumes.all() {
            if self.stopping.is_cancelled() {
                return;
            }
            let id = &known.row.record.id;
            if !self.retry_volume(id) {
                self.tend_volume(&known).await;
                if let Err(error) = self.compare_with_pool(std::slice::from_ref(id)).await {
                    tracing::warn!(volume = %id, %error, "missing image was not noted");
                }
            }
        }
    }

    async fn tend_volume(self: &Arc<Self>, known: &Known) {
        let now = self.effects.clock.now();
        let id = &known.row.record.id;
        if known.row.is_over(now) {
            return self.run_alone(id, Intent::Purge).await;
        }
        for snapshot in known.snapshots.iter().filter(|one| one.is_over(now)) {
            self.run_alone(id, Intent::Expire { snapshot: snapshot.id.clone() }).await;
        }
        if known.row.wants_backup(now) {
            let snapshot = SnapshotId::from_bits(random());
            match self.snapshot_volume(id, snapshot, true).await {
                Ok(_) => {}
                // Somebody was faster: the next round comes soon.
                Err(error) if matches!(error.code, Code::Conflict | Code::Unavailable) => {
                    tracing::debug!(volume = %id, %error, "daily snapshot waits");
                }
                Err(error) => self.note_no_snapshot(known, error.error).await,
            }
        }
        self.note_usage(known).await;
    }

    /// Says once why the daily snapshot was not made, where the volume's owner sees it too.
    async fn note_no_snapshot(self: &Arc<Self>, known: &Known, error: String) {
        let id = &known.row.record.id;
        let error: String = error.chars().take(SNAPSHOT_ERROR_CHARS_MAX).collect();
        if known.row.record.snapshot_error.is_some() {
            return;
        }
        tracing::warn!(volume = %id, error, "daily snapshot was not made");
        let noted = self.write_volume(id, move |row| row.record.snapshot_error = Some(error)).await;
        if let Err(error) = noted {
            tracing::warn!(volume = %id, %error, "reason was not noted");
        }
    }

    /// Does something that nobody asked for, if it is still due and nobody else does something.
    async fn run_alone(self: &Arc<Self>, id: &VolumeId, intent: Intent) {
        let Ok(entry) = self.volumes.entry(id) else { return };
        let Some(turn) = entry.try_turn() else { return };
        let known = entry.known();
        let now = self.effects.clock.now();
        let is_due = match &intent {
            Intent::Purge => known.row.is_over(now),
            Intent::Expire { snapshot } => {
                known.snapshots.iter().any(|one| one.id == *snapshot && one.is_over(now))
            }
            Intent::Create
            | Intent::Restore { .. }
            | Intent::Fork { .. }
            | Intent::Extend { .. }
            | Intent::Snapshot { .. } => false,
        };
        // It may have been purged before this had its turn.
        if !is_due || self.volumes.entry(id).is_err() {
            return;
        }
        let (turns, run) = (vec![turn], intent.clone());
        let start = Start { entry, turns, intent: run, snapshot: None, admission: None };
        if let Err(error) = self.run_volume(start).await {
            tracing::warn!(volume = %id, run = ?intent, %error, "volume was not tended");
        }
    }

    async fn note_usage(self: &Arc<Self>, known: &Known) {
        let record = &known.row.record;
        if record.attached.is_none() {
            return;
        }
        let Ok(Some(usage)) = self.effects.volumes.usage(&record.id).await else { return };
        let moved = usage.blocks_free.abs_diff(record.usage.blocks_free);
        let is_news = usage.blocks != record.usage.blocks
            || moved.saturating_mul(NOTED_PARTS) >= usage.blocks.max(1);
        if is_news
            && let Err(error) =
                self.write_volume(&record.id, move |row| row.record.usage = usage).await
        {
            tracing::warn!(volume = %record.id, %error, "fullness was not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_grows_when_it_is_full_and_never_beyond_its_limit() {
        let auto = AutoExtend { threshold_percent: 80, add_gb: 2, limit_gb: 5 };
        let usage = |free| VolumeUsage {
            blocks: 100,
            block_size: 4096,
            blocks_free: free,
            blocks_avail: free,
        };
        for (size, free, expected) in [
            (1, 21, None),
            (1, 20, Some(3)),
            (3, 0, Some(5)),
            (4, 0, Some(5)),
            (5, 0, None),
            (9, 0, None),
        ] {
            assert_eq!(grown(size, &usage(free), auto), expected, "{size} {free}");
        }
    }
}
