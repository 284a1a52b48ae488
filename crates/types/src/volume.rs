//! Volumes and their snapshots: states, sizes and the bodies of contract section 1.8.
//!
//! Never decides a transition: that is the host's.

use serde::{Deserialize, Serialize};

use crate::api::HostStatus;
use crate::id::{AppName, HostId, MachineId, Region, SnapshotId, VolumeId};
use crate::machine_config::{GuestConfig, null_is_default};
use crate::time::Timestamp;

/// The size in GiB when nothing else was said.
pub const SIZE_GB_DEFAULT: u32 = 3;
/// The largest volume in GiB.
pub const SIZE_GB_MAX: u32 = 16 * 1024;
/// How many days a snapshot is kept when nothing else was said.
pub const RETENTION_DAYS_DEFAULT: u32 = 5;
/// The longest that a snapshot is kept, in days.
pub const RETENTION_DAYS_MAX: u32 = 60;
/// The longest name of a volume.
pub const NAME_BYTES_MAX: usize = 30;
/// How long a destroyed volume can still be brought back by an operator, in milliseconds.
pub const DESTROY_DELAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The snapshots of one volume.
pub const SNAPSHOTS_MAX: usize = 128;
/// The file system inside a volume, whatever was asked for.
pub const FSTYPE: &str = "xfs";
/// Bytes of a GiB.
pub const GIB: u64 = 1024 * 1024 * 1024;

/// A volume's state as the API shows it (contract 1.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It is being made.
    Creating,
    /// It can be mounted.
    Created,
    /// It grows; it can be used meanwhile.
    Extending,
    /// It is being made of a snapshot.
    Restoring,
    /// It is being made of another volume.
    Hydrating,
    /// Its host does not have its image, as after a restoration of the host from a backup. It is
    /// `created` again once the image is back.
    Recovering,
    /// It is to be destroyed; its data is kept for [`DESTROY_DELAY_MS`].
    PendingDestroy,
    /// Its data is being removed.
    Destroying,
    /// It is gone.
    Destroyed,
}

impl VolumeState {
    /// All states, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Creating,
        Self::Created,
        Self::Extending,
        Self::Restoring,
        Self::Hydrating,
        Self::Recovering,
        Self::PendingDestroy,
        Self::Destroying,
        Self::Destroyed,
    ];

    /// Returns the state as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Extending => "extending",
            Self::Restoring => "restoring",
            Self::Hydrating => "hydrating",
            Self::Recovering => "recovering",
            Self::PendingDestroy => "pending_destroy",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }

    /// Returns whether a machine may mount a volume in this state.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Created | Self::Extending)
    }

    /// Returns whether somebody said that the volume should go.
    #[must_use]
    pub const fn is_going(self) -> bool {
        matches!(self, Self::PendingDestroy | Self::Destroying | Self::Destroyed)
    }
}

impl std::fmt::Display for VolumeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How full a volume's file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// Its blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free to everybody.
    pub blocks_avail: u64,
}

impl VolumeUsage {
    /// Returns the bytes that the file system holds at most.
    #[must_use]
    pub const fn bytes_total(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// Returns the bytes that are taken.
    #[must_use]
    pub const fn bytes_used(&self) -> u64 {
        self.blocks.saturating_sub(self.blocks_free).saturating_mul(self.block_size)
    }

    /// Returns how full it is in percent, rounded up.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        let used = self.blocks.saturating_sub(self.blocks_avail);
        used.saturating_mul(100).div_ceil(self.blocks.max(1))
    }
}

/// A volume as answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name; several volumes of an app may have the same.
    pub name: String,
    /// Its state.
    pub state: VolumeState,
    /// Its size in GiB, a hard edge.
    pub size_gb: u32,
    /// Where it is.
    pub region: Region,
    /// The host that it is on.
    pub zone: HostId,
    /// Whether it is encrypted on the disk; always false here.
    pub encrypted: bool,
    /// The machine that mounts it.
    pub attached_machine_id: Option<MachineId>,
    /// Always nothing: there are no allocations.
    pub attached_alloc_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Blocks of its file system.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free to everybody.
    pub blocks_avail: u64,
    /// Bytes that are taken.
    pub bytes_used: u64,
    /// Bytes that the file system holds at most.
    pub bytes_total: u64,
    /// Its file system: always [`FSTYPE`].
    pub fstype: String,
    /// Always `local`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many days its snapshots are kept.
    pub snapshot_retention: u32,
    /// Whether a snapshot is made every day.
    pub auto_backup_enabled: bool,
    /// Whether its host answers.
    pub host_status: HostStatus,
    /// How snapshots are made, Perch's own: `reflink` shares blocks with the volume, `copy` copies
    /// all of it while writing is stopped.
    pub snapshot_method: String,
    /// Why the daily snapshot that is due could not be made, Perch's own; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_error: Option<String>,
}

/// Body of a volume's creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateVolumeRequest {
    /// Its name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Where: a code or a preference expression, as of a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Its size in GiB; default [`SIZE_GB_DEFAULT`], or what it is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u64>,
    /// Accepted either way; the answer says what is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// `ext4` or `raw` as clients send it; the answer says what is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstype: Option<String>,
    /// Prefer a host that has no volume of this name of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_unique_zone: Option<bool>,
    /// Prefer a host that has no volume of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_zone_app_wide: Option<bool>,
    /// Make it of a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Make it of another volume, as that is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_volume_id: Option<String>,
    /// How many days its snapshots are kept; default [`RETENTION_DAYS_DEFAULT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_retention: Option<u64>,
    /// Whether a snapshot is made every day; default yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_backup_enabled: Option<bool>,
    /// Put it where a machine of this size has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<GuestConfig>,
    /// The image of that machine; says nothing about the place here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_image: Option<String>,
}

/// Body of a volume's update.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpdateVolumeRequest {
    /// How many days its snapshots are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_retention: Option<u64>,
    /// Whether a snapshot is made every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_backup_enabled: Option<bool>,
}

/// Body of a volume's extension.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExtendVolumeRequest {
    /// The new size in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u64>,
}

/// Answer of a volume's extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtendVolumeResponse {
    /// The volume.
    pub volume: Volume,
    /// Always false: it grows while it is mounted.
    pub needs_restart: bool,
}

/// A snapshot of a volume as answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Bytes of data in it.
    pub size: u64,
    /// Bytes of the volume that it was made of.
    pub volume_size: u64,
    /// Always empty: a snapshot shares its blocks with the volume and is not read for a digest.
    pub digest: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// `creating`, `created`, or `missing` while its host does not have its image.
    pub status: String,
    /// How many days it is kept.
    pub retention_days: u32,
}

/// A volume in the list of an organization (contract 1.7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrgVolume {
    /// Whose it is.
    pub app_name: AppName,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// The volume.
    #[serde(flatten)]
    pub volume: Volume,
}

/// Answer of the list of an organization's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrgVolumes {
    /// The volumes, by the time of their last change.
    pub volumes: Vec<OrgVolume>,
    /// Where the next page begins; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
    /// The last volume of this page.
    #[serde(default)]
    pub last_volume_id: String,
    /// When that last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_written_as_serde_writes_it() {
        for state in VolumeState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
    }

    #[test]
    fn fullness_is_rounded_up_and_nothing_is_not_full() {
        let usage = |blocks, free| VolumeUsage {
            blocks,
            block_size: 4096,
            blocks_free: free,
            blocks_avail: free,
        };
        for (usage, percent) in
            [(usage(100, 20), 80), (usage(1000, 199), 81), (usage(0, 0), 0), (usage(10, 0), 100)]
        {
            assert_eq!(usage.used_percent(), percent, "{usage:?}");
        }
        assert_eq!(usage(100, 20).bytes_used(), 80 * 4096);
    }

    #[test]
    fn what_is_attached_nowhere_says_so_with_null() {
        let text = serde_json::json!({
            "id": "vol_0123456789abcdef", "name": "data", "state": "created", "size_gb": 1,
            "region": "ams", "zone": "000000000001", "encrypted": false,
            "attached_machine_id": null, "attached_alloc_id": null,
            "created_at": "2026-01-01T00:00:00.000Z", "blocks": 1, "block_size": 4096,
            "blocks_free": 1, "blocks_avail": 1, "bytes_used": 0, "bytes_total": 4096,
            "fstype": "xfs", "type": "local", "snapshot_retention": 5,
            "auto_backup_enabled": true, "host_status": "ok", "snapshot_method": "reflink",
        });
        let volume: Volume = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&volume).unwrap(), text);
    }
}
