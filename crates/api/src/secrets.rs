//! App secrets (contract 1.9): set, listed, taken away.
//!
//! Never answers a value: they can be written here and are read inside machines only.

mod change;
pub(crate) mod keys;
pub(crate) mod named;
pub(crate) mod role;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_types::Code;
use perch_types::directory::AppDoc;
use perch_types::secrets::{
    AppSecret, AppSecrets, CHANGES_MAX, SecretDoc, SecretIsGone, SecretIsSet, SetSecret,
    UpdateSecrets, UpdatedSecrets, name_fault, value_fault,
};

use self::change::{Wanted, change, load};
use crate::body::{Parameters, SecretJson};
use crate::config::Shared;
use crate::reply::Failure;
use crate::routes::OfApp;

type Answer<T> = Result<JsonReply<T>, Failure>;

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Answer<AppSecrets> {
    write_only(&parameters)?;
    let stored = load(&shared, &app).await?;
    reached(&parameters, stored.version())?;
    let version = stored.version();
    let secrets = stored.values.iter().map(|(name, secret)| answer(name, secret)).collect();
    Ok(JsonReply(AppSecrets { secrets, version }))
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
) -> Answer<AppSecret> {
    write_only(&parameters)?;
    let stored = load(&shared, &app).await?;
    reached(&parameters, stored.version())?;
    let secret = stored.values.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(JsonReply(answer(&name, secret)))
}

pub(crate) async fn update(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    SecretJson(request): SecretJson<UpdateSecrets>,
) -> Answer<UpdatedSecrets> {
    let count = request.values.len();
    if count == 0 {
        return Err(Failure::new(Code::InvalidRequest, "values: names no secret"));
    }
    if count > CHANGES_MAX {
        let text = format!("values: {count} names are more than {CHANGES_MAX} in one request");
        return Err(Failure::new(Code::InvalidValue, text).with_hint("send the rest in another"));
    }
    for (name, value) in &request.values {
        let shown: String = name.chars().take(80).collect();
        if let Some(fault) = name_fault(name) {
            return Err(Failure::new(Code::InvalidValue, format!("values: `{shown}` {fault}")));
        }
        if let Some(fault) = value.as_ref().and_then(value_fault) {
            return Err(Failure::new(Code::InvalidValue, format!("values.{shown}: {fault}")));
        }
    }
    let changed = change(&shared, &app, Wanted::Values(&request.values)).await?;
    let version = changed.version;
    Ok(JsonReply(UpdatedSecrets { secrets: changed.values, version, version_older: version }))
}

pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    SecretJson(request): SecretJson<SetSecret>,
) -> Result<(StatusCode, JsonReply<SecretIsSet>), Failure> {
    if let Some(fault) = name_fault(&name) {
        let shown: String = name.chars().take(80).collect();
        return Err(Failure::new(Code::InvalidValue, format!("secret_name: `{shown}` {fault}")));
    }
    if let Some(fault) = value_fault(&request.value) {
        return Err(Failure::new(Code::InvalidValue, format!("value: {fault}")));
    }
    let values = BTreeMap::from([(name, Some(request.value))]);
    let mut changed = change(&shared, &app, Wanted::Values(&values)).await?;
    let version = changed.version;
    let Some(secret) = changed.values.pop() else {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    };
    let answer = SecretIsSet { secret, version, version_older: version };
    Ok((StatusCode::CREATED, JsonReply(answer)))
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
) -> Answer<SecretIsGone> {
    if !load(&shared, &app).await?.values.contains_key(&name) {
        return Err(unknown(&name));
    }
    let gone = BTreeMap::from([(name, None)]);
    let version = change(&shared, &app, Wanted::Values(&gone)).await?.version;
    Ok(JsonReply(SecretIsGone { version, version_older: version }))
}

/// Refuses a machine that needs a later version of its app's secrets than there is.
pub(crate) async fn reach(
    shared: &Shared,
    app: &AppDoc,
    min_version: Option<u64>,
) -> Result<(), Failure> {
    match min_version {
        Some(wanted) if wanted > 0 => {
            let version = change::version(shared, app).await?;
            at_least("min_secrets_version", version, wanted)
        }
        _ => Ok(()),
    }
}

/// Refuses a read that needs a later version than there is; clients spell the parameter in two
/// ways (contract 1.9).
fn reached(parameters: &Parameters, version: u64) -> Result<(), Failure> {
    for name in ["min_version", "version"] {
        if let Some(wanted) = parameters.parsed::<u64>(name)? {
            at_least(name, version, wanted)?;
        }
    }
    Ok(())
}

fn at_least(field: &str, version: u64, wanted: u64) -> Result<(), Failure> {
    if version >= wanted {
        return Ok(());
    }
    let text = format!("{field}: the app's secrets have version {version}, not {wanted}");
    Err(Failure::new(Code::PreconditionFailed, text))
}

fn write_only(parameters: &Parameters) -> Result<(), Failure> {
    if !parameters.flag("show_secrets")? {
        return Ok(());
    }
    let text = "show_secrets: values can be written and not read";
    Err(Failure::new(Code::UnsupportedKey, text)
        .with_hint("a machine sees them in its environment; here are their digests"))
}

fn answer(name: &str, secret: &SecretDoc) -> AppSecret {
    AppSecret {
        name: name.to_owned(),
        digest: secret.digest.clone(),
        created_at: secret.created_at,
        updated_at: secret.updated_at,
    }
}

fn unknown(name: &str) -> Failure {
    let shown: String = name.chars().take(80).collect();
    Failure::new(Code::NotFound, format!("secret_name: there is no secret `{shown}`"))
}
