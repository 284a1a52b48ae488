//! What the host keeps in its file: machines, waiting commands, volumes, slots, and what it is
//! itself.
//!
//! Never read by another process.

use perch_durable::{Error, Snapshot, Table, Tx};
use perch_types::host::Command;
use perch_types::image::ImageRef;
use perch_types::{HostId, MachineId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::machine::record::Record;
use crate::network::{Exhausted, Slots};
use crate::volumes::record::{SnapshotRow, VolumeRow};

/// Machines.
pub(crate) const RECORDS: Table<MachineId, Record> = Table::new("machines");
/// Commands that were accepted and wait.
pub(crate) const QUEUES: Table<MachineId, Vec<Queued>> = Table::new("queues");
/// Volumes.
pub(crate) const VOLUMES: Table<VolumeId, VolumeRow> = Table::new("volumes");
/// Snapshots of volumes.
pub(crate) const SNAPSHOTS: Table<SnapshotId, SnapshotRow> = Table::new("snapshots");
/// What the host is.
pub(crate) const HOST: Table<String, HostRow> = Table::new("host");
/// Address slots.
pub(crate) const SLOTS: Table<String, Slots> = Table::new("slots");
/// When machines last named an image, in milliseconds since 1970, by its digest.
pub(crate) const IMAGE_USES: Table<String, i64> = Table::new("image_uses");
/// The only key of the tables of what the host is and of slots.
pub(crate) const ONLY: &str = "this";

/// An accepted command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    /// The command.
    pub(crate) command: Command,
    /// The image of an update, resolved.
    #[serde(default)]
    pub(crate) image: Option<ImageRef>,
    /// The further images of one with containers, resolved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<ImageRef>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Asker::is_user")]
    pub(crate) asker: Asker,
}

/// Who asked for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Asker {
    /// Somebody.
    #[default]
    User,
    /// The host: nothing uses the machine.
    Autostop,
}

impl Asker {
    fn is_user(&self) -> bool {
        *self == Self::User
    }
}

impl Queued {
    /// Makes a command that somebody asked for and that needs no image.
    pub(crate) const fn of(command: Command) -> Self {
        Self { command, image: None, others: Vec::new(), asker: Asker::User }
    }
}

/// What the host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRow {
    /// Its id.
    pub(crate) id: HostId,
    /// Its incarnation, given by the directory; 0 until it was reached.
    pub(crate) incarnation: u64,
    /// How often the agent started with this file.
    pub(crate) starts: u64,
    /// The server's boot id at the last start.
    pub(crate) server_boot: String,
}

/// Takes a free slot.
///
/// # Errors
/// On a fault of the file; the inner one when no slot is free.
pub(crate) fn take_slot(
    tx: &Tx<'_>,
    slots: u32,
    boot_ms: u64,
) -> Result<Result<u32, Exhausted>, Error> {
    let mut all = read_slots(tx)?;
    let taken = all.take(slots, boot_ms);
    SLOTS.put(tx, &ONLY.to_owned(), &all)?;
    Ok(taken)
}

/// Gives a slot back.
///
/// # Errors
/// On a fault of the file.
pub(crate) fn release_slot(tx: &Tx<'_>, slot: u32, boot_ms: u64) -> Result<(), Error> {
    let mut all = read_slots(tx)?;
    all.release(slot, boot_ms);
    SLOTS.put(tx, &ONLY.to_owned(), &all)
}

/// Writes the commands that wait, or removes the row when there are none.
///
/// # Errors
/// On a fault of the file.
pub(crate) fn put_queue(tx: &Tx<'_>, id: &MachineId, queued: &Vec<Queued>) -> Result<(), Error> {
    if queued.is_empty() { QUEUES.delete(tx, id).map(drop) } else { QUEUES.put(tx, id, queued) }
}

fn read_slots(snapshot: &Snapshot<'_>) -> Result<Slots, Error> {
    Ok(SLOTS.get(snapshot, &ONLY.to_owned())?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
