//! Decides whether a volume can be as it is asked for.
//!
//! Never asks anybody. A refusal names the field and what is allowed.

use perch_types::volume::{
    CreateVolumeRequest, NAME_BYTES_MAX, RETENTION_DAYS_DEFAULT, RETENTION_DAYS_MAX, SIZE_GB_MAX,
    UpdateVolumeRequest,
};
use perch_types::{Code, SnapshotId, VolumeId};

use crate::reply::Failure;

/// What a volume is to be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Of {
    Nothing,
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct New {
    pub(super) name: String,
    /// Nothing: as large as its source, or the default.
    pub(super) size_gb: Option<u32>,
    pub(super) of: Of,
    pub(super) snapshot_retention: u32,
    pub(super) auto_backup: bool,
    pub(super) memory_mb: u64,
}

fn refuse<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(Code::InvalidValue, text))
}

/// Checks the body of a creation.
pub(super) fn create(asked: &CreateVolumeRequest) -> Result<New, Failure> {
    name("name", &asked.name)?;
    match asked.fstype.as_deref() {
        None | Some("" | "ext4" | "raw" | "xfs") => {}
        Some(other) => {
            let shown: String = other.chars().take(80).collect();
            return refuse(format!("fstype: `{shown}` is not one of ext4, raw, xfs"));
        }
    }
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let of = match (given(&asked.snapshot_id), given(&asked.source_volume_id)) {
        (None, None) => Of::Nothing,
        (Some(id), None) => Of::Snapshot(parse("snapshot_id", &id)?),
        (None, Some(id)) => Of::Volume(parse("source_volume_id", &id)?),
        (Some(_), Some(_)) => {
            return refuse("source_volume_id: a volume is made of a snapshot or of a volume");
        }
    };
    // Zero is how clients write "the default".
    let size_gb = asked.size_gb.filter(|size| *size > 0).map(size).transpose()?;
    let memory = asked.compute.as_ref().and_then(|guest| guest.memory_mb);
    Ok(New {
        name: asked.name.clone(),
        size_gb,
        of,
        snapshot_retention: match asked.snapshot_retention.filter(|days| *days > 0) {
            Some(days) => retention(days)?,
            None => RETENTION_DAYS_DEFAULT,
        },
        auto_backup: asked.auto_backup_enabled.unwrap_or(true),
        memory_mb: memory.unwrap_or_default().into(),
    })
}

/// Checks the body of an update.
pub(super) fn update(asked: &UpdateVolumeRequest) -> Result<Option<u32>, Failure> {
    asked.snapshot_retention.map(retention).transpose()
}

/// Checks a size.
pub(super) fn size(size_gb: u64) -> Result<u32, Failure> {
    match u32::try_from(size_gb) {
        Ok(size) if (1..=SIZE_GB_MAX).contains(&size) => Ok(size),
        _ => refuse(format!("size_gb: {size_gb} is not 1 to {SIZE_GB_MAX}")),
    }
}

/// Checks the name of a volume.
pub(crate) fn name(path: &str, name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let rule = "1 to 30 lowercase letters, digits and underscores";
    refuse(format!("{path}: `{shown}` is not {rule}"))
}

fn retention(days: u64) -> Result<u32, Failure> {
    match u32::try_from(days) {
        Ok(days) if (1..=RETENTION_DAYS_MAX).contains(&days) => Ok(days),
        _ => refuse(format!("snapshot_retention: {days} is not 1 to {RETENTION_DAYS_MAX} days")),
    }
}

fn parse<T>(path: &str, text: &str) -> Result<T, Failure>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error| Failure::new(Code::InvalidValue, format!("{path}: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(more: Value) -> Result<New, Failure> {
        let mut body = json!({"name": "data"});
        let (Value::Object(fields), Value::Object(more)) = (&mut body, more) else {
            panic!("an object is needed");
        };
        fields.extend(more);
        create(&serde_json::from_value(body).unwrap())
    }

    #[test]
    fn values_are_refused_by_field_and_with_what_is_allowed() {
        let text = |more: Value| {
            let failure = of(more).unwrap_err();
            assert_eq!(failure.error().code, Code::InvalidValue);
            failure.error().error.clone()
        };
        insta::assert_snapshot!(text(json!({"name": ""})), @"name: `` is not 1 to 30 lowercase letters, digits and underscores");
        insta::assert_snapshot!(text(json!({"name": "My-Data"})), @"name: `My-Data` is not 1 to 30 lowercase letters, digits and underscores");
        insta::assert_snapshot!(text(json!({"size_gb": 99_999})), @"size_gb: 99999 is not 1 to 16384");
        insta::assert_snapshot!(text(json!({"size_gb": u64::MAX})), @"size_gb: 18446744073709551615 is not 1 to 16384");
        insta::assert_snapshot!(text(json!({"fstype": "ntfs"})), @"fstype: `ntfs` is not one of ext4, raw, xfs");
        insta::assert_snapshot!(text(json!({"snapshot_retention": 61})), @"snapshot_retention: 61 is not 1 to 60 days");
        insta::assert_snapshot!(text(json!({"snapshot_id": "vs_x"})), @"snapshot_id: `vs_x` is not a snapshot id: `vs_` and 16 lowercase letters and digits");
        insta::assert_snapshot!(text(json!({"source_volume_id": "x"})), @"source_volume_id: `x` is not a volume id: `vol_` and 16 lowercase letters and digits");
        insta::assert_snapshot!(
            text(json!({"source_volume_id": "vol_0123456789abcdef", "snapshot_id": "vs_0123456789abcdef"})),
            @"source_volume_id: a volume is made of a snapshot or of a volume"
        );
    }

    #[test]
    fn what_clients_send_is_taken() {
        for more in [
            json!({"encrypted": true, "fstype": "ext4", "require_unique_zone": true}),
            json!({"encrypted": false, "fstype": "raw", "compute": {"memory_mb": 512}}),
            json!({"snapshot_id": "", "source_volume_id": null, "size_gb": 0}),
            json!({"compute_image": "web:1", "unique_zone_app_wide": true, "later": 1}),
        ] {
            let new = of(more.clone()).unwrap_or_else(|_| panic!("{more}"));
            assert_eq!((new.of, new.size_gb), (Of::Nothing, None), "{more}");
            assert_eq!((new.snapshot_retention, new.auto_backup), (5, true));
        }
    }

    #[test]
    fn an_update_has_the_same_bounds() {
        let of = |days| UpdateVolumeRequest {
            snapshot_retention: Some(days),
            auto_backup_enabled: None,
        };
        assert_eq!(update(&of(60)).unwrap(), Some(60));
        for days in [0, 61, u64::MAX] {
            let failure = update(&of(days)).unwrap_err();
            assert!(failure.error().error.starts_with("snapshot_retention: "), "{days}");
        }
    }
}
