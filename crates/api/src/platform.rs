//! What the platform is, and its images.
//!
//! Never tells one organization of another's images.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::Code;
use perch_types::api::{Images, Platform, Pruned, Regions, SystemUsage};

use crate::certificates;
use crate::config::Shared;
use crate::documents;
use crate::reply::Failure;
use crate::routes::Caller;

/// Where the base images are in the registry.
const BASE: &str = "base/";

pub(crate) async fn regions(State(shared): State<Arc<Shared>>) -> JsonReply<Regions> {
    let nearest = shared.platform.region.clone();
    JsonReply(Regions { nearest, regions: shared.regions.clone() })
}

pub(crate) async fn platform(
    State(shared): State<Arc<Shared>>,
) -> Result<JsonReply<Platform>, Failure> {
    let certificate = certificates::of_platform(&shared).await?;
    Ok(JsonReply(Platform { certificate, ..shared.platform.clone() }))
}

/// Tells what takes the disk of each server that answers.
pub(crate) async fn usage(
    State(shared): State<Arc<Shared>>,
) -> Result<JsonReply<SystemUsage>, Failure> {
    let mut hosts = Vec::new();
    for host in shared.hosts.values() {
        match host.client.usage().await {
            Ok(usage) => hosts.push(usage),
            Err(error) => tracing::warn!(host = %host.id, %error, "disk of a host is not known"),
        }
    }
    answered(&hosts)?;
    Ok(JsonReply(SystemUsage { hosts }))
}

/// Deletes images that no machine names from each server that answers.
pub(crate) async fn prune(State(shared): State<Arc<Shared>>) -> Result<JsonReply<Pruned>, Failure> {
    let mut of_hosts = Vec::new();
    for host in shared.hosts.values() {
        match host.client.prune().await {
            Ok(pruned) => of_hosts.push(pruned),
            Err(error) => tracing::warn!(host = %host.id, %error, "host was not pruned"),
        }
    }
    answered(&of_hosts)?;
    let sum = |sum: Pruned, one: &Pruned| Pruned {
        images: sum.images.saturating_add(one.images),
        bytes: sum.bytes.saturating_add(one.bytes),
    };
    Ok(JsonReply(of_hosts.iter().fold(Pruned::default(), sum)))
}

fn answered<T>(answers: &[T]) -> Result<(), Failure> {
    if answers.is_empty() {
        return Err(
            Failure::new(Code::Unavailable, "no server answers").with_hint("try again in a moment")
        );
    }
    Ok(())
}

pub(crate) async fn images(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
) -> Result<JsonReply<Images>, Failure> {
    let mut apps = BTreeSet::new();
    for principal in caller.0.iter() {
        let of_org = documents::apps(shared.store.as_ref(), &principal.org).await?;
        let reached = of_org.into_iter().filter(|app| principal.reaches(&app.org, &app.id));
        apps.extend(reached.map(|app| app.name.to_string()));
    }
    let mut images = shared.images.images().await.map_err(|error| {
        tracing::warn!(%error, "registry not listed");
        Failure::new(Code::Unavailable, "the registry does not answer")
            .with_hint("try again in a moment")
    })?;
    images.retain(|image| {
        let first = image.repository.split('/').next().unwrap_or_default();
        image.repository.starts_with(BASE) || apps.contains(first)
    });
    Ok(JsonReply(Images { images }))
}
