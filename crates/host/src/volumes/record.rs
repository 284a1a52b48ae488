//! What a host keeps of a volume and of its snapshots.
//!
//! Never writes itself: every change is one transaction with the journal or with a machine's.

use perch_types::directory::VolumeRecord;
use perch_types::host::HostSnapshot;
use perch_types::volume::{VolumeSnapshot, VolumeState, VolumeUsage};
use perch_types::{MachineId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// As others see it.
    pub record: VolumeRecord,
    /// When its last daily snapshot was made, or the volume itself.
    pub backed_up_unix_ms: i64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Which.
    pub id: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// The volume's size in GiB when it was made.
    pub size_gb: u32,
    /// How full the volume was.
    pub usage: VolumeUsage,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many days it is kept.
    pub retention_days: u32,
    /// Whether it is whole.
    pub is_whole: bool,
    /// Whether it was whole and its image is not there any more.
    #[serde(default)]
    pub is_lost: bool,
}

impl SnapshotRow {
    /// Returns whether it was kept long enough.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        let kept_ms = i64::from(self.retention_days).saturating_mul(DAY_MS);
        self.is_whole && now.unix_ms() >= self.created_at.unix_ms().saturating_add(kept_ms)
    }

    /// Returns it as others see it.
    #[must_use]
    pub fn of(&self, volume: &VolumeRecord) -> HostSnapshot {
        HostSnapshot {
            volume: self.volume.clone(),
            org: volume.org.clone(),
            app: volume.app.clone(),
            size_gb: self.size_gb,
            snapshot: VolumeSnapshot {
                id: self.id.clone(),
                size: self.usage.bytes_used(),
                volume_size: u64::from(self.size_gb).saturating_mul(perch_types::volume::GIB),
                digest: String::new(),
                created_at: self.created_at,
                status: match (self.is_whole, self.is_lost) {
                    (false, _) => "creating",
                    (true, false) => "created",
                    (true, true) => "missing",
                }
                .to_owned(),
                retention_days: self.retention_days,
            },
        }
    }
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

impl VolumeRow {
    /// Returns whether its data was kept long enough after its destruction.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        match self.record.state {
            // A removal that was begun is gone on with.
            VolumeState::Destroying => true,
            VolumeState::PendingDestroy => self.record.destroy_at.is_some_and(|due| due <= now),
            VolumeState::Creating
            | VolumeState::Created
            | VolumeState::Extending
            | VolumeState::Restoring
            | VolumeState::Hydrating
            | VolumeState::Recovering
            | VolumeState::Destroyed => false,
        }
    }

    /// Returns whether its daily snapshot is due. A clock that was set back never makes it wait
    /// longer than a day.
    #[must_use]
    pub fn wants_backup(&self, now: Timestamp) -> bool {
        let age_ms = now.unix_ms().saturating_sub(self.backed_up_unix_ms);
        self.record.auto_backup
            && self.record.state == VolumeState::Created
            && !(-DAY_MS..DAY_MS).contains(&age_ms)
    }

    /// Returns whether a machine may have it, and why not.
    #[must_use]
    pub fn refusal(&self, machine: &MachineId) -> Option<perch_types::ApiError> {
        let record = &self.record;
        match &record.attached {
            Some(other) if other != machine => {
                return Some(perch_types::ApiError::volume_attached(
                    record.id.as_str(),
                    other.as_str(),
                ));
            }
            Some(_) | None => {}
        }
        let refusal = || perch_types::ApiError::volume_state(record.id.as_str(), record.state);
        (!record.state.is_usable()).then(refusal)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use perch_types::directory::Generation;
    use perch_types::{Code, HostId, OrgSlug};

    use super::*;

    pub(crate) fn row(bits: u128) -> VolumeRow {
        let now = Timestamp::from_unix_ms(1_700_000_000_000);
        VolumeRow {
            record: VolumeRecord {
                id: VolumeId::from_bits(bits),
                org: OrgSlug::personal(),
                app: "web".parse().unwrap(),
                app_id: "app_1".to_owned(),
                name: "data".to_owned(),
                host: HostId::from_bits(1),
                region: "ams".parse().unwrap(),
                generation: Generation { incarnation: 1, counter: 1 },
                state: VolumeState::Created,
                size_gb: 1,
                attached: None,
                usage: VolumeUsage::default(),
                snapshot_retention: 5,
                auto_backup: true,
                copies: false,
                snapshot_error: None,
                destroy_at: None,
                created_at: now,
                updated_at: now,
            },
            backed_up_unix_ms: now.unix_ms(),
        }
    }

    fn at(days: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000 + days * DAY_MS)
    }

    #[test]
    fn a_daily_snapshot_is_due_after_a_day_and_a_clock_that_was_set_back_cannot_stop_it() {
        let row = row(1);
        for (days, due) in [(0, false), (1, true), (9, true), (-1, false), (-2, true)] {
            assert_eq!(row.wants_backup(at(days)), due, "{days}");
        }
        let mut off = row;
        off.record.auto_backup = false;
        assert!(!off.wants_backup(at(9)));
    }

    #[test]
    fn a_volume_belongs_to_one_machine_and_only_when_it_is_whole() {
        let (one, other) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let mut row = row(1);
        assert_eq!(row.refusal(&one), None);
        row.record.attached = Some(one.clone());
        assert_eq!(row.refusal(&one), None);
        let refusal = row.refusal(&other).unwrap();
        assert_eq!(refusal.code, Code::VolumeAttached);
        assert!(refusal.error.contains(one.as_str()), "{refusal}");
        row.record.attached = None;
        for state in VolumeState::ALL {
            row.record.state = state;
            assert_eq!(row.refusal(&one).is_none(), state.is_usable(), "{state}");
        }
    }

    #[test]
    fn a_snapshot_is_kept_for_its_days_and_one_that_is_being_made_until_it_is_whole() {
        let snapshot = |retention_days, is_whole| SnapshotRow {
            id: SnapshotId::from_bits(1),
            volume: VolumeId::from_bits(1),
            size_gb: 1,
            usage: VolumeUsage::default(),
            created_at: at(0),
            retention_days,
            is_whole,
            is_lost: false,
        };
        for (retention_days, is_whole, age, over) in [
            (5, true, 4, false),
            (5, true, 5, true),
            (5, true, -9, false),
            (0, true, 0, true),
            (u32::MAX, true, 99_999, false),
            (0, false, 99, false),
        ] {
            let snapshot = snapshot(retention_days, is_whole);
            assert_eq!(snapshot.is_over(at(age)), over, "{retention_days} {is_whole} {age}");
        }
    }

    #[test]
    fn a_destroyed_volume_is_kept_for_a_day() {
        let mut row = row(1);
        assert!(!row.is_over(at(99)));
        row.record.state = VolumeState::PendingDestroy;
        row.record.destroy_at = Some(at(1));
        assert!(!row.is_over(at(0)));
        assert!(row.is_over(at(1)));
    }
}
