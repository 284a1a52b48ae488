//! The routes: every entry of `types::endpoint` with its handler, behind its action.
//!
//! Never serves a path without an action: [`Routes::serve`] is the only way to register one.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawPathParams, Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};
use axum::{RequestExt as _, Router};
use http::Method;
use perch_types::directory::AppDoc;
use perch_types::endpoint::{self, Action, Endpoint};
use perch_types::host::MachineIdentity;
use perch_types::{ApiError, AppName, Code, MachineId, OrgSlug};

use crate::auth::Principal;
use crate::config::Shared;
use crate::documents::{self, Placed};
use crate::machines::lease::{self, Standing};
use crate::reply::{Failure, finish, no_such_method, no_such_path};
use crate::{
    apps, builds, certificates, inside, ips, logs, machines, network_policies, oidc, orgs,
    placements, platform, reference, replay_sources, secrets, sessions, tokens, volumes,
};

/// How long an ordinary request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(140);
/// How long a request may take that runs a program for the caller.
const EXEC_TIMEOUT: Duration = Duration::from_secs(machines::EXEC_TIMEOUT_MAX_S + 30);
/// How long the head of a build's answer may take; its context goes up before.
const BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The tokens of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Arc<Vec<Principal>>);

/// A machine that a request is about; the caller may reach it.
#[derive(Debug, Clone)]
pub(crate) struct Target(pub(crate) Arc<Placed>);

/// How the lease of the machine stands that a request changes.
#[derive(Debug, Clone)]
pub(crate) struct Leased(pub(crate) Standing);

/// The app that a request is about; the caller may reach it.
#[derive(Debug, Clone)]
pub(crate) struct OfApp(pub(crate) Arc<AppDoc>);

/// The organization that a request is about; the caller may reach it.
#[derive(Debug, Clone)]
pub(crate) struct OfOrg(pub(crate) OrgSlug);

struct Routes {
    router: Router<Arc<Shared>>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Guard {
    shared: Arc<Shared>,
    endpoint: Endpoint,
}

/// Returns the whole router.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let routes = Routes { router: Router::new(), shared: Arc::clone(shared) };
    let routes = of_volumes_and_secrets(of_machines(of_apps(routes)));
    routes
        .router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(shared), finish))
        .with_state(Arc::clone(shared))
}

fn of_apps(routes: Routes) -> Routes {
    routes
        .serve(endpoint::APPS_LIST, apps::list)
        .serve(endpoint::APPS_CREATE, apps::create)
        .serve(endpoint::APP_GET, apps::get)
        .serve(endpoint::APP_DELETE, apps::delete)
        .serve(endpoint::ORG_MACHINES, orgs::machines)
        .serve(endpoint::ORG_REPLAY_SOURCES_GET, replay_sources::get)
        .serve(endpoint::ORG_REPLAY_SOURCES_SET, replay_sources::set)
        .serve(endpoint::APP_LOGS, logs::app)
        .serve(endpoint::NETWORK_POLICIES_LIST, network_policies::list)
        .serve(endpoint::NETWORK_POLICIES_LIST_SLASH, network_policies::list)
        .serve(endpoint::NETWORK_POLICY_SET, network_policies::set)
        .serve(endpoint::NETWORK_POLICY_DELETE, network_policies::delete)
        .serve(endpoint::IPS_LIST, ips::list)
        .serve(endpoint::IPS_ASSIGN, ips::assign)
        .serve(endpoint::IP_RELEASE, ips::release)
        .serve(endpoint::CERTIFICATES_LIST, certificates::list)
        .serve(endpoint::CERTIFICATE_ACME, certificates::create_acme)
        .serve(endpoint::CERTIFICATE_CUSTOM, certificates::create_custom)
        .serve(endpoint::CERTIFICATE_GET, certificates::get)
        .serve(endpoint::CERTIFICATE_DELETE, certificates::delete)
        .serve(endpoint::CERTIFICATE_ACME_DELETE, certificates::delete_acme)
        .serve(endpoint::CERTIFICATE_CUSTOM_DELETE, certificates::delete_custom)
        .serve(endpoint::CERTIFICATE_CHECK, certificates::check)
        .serve(endpoint::APP_BUILD, builds::build)
        .serve(endpoint::APP_DEPLOY_TOKEN, tokens::create)
        .serve(endpoint::APP_TOKENS_LIST, tokens::list)
        .serve(endpoint::APP_TOKEN_REVOKE, tokens::revoke)
        .serve(endpoint::PLACEMENTS, placements::placements)
        .serve(endpoint::REGIONS, platform::regions)
        .serve(endpoint::PLATFORM, platform::platform)
        .serve(endpoint::SYSTEM_USAGE, platform::usage)
        .serve(endpoint::SYSTEM_PRUNE, platform::prune)
        .serve(endpoint::IMAGES_LIST, platform::images)
        .serve(endpoint::IMAGES_BOOTSTRAP, builds::bootstrap)
        .serve(endpoint::TOKEN_CURRENT, tokens::current)
        .serve(endpoint::TOKEN_OIDC, oidc::create)
        .serve(endpoint::TOKENS_AUTHENTICATE, tokens::check::authenticate)
        .serve(endpoint::TOKENS_AUTHORIZE, tokens::check::authorize)
        .serve(endpoint::TOKEN_KMS, tokens::check::kms)
        .serve(endpoint::OPENAPI, reference::document)
        .serve(endpoint::REFERENCE, reference::page)
}

fn of_machines(routes: Routes) -> Routes {
    routes
        .serve(endpoint::MACHINES_LIST, machines::read::list)
        .serve(endpoint::MACHINES_CREATE, machines::create::create)
        .serve(endpoint::MACHINE_GET, machines::read::get)
        .serve(endpoint::MACHINE_UPDATE, machines::update::update)
        .serve(endpoint::MACHINE_DELETE, machines::command::delete)
        .serve(endpoint::MACHINE_START, machines::command::start)
        .serve(endpoint::MACHINE_STOP, machines::command::stop)
        .serve(endpoint::MACHINE_SUSPEND, machines::command::suspend)
        .serve(endpoint::MACHINE_RESTART, machines::command::restart)
        .serve(endpoint::MACHINE_SIGNAL, machines::command::signal)
        .serve(endpoint::MACHINE_WAIT, machines::wait::wait)
        .serve(endpoint::MACHINE_EXEC, machines::exec::exec)
        .serve(endpoint::MACHINE_ATTACH, sessions::attach)
        .serve(endpoint::MACHINE_PS, machines::resources::processes)
        .serve(endpoint::MACHINE_MEMORY, machines::resources::memory)
        .serve(endpoint::MACHINE_MEMORY_SET, machines::resources::set_memory)
        .serve(endpoint::MACHINE_MEMORY_RECLAIM, machines::resources::reclaim_memory)
        .serve(endpoint::MACHINE_EVENTS, machines::read::events)
        .serve(endpoint::MACHINE_CORDON, machines::command::cordon)
        .serve(endpoint::MACHINE_UNCORDON, machines::command::uncordon)
        .serve(endpoint::MACHINE_LEASE_GET, lease::get)
        .serve(endpoint::MACHINE_LEASE_ACQUIRE, lease::acquire)
        .serve(endpoint::MACHINE_LEASE_RELEASE, lease::release)
        .serve(endpoint::MACHINE_VERSIONS, machines::read::versions)
        .serve(endpoint::MACHINE_METADATA_GET, machines::metadata::all)
        .serve(endpoint::MACHINE_METADATA_PUT, machines::metadata::replace)
        .serve(endpoint::MACHINE_METADATA_PATCH, machines::metadata::merge)
        .serve(endpoint::MACHINE_METADATA_KEY_GET, machines::metadata::get)
        .serve(endpoint::MACHINE_METADATA_KEY_SET, machines::metadata::set)
        .serve(endpoint::MACHINE_METADATA_KEY_DELETE, machines::metadata::delete)
        .serve(endpoint::MACHINE_LOGS, logs::machine)
}

fn of_volumes_and_secrets(routes: Routes) -> Routes {
    routes
        .serve(endpoint::SECRETS_LIST, secrets::list)
        .serve(endpoint::SECRETS_UPDATE, secrets::update)
        .serve(endpoint::SECRET_GET, secrets::get)
        .serve(endpoint::SECRET_SET, secrets::set)
        .serve(endpoint::SECRET_DELETE, secrets::delete)
        .serve(endpoint::SECRET_KEYS_LIST, secrets::keys::list)
        .serve(endpoint::SECRET_KEY_GET, secrets::keys::get)
        .serve(endpoint::SECRET_KEY_SET, secrets::keys::set)
        .serve(endpoint::SECRET_KEY_GENERATE, secrets::keys::generate)
        .serve(endpoint::SECRET_KEY_DELETE, secrets::keys::delete)
        .serve(endpoint::SECRET_KEY_ENCRYPT, secrets::keys::encrypt)
        .serve(endpoint::SECRET_KEY_DECRYPT, secrets::keys::decrypt)
        .serve(endpoint::SECRET_KEY_SIGN, secrets::keys::sign)
        .serve(endpoint::SECRET_KEY_VERIFY, secrets::keys::verify)
        .serve(endpoint::VOLUMES_LIST, volumes::read::list)
        .serve(endpoint::VOLUMES_CREATE, volumes::create::create)
        .serve(endpoint::VOLUME_GET, volumes::read::get)
        .serve(endpoint::VOLUME_UPDATE, volumes::change::update)
        .serve(endpoint::VOLUME_DELETE, volumes::change::delete)
        .serve(endpoint::VOLUME_EXTEND, volumes::change::extend)
        .serve(endpoint::SNAPSHOTS_LIST, volumes::read::snapshots)
        .serve(endpoint::SNAPSHOTS_CREATE, volumes::change::snapshot)
        .serve(endpoint::ORG_VOLUMES, volumes::org::list)
}

impl Routes {
    fn serve<H, T>(self, endpoint: Endpoint, handler: H) -> Self
    where
        H: Handler<T, Arc<Shared>>,
        T: 'static,
    {
        let guard = Guard { shared: Arc::clone(&self.shared), endpoint };
        let method = Method::from_bytes(endpoint.method.as_bytes()).unwrap_or_default();
        // `types::endpoint` has no other methods; one that is not known would answer nothing.
        let filter = MethodFilter::try_from(method).unwrap_or(MethodFilter::TRACE);
        let guarded = on(filter, handler).route_layer(from_fn_with_state(guard, admit));
        Self { router: self.router.route(endpoint.path, guarded), ..self }
    }
}

/// Lets a request through to its handler when its tokens allow the action on the very app and
/// machine that it names, and nobody else holds that machine's lease if it changes it.
async fn admit(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    if let Err(failure) = identify(&guard, &mut request).await {
        return failure.into_response();
    }
    match tokio::time::timeout(timeout_of(guard.endpoint), next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(Code::Unavailable, "the request took too long")
            .with_hint("look whether it was carried out, then try again")
            .into_response(),
    }
}

fn timeout_of(endpoint: Endpoint) -> Duration {
    match endpoint {
        endpoint::APP_BUILD | endpoint::IMAGES_BOOTSTRAP => BUILD_TIMEOUT,
        endpoint::MACHINE_EXEC => EXEC_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    }
}

async fn identify(guard: &Guard, request: &mut Request) -> Result<(), Failure> {
    if guard.endpoint.action == Action::Public {
        return Ok(());
    }
    let shared = &guard.shared;
    let parameters = request.extract_parts::<RawPathParams>().await;
    let named = |name: &str| {
        let parameters = parameters.as_ref().ok()?;
        parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
    };
    let mut principals = match request.extensions().get::<MachineIdentity>() {
        Some(machine) => {
            let (app, id) = (named("app"), named("machine"));
            let named = (app.as_deref(), id.as_deref());
            vec![inside::principal(machine, guard.endpoint, named)?]
        }
        None => shared.identity.of_request(request.headers()).await?,
    };
    principals.retain(|principal| principal.permits(guard.endpoint.action));
    if principals.is_empty() {
        return Err(not_allowed());
    }
    if parameters.is_err() {
        return Err(ApiError::app_not_found("").into());
    }
    if let Some(slug) = named("org") {
        principals.retain(|principal| principal.org.as_str() == slug);
        let Some(org) = principals.first().map(|principal| principal.org.clone()) else {
            let shown: String = slug.chars().take(80).collect();
            let text = format!("org_slug: `{shown}` is unknown, or the token does not reach it");
            return Err(Failure::new(Code::NotFound, text));
        };
        request.extensions_mut().insert(OfOrg(org));
    }
    let counted_for;
    if let Some(name) = named("app") {
        let app = reach_app(guard, &principals, &name).await?;
        principals.retain(|principal| principal.reaches(&app.org, &app.id));
        counted_for = match named("machine") {
            Some(id) => {
                let target = reach_machine(shared, &app, &id).await?;
                if guard.endpoint.needs_lease() {
                    let nonce = lease::nonce(request.headers())?;
                    let standing = lease::guard(shared, (&app.org, &target.id), nonce).await?;
                    request.extensions_mut().insert(Leased(standing));
                }
                request.extensions_mut().insert(Target(Arc::new(target)));
                id
            }
            None if guard.endpoint == endpoint::APP_DELETE => app.org.to_string(),
            None => app.id.clone(),
        };
        request.extensions_mut().insert(OfApp(Arc::new(app)));
    } else {
        principals.retain(|it| it.app_id.is_none() || IS_FOR_APP_TOKENS.contains(&guard.endpoint));
        let first = principals.first().ok_or_else(not_allowed)?;
        counted_for = first.org.to_string();
    }
    let counted = shared.meter.count(guard.endpoint, &counted_for, shared.clock.boot_ms());
    counted.map_err(Failure::too_often)?;
    request.extensions_mut().insert(Caller(Arc::new(principals)));
    Ok(())
}

fn not_allowed() -> Failure {
    Failure::new(Code::Forbidden, "the token does not allow this")
}

/// Endpoints without an app in their path that a token for one app may use: what they show of
/// apps is this app's only.
const IS_FOR_APP_TOKENS: [Endpoint; 5] = [
    endpoint::APPS_LIST,
    endpoint::IMAGES_LIST,
    endpoint::PLATFORM,
    endpoint::REGIONS,
    endpoint::TOKEN_CURRENT,
];

async fn reach_app(guard: &Guard, principals: &[Principal], name: &str) -> Result<AppDoc, Failure> {
    let unknown = || Failure::from(ApiError::app_not_found(name));
    let parsed: AppName = name.parse().map_err(|_| unknown())?;
    let store = guard.shared.store.as_ref();
    let claim = documents::claim(store, &parsed).await?.ok_or_else(unknown)?;
    let app = documents::app(store, &claim.org, &parsed).await?;
    let id = app.as_ref().map(|app| app.id.as_str()).unwrap_or_default();
    if !principals.iter().any(|principal| principal.reaches(&claim.org, id)) {
        // Names are one global namespace, so a taken one is no secret; only this call tells
        // (contract 1.2), because clients ask it whether a name is free.
        return Err(if guard.endpoint == endpoint::APP_GET {
            Failure::new(Code::Forbidden, format!("the app `{name}` is not the token's to reach"))
        } else {
            unknown()
        });
    }
    app.ok_or_else(unknown)
}

async fn reach_machine(shared: &Shared, app: &AppDoc, id: &str) -> Result<Placed, Failure> {
    let unknown = || Failure::from(ApiError::machine_not_found(id));
    let parsed: MachineId = id.parse().map_err(|_| unknown())?;
    let placement = documents::placement(shared.store.as_ref(), &app.org, &parsed).await?;
    let placement = placement.filter(|placement| placement.document.app == app.name);
    let placement = placement.ok_or_else(unknown)?;
    let host = shared.hosts.get(&placement.document.host).cloned();
    Ok(Placed { id: parsed, placement, host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_table_is_one_that_routes_know() {
        for endpoint in endpoint::ALL {
            let method = Method::from_bytes(endpoint.method.as_bytes()).unwrap();
            assert!(MethodFilter::try_from(method).is_ok(), "{endpoint:?}");
        }
    }
}
