//! Makes a machine: admit, place, write it down, ask the host.
//!
//! Never leaves a half: a promise to destroy is written with the placement and taken back once
//! the host has the machine.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_store::{Expected, get_doc};
use perch_types::api::{CreateMachineRequest, Machine};
use perch_types::directory::{AppDoc, ConfigDoc, HostDoc, PlacementDoc};
use perch_types::error::chain;
use perch_types::host::{CreateMachine, SecretsWanted};
use perch_types::{Code, HostId, MachineConfig, MachineState};

use super::lease::{self, Standing, Wanted};
use super::{answer, config_digest, of_host, own_images, own_standbys};
use crate::body::Json;
use crate::config::Shared;
use crate::documents::{self, Beside};
use crate::place::{Candidate, Want, place};
use crate::reply::Failure;
use crate::routes::{Caller, OfApp};
use crate::volumes::mounts;
use crate::{admit, names, ports, reconcile, secrets, view};

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(request): Json<CreateMachineRequest>,
) -> Result<JsonReply<Machine>, Failure> {
    admit::refuse_key("lsvd", request.lsvd)?;
    let lease = Wanted::of_ttl(request.lease_ttl, &caller)?;
    secrets::reach(&shared, &app, request.min_secrets_version).await?;
    let name = match &request.name {
        Some(name) if !name.is_empty() => {
            admit::name(name)?;
            name.clone()
        }
        Some(_) | None => names::machine_name()?,
    };
    let mut config = admit::admit(request.config)?;
    secrets::named::check(&shared, &app, &config, request.skip_secrets).await?;
    own_images(&shared, &caller, &app, &config).await?;
    own_standbys(&shared, &app, &config).await?;
    let mut candidates = dedicated(candidates(&shared).await?, &config)?;
    let mounts = mounts::resolve(&shared, &app, &mut config, None, None)?;
    if let Some(host) = &mounts.host {
        candidates.retain(|candidate| candidate.id == *host);
    }
    let want = Want { region: request.region.as_deref(), memory_mb: u64::from(config.memory_mb()) };
    let chosen = place(&candidates, &shared.regions, want)?;

    let now = shared.clock.now();
    let machine = CreateMachine {
        id: names::machine_id()?,
        instance: names::instance_id(now)?,
        org: app.org.clone(),
        app: app.name.clone(),
        network_id: app.network_id,
        name,
        epoch: 1,
        config_digest: config_digest(&config)?,
        // A standby waits for its turn.
        skip_launch: request.skip_launch || !config.standbys.is_empty(),
        config,
        cordoned: request.skip_service_registration,
        secrets: wanted_secrets(request.skip_secrets, request.min_secrets_version),
    };
    // Finished whatever becomes of the caller, so that nothing is left half-made.
    let (new, chosen, shared) = (New { machine, lease }, chosen.clone(), Arc::clone(&shared));
    let made = tokio::spawn(async move {
        let _picked = mounts.picked;
        write_and_ask(shared, app, new, chosen).await
    });
    match made.await {
        Ok(made) => made.map(JsonReply),
        Err(error) => {
            tracing::error!(%error, "creation of a machine ended early");
            Err(Failure::new(Code::Internal, "the platform has a fault"))
        }
    }
}

/// Returns what a request says of the app's secrets.
pub(super) fn wanted_secrets(skip: bool, min_version: Option<u64>) -> SecretsWanted {
    SecretsWanted { skip, min_version: min_version.unwrap_or_default() }
}

struct New {
    machine: CreateMachine,
    lease: Option<Wanted>,
}

async fn write_and_ask(
    shared: Arc<Shared>,
    app: Arc<AppDoc>,
    New { machine, lease }: New,
    chosen: Candidate,
) -> Result<Machine, Failure> {
    let Some(host) = shared.hosts.get(&chosen.id).cloned() else {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    };
    let now = shared.clock.now();
    let placement = PlacementDoc {
        app: app.name.clone(),
        host: chosen.id,
        epoch: machine.epoch,
        instance: machine.instance.clone(),
        config_digest: machine.config_digest.clone(),
        name: machine.name.clone(),
        region: chosen.region,
        created_at: now,
    };
    let config = ConfigDoc { config: machine.config.clone(), created_at: now };
    let of = (&app.org, &machine.id);
    // With the placement or not at all: a creation that is refused leaves no promise behind.
    let mut beside = Beside::default();
    beside.ops.push(reconcile::promise_op(&shared, of, &app.name, reconcile::CREATION_TIME)?);
    let mut nonce = None;
    if let Some(wanted) = lease {
        let free = Standing::Free(Expected::Absent);
        let (lease, compares) = lease::take(&shared, of, &free, &wanted)?;
        beside.compares = compares;
        beside.ops.push(lease::put(&app.org, &machine.id, &lease)?);
        nonce = Some(lease.nonce);
    }
    let turn = ports::turn(&shared, &machine.config).await;
    ports::claim(&shared, &app, &machine.config, &mut beside).await?;
    documents::place(&shared, (&app, &machine.id), (&placement, &config), Expected::Absent, beside)
        .await?;
    drop(turn);
    match host.client.create(&machine).await {
        Ok(made) => {
            // A promise that stays would destroy the machine: without its end nothing was made.
            if let Err(error) = reconcile::withdraw(&shared, of).await {
                take_back(&shared, &app, &machine).await;
                return Err(error.into());
            }
            view::follow(&shared, &host.id, &made).await;
            mounts::follow(&shared, &made.config, &made.id).await;
            Ok(Machine { nonce, ..answer::of_host(made) })
        }
        Err(error) => {
            let refused = error.code().is_some_and(|code| code.status() < 500);
            let failure = of_host(error, &machine.id);
            if refused {
                forget(&shared, &app, &machine).await;
            } else {
                take_back(&shared, &app, &machine).await;
            }
            Err(failure)
        }
    }
}

/// Removes what was written of a machine that its host never had.
async fn forget(shared: &Shared, app: &AppDoc, machine: &CreateMachine) {
    let store = shared.store.as_ref();
    let forgotten = documents::forget_machine(store, &app.org, &app.name, &machine.id).await;
    let done = match forgotten {
        Ok(()) => reconcile::withdraw(shared, (&app.org, &machine.id)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        // The promise stands and the reconciler carries it out later.
        tracing::warn!(error = chain(&error), "refused machine not taken back yet");
    }
}

/// Has a machine destroyed that its host may or may not have.
async fn take_back(shared: &Shared, app: &AppDoc, machine: &CreateMachine) {
    let of = (&app.org, &machine.id);
    let now = std::time::Duration::ZERO;
    if let Err(error) = reconcile::promise(shared, of, &app.name, now).await {
        tracing::warn!(error = chain(&error), "half-made machine not taken back yet");
    }
    shared.reconciler.wake();
}

/// Returns the hosts that a machine may be on, by the one that its configuration names.
fn dedicated(all: Vec<Candidate>, config: &MachineConfig) -> Result<Vec<Candidate>, Failure> {
    let Some(wanted) = admit::dedication(config) else {
        return Ok(all);
    };
    let (named, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|host| host.id.as_str() == wanted);
    if named.is_empty() {
        let ids: Vec<_> = others.iter().map(|host| host.id.as_str()).collect();
        return Err(no_such_host(wanted, &ids.join(", ")));
    }
    Ok(named)
}

/// Refuses the host that a configuration names.
pub(super) fn no_such_host(wanted: &str, allowed: &str) -> Failure {
    let text = format!(
        "config.guest.host_dedication_id: `{wanted}` is not allowed; allowed are {allowed}"
    );
    Failure::new(Code::InvalidValue, text)
}

/// Returns what is known of the hosts.
pub(crate) async fn candidates(shared: &Shared) -> Result<Vec<Candidate>, Failure> {
    let view = shared.view.load();
    let mut candidates = Vec::new();
    for host in shared.hosts.values() {
        let document = get_doc::<HostDoc>(shared.store.as_ref(), &(host.id.clone(),)).await;
        let document = document.map_err(crate::error::store("read a host"))?;
        candidates.push(Candidate {
            id: host.id.clone(),
            region: host.region.clone(),
            memory_mb: document.map(|host| host.document.memory_mb),
            memory_used_mb: memory_used_mb(&view, &host.id),
        });
    }
    Ok(candidates)
}

fn memory_used_mb(view: &perch_types::view::View, host: &HostId) -> u64 {
    let runs = |state: MachineState| match state {
        MachineState::Created
        | MachineState::Starting
        | MachineState::Started
        | MachineState::Stopping
        | MachineState::Suspending
        // It is frozen where it is.
        | MachineState::Suspended
        | MachineState::Restarting
        | MachineState::Replacing => true,
        MachineState::Stopped
        | MachineState::Destroying
        | MachineState::Destroyed
        | MachineState::Failed => false,
    };
    let machines = view.machines().filter(|it| it.host == *host && runs(it.state));
    machines.map(|machine| u64::from(machine.memory_mb)).sum()
}
