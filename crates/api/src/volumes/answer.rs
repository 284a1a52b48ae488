//! Makes the API's volume of what a host, or the view, says.
//!
//! Never asks anybody.

use perch_types::api::HostStatus;
use perch_types::directory::VolumeRecord;
use perch_types::volume::{FSTYPE, Volume, VolumeUsage};

/// Returns a volume.
pub(super) fn volume(record: VolumeRecord, host_status: HostStatus) -> Volume {
    let usage = record.usage;
    Volume {
        id: record.id,
        name: record.name,
        state: record.state,
        size_gb: record.size_gb,
        region: record.region,
        zone: record.host,
        encrypted: false,
        attached_machine_id: record.attached,
        attached_alloc_id: None,
        created_at: record.created_at,
        blocks: usage.blocks,
        block_size: usage.block_size,
        blocks_free: usage.blocks_free,
        blocks_avail: usage.blocks_avail,
        bytes_used: usage.bytes_used(),
        bytes_total: usage.bytes_total(),
        fstype: FSTYPE.to_owned(),
        kind: "local".to_owned(),
        snapshot_retention: record.snapshot_retention,
        auto_backup_enabled: record.auto_backup,
        host_status,
        snapshot_method: if record.copies { "copy" } else { "reflink" }.to_owned(),
        snapshot_error: record.snapshot_error,
    }
}

/// Leaves out how full it is (`summary`).
pub(super) fn summary(mut record: VolumeRecord) -> VolumeRecord {
    record.usage = VolumeUsage::default();
    record
}
