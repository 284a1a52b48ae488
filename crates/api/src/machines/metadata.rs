//! Labels of a machine (contract 1.3): changed without a new version, and without the lease.
//!
//! Never merges here: the machine's host does, so that of two changes at once none is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_types::api::{MetadataValue, SetMetadata, UpdateMetadata};
use perch_types::host::Command;
use perch_types::labels::{self, LabelChange, Labels};
use perch_types::{Code, InstanceId};

use super::command::command;
use super::read::one;
use crate::body::Json;
use crate::config::Shared;
use crate::documents::Placed;
use crate::reply::Failure;
use crate::routes::{OfApp, Target};

/// The parameters of a path with one label's key.
type Parts = Path<BTreeMap<String, String>>;

pub(crate) async fn all(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
) -> Result<JsonReply<Labels>, Failure> {
    Ok(JsonReply(one(&shared, &app, &target).await?.config.metadata))
}

pub(crate) async fn replace(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<UpdateMetadata>,
) -> Result<StatusCode, Failure> {
    let kept = request.metadata.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let labels = kept.filter(|(_, value)| !value.is_empty()).collect();
    let change = LabelChange::Replace { labels };
    write(&shared, &target, change, request.machine_version.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn merge(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<UpdateMetadata>,
) -> Result<StatusCode, Failure> {
    let changed = request.metadata.into_iter();
    let labels = changed.map(|(key, value)| (key, value.filter(|value| !value.is_empty())));
    let change = LabelChange::Merge { labels: labels.collect() };
    write(&shared, &target, change, request.machine_version.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
    Path(mut parts): Parts,
) -> Result<JsonReply<MetadataValue>, Failure> {
    // One that can be no key is as little there as one that is not.
    let key = parts.remove("key").unwrap_or_default();
    let mut labels = one(&shared, &app, &target).await?.config.metadata;
    let unknown = || {
        let shown: String = key.chars().filter(|char| !char.is_control()).take(80).collect();
        let text = format!("machine {} has no metadata `{shown}`", target.id);
        Failure::new(Code::NotFound, text)
    };
    let value = labels.remove(&key).ok_or_else(unknown)?;
    Ok(JsonReply(MetadataValue { value }))
}

pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Path(parts): Parts,
    Json(request): Json<SetMetadata>,
) -> Result<StatusCode, Failure> {
    let value = Some(request.value).filter(|value| !value.is_empty());
    let labels = BTreeMap::from([(key_of(parts)?, value)]);
    write(&shared, &target, LabelChange::Merge { labels }, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Path(parts): Parts,
) -> Result<StatusCode, Failure> {
    let labels = BTreeMap::from([(key_of(parts)?, None)]);
    write(&shared, &target, LabelChange::Merge { labels }, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn write(
    shared: &Shared,
    target: &Placed,
    change: LabelChange,
    version: Option<&str>,
) -> Result<(), Failure> {
    let refused = |text| Failure::new(Code::InvalidValue, format!("metadata: {text}"));
    match &change {
        LabelChange::Replace { labels } => labels::check(labels).map_err(refused)?,
        LabelChange::Merge { labels } => {
            let checked = labels.iter().try_for_each(|(key, value)| match value {
                Some(value) => labels::check_label(key, value),
                None => labels::check_key(key),
            });
            checked.map_err(refused)?;
        }
    }
    let instance = match version.filter(|version| !version.is_empty()) {
        Some(version) => Some(version.parse::<InstanceId>().map_err(|_| {
            let current = &target.placement.document.instance;
            let text = format!("machine_version: the machine has version {current}");
            Failure::new(Code::PreconditionFailed, text)
        })?),
        None => None,
    };
    command(shared, target, &Command::SetLabels { change, instance }).await.map(drop)
}

fn key_of(mut parts: BTreeMap<String, String>) -> Result<String, Failure> {
    let key = parts.remove("key").unwrap_or_default();
    match labels::check_key(&key) {
        Ok(()) => Ok(key),
        Err(text) => Err(Failure::new(Code::InvalidValue, format!("key: {text}"))),
    }
}
