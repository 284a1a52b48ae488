//! Tokens for apps (contract 1.2 and 1.12): made, listed, ended, and what the caller's own are.
//!
//! Never keeps a token's text: it is in one answer, its SHA-256 in the directory.

pub(crate) mod check;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_store::{Expected, Op, Store, Txn, compare, list_docs, list_docs_under, put_op};
use perch_types::api::{CreateDeployToken, CreatedToken, TokenInfo, TokensCurrent};
use perch_types::directory::{AppDoc, TokenDoc};
use perch_types::{Code, OrgSlug, Secret, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::auth::token_id;
use crate::body::Json;
use crate::config::Shared;
use crate::documents;
use crate::error::{Error, store as fault};
use crate::reply::Failure;
use crate::routes::{Caller, OfApp};

/// What a token for an app begins with; neutral, so that no client tries to read it
/// (contract 3.2).
const PREFIX: &str = "perch_deploy_";
/// The name of a token that was given none.
const NAME_DEFAULT: &str = "deploy";
/// The longest name of a token.
const NAME_BYTES_MAX: usize = 80;
/// How long a token holds when nothing else was said.
const EXPIRY_DEFAULT: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest that a token may hold.
const EXPIRY_MAX: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(request): Json<CreateDeployToken>,
) -> Result<JsonReply<CreatedToken>, Failure> {
    let name = request.name.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| NAME_DEFAULT.to_owned());
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let text = format!("name: is not 1 to {NAME_BYTES_MAX} bytes without control characters");
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let expiry = request.expiry.map_or(EXPIRY_DEFAULT, |expiry| expiry.get());
    if expiry.is_zero() || expiry > EXPIRY_MAX {
        let hours = EXPIRY_MAX.as_secs() / 3600;
        return Err(Failure::new(Code::InvalidValue, format!("expiry: is not 1ns to {hours}h")));
    }
    let now = shared.clock.now();
    let document = TokenDoc {
        name,
        org: app.org.clone(),
        operator: false,
        created_at: now,
        expires_at: Some(now.plus(expiry)),
        app_id: Some(app.id.clone()),
    };
    let created = write(&shared, &app, document).await?;
    shared.identity.read_again().await;
    Ok(JsonReply(created))
}

async fn write(shared: &Shared, app: &AppDoc, document: TokenDoc) -> Result<CreatedToken, Failure> {
    // One after the other, so that the limit is one.
    let _turn = shared.granting.lock().await;
    let store = shared.store.as_ref();
    let max = shared.limits.tokens_of_app_max;
    if of_app(store, app).await?.len() >= max {
        let text = format!("the app has {max} tokens, which is the limit");
        return Err(
            Failure::new(Code::Conflict, text).with_hint("end some with `perch tokens revoke`")
        );
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|source| Error::Random { source })?;
    let text = format!("{PREFIX}{}", hex(&bytes));
    let hash = hex(&Sha256::digest(&text));
    let token = CreatedToken {
        token: Secret::new(text),
        token_id: token_id(&hash),
        expires_at: document.expires_at,
    };
    let key = (app.org.clone(), hash);
    let mut compares: Vec<_> = compare::<TokenDoc>(&key, Expected::Absent).into_iter().collect();
    // An app that was deleted in between gets none.
    compares.push(documents::still(store, app).await?);
    let ops = vec![put_op(&key, &document).map_err(fault("write a token"))?];
    let written = store.txn(compares, ops).await.and_then(Txn::or_conflict);
    written.map_err(fault("write a token"))?;
    Ok(token)
}

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
) -> Result<JsonReply<TokensCurrent>, Failure> {
    let now = shared.clock.now();
    let mut tokens = Vec::new();
    for (key, token) in of_app(shared.store.as_ref(), &app).await? {
        if is_over(&token, now) {
            continue;
        }
        let (name, expires_at) = (token.name, token.expires_at);
        let apps = vec![app.name.to_string()];
        tokens.push(info(token_id(hash_of(&key)), &app.org, apps, (name, expires_at)));
    }
    tokens.sort_by(|one, other| (&one.name, &one.token_id).cmp(&(&other.name, &other.token_id)));
    Ok(JsonReply(TokensCurrent { tokens }))
}

pub(crate) async fn revoke(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let tokens = of_app(shared.store.as_ref(), &app).await?;
    let found = tokens.into_iter().find(|(key, _)| token_id(hash_of(key)) == asked);
    let (key, _) = found.ok_or_else(|| {
        let shown: String = asked.chars().take(80).collect();
        Failure::new(Code::NotFound, format!("token: the app has no token `{shown}`"))
            .with_hint("`perch tokens list` shows those there are")
    })?;
    shared.store.delete(&key, Expected::Any).await.map_err(fault("end a token"))?;
    shared.identity.read_again().await;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn current(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
) -> JsonReply<TokensCurrent> {
    let view = shared.view.load();
    let tokens = caller.0.iter().map(|principal| {
        let own = principal.app_id.as_ref().map(|id| {
            let app = view.apps().find(|app| app.id == *id);
            app.map_or_else(|| id.clone(), |app| app.name.to_string())
        });
        let about = (principal.name.clone(), principal.expires_at);
        info(principal.token_id.clone(), &principal.org, own.into_iter().collect(), about)
    });
    JsonReply(TokensCurrent { tokens: tokens.collect() })
}

fn info(
    token_id: String,
    org: &OrgSlug,
    apps: Vec<String>,
    (name, expires_at): (String, Option<Timestamp>),
) -> TokenInfo {
    TokenInfo {
        token_id,
        organization: org.to_string(),
        org_slug: org.clone(),
        apps,
        user: String::new(),
        restricted_to_machine: String::new(),
        source_machine_id: String::new(),
        name,
        expires_at,
    }
}

/// Returns the tokens for an app with their keys.
async fn of_app(store: &dyn Store, app: &AppDoc) -> Result<Vec<(String, TokenDoc)>, Error> {
    of_app_id(store, &app.org, &app.id).await
}

async fn of_app_id(
    store: &dyn Store,
    org: &OrgSlug,
    app_id: &str,
) -> Result<Vec<(String, TokenDoc)>, Error> {
    let found = list_docs_under::<TokenDoc>(store, &format!("{org}/")).await;
    let found = found.map_err(fault("list tokens"))?.documents.into_iter();
    let tokens = found.map(|(key, token)| (key, token.document));
    Ok(tokens.filter(|(_, token)| token.app_id.as_deref() == Some(app_id)).collect())
}

/// Ends the tokens of an app that is gone.
pub(crate) async fn end_of_app(shared: &Shared, org: &OrgSlug, app_id: &str) -> Result<(), Error> {
    let store = shared.store.as_ref();
    let keys = of_app_id(store, org, app_id).await?.into_iter().map(|(key, _)| key).collect();
    delete_all(shared, keys).await
}

/// Removes tokens for apps that hold no longer.
pub(crate) async fn forget_ended(shared: &Shared) -> Result<(), Error> {
    let now = shared.clock.now();
    let found = list_docs::<TokenDoc>(shared.store.as_ref()).await.map_err(fault("list tokens"))?;
    let ended = found.documents.into_iter().filter(|(_, it)| is_over(&it.document, now));
    let keys = ended.map(|(key, _)| key).collect();
    delete_all(shared, keys).await
}

async fn delete_all(shared: &Shared, keys: Vec<String>) -> Result<(), Error> {
    let is_any = !keys.is_empty();
    for batch in keys.chunks(perch_store::TXN_OPS_MAX) {
        let ops = batch.iter().map(|key| Op::delete(key.clone())).collect();
        let done = shared.store.txn(Vec::new(), ops).await.and_then(Txn::or_conflict);
        done.map_err(fault("end tokens"))?;
    }
    if is_any {
        shared.identity.read_again().await;
    }
    Ok(())
}

fn is_over(token: &TokenDoc, now: Timestamp) -> bool {
    token.expires_at.is_some_and(|end| end <= now)
}

fn hash_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")).ok();
    text
}
