//! Apps (contract 1.2).
//!
//! Never destroys a machine itself: a deleted app leaves a tombstone, the reconciler does the rest.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_types::api::{App, Apps, CreateApp, Organization};
use perch_types::certificate_docs::PLATFORM_APP;
use perch_types::directory::AppDoc;
use perch_types::error::chain;
use perch_types::{AppName, Code, MachineState, OrgSlug};

use crate::body::{Json, Parameters};
use crate::config::Shared;
use crate::documents::{self, NewApp};
use crate::reply::Failure;
use crate::routes::{Caller, OfApp};
use crate::{admit, reconcile, tokens, volumes};

/// The network of an app that names none.
const NETWORK_DEFAULT: &str = "default";
/// The longest role of an app.
const ROLE_BYTES_MAX: usize = 63;
/// The longest name of a network.
const NETWORK_BYTES_MAX: usize = 63;

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    parameters: Parameters,
) -> Result<JsonReply<Apps>, Failure> {
    let asked = parameters.get("org_slug");
    let mut orgs: Vec<&OrgSlug> = caller.0.iter().map(|principal| &principal.org).collect();
    orgs.sort_unstable();
    orgs.dedup();
    orgs.retain(|org| asked.is_none_or(|asked| asked == org.as_str()));
    let mut apps = Vec::new();
    let role = parameters.get("app_role");
    for org in orgs {
        let found = documents::apps(shared.store.as_ref(), org).await?.into_iter();
        apps.extend(found.filter(|app| role.is_none() || app.role.as_deref() == role));
    }
    apps.retain(|app| caller.0.iter().any(|principal| principal.reaches(&app.org, &app.id)));
    apps.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let apps: Vec<App> = apps.iter().map(|app| answer(&shared, app)).collect();
    Ok(JsonReply(Apps { total_apps: count(apps.len()), apps }))
}

/// Names that mean something else: the repositories of base images, and what an address with
/// them would promise.
const RESERVED_NAMES: [&str; 6] = ["base", "api", "registry", "www", "oidc", PLATFORM_APP];

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CreateApp>,
) -> Result<(StatusCode, JsonReply<App>), Failure> {
    let new = wanted(&shared, &caller, request)?;
    let app = documents::create_app(&shared, &new).await?.ok_or_else(|| {
        Failure::new(Code::NameTaken, "Name has already been taken")
            .with_hint(format!("names are one namespace on a platform; try `{}-2`", new.name))
    })?;
    let held = shared.view.wait_for(
        |view| view.app(&app.name).is_some_and(|known| known.id == app.id),
        shared.limits.view_timeout,
    );
    if held.await.is_none() {
        tracing::warn!(app = %app.name, "view does not hold the app yet");
    }
    Ok((StatusCode::CREATED, JsonReply(answer(&shared, &app))))
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
) -> JsonReply<App> {
    JsonReply(answer(&shared, &app))
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Result<StatusCode, Failure> {
    // An app goes with its machines, whether they run or not; clients send this all the same.
    parameters.flag("force")?;
    documents::bury_app(&shared, &app).await?;
    // Best effort: they reach nothing any more, and the reconciler removes them with the app.
    if let Err(error) = tokens::end_of_app(&shared, &app.org, &app.id).await {
        tracing::warn!(error = chain(&error), "tokens of a deleted app not removed yet");
    }
    shared.reconciler.wake();
    // The promise is written; waiting is only so that the name is free when the answer comes.
    let gone = reconcile::app_gone(&shared, &app.org, &app.id);
    if tokio::time::timeout(shared.limits.delete_timeout, gone).await.is_err() {
        tracing::info!(app = %app.name, "app is deleted while its machines still go");
    }
    Ok(StatusCode::ACCEPTED)
}

fn wanted(shared: &Shared, caller: &Caller, request: CreateApp) -> Result<NewApp, Failure> {
    let missing = || Failure::new(Code::InvalidRequest, "name: is missing");
    let name = request.name.or(request.app_name).ok_or_else(missing)?;
    let name: AppName =
        name.parse().map_err(|error| Failure::new(Code::InvalidValue, format!("name: {error}")))?;
    // Where the platform has a name below its domain, an app could not be reached at that.
    let hostname = format!("{name}.{}", shared.platform.domain);
    if RESERVED_NAMES.contains(&name.as_str()) || shared.own_names.contains(&hostname) {
        let text = format!("name: `{name}` is the platform's own");
        return Err(Failure::new(Code::InvalidValue, text).with_hint("choose another name"));
    }
    admit::refuse_key("enable_subdomains", request.enable_subdomains)?;
    let org = match request.org_slug.filter(|org| !org.is_empty()) {
        Some(slug) => {
            let unknown =
                |_| Failure::new(Code::NotFound, format!("org_slug: `{slug}` is unknown"));
            slug.parse::<OrgSlug>().map_err(unknown)?
        }
        None => OrgSlug::personal(),
    };
    if !caller.0.iter().any(|principal| principal.org == org) {
        let text = format!("org_slug: the token does not reach `{org}`");
        return Err(Failure::new(Code::Forbidden, text));
    }
    let network = request.network.filter(|network| !network.is_empty());
    let network = network.unwrap_or_else(|| NETWORK_DEFAULT.to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let good = network.starts_with(|c: char| c.is_ascii_alphabetic())
        && network.chars().all(plain)
        && network.len() <= NETWORK_BYTES_MAX;
    if !good {
        let rule = "1 to 63 letters, digits and dashes, a letter first";
        return Err(Failure::new(Code::InvalidValue, format!("network: is not {rule}")));
    }
    let role = request.app_role_id.filter(|role| !role.is_empty());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if role.as_ref().is_some_and(|it| it.len() > ROLE_BYTES_MAX || !it.chars().all(plain)) {
        let text = "app_role_id: is not 1 to 63 letters, digits, dashes and underscores";
        return Err(Failure::new(Code::InvalidValue, text));
    }
    Ok(NewApp { name, org, network, role })
}

fn answer(shared: &Shared, app: &AppDoc) -> App {
    let view = shared.view.load();
    let machines = view.machines_of(&app.org, &app.name).count();
    let rests = |state| matches!(state, MachineState::Stopped | MachineState::Suspended);
    let status = match machines {
        0 => "pending",
        _ if view.machines_of(&app.org, &app.name).all(|machine| rests(machine.state)) => {
            "suspended"
        }
        _ => "deployed",
    };
    let volumes = volumes::read::of_app(&view, app);
    let volumes = volumes.filter(|volume| !volume.state.is_going()).count();
    let hostname = format!("{}.{}", app.name, shared.platform.domain);
    App {
        id: app.id.clone(),
        internal_numeric_id: app.number,
        name: app.name.clone(),
        machine_count: count(machines),
        volume_count: count(volumes),
        network: app.network.clone(),
        status: status.to_owned(),
        app_role: app.role.clone(),
        organization: Organization {
            name: app.org.to_string(),
            slug: app.org.clone(),
            internal_numeric_id: 1,
        },
        created_at: app.created_at,
        cname_target: hostname.clone(),
        hostname,
        wake: shared.wakes.as_ref().and_then(|wakes| wakes.times(&app.org, &app.name)),
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
