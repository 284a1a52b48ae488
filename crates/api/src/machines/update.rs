//! Gives a machine another version: the whole configuration (contract 1.3).
//!
//! Never changes a name or a region, and leaves the directory as it was when the host refuses.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_store::Expected;
use perch_types::api::{CreateMachineRequest, Machine};
use perch_types::directory::{AppDoc, ConfigDoc, PlacementDoc};
use perch_types::host::{Accepted, Command};
use perch_types::{Code, MachineConfig};

use super::create::no_leases_or_secrets;
use super::{answer, config_digest, of_host, own_image};
use crate::body::Json;
use crate::config::Shared;
use crate::documents::Placed;
use crate::reply::{Failure, chain};
use crate::routes::{Caller, OfApp, Target};
use crate::{admit, documents, names, view};

pub(crate) async fn update(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<CreateMachineRequest>,
) -> Result<JsonReply<Machine>, Failure> {
    no_leases_or_secrets(&request)?;
    let before = &target.placement.document;
    stays(&request, before)?;
    let config = admit::admit(request.config)?;
    own_image(&shared, &caller, &app, &config).await?;
    let change = Change { config, skip_launch: request.skip_launch };
    let made = tokio::spawn(write_and_ask(Arc::clone(&shared), app, target, change));
    match made.await {
        Ok(made) => made.map(JsonReply),
        Err(error) => {
            tracing::error!(%error, "update of a machine ended early");
            Err(Failure::new(Code::Internal, "the platform has a fault"))
        }
    }
}

struct Change {
    config: MachineConfig,
    skip_launch: bool,
}

fn stays(request: &CreateMachineRequest, before: &PlacementDoc) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::new(Code::InvalidValue, text));
    if let Some(name) = request.name.as_deref().filter(|name| !name.is_empty())
        && name != before.name
    {
        return refuse(format!("name: a machine keeps its name, `{}`", before.name));
    }
    if let Some(region) = request.region.as_deref().filter(|region| !region.is_empty())
        && region != before.region.as_str()
    {
        return refuse(format!("region: a machine stays in its region, `{}`", before.region));
    }
    match request.current_version.as_deref() {
        Some(version) if !version.is_empty() && version != before.instance.as_str() => {
            let text = format!("current_version: the machine has version {}", before.instance);
            Err(Failure::new(Code::PreconditionFailed, text)
                .with_hint("read the machine again, then try again"))
        }
        _ => Ok(()),
    }
}

async fn write_and_ask(
    shared: Arc<Shared>,
    app: Arc<AppDoc>,
    target: Arc<Placed>,
    change: Change,
) -> Result<Machine, Failure> {
    let host = target.host()?.clone();
    let before = &target.placement.document;
    let now = shared.clock.now();
    let instance = names::instance_id(now)?;
    let placement = PlacementDoc {
        epoch: before.epoch.saturating_add(1),
        instance: instance.clone(),
        config_digest: config_digest(&change.config)?,
        ..before.clone()
    };
    let config = ConfigDoc { config: change.config.clone(), created_at: now };
    let expected = Expected::Revision(target.placement.revision);
    let of = (&app.org, &target.id);
    let written = documents::place(&shared, of, &placement, &config, expected).await?;
    let command = Command::Update {
        instance: instance.clone(),
        epoch: placement.epoch,
        config: Box::new(change.config.clone()),
        config_digest: placement.config_digest,
        skip_launch: change.skip_launch,
    };
    match host.client.command(&target.id, &command).await {
        Ok(Accepted { machine, .. }) => {
            view::follow(&shared, &machine).await;
            let mut answered = answer::of_host(machine);
            // The host may still run the version before; clients wait for the one in the answer.
            answered.instance_id = instance.clone();
            answered.version = instance;
            answered.config = change.config;
            Ok(answered)
        }
        Err(error) => {
            // Only a refusal is certain; otherwise the new version is what should be.
            if error.code().is_some_and(|code| code.status() < 500) {
                let refused = (&instance, written);
                let store = shared.store.as_ref();
                let undone = documents::unplace_version(store, of, before, refused).await;
                if let Err(error) = undone {
                    tracing::warn!(error = chain(&error), "refused version not taken back");
                }
            }
            Err(of_host(error, &target.id))
        }
    }
}
