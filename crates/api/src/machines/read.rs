//! Reads machines: one from its host, lists from the hosts, what was known last when a host does
//! not answer.
//!
//! Never hides a host that is away: `host_status` says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{Machine, MachineEvent, MachineVersion};
use perch_types::directory::{AppDoc, PlacementDoc};
use perch_types::error::chain;
use perch_types::{ApiError, Code, HostId, MachineConfig, MachineId};
use serde::Serialize;
use serde_json::Value;

use super::filter::{Filter, Seen};
use super::{answer, of_host};
use crate::body::Parameters;
use crate::config::Shared;
use crate::documents::{self, Placed};
use crate::reply::Failure;
use crate::routes::{OfApp, Target};

/// What a summary leaves out of a machine. `host_status` stays: clients replace a machine that
/// has none (contract 1.14).
const LEFT_OUT: [&str; 4] = ["config", "checks", "events", "nonce"];
/// Events that are returned when nothing else was said, and at most (contract 1.3).
const EVENTS_DEFAULT: usize = 20;
const EVENTS_MAX: usize = 50;

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
) -> Result<JsonReply<Machine>, Failure> {
    one(&shared, &app, &target).await.map(JsonReply)
}

pub(crate) async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Result<JsonReply<Vec<MachineEvent>>, Failure> {
    let limit = parameters.parsed::<usize>("limit")?.unwrap_or(EVENTS_DEFAULT);
    if !(1..=EVENTS_MAX).contains(&limit) {
        let text = format!("limit: {limit} is not 1 to {EVENTS_MAX}");
        return Err(Failure::new(Code::InvalidRequest, text));
    }
    let mut events = one(&shared, &app, &target).await?.events;
    events.truncate(limit);
    Ok(JsonReply(events))
}

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Result<JsonReply<Listed>, Failure> {
    let filter = Filter::of(&parameters)?;
    let mut machines = all(&shared, &app).await?;
    machines.retain(|Machine { state, region, config, .. }| {
        filter.keeps(Seen { state: *state, region, labels: &config.metadata })
    });
    machines.sort_unstable_by(|one, other| {
        (one.created_at, &one.id).cmp(&(other.created_at, &other.id))
    });
    if !filter.summary {
        return Ok(JsonReply(Listed::Whole(machines)));
    }
    let summaries = machines.into_iter().map(summary).collect::<Result<_, _>>();
    let summaries =
        summaries.map_err(|_| Failure::new(Code::Internal, "the platform has a fault"))?;
    Ok(JsonReply(Listed::Summaries(summaries)))
}

/// The machines of an app. They are many: whole ones go to their text without a detour.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Listed {
    Whole(Vec<Machine>),
    Summaries(Vec<Value>),
}

/// Leaves out what a summary has not, the large parts before they are anything else.
fn summary(mut machine: Machine) -> serde_json::Result<Value> {
    machine.config = MachineConfig::default();
    machine.events.clear();
    let mut summary = serde_json::to_value(machine)?;
    if let Some(fields) = summary.as_object_mut() {
        fields.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
    }
    Ok(summary)
}

pub(crate) async fn versions(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
) -> Result<JsonReply<Vec<MachineVersion>>, Failure> {
    let of = (&app.org, &app.name, &target.id);
    let versions = documents::versions(shared.store.as_ref(), of).await?.into_iter();
    let versions = versions.map(|(version, document)| {
        let user_config = document.config;
        MachineVersion { version, user_config }
    });
    Ok(JsonReply(versions.collect()))
}

/// Returns a machine from its host, or as it was known last when that does not answer.
pub(super) async fn one(
    shared: &Shared,
    app: &AppDoc,
    target: &Placed,
) -> Result<Machine, Failure> {
    let asked = match &target.host {
        Some(host) => host.client.machine(&target.id).await.map_err(Some),
        None => Err(None),
    };
    match asked {
        Ok(machine) => {
            let edge = shared.wakes.as_ref();
            let answers = edge.and_then(|edge| edge.answers(&app.org, &app.name, &target.id));
            Ok(Machine { answers, ..answer::of_host(machine) })
        }
        Err(Some(error)) if error.code().is_some() => Err(of_host(error, &target.id)),
        Err(error) => {
            if let Some(error) = error {
                tracing::warn!(error = chain(&error), "machine answered without its host");
            }
            let known = last_known(shared, app, &target.id, &target.placement.document).await?;
            known.ok_or_else(|| ApiError::machine_not_found(target.id.as_str()).into())
        }
    }
}

/// Returns the machines of an app, of every state.
async fn all(shared: &Shared, app: &AppDoc) -> Result<Vec<Machine>, Failure> {
    let placements = documents::placements(shared.store.as_ref(), &app.org).await?;
    let mut by_host: BTreeMap<HostId, BTreeMap<MachineId, PlacementDoc>> = BTreeMap::new();
    for (id, placement) in placements {
        let placement = placement.document;
        if placement.app == app.name {
            by_host.entry(placement.host.clone()).or_default().insert(id, placement);
        }
    }
    let mut machines = Vec::new();
    for (host, placed) in by_host {
        let answered = match shared.hosts.get(&host) {
            Some(host) => host.client.machines_of(&app.name).await.map_err(Some),
            None => Err(None),
        };
        match answered {
            Ok(found) => {
                let of_app = found.into_iter().filter(|it| placed.contains_key(&it.id));
                machines.extend(of_app.map(answer::of_host));
            }
            Err(error) => {
                if let Some(error) = error {
                    tracing::warn!(error = chain(&error), %host, "machines listed without their host");
                }
                for (id, placement) in &placed {
                    machines.extend(last_known(shared, app, id, placement).await?);
                }
            }
        }
    }
    Ok(machines)
}

async fn last_known(
    shared: &Shared,
    app: &AppDoc,
    id: &MachineId,
    placement: &PlacementDoc,
) -> Result<Option<Machine>, Failure> {
    let view = shared.view.load();
    let Some(record) = view.machine(id) else {
        return Ok(None);
    };
    let config = documents::config(shared.store.as_ref(), &app.org, id, placement).await?;
    let config = config.map(|config| config.config).unwrap_or_default();
    Ok(Some(answer::of_record(record, config)))
}
