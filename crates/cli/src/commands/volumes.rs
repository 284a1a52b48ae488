//! `perch volumes …`: disks that outlive machines, and their snapshots.
//!
//! Never destroys without a question or `--yes`, and says how long the data is kept.

use clap::{Args, Subcommand};
use perch_client::Api;
use perch_types::volume::{CreateVolumeRequest, GIB, UpdateVolumeRequest, Volume};
use perch_types::{AppName, SnapshotId, VolumeId};

use crate::clock::{age, now};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumesCommand {
    /// List the app's volumes
    #[command(visible_alias = "ls")]
    List,
    /// Create a volume
    Create(CreateArgs),
    /// Show a volume
    Show {
        /// Volume's id
        id: VolumeId,
    },
    /// Make a volume larger, while it is mounted too
    Extend {
        /// Volume's id
        id: VolumeId,
        /// New size in GB
        #[arg(short, long, value_name = "GB")]
        size: u64,
    },
    /// Change how a volume's snapshots are kept and made
    Update {
        /// Volume's id
        id: VolumeId,
        /// Keep snapshots for so many days
        #[arg(long, value_name = "DAYS")]
        snapshot_retention: Option<u64>,
        /// Make a snapshot every day, or do not
        #[arg(long, value_name = "BOOL")]
        scheduled_snapshots: Option<bool>,
    },
    /// Destroy volumes that no machine has
    #[command(visible_alias = "rm")]
    Destroy {
        /// Volumes' ids
        #[arg(required = true)]
        ids: Vec<VolumeId>,
    },
    /// Create a volume of another, as that is now
    Fork {
        /// Volume's id
        id: VolumeId,
        /// Name of the new one [default: the same]
        #[arg(short, long)]
        name: Option<String>,
    },
    /// List and create snapshots
    #[command(subcommand, visible_alias = "snapshot")]
    Snapshots(SnapshotsCommand),
}

/// What to create.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name, which `mounts.source` in fly.toml refers to
    name: String,
    /// Size in GB [default: 3, or the snapshot's]
    #[arg(short, long, value_name = "GB")]
    size: Option<u64>,
    /// Place
    #[arg(short, long)]
    region: Option<String>,
    /// Start with what this snapshot holds
    #[arg(long, value_name = "ID")]
    snapshot_id: Option<SnapshotId>,
    /// Keep snapshots for so many days
    #[arg(long, value_name = "DAYS")]
    snapshot_retention: Option<u64>,
    /// Make a snapshot every day, or do not
    #[arg(long, value_name = "BOOL")]
    scheduled_snapshots: Option<bool>,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// List a volume's snapshots, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Volume's id
        id: VolumeId,
    },
    /// Make a snapshot of a volume now
    Create {
        /// Volume's id
        id: VolumeId,
    },
}

pub(crate) async fn run(invocation: &Invocation, command: VolumesCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    match command {
        VolumesCommand::List => list(invocation, &api, &app).await,
        VolumesCommand::Create(args) => create(invocation, (&api, &app), args).await,
        VolumesCommand::Show { id } => {
            let volume = api.volume(&app, &id).await.during(format!("look at volume `{id}`"))?;
            show(invocation, &volume);
            Ok(())
        }
        VolumesCommand::Extend { id, size } => {
            let extended = api.extend_volume(&app, &id, size).await;
            let extended = extended.during(format!("extend volume `{id}`"))?;
            if invocation.ui.is_json() {
                invocation.ui.json(&extended.volume);
            } else {
                invocation.ui.good(format!("volume {id} has {} GB", extended.volume.size_gb));
            }
            Ok(())
        }
        VolumesCommand::Update { id, snapshot_retention, scheduled_snapshots } => {
            let update = UpdateVolumeRequest {
                snapshot_retention,
                auto_backup_enabled: scheduled_snapshots,
            };
            let updated = api.update_volume(&app, &id, &update).await;
            show(invocation, &updated.during(format!("update volume `{id}`"))?);
            Ok(())
        }
        VolumesCommand::Destroy { ids } => destroy(invocation, (&api, &app), &ids).await,
        VolumesCommand::Fork { id, name } => {
            let source = api.volume(&app, &id).await.during(format!("look at volume `{id}`"))?;
            let request = CreateVolumeRequest {
                name: name.unwrap_or(source.name),
                region: Some(source.region.to_string()),
                source_volume_id: Some(id.to_string()),
                ..CreateVolumeRequest::default()
            };
            let made = api.create_volume(&app, &request).await;
            made_volume(invocation, &made.during(format!("fork volume `{id}`"))?);
            Ok(())
        }
        VolumesCommand::Snapshots(command) => snapshots(invocation, (&api, &app), command).await,
    }
}

async fn list(invocation: &Invocation, api: &Api, app: &AppName) -> Result {
    let mut volumes = api.volumes(app).await.during(format!("list the volumes of `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&volumes);
        return Ok(());
    }
    volumes.retain(|volume| !volume.state.is_going());
    if volumes.is_empty() {
        invocation.ui.say(format!("`{app}` has no volumes"));
        return Ok(());
    }
    let mut rows =
        vec![row(["ID", "STATE", "NAME", "SIZE", "USED", "REGION", "ATTACHED MACHINE", "AGE"])];
    rows.extend(volumes.iter().map(|volume| {
        row([
            volume.id.as_str(),
            volume.state.as_str(),
            &volume.name,
            &format!("{} GB", volume.size_gb),
            &used(volume),
            volume.region.as_str(),
            volume.attached_machine_id.as_ref().map_or("", |id| id.as_str()),
            &age(volume.created_at, now()),
        ])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

fn used(volume: &Volume) -> String {
    let percent = volume.bytes_used.saturating_mul(100) / volume.bytes_total.max(1);
    format!("{percent} %")
}

fn show(invocation: &Invocation, volume: &Volume) {
    if invocation.ui.is_json() {
        return invocation.ui.json(volume);
    }
    let encrypted = if volume.encrypted { "yes" } else { "no" };
    let snapshots = match (volume.auto_backup_enabled, volume.snapshot_retention) {
        (true, days) => format!("daily, kept {days} days"),
        (false, days) => format!("by hand, kept {days} days"),
    };
    let mut rows = vec![
        row(["volume", volume.id.as_str()]),
        row(["name", &volume.name]),
        row(["state", volume.state.as_str()]),
        row(["size", &format!("{} GB", volume.size_gb)]),
        row(["used", &used(volume)]),
        row(["region", volume.region.as_str()]),
        row(["zone", volume.zone.as_str()]),
        row(["machine", volume.attached_machine_id.as_ref().map_or("none", |id| id.as_str())]),
        row(["encrypted", encrypted]),
        row(["file system", &volume.fstype]),
        row(["snapshots", &snapshots]),
        row(["made by", &volume.snapshot_method]),
        row(["created", &volume.created_at.to_string()]),
    ];
    rows.extend(volume.snapshot_error.iter().map(|error| row(["no snapshot", error])));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
}

fn made_volume(invocation: &Invocation, volume: &Volume) {
    if invocation.ui.is_json() {
        return invocation.ui.json(volume);
    }
    invocation.ui.good(format!(
        "volume {} `{}` of {} GB is {}",
        volume.id, volume.name, volume.size_gb, volume.state
    ));
}

async fn create(invocation: &Invocation, (api, app): (&Api, &AppName), args: CreateArgs) -> Result {
    let request = CreateVolumeRequest {
        name: args.name,
        region: args.region,
        size_gb: args.size,
        snapshot_id: args.snapshot_id.map(|id| id.to_string()),
        snapshot_retention: args.snapshot_retention,
        auto_backup_enabled: args.scheduled_snapshots,
        ..CreateVolumeRequest::default()
    };
    let made = api.create_volume(app, &request).await;
    made_volume(invocation, &made.during(format!("create the volume `{}`", request.name))?);
    Ok(())
}

async fn destroy(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    ids: &[VolumeId],
) -> Result {
    for id in ids {
        match invocation.ui.confirm(&format!("Destroy volume {id} of `{app}` and its snapshots?")) {
            Some(true) => {}
            Some(false) => {
                return Err(CommandError::Refused {
                    fact: format!("volume `{id}` stays"),
                    hint: None,
                });
            }
            None => {
                return Err(CommandError::refused(
                    "there is nobody to ask whether this is meant",
                    "add `--yes` to destroy without a question",
                ));
            }
        }
        api.delete_volume(app, id).await.during(format!("destroy volume `{id}`"))?;
        invocation.ui.good(format!("volume {id} is destroyed; its data is removed in 24 hours"));
    }
    Ok(())
}

async fn snapshots(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    command: SnapshotsCommand,
) -> Result {
    let id = match command {
        SnapshotsCommand::List { id } => id,
        SnapshotsCommand::Create { id } => {
            let made = api.create_snapshot(app, &id).await;
            made.during(format!("make a snapshot of volume `{id}`"))?;
            if !invocation.ui.is_json() {
                invocation.ui.good(format!("snapshot of volume {id} is made"));
                return Ok(());
            }
            id
        }
    };
    let snapshots = api.snapshots(app, &id).await;
    let snapshots = snapshots.during(format!("list the snapshots of volume `{id}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&snapshots);
        return Ok(());
    }
    if snapshots.is_empty() {
        invocation.ui.say(format!("volume {id} has no snapshots"));
        return Ok(());
    }
    let mut rows = vec![row(["ID", "STATUS", "DATA", "VOLUME SIZE", "AGE", "KEPT"])];
    rows.extend(snapshots.iter().map(|snapshot| {
        row([
            snapshot.id.as_str(),
            &snapshot.status,
            &format!("{} MB", snapshot.size >> 20),
            &format!("{} GB", snapshot.volume_size / GIB),
            &age(snapshot.created_at, now()),
            &format!("{} days", snapshot.retention_days),
        ])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}
