//! `[[mounts]]`: volumes of a process group (contract 2.3).
//!
//! Never chooses a volume: a machine is made with the name of one.

use serde::{Deserialize, Serialize};

use super::{AppConfig, ExpandError, read};
use crate::machine_config::{MountConfig, Other};
use crate::volume::{CreateVolumeRequest, RETENTION_DAYS_MAX, SIZE_GB_MAX};

/// The size of a new volume in GiB when nothing else was said.
const INITIAL_SIZE_GB: u32 = 1;

/// One of `[[mounts]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountSection {
    /// The volume's name.
    #[serde(default)]
    pub source: String,
    /// Where it appears.
    #[serde(default)]
    pub destination: String,
    /// The size of a new volume: `"10GB"`; an integer is GiB.
    #[serde(
        default,
        deserialize_with = "read::gigabytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub initial_size: Option<u32>,
    /// How many days snapshots of a new volume are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_retention: Option<u32>,
    /// Whether a new volume gets a snapshot every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_snapshots: Option<bool>,
    /// Extend the volume when it is that full, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_extend_size_threshold: Option<u32>,
    /// By so much.
    #[serde(
        default,
        deserialize_with = "read::gigabytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_extend_size_increment: Option<u32>,
    /// But not beyond this size.
    #[serde(
        default,
        deserialize_with = "read::gigabytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_extend_size_limit: Option<u32>,
    /// The groups that it is about; none means the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl AppConfig {
    /// Returns the mounts of a group's machines, each with the name of its volume.
    pub(super) fn mounts_of(&self, group: &str) -> Result<Vec<MountConfig>, ExpandError> {
        let own = self.mounts.iter().filter(|it| self.is_of(&it.processes, group));
        let mounts: Vec<MountConfig> = own.map(mount).collect::<Result<_, _>>()?;
        if mounts.len() > 1 {
            return Err(bounds("processes", "one mount for each process group"));
        }
        Ok(mounts)
    }

    /// Returns the volumes that a new machine of a group needs, as they are made where there are
    /// none of their names.
    #[must_use]
    pub fn volumes_of(&self, group: &str, region: Option<&str>) -> Vec<CreateVolumeRequest> {
        let own = self.mounts.iter().filter(|it| self.is_of(&it.processes, group));
        own.map(|section| CreateVolumeRequest {
            name: section.source.clone(),
            region: region.map(str::to_owned),
            size_gb: Some(section.initial_size.unwrap_or(INITIAL_SIZE_GB).into()),
            snapshot_retention: section.snapshot_retention.map(u64::from),
            auto_backup_enabled: section.scheduled_snapshots,
            ..CreateVolumeRequest::default()
        })
        .collect()
    }
}

fn bounds(field: &'static str, rule: &'static str) -> ExpandError {
    ExpandError::Bounds { section: "mounts".to_owned(), field, rule }
}

fn mount(section: &MountSection) -> Result<MountConfig, ExpandError> {
    let within = |value: Option<u32>, low, high| value.is_none_or(|it| (low..=high).contains(&it));
    if section.source.is_empty() {
        return Err(bounds("source", "the name of a volume"));
    }
    if !section.destination.starts_with('/') {
        return Err(bounds("destination", "an absolute path"));
    }
    if !within(section.initial_size, 1, SIZE_GB_MAX) {
        return Err(bounds("initial_size", "at least 1GB"));
    }
    if !within(section.snapshot_retention, 1, RETENTION_DAYS_MAX) {
        return Err(bounds("snapshot_retention", "1 to 60 days"));
    }
    let extend = [
        section.auto_extend_size_threshold,
        section.auto_extend_size_increment,
        section.auto_extend_size_limit,
    ];
    if extend.iter().any(Option::is_some) && extend.iter().any(Option::is_none) {
        return Err(bounds(
            "auto_extend_size_threshold",
            "given together with auto_extend_size_increment and auto_extend_size_limit",
        ));
    }
    if !within(section.auto_extend_size_threshold, 50, 99) {
        return Err(bounds("auto_extend_size_threshold", "50 to 99 percent"));
    }
    if !within(section.auto_extend_size_increment, 1, 100) {
        return Err(bounds("auto_extend_size_increment", "1GB to 100GB"));
    }
    if !within(section.auto_extend_size_limit, 1, 500) {
        return Err(bounds("auto_extend_size_limit", "1GB to 500GB"));
    }
    Ok(MountConfig {
        name: section.source.clone(),
        path: section.destination.clone(),
        extend_threshold_percent: section.auto_extend_size_threshold,
        add_size_gb: section.auto_extend_size_increment,
        size_gb_limit: section.auto_extend_size_limit,
        ..MountConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(mounts: &Value) -> AppConfig {
        serde_json::from_value(json!({"mounts": mounts})).unwrap()
    }

    #[test]
    fn a_mount_names_its_volume_and_how_it_grows() {
        let config = config(&json!([{
            "source": "data", "destination": "/data", "initial_size": "10GB",
            "snapshot_retention": 9, "scheduled_snapshots": false,
            "auto_extend_size_threshold": 80, "auto_extend_size_increment": "2gb",
            "auto_extend_size_limit": 50,
        }]));
        let machine = config.to_machine_config("app", "web:1").unwrap();
        assert_eq!(
            serde_json::to_value(&machine.mounts).unwrap(),
            json!([{"name": "data", "path": "/data", "extend_threshold_percent": 80,
                "add_size_gb": 2, "size_gb_limit": 50}])
        );
        let volume = &config.volumes_of("app", Some("ams"))[0];
        assert_eq!((volume.size_gb, volume.snapshot_retention), (Some(10), Some(9)));
        assert_eq!(volume.auto_backup_enabled, Some(false));
        assert!(config.volumes_of("worker", None).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_key() {
        let mount = |more: Value| {
            let mut whole = json!({"source": "data", "destination": "/data"});
            let (Value::Object(fields), Value::Object(more)) = (&mut whole, more) else {
                panic!("an object is needed");
            };
            fields.extend(more);
            let error = config(&whole).to_machine_config("app", "web:1").unwrap_err();
            error.to_string()
        };
        for (more, key) in [
            (json!({"source": ""}), "source"),
            (json!({"destination": "data"}), "destination"),
            (json!({"initial_size": 0}), "initial_size"),
            (json!({"snapshot_retention": 61}), "snapshot_retention"),
            (json!({"auto_extend_size_threshold": 80}), "auto_extend_size_threshold"),
        ] {
            let text = mount(more);
            assert!(text.contains(&format!("`{key}` of `mounts`")), "{text}");
        }
        for bad in [json!("10kb"), json!("x"), json!(true), json!("512mb")] {
            let mounts = json!({"mounts": [{"initial_size": bad}]});
            serde_json::from_value::<AppConfig>(mounts).unwrap_err();
        }
    }
}
