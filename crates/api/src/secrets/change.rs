//! The secrets of an app in the directory, read at one revision and changed at one.
//!
//! Never opens one: this side has the public half of the app's key. Every change compares the
//! app's version first, so that of two at once neither is lost.

use std::collections::BTreeMap;

use perch_seal::{PublicKey, Purpose};
use perch_store::{
    Error as StoreError, Expected, Op, Txn, Versioned, compare, delete_op, get_doc, put_op,
};
use perch_types::directory::{AppDoc, Document as _};
use perch_types::keys::{AppRef, DigestsRequest};
use perch_types::secrets::{
    AppKey, AppSecret, COUNT_MAX, SecretDoc, SecretsHead, TOTAL_BYTES_MAX, prefix, weight,
};
use perch_types::{ApiError, AppName, Code, OrgSlug, Secret};
use sha2::{Digest as _, Sha256};

use crate::config::Shared;
use crate::documents;
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// How often a change begins anew because another api was faster.
const ATTEMPTS_MAX: usize = 16;

/// What the directory has of an app's secrets.
pub(super) struct Stored {
    pub(super) head: Option<Versioned<SecretsHead>>,
    pub(super) values: BTreeMap<String, SecretDoc>,
}

impl Stored {
    pub(super) fn version(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.document.version)
    }
}

/// What a change did.
pub(super) struct Changed {
    pub(super) version: u64,
    /// The secrets that were set, by name.
    pub(super) set: Vec<AppSecret>,
}

fn key(app: &AppDoc) -> (OrgSlug, AppName) {
    (app.org.clone(), app.name.clone())
}

/// Returns the version of an app's secrets; 0 before the first.
pub(super) async fn version(shared: &Shared, app: &AppDoc) -> Result<u64, Error> {
    let head = get_doc::<SecretsHead>(shared.store.as_ref(), &key(app)).await;
    Ok(head.map_err(fault("read secrets"))?.map_or(0, |head| head.document.version))
}

/// Reads everything at one revision.
pub(super) async fn load(shared: &Shared, app: &AppDoc) -> Result<Stored, Error> {
    let prefix = prefix(&app.org, &app.name);
    let listing = shared.store.list(&prefix).await.map_err(fault("read secrets"))?;
    let mut stored = Stored { head: None, values: BTreeMap::new() };
    for entry in listing.entries {
        let rest = entry.key.strip_prefix(&prefix).unwrap_or_default();
        let unreadable = |source| {
            let key = entry.key.clone();
            fault("read secrets")(StoreError::Unreadable { key, source })
        };
        if rest == "head" {
            let document = serde_json::from_slice(&entry.value).map_err(unreadable)?;
            stored.head = Some(Versioned { document, revision: entry.revision });
        } else if let Some(name) = rest.strip_prefix("values/") {
            let document = serde_json::from_slice(&entry.value).map_err(unreadable)?;
            stored.values.insert(name.to_owned(), document);
        }
    }
    Ok(stored)
}

/// Sets secrets, and takes away those without a value; all of it or nothing.
pub(super) async fn change(
    shared: &Shared,
    app: &AppDoc,
    values: &BTreeMap<String, Option<Secret>>,
) -> Result<Changed, Failure> {
    let _turn = shared.secret_turns.of(&app.name).lock().await;
    let mut attempts = ATTEMPTS_MAX;
    loop {
        attempts -= 1;
        match try_change(shared, app, values).await? {
            Ok(changed) => return Ok(changed),
            Err(StoreError::Conflict { key, .. }) if key == AppDoc::key(&self::key(app)) => {
                return Err(ApiError::app_not_found(app.name.as_str()).into());
            }
            Err(StoreError::Conflict { .. }) if attempts > 0 => {}
            Err(error) => return Err(fault("write secrets")(error).into()),
        }
    }
}

/// Changes once; the inner error is that of the write.
async fn try_change(
    shared: &Shared,
    app: &AppDoc,
    values: &BTreeMap<String, Option<Secret>>,
) -> Result<Result<Changed, StoreError>, Failure> {
    let stored = load(shared, app).await?;
    let gone = |(name, value): (&String, &Option<Secret>)| {
        value.is_none() && !stored.values.contains_key(name)
    };
    if values.iter().all(gone) {
        return Ok(Ok(Changed { version: stored.version(), set: Vec::new() }));
    }
    let set = |(name, value)| Option::map(Option::as_ref(value), |value: &Secret| (name, value));
    let set: Vec<(&String, &Secret)> = values.iter().filter_map(set).collect();
    room(&stored, values)?;
    let (app_key, digests) = key_and_digests(shared, app, &stored, &set).await?;
    let version = stored.version().saturating_add(1);
    let public = PublicKey::from_base64(&app_key.public).map_err(Error::from)?;
    let now = shared.clock.now();
    let mut ops = Vec::new();
    let mut answers = Vec::new();
    let encode = || fault("write secrets");
    for ((name, value), digest) in set.into_iter().zip(digests) {
        let purpose = Purpose::AppSecret { org: &app.org, app: &app.name, name, version };
        let sealed = public.seal(purpose, value.expose().as_bytes()).map_err(Error::from)?;
        let created_at = stored.values.get(name).map_or(now, |before| before.created_at);
        let bytes = weight(value);
        let secret = SecretDoc { sealed, version, digest, bytes, created_at, updated_at: now };
        let key = (app.org.clone(), app.name.clone(), name.clone());
        ops.push(put_op(&key, &secret).map_err(encode())?);
        let SecretDoc { digest, created_at, updated_at, .. } = secret;
        answers.push(AppSecret { name: name.clone(), digest, created_at, updated_at });
    }
    ops.extend(values.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| -> Op {
        delete_op::<SecretDoc>(&(app.org.clone(), app.name.clone(), name.clone()))
    }));
    let head = SecretsHead { app_id: app.id.clone(), version, key: app_key };
    ops.push(put_op(&key(app), &head).map_err(encode())?);
    let expected = match &stored.head {
        Some(head) => Expected::Revision(head.revision),
        None => Expected::Absent,
    };
    // An app that was deleted in between must not get secrets that nobody would take away.
    let mut compares = vec![documents::still(shared.store.as_ref(), app).await?];
    compares.extend(compare::<SecretsHead>(&key(app), expected));
    let written = shared.store.txn(compares, ops).await.and_then(Txn::or_conflict);
    Ok(written.map(|_| Changed { version, set: answers }))
}

/// Refuses more than an app may have.
fn room(stored: &Stored, values: &BTreeMap<String, Option<Secret>>) -> Result<(), Failure> {
    let mut sizes: BTreeMap<&str, usize> =
        stored.values.iter().map(|(name, secret)| (name.as_str(), secret.bytes)).collect();
    for (name, value) in values {
        match value {
            Some(value) => sizes.insert(name, weight(value)),
            None => sizes.remove(name.as_str()),
        };
    }
    let refuse = |text: String| {
        let hint = "take some away with `null`, or keep large ones in a volume";
        Err(Failure::new(Code::InvalidValue, text).with_hint(hint))
    };
    if sizes.len() > COUNT_MAX {
        return refuse(format!(
            "values: {} secrets of one app are more than {COUNT_MAX}",
            sizes.len()
        ));
    }
    let bytes: usize = sizes.values().sum();
    if bytes > TOTAL_BYTES_MAX {
        return refuse(format!(
            "values: {bytes} bytes in the secrets of one app are more than {TOTAL_BYTES_MAX}"
        ));
    }
    Ok(())
}

/// Returns the app's key, made if there is none, and the digests of the values.
async fn key_and_digests(
    shared: &Shared,
    app: &AppDoc,
    stored: &Stored,
    set: &[(&String, &Secret)],
) -> Result<(AppKey, Vec<String>), Failure> {
    let of = AppRef { org: app.org.clone(), app: app.name.clone(), app_id: app.id.clone() };
    let known = stored.head.as_ref().map(|head| head.document.key.clone());
    if let (Some(key), true) = (&known, set.is_empty()) {
        return Ok((key.clone(), Vec::new()));
    }
    let away = |error: perch_client::Error| {
        if error.code().is_some() {
            return Failure::from(error);
        }
        tracing::warn!(error = crate::reply::chain(&error), "role `keys` does not answer");
        Failure::new(Code::Unavailable, "the role `keys`, which makes keys, does not answer")
            .with_hint("nothing was changed; try again in a moment")
    };
    let Some(keys) = &shared.keys else {
        return Err(Failure::new(Code::Unavailable, "this platform has no role `keys`"));
    };
    let key = match known {
        Some(key) => key,
        None => keys.make(&of).await.map_err(away)?,
    };
    let sha256_hex = set.iter().map(|(name, value)| hash(name, value)).collect();
    let request = DigestsRequest { of, key: key.clone(), sha256_hex };
    let digests = keys.digests(&request).await.map_err(away)?.digests;
    if digests.len() != set.len() {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    }
    Ok((key, digests))
}

fn hash(name: &str, value: &Secret) -> String {
    let bound = perch_seal::bind(&[name.as_bytes(), value.expose().as_bytes()]);
    Sha256::digest(bound).iter().map(|byte| format!("{byte:02x}")).collect()
}
