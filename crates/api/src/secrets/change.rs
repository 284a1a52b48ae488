//! The secrets of an app in the directory, read at one revision and changed at one.
//!
//! Never opens one. Every change, of values and of secret keys, compares the app's version first,
//! so that of two at once neither is lost.

use std::collections::BTreeMap;

use perch_store::{Error as StoreError, Expected, Op, Txn, Versioned, compare, get_doc, put_op};
use perch_types::directory::{AppDoc, Document as _};
use perch_types::secret_keys::{SecretKey, SecretKeyDoc, SecretKeyType};
use perch_types::secrets::{AppKey, AppSecret, SecretDoc, SecretsHead, prefix};
use perch_types::{ApiError, AppName, Octets, OrgSlug, Secret};

use super::{keys, role, values};
use crate::config::Shared;
use crate::documents;
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// How often a change begins anew because another api was faster.
const ATTEMPTS_MAX: usize = 16;

/// What the directory has of an app's secrets.
#[derive(Default)]
pub(super) struct Stored {
    head: Option<Versioned<SecretsHead>>,
    pub(super) values: BTreeMap<String, SecretDoc>,
    pub(super) keys: BTreeMap<String, SecretKeyDoc>,
}

impl Stored {
    pub(super) fn version(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.document.version)
    }

    /// Returns the app's key, if it has one.
    pub(super) fn app_key(&self) -> Option<&AppKey> {
        self.head.as_ref().map(|head| &head.document.key)
    }
}

/// What is to be changed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Set secrets, and take away those without a value.
    Values(&'a BTreeMap<String, Option<Secret>>),
    /// Set a secret key, or have one made.
    SetKey { name: &'a str, kind: SecretKeyType, value: Option<&'a Octets> },
    /// Take a secret key away.
    DeleteKey(&'a str),
}

/// What a change did.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) version: u64,
    /// The secrets that were set, by name.
    pub(super) values: Vec<AppSecret>,
    /// The secret key that was set.
    pub(super) key: Option<SecretKey>,
}

/// What is to be written, all of it or nothing.
pub(super) struct Planned {
    pub(super) app_key: AppKey,
    pub(super) ops: Vec<Op>,
    pub(super) changed: Changed,
}

fn key(app: &AppDoc) -> (OrgSlug, AppName) {
    (app.org.clone(), app.name.clone())
}

/// Returns the app's key, made if there is none.
pub(super) async fn app_key_of(
    shared: &Shared,
    app: &AppDoc,
    stored: &Stored,
) -> Result<AppKey, Failure> {
    match stored.app_key() {
        Some(key) => Ok(key.clone()),
        None => Ok(role::of(shared)?.make(&role::app_ref(app)).await.map_err(role::away)?),
    }
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
    let mut stored = Stored::default();
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
        } else if let Some(name) = rest.strip_prefix("keys/") {
            let document = serde_json::from_slice(&entry.value).map_err(unreadable)?;
            stored.keys.insert(name.to_owned(), document);
        }
    }
    // The app was deleted in between, and another has its name: none of this is its own.
    if stored.head.as_ref().is_some_and(|head| head.document.app_id != app.id) {
        return Ok(Stored::default());
    }
    Ok(stored)
}

/// Changes the secrets of an app; all of it or nothing.
pub(super) async fn change(
    shared: &Shared,
    app: &AppDoc,
    wanted: Wanted<'_>,
) -> Result<Changed, Failure> {
    let _turn = shared.secret_turns.of(&app.name).lock().await;
    let mut attempts = ATTEMPTS_MAX;
    loop {
        attempts -= 1;
        match try_change(shared, app, wanted).await? {
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
    wanted: Wanted<'_>,
) -> Result<Result<Changed, StoreError>, Failure> {
    let stored = load(shared, app).await?;
    let version = stored.version().saturating_add(1);
    let planned = match wanted {
        Wanted::Values(values) => values::plan(shared, app, (&stored, version), values).await?,
        Wanted::SetKey { name, kind, value } => {
            Some(keys::plan(shared, app, (&stored, version), (name, kind, value)).await?)
        }
        Wanted::DeleteKey(name) => keys::plan_delete(app, (&stored, version), name),
    };
    let Some(Planned { app_key, mut ops, changed }) = planned else {
        return Ok(Ok(Changed { version: stored.version(), ..Changed::default() }));
    };
    let head = SecretsHead { app_id: app.id.clone(), version, key: app_key };
    ops.push(put_op(&key(app), &head).map_err(fault("write secrets"))?);
    let expected = match &stored.head {
        Some(head) => Expected::Revision(head.revision),
        None => Expected::Absent,
    };
    // An app that was deleted in between must not get secrets that nobody would take away.
    let mut compares = vec![documents::still(shared.store.as_ref(), app).await?];
    compares.extend(compare::<SecretsHead>(&key(app), expected));
    let written = shared.store.txn(compares, ops).await.and_then(Txn::or_conflict);
    Ok(written.map(|_| changed))
}
