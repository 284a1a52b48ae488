//! Mounts of volumes: where they may appear and how they may grow.
//!
//! Never looks whether a volume is there: `volumes::mounts` does.

use std::collections::BTreeSet;

use perch_types::machine_config::MountConfig;
use perch_types::volume::SIZE_GB_MAX;
use perch_types::{MachineConfig, VolumeId};

use super::refuse;
use crate::reply::Failure;

/// Volumes of one machine.
const MOUNTS_MAX: usize = 8;
/// The longest path.
const PATH_BYTES_MAX: usize = 255;
/// Folders that are the platform's own.
const OWN: [&str; 5] = ["proc", "sys", "dev", ".fly", ".perch"];

pub(super) fn check(config: &mut MachineConfig) -> Result<(), Failure> {
    if config.mounts.len() > MOUNTS_MAX {
        let count = config.mounts.len();
        return refuse(format!("config.mounts: {count} are more than {MOUNTS_MAX}"));
    }
    let (mut paths, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for (index, mount) in config.mounts.iter_mut().enumerate() {
        let at = format!("config.mounts[{index}]");
        path(&at, &mount.path)?;
        if !paths.insert(mount.path.trim_end_matches('/').to_owned()) {
            return refuse(format!("{at}.path: `{}` is mounted twice", mount.path));
        }
        if mount.volume.is_empty() && mount.name.is_empty() {
            return refuse(format!(
                "{at}.volume: is missing; a volume's id, or its name in `name`"
            ));
        }
        if mount.volume.is_empty() {
            crate::volumes::name(&format!("{at}.name"), &mount.name)?;
        } else {
            if let Err(error) = mount.volume.parse::<VolumeId>() {
                return refuse(format!("{at}.volume: {error}"));
            }
            if !volumes.insert(mount.volume.clone()) {
                return refuse(format!("{at}.volume: {} is mounted twice", mount.volume));
            }
        }
        sizes(&at, mount)?;
    }
    Ok(())
}

/// Refuses what is no folder of a machine on which something can be mounted.
pub(super) fn path(at: &str, path: &str) -> Result<(), Failure> {
    let shown: String = path.chars().take(80).collect();
    let bad = |rule: &str| refuse(format!("{at}.path: `{shown}` is not {rule}"));
    if !path.starts_with('/') || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return bad("an absolute path of at most 255 bytes");
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return bad("a path without `.` and `..`");
    }
    let first = path.split('/').find(|part| !part.is_empty());
    if first.is_none_or(|first| OWN.contains(&first)) {
        return bad("a folder of the machine's own; /, /proc, /sys, /dev and /.fly are not");
    }
    Ok(())
}

/// Checks the sizes. Zero is how clients write "nothing".
fn sizes(at: &str, mount: &mut MountConfig) -> Result<(), Failure> {
    for size in [
        &mut mount.size_gb,
        &mut mount.extend_threshold_percent,
        &mut mount.add_size_gb,
        &mut mount.size_gb_limit,
    ] {
        *size = size.filter(|size| *size > 0);
    }
    let within = |key: &str, value: Option<u32>, low: u32, high: u32| match value {
        Some(value) if !(low..=high).contains(&value) => {
            refuse(format!("{at}.{key}: {value} is not {low} to {high}"))
        }
        _ => Ok(()),
    };
    within("size_gb", mount.size_gb, 1, SIZE_GB_MAX)?;
    within("extend_threshold_percent", mount.extend_threshold_percent, 1, 99)?;
    within("add_size_gb", mount.add_size_gb, 1, SIZE_GB_MAX)?;
    within("size_gb_limit", mount.size_gb_limit, 1, SIZE_GB_MAX)?;
    let all = [mount.extend_threshold_percent, mount.add_size_gb, mount.size_gb_limit]
        .map(|it| it.is_some());
    if all.contains(&true) && all.contains(&false) {
        return refuse(format!(
            "{at}: extend_threshold_percent, add_size_gb and size_gb_limit come together"
        ));
    }
    Ok(())
}
