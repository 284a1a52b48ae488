//! What the tokens of a header are, and whether they may do something (contract 1.12): asked by
//! services that trust this platform to know.
//!
//! Never sends a token's text back. Tokens here are looked up, not signed: what a macaroon would
//! carry is made of the platform's own record.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use perch_types::api::{
    AuthenticateTokens, AuthorizeTokens, Authorized, AuthorizedAccess, CaveatSet, TokenAccess,
    TokenNonce, VerifiedToken,
};
use perch_types::directory::AppDoc;
use perch_types::endpoint::Action;
use perch_types::{ApiError, AppName, Code, MachineId, Octets, VolumeId};
use serde_json::json;

use crate::auth::Principal;
use crate::body::Json;
use crate::config::Shared;
use crate::documents;
use crate::reply::Failure;

/// The bits of an action, and what each needs here.
const ACTIONS: [(u8, Action); 5] = [
    (1, Action::Read),
    (2, Action::Write),
    (4, Action::Write),
    (8, Action::Write),
    (16, Action::Grant),
];

pub(crate) async fn authenticate(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<AuthenticateTokens>,
) -> Result<JsonReply<Vec<VerifiedToken>>, Failure> {
    let principals = of_header(&shared, &request.header).await?;
    Ok(JsonReply(principals.iter().map(|principal| verified(&shared, principal)).collect()))
}

pub(crate) async fn authorize(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<AuthorizeTokens>,
) -> Result<JsonReply<Authorized>, Failure> {
    let AuthorizeTokens { header, access } = request;
    let actions = admit(&access)?;
    let mut principals = of_header(&shared, &header).await?;
    if let Some(slug) = access.org_slug.as_deref().filter(|slug| !slug.is_empty()) {
        principals.retain(|principal| principal.org.as_str() == slug);
    }
    let app = match access.app_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => Some(reach(&shared, &mut principals, name).await?),
        None => {
            // A token for an app reaches nothing beside it.
            principals.retain(|principal| principal.app_id.is_none());
            None
        }
    };
    principals.retain(|principal| actions.iter().all(|action| principal.permits(*action)));
    let principal = principals.first().ok_or_else(|| {
        Failure::new(Code::Forbidden, "header: none of the tokens allows this access")
    })?;
    if let Some(app) = &app {
        there(&shared, app, &access).await?;
    }
    Ok(JsonReply(Authorized {
        access: AuthorizedAccess {
            action: access.action,
            orgid: 1,
            appid: app.map(|app| app.number),
            machine: access.machine_id,
            volume: access.volume_id,
            command: access.command,
        },
        verified_token: verified(&shared, principal),
    }))
}

/// Looks up the tokens of a header that somebody was sent.
async fn of_header(shared: &Shared, header: &str) -> Result<Vec<Principal>, Failure> {
    let none =
        || Failure::new(Code::InvalidRequest, "header: has no token that is known and holds");
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(header).map_err(|_| none())?);
    let found = shared.identity.of_request(&headers).await;
    // That it is not known is no fault of the caller's own token.
    found.map_err(|failure| if failure.code() == Code::Unauthenticated { none() } else { failure })
}

fn verified(shared: &Shared, principal: &Principal) -> VerifiedToken {
    let org = &principal.org;
    let mut caveats = vec![json!({"type": "Organization", "body": {"slug": org, "mask": 31}})];
    if let Some(id) = &principal.app_id {
        let view = shared.view.load();
        let names = view.apps().filter(|app| app.id == *id).map(|app| app.name.as_str());
        let apps: serde_json::Map<_, _> = names.map(|name| (name.to_owned(), json!(15))).collect();
        caveats.push(json!({"type": "Apps", "body": {"apps": apps}}));
    }
    if let Some(end) = principal.expires_at {
        let body = json!({"not_before": 0, "not_after": end.unix_s()});
        caveats.push(json!({"type": "ValidityWindow", "body": body}));
    }
    VerifiedToken {
        header: String::new(),
        permission_token: Octets::default(),
        nonce: TokenNonce {
            kid: Octets::from(principal.token_id.clone().into_bytes()),
            rnd: Octets::default(),
            proof: true,
        },
        caveats: CaveatSet { caveats },
    }
}

fn admit(access: &TokenAccess) -> Result<Vec<Action>, Failure> {
    let known: u8 = ACTIONS.iter().map(|(bit, _)| bit).sum();
    if access.action & !known != 0 {
        let text = format!(
            "access.action: {} is no sum of 1 (r), 2 (w), 4 (c), 8 (d), 16 (C)",
            access.action
        );
        return Err(Failure::new(Code::InvalidValue, text));
    }
    for (name, field) in [
        ("org_feature", &access.org_feature),
        ("app_feature", &access.app_feature),
        ("machine_feature", &access.machine_feature),
        ("mutation", &access.mutation),
        ("source_machine", &access.source_machine),
        ("storage_object", &access.storage_object),
    ] {
        if field.as_ref().is_some_and(|text| !text.is_empty()) {
            let text = format!("access.{name}: no token of this platform speaks of it");
            return Err(Failure::new(Code::UnsupportedKey, text));
        }
    }
    let given = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
    let has_command = access.command.as_ref().is_some_and(|words| !words.is_empty());
    for (name, is_given, needs, is_there) in [
        ("machine_id", given(&access.machine_id), "app_name", given(&access.app_name)),
        ("volume_id", given(&access.volume_id), "app_name", given(&access.app_name)),
        ("command", has_command, "machine_id", given(&access.machine_id)),
    ] {
        if is_given && !is_there {
            let text = format!("access.{name}: needs {needs} beside it");
            return Err(Failure::new(Code::InvalidValue, text));
        }
    }
    let asked = ACTIONS.iter().filter(|(bit, _)| access.action & bit != 0);
    let mut actions: Vec<Action> = asked.map(|(_, action)| *action).collect();
    if has_command {
        actions.push(Action::Exec);
    }
    Ok(actions)
}

/// Returns an app, and keeps the tokens that reach it.
async fn reach(
    shared: &Shared,
    principals: &mut Vec<Principal>,
    name: &str,
) -> Result<AppDoc, Failure> {
    let unknown = || Failure::from(ApiError::app_not_found(name));
    let parsed: AppName = name.parse().map_err(|_| unknown())?;
    let store = shared.store.as_ref();
    let claim = documents::claim(store, &parsed).await?.ok_or_else(unknown)?;
    let app = documents::app(store, &claim.org, &parsed).await?.ok_or_else(unknown)?;
    principals.retain(|principal| principal.reaches(&app.org, &app.id));
    if principals.is_empty() {
        return Err(unknown());
    }
    Ok(app)
}

/// Refuses a machine or volume that the app does not have.
async fn there(shared: &Shared, app: &AppDoc, access: &TokenAccess) -> Result<(), Failure> {
    if let Some(text) = access.machine_id.as_deref().filter(|text| !text.is_empty()) {
        let unknown = || Failure::from(ApiError::machine_not_found(text));
        let id: MachineId = text.parse().map_err(|_| unknown())?;
        let placement = documents::placement(shared.store.as_ref(), &app.org, &id).await?;
        placement.filter(|it| it.document.app == app.name).ok_or_else(unknown)?;
    }
    if let Some(text) = access.volume_id.as_deref().filter(|text| !text.is_empty()) {
        let unknown = || Failure::from(ApiError::volume_not_found(text));
        let id: VolumeId = text.parse().map_err(|_| unknown())?;
        let view = shared.view.load();
        let volume = view.volume(&id).filter(|it| it.org == app.org && it.app == app.name);
        volume.ok_or_else(unknown)?;
    }
    Ok(())
}

/// Tells that keys of the platform's KMS are an app's secret keys here.
pub(crate) async fn kms() -> Result<String, Failure> {
    let text = "this platform has no service for which such a token would be";
    Err(Failure::new(Code::UnsupportedKey, text)
        .with_hint("an app's secret keys are used at /v1/apps/{app}/secretkeys"))
}
