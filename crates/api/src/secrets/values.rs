//! A change of an app's secrets: sealed values, digests, room for them.
//!
//! Never opens one: this side has the public half of the app's key.

use std::collections::BTreeMap;

use perch_seal::{PublicKey, Purpose};
use perch_store::{Op, delete_op, put_op};
use perch_types::directory::AppDoc;
use perch_types::keys::DigestsRequest;
use perch_types::secrets::{AppKey, AppSecret, COUNT_MAX, SecretDoc, TOTAL_BYTES_MAX, weight};
use perch_types::{Code, Secret};
use sha2::{Digest as _, Sha256};

use super::change::{Changed, Planned, Stored, app_key_of};
use super::role;
use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// Returns what is to be written; nothing when that changes nothing.
pub(super) async fn plan(
    shared: &Shared,
    app: &AppDoc,
    (stored, version): (&Stored, u64),
    values: &BTreeMap<String, Option<Secret>>,
) -> Result<Option<Planned>, Failure> {
    let gone = |(name, value): (&String, &Option<Secret>)| {
        value.is_none() && !stored.values.contains_key(name)
    };
    if values.iter().all(gone) {
        return Ok(None);
    }
    let set = |(name, value)| Option::map(Option::as_ref(value), |value: &Secret| (name, value));
    let set: Vec<(&String, &Secret)> = values.iter().filter_map(set).collect();
    room(stored, values)?;
    let (app_key, digests) = key_and_digests(shared, app, stored, &set).await?;
    let public = PublicKey::from_base64(&app_key.public).map_err(Error::from)?;
    let now = shared.clock.now();
    let mut ops = Vec::new();
    let mut answers = Vec::new();
    for ((name, value), digest) in set.into_iter().zip(digests) {
        let purpose = Purpose::AppSecret { org: &app.org, app: &app.name, name, version };
        let sealed = public.seal(purpose, value.expose().as_bytes()).map_err(Error::from)?;
        let created_at = stored.values.get(name).map_or(now, |before| before.created_at);
        let bytes = weight(value);
        let secret = SecretDoc { sealed, version, digest, bytes, created_at, updated_at: now };
        let key = (app.org.clone(), app.name.clone(), name.clone());
        ops.push(put_op(&key, &secret).map_err(fault("write secrets"))?);
        let SecretDoc { digest, created_at, updated_at, .. } = secret;
        answers.push(AppSecret { name: name.clone(), digest, created_at, updated_at });
    }
    ops.extend(values.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| -> Op {
        delete_op::<SecretDoc>(&(app.org.clone(), app.name.clone(), name.clone()))
    }));
    let changed = Changed { version, values: answers, key: None };
    Ok(Some(Planned { app_key, ops, changed }))
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
    let key = app_key_of(shared, app, stored).await?;
    if set.is_empty() {
        return Ok((key, Vec::new()));
    }
    let sha256_hex = set.iter().map(|(name, value)| hash(name, value)).collect();
    let request = DigestsRequest { of: role::app_ref(app), key: key.clone(), sha256_hex };
    let digests = role::of(shared)?.digests(&request).await.map_err(role::away)?.digests;
    if digests.len() != set.len() {
        return Err(Failure::new(Code::Internal, "the platform has a fault"));
    }
    Ok((key, digests))
}

fn hash(name: &str, value: &Secret) -> String {
    let bound = perch_seal::bind(&[name.as_bytes(), value.expose().as_bytes()]);
    Sha256::digest(bound).iter().map(|byte| format!("{byte:02x}")).collect()
}
