//! Secret keys (contract 1.9): set or made, listed, used, taken away.
//!
//! Never has one but in the body that brings it: the role `keys` makes, seals and uses them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_store::{delete_op, put_op};
use perch_types::directory::AppDoc;
use perch_types::keys::{KeyAction, MakeSecretKey, SecretKeyRef, UseSecretKey};
use perch_types::secret_keys::{
    COUNT_MAX, Decrypt, Decrypted, Encrypt, Encrypted, SecretKey, SecretKeyDoc, SecretKeyIsSet,
    SecretKeyType, SecretKeys, SetSecretKey, Sign, Signed, VALUE_BYTES_MAX, Verify, name_fault,
};
use perch_types::secrets::SecretIsGone;
use perch_types::{Code, Octets};

use super::change::{Changed, Planned, Stored, Wanted, app_key_of, change, load};
use super::{reached, role};
use crate::body::{Parameters, SecretJson};
use crate::config::Shared;
use crate::error::store as fault;
use crate::reply::Failure;
use crate::routes::OfApp;

type Answer<T> = Result<JsonReply<T>, Failure>;

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Answer<SecretKeys> {
    let types = types(&parameters)?;
    let stored = load(&shared, &app).await?;
    reached(&parameters, stored.version())?;
    let keys = stored.keys.iter().filter(|(_, key)| types.is_empty() || types.contains(&key.kind));
    Ok(JsonReply(SecretKeys { secret_keys: keys.map(|(name, key)| answer(name, key)).collect() }))
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
) -> Answer<SecretKey> {
    let (_, key) = find(&shared, &app, &name, &parameters).await?;
    Ok(JsonReply(answer(&name, &key)))
}

pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    SecretJson(request): SecretJson<SetSecretKey>,
) -> Result<(StatusCode, JsonReply<SecretKeyIsSet>), Failure> {
    let value = request.value.filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::new(Code::InvalidRequest, "value: is not there")
            .with_hint("the key, in base64; `/generate` makes one")
    })?;
    if value.len() > VALUE_BYTES_MAX {
        let text = format!("value: {} bytes are more than {VALUE_BYTES_MAX}", value.len());
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let set = put(&shared, &app, (&name, request.kind), Some(&value)).await?;
    Ok((StatusCode::CREATED, set))
}

pub(crate) async fn generate(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    SecretJson(request): SecretJson<SetSecretKey>,
) -> Result<(StatusCode, JsonReply<SecretKeyIsSet>), Failure> {
    if request.value.is_some_and(|value| !value.is_empty()) {
        let text = "value: a key that is to be made cannot be brought";
        return Err(Failure::new(Code::InvalidValue, text)
            .with_hint("send it without `/generate` to set it"));
    }
    let set = put(&shared, &app, (&name, request.kind), None).await?;
    Ok((StatusCode::CREATED, set))
}

async fn put(
    shared: &Shared,
    app: &AppDoc,
    (name, kind): (&str, SecretKeyType),
    value: Option<&Octets>,
) -> Result<JsonReply<SecretKeyIsSet>, Failure> {
    if let Some(fault) = name_fault(name) {
        let text = format!("secret_name: `{}` {fault}", shown(name));
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let changed = change(shared, app, Wanted::SetKey { name, kind, value }).await?;
    let Changed { version, key: Some(key), .. } = changed else {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    };
    Ok(JsonReply(SecretKeyIsSet { key, version, version_older: version }))
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
) -> Answer<SecretIsGone> {
    if !load(&shared, &app).await?.keys.contains_key(&name) {
        return Err(unknown(&name));
    }
    let version = change(&shared, &app, Wanted::DeleteKey(&name)).await?.version;
    Ok(JsonReply(SecretIsGone { version, version_older: version }))
}

pub(crate) async fn encrypt(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
    SecretJson(request): SecretJson<Encrypt>,
) -> Answer<Encrypted> {
    let at = (&*shared, &*app, name.as_str());
    let ciphertext = make_use(at, &parameters, KeyAction::Encrypt(request)).await?;
    Ok(JsonReply(Encrypted { ciphertext }))
}

pub(crate) async fn decrypt(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
    SecretJson(request): SecretJson<Decrypt>,
) -> Answer<Decrypted> {
    let at = (&*shared, &*app, name.as_str());
    let plaintext = make_use(at, &parameters, KeyAction::Decrypt(request)).await?;
    Ok(JsonReply(Decrypted { plaintext }))
}

pub(crate) async fn sign(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
    SecretJson(request): SecretJson<Sign>,
) -> Answer<Signed> {
    let at = (&*shared, &*app, name.as_str());
    let signature = make_use(at, &parameters, KeyAction::Sign(request)).await?;
    Ok(JsonReply(Signed { signature }))
}

pub(crate) async fn verify(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, name)): Path<(String, String)>,
    parameters: Parameters,
    SecretJson(request): SecretJson<Verify>,
) -> Result<StatusCode, Failure> {
    let at = (&*shared, &*app, name.as_str());
    make_use(at, &parameters, KeyAction::Verify(request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn make_use(
    (shared, app, name): (&Shared, &AppDoc, &str),
    parameters: &Parameters,
    action: KeyAction,
) -> Result<Octets, Failure> {
    // Before the role is asked: what is far too long it does not read, and cannot name the field.
    if let Some(text) = action.overlong() {
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let (stored, document) = find(shared, app, name, parameters).await?;
    // Keys lie beside the head from the first on.
    let key = stored.app_key().cloned().ok_or_else(|| unknown(name))?;
    let SecretKeyDoc { kind, sealed, version, .. } = document;
    let which = SecretKeyRef { of: role::app_ref(app), key, name: name.to_owned(), kind, version };
    let used = UseSecretKey { which, sealed, action };
    Ok(role::of(shared)?.use_secret_key(&used).await.map_err(role::away)?.output)
}

async fn find(
    shared: &Shared,
    app: &AppDoc,
    name: &str,
    parameters: &Parameters,
) -> Result<(Stored, SecretKeyDoc), Failure> {
    let mut stored = load(shared, app).await?;
    reached(parameters, stored.version())?;
    let key = stored.keys.remove(name).ok_or_else(|| unknown(name))?;
    Ok((stored, key))
}

/// Returns what is to be written to set a key.
pub(super) async fn plan(
    shared: &Shared,
    app: &AppDoc,
    (stored, version): (&Stored, u64),
    (name, kind, value): (&str, SecretKeyType, Option<&Octets>),
) -> Result<Planned, Failure> {
    let before = stored.keys.get(name);
    if before.is_none() && stored.keys.len() >= COUNT_MAX {
        let text = format!("secret_name: an app has at most {COUNT_MAX} secret keys");
        return Err(Failure::new(Code::InvalidValue, text).with_hint("delete one of them"));
    }
    let app_key = app_key_of(shared, app, stored).await?;
    let which = SecretKeyRef {
        of: role::app_ref(app),
        key: app_key.clone(),
        name: name.to_owned(),
        kind,
        version,
    };
    let request = MakeSecretKey { which, value: value.cloned() };
    let made = role::of(shared)?.make_secret_key(&request).await.map_err(role::away)?;
    let now = shared.clock.now();
    let document = SecretKeyDoc {
        kind,
        sealed: made.sealed,
        version,
        public_key: made.public_key,
        created_at: before.map_or(now, |before| before.created_at),
        updated_at: now,
    };
    let at = (app.org.clone(), app.name.clone(), name.to_owned());
    let ops = vec![put_op(&at, &document).map_err(fault("write secrets"))?];
    let key = Some(answer(name, &document));
    Ok(Planned { app_key, ops, changed: Changed { version, values: Vec::new(), key } })
}

/// Returns what is to be written to take a key away; nothing when there is none.
pub(super) fn plan_delete(
    app: &AppDoc,
    (stored, version): (&Stored, u64),
    name: &str,
) -> Option<Planned> {
    stored.keys.get(name)?;
    let at = (app.org.clone(), app.name.clone(), name.to_owned());
    Some(Planned {
        app_key: stored.app_key()?.clone(),
        ops: vec![delete_op::<SecretKeyDoc>(&at)],
        changed: Changed { version, ..Changed::default() },
    })
}

/// Reads which types are asked for: repeated, or with commas between them.
fn types(parameters: &Parameters) -> Result<Vec<SecretKeyType>, Failure> {
    let words = parameters.all("types").flat_map(|list| list.split(',')).map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    let read = words.map(|word| {
        word.parse().map_err(|fault| {
            let text = format!("types: `{}` {fault}", shown(word));
            Failure::new(Code::InvalidValue, text)
        })
    });
    read.collect()
}

fn answer(name: &str, key: &SecretKeyDoc) -> SecretKey {
    SecretKey {
        name: name.to_owned(),
        kind: key.kind,
        public_key: key.public_key.clone(),
        created_at: key.created_at,
        updated_at: key.updated_at,
    }
}

fn unknown(name: &str) -> Failure {
    let text = format!("secret_name: there is no secret key `{}`", shown(name));
    Failure::new(Code::NotFound, text)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
