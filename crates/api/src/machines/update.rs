//! Gives a machine another version: the whole configuration (contract 1.3).
//!
//! Never changes a name or a region, and leaves the directory as it was when the host refuses. Of
//! several at once one is written, by compare-and-set on the placement; the others are told so.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_store::Expected;
use perch_types::api::{CreateMachineRequest, Machine};
use perch_types::directory::{AppDoc, ConfigDoc, PlacementDoc};
use perch_types::error::chain;
use perch_types::host::{Accepted, Command, SecretsWanted};
use perch_types::{ApiError, Code, InstanceId, MachineConfig};

use super::create::{no_such_host, wanted_secrets};
use super::lease::{self, Standing, Wanted};
use super::{answer, config_digest, of_host, own_images, own_standbys};
use crate::body::Json;
use crate::config::Shared;
use crate::documents::{self, Beside, Placed};
use crate::error::Error;
use crate::reply::Failure;
use crate::routes::{Caller, Leased, OfApp, Target};
use crate::volumes::mounts;
use crate::{admit, names, ports, secrets, view};

pub(crate) async fn update(
    State(shared): State<Arc<Shared>>,
    (Extension(OfApp(app)), Extension(Target(target))): (Extension<OfApp>, Extension<Target>),
    (Extension(caller), Extension(Leased(standing))): (Extension<Caller>, Extension<Leased>),
    Json(request): Json<CreateMachineRequest>,
) -> Result<JsonReply<Machine>, Failure> {
    admit::refuse_key("lsvd", request.lsvd)?;
    let lease = Wanted::of_ttl(request.lease_ttl, &caller)?;
    secrets::reach(&shared, &app, request.min_secrets_version).await?;
    let before = &target.placement.document;
    stays(&request, before)?;
    let current = request.current_version.filter(|version| !version.is_empty());
    if let Err(failure) = is_current(current.as_deref(), &before.instance) {
        went_back(&shared, (&app, &target), current.as_deref()).await.map_err(|()| failure)?;
    }
    let mut config = admit::admit(request.config)?;
    if let Some(wanted) = admit::dedication(&config)
        && wanted != before.host.as_str()
    {
        return Err(no_such_host(wanted, before.host.as_str()));
    }
    secrets::named::check(&shared, &app, &config, request.skip_secrets).await?;
    own_images(&shared, &caller, &app, &config).await?;
    own_standbys(&shared, &app, &config).await?;
    let host = Some(before.host.clone());
    let mounts = mounts::resolve(&shared, &app, &mut config, Some(&target.id), host)?;
    let skip_launch = request.skip_launch || !config.standbys.is_empty();
    let secrets = wanted_secrets(request.skip_secrets, request.min_secrets_version);
    let cordoned = request.skip_service_registration;
    let change = Change { config, skip_launch, cordoned, current, standing, lease, secrets };
    let made = tokio::spawn(async move {
        let _picked = mounts.picked;
        write_and_ask(shared, app, target, change).await
    });
    match made.await {
        Ok(made) => made.map(JsonReply),
        Err(error) => {
            tracing::error!(%error, "update of a machine ended early");
            Err(Failure::new(Code::Internal, "the platform has a fault"))
        }
    }
}

/// How long it may take until a host is told of a version that is written.
const TELLING_TIME: Duration = Duration::from_secs(180);
/// How often the write begins anew because the lease was refreshed meanwhile.
const ATTEMPTS_MAX: usize = 8;

struct Change {
    config: MachineConfig,
    skip_launch: bool,
    /// From now on the edge sends it nothing.
    cordoned: bool,
    /// The version that the caller has seen.
    current: Option<String>,
    standing: Standing,
    lease: Option<Wanted>,
    secrets: SecretsWanted,
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
    Ok(())
}

fn is_current(seen: Option<&str>, current: &InstanceId) -> Result<(), Failure> {
    match seen {
        Some(seen) if seen != current.as_str() => {
            let text = format!("current_version: the machine has version {current}");
            Err(Failure::new(Code::PreconditionFailed, text)
                .with_hint("read the machine again, then try again"))
        }
        _ => Ok(()),
    }
}

/// The version that was written last may be one that the host could not bring: then the one
/// before, which clients read, is the current one.
async fn went_back(
    shared: &Shared,
    (app, target): (&AppDoc, &Placed),
    seen: Option<&str>,
) -> Result<(), ()> {
    let host = target.host.as_ref().ok_or(())?;
    let machine = host.client.machine(&target.id).await.map_err(drop)?;
    let written = &target.placement.document;
    let is_given_up = machine.given_up.as_ref() == Some(&written.instance);
    // Or one that the host was never told of: whoever wrote it ended in between.
    let mut is_unheard = machine.epoch < written.epoch && machine.state.is_settled();
    if is_unheard {
        let store = shared.store.as_ref();
        let config = documents::config(store, &app.org, &target.id, written).await;
        let written_at = config.map_err(drop)?.map(|config| config.created_at);
        is_unheard = written_at.is_none_or(|at| at.plus(TELLING_TIME) <= shared.clock.now());
    }
    let is_current = (is_given_up || is_unheard) && seen == Some(machine.instance.as_str());
    if is_current { Ok(()) } else { Err(()) }
}

async fn write_and_ask(
    shared: Arc<Shared>,
    app: Arc<AppDoc>,
    target: Arc<Placed>,
    mut change: Change,
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
    let of = (&app.org, &target.id);
    let expected = Expected::Revision(target.placement.revision);
    let mut attempts = ATTEMPTS_MAX;
    let turn = ports::turn(&shared, &change.config).await;
    let (written, nonce) = loop {
        attempts -= 1;
        let (mut beside, nonce) = lease_of(&shared, (&app, &target), &change)?;
        beside.ops.extend(documents::forget_versions(shared.store.as_ref(), of, before).await?);
        ports::claim(&shared, &app, &change.config, &mut beside).await?;
        match documents::place(&shared, (&app, &target.id), (&placement, &config), expected, beside)
            .await
        {
            Ok(written) => break (written, nonce),
            Err(error) if attempts == 0 || !error.is_conflict() => return Err(error.into()),
            Err(error) => change.standing = again(&shared, (&app, &target), &change, error).await?,
        }
    };
    drop(turn);
    let command = Command::Update {
        instance: instance.clone(),
        epoch: placement.epoch,
        config: Box::new(change.config.clone()),
        config_digest: placement.config_digest,
        skip_launch: change.skip_launch,
        cordoned: change.cordoned,
        secrets: change.secrets,
    };
    match host.client.command(&target.id, &command).await {
        Ok(Accepted { machine, .. }) => {
            view::follow(&shared, &host.id, &machine).await;
            let mut answered = Machine { nonce, ..answer::of_host(machine) };
            // The host may still run the version before; clients wait for the one in the answer.
            answered.instance_id = instance.clone();
            answered.version = instance;
            answered.config = change.config;
            Ok(answered)
        }
        Err(error) => {
            // Only a refusal is certain, and what was not sent; otherwise the new version is what
            // should be.
            let is_refused = error.code().is_some_and(|code| code.status() < 500);
            if is_refused || error.is_unsent() {
                let refused = (&instance, written);
                let store = shared.store.as_ref();
                let undone = documents::unplace_version(store, of, before, refused).await;
                if let Err(error) = undone {
                    tracing::warn!(error = chain(&error), "refused version not taken back");
                }
            }
            // Nobody would know the nonce of a lease that was made here.
            if let (Some(nonce), Standing::Free(_)) = (&nonce, &change.standing)
                && let Err(error) = lease::drop_own(&shared, of, nonce).await
            {
                tracing::warn!(error = chain(&error), "lease of a refused version not released");
            }
            Err(of_host(error, &target.id))
        }
    }
}

/// Returns what is written and compared of the lease, and the nonce if the update asks for one.
fn lease_of(
    shared: &Shared,
    (app, target): (&AppDoc, &Placed),
    change: &Change,
) -> Result<(Beside, Option<String>), Error> {
    let Some(wanted) = &change.lease else {
        let compares = change.standing.compare(&app.org, &target.id).into_iter().collect();
        return Ok((Beside { compares, ops: Vec::new() }, None));
    };
    let of = (&app.org, &target.id);
    let (lease, compares) = lease::take(shared, of, &change.standing, wanted)?;
    let ops = vec![lease::put(&app.org, &target.id, &lease)?];
    Ok((Beside { compares, ops }, Some(lease.nonce)))
}

/// Returns how the lease stands now when only that was changed in between, by whoever holds it;
/// else says what was: the lease, the version, or what else it was.
async fn again(
    shared: &Shared,
    (app, target): (&AppDoc, &Placed),
    change: &Change,
    error: Error,
) -> Result<Standing, Failure> {
    let own = match &change.standing {
        Standing::Own(own) => Some(own.document.nonce.as_str()),
        Standing::Free(_) => None,
    };
    let standing = lease::guard(shared, (&app.org, &target.id), own).await?;
    let now = documents::placement(shared.store.as_ref(), &app.org, &target.id).await?;
    match now {
        Some(now) if now.revision == target.placement.revision => Ok(standing),
        Some(now) => {
            is_current(change.current.as_deref(), &now.document.instance)?;
            Err(error.into())
        }
        None => Err(ApiError::machine_not_found(target.id.as_str()).into()),
    }
}
