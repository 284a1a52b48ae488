//! Identity tokens of machines (contract 1.12): made from inside a machine, and the documents with
//! which others check them.
//!
//! Never has the key that signs: the role `keys` does, as it has an app's secret keys. Each
//! organization has one of its own; what a token says of a machine is what the platform knows, and
//! nothing that the machine says.

mod lately;

pub(crate) use self::lately::Lately;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use perch_store::{Compare, Error as StoreError, Expected, Txn, compare, get_doc, put_op};
use perch_types::api::CreateOidcToken;
use perch_types::host::MachineIdentity;
use perch_types::keys::{AppRef, KeyAction, MakeSecretKey, SecretKeyRef, UseSecretKey};
use perch_types::secret_keys::{SecretKeyDoc, SecretKeyType, Sign};
use perch_types::secrets::SecretsHead;
use perch_types::{ApiError, AppName, Code, Octets, OrgSlug};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::body::Json;
use crate::config::{Api, Shared};
use crate::documents;
use crate::error::store as fault;
use crate::names;
use crate::reply::Failure;
use crate::secrets::role;

/// How long a token holds.
const LIFETIME: Duration = Duration::from_secs(600);
/// The longest audience in bytes.
const AUDIENCE_BYTES_MAX: usize = 1024;
/// The host name below the platform's at which the documents are.
const LABEL: &str = "oidc";
/// The keys of the platform itself lie where an app's of this name would. No app can have it.
const PLATFORM: &str = "api";
/// The name of the key that signs.
const KEY: &str = "oidc";
/// Bytes of one of a point's two numbers.
const NUMBER_BYTES: usize = 32;

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    who: Option<Extension<MachineIdentity>>,
    Json(request): Json<CreateOidcToken>,
) -> Result<String, Failure> {
    let Some(Extension(who)) = who else {
        let text = "an identity token is a machine's: it is asked for from inside";
        return Err(Failure::new(Code::Forbidden, text).with_hint(
            "in a machine: curl --unix-socket /.fly/api -X POST http://localhost/v1/tokens/oidc",
        ));
    };
    let audience = request.aud.filter(|audience| !audience.is_empty());
    let is_fine =
        |text: &String| text.len() <= AUDIENCE_BYTES_MAX && !text.chars().any(char::is_control);
    if audience.as_ref().is_some_and(|audience| !is_fine(audience)) {
        let text =
            format!("aud: is not 1 to {AUDIENCE_BYTES_MAX} bytes without control characters");
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let mut claims = known(&shared, &who).await?;
    if request.aws_principal_tags == Some(true) {
        let tags = aws_tags(&claims);
        claims.insert("https://aws.amazon.com/tags".to_owned(), tags);
    }
    let org = who.org.as_str();
    let now = shared.clock.now();
    let jti = names::ulid(now);
    for (name, value) in [
        ("iss", json!(issuer(&shared, &who.org))),
        ("aud", json!(audience.unwrap_or_else(|| format!("https://fly.io/{org}")))),
        ("iat", json!(now.unix_s())),
        ("nbf", json!(now.unix_s())),
        ("exp", json!(now.plus(LIFETIME).unix_s())),
        ("jti", json!(jti)),
    ] {
        claims.insert(name.to_owned(), value);
    }
    sign(&shared, &who.org, &claims).await
}

/// Returns what the platform knows of a machine.
async fn known(shared: &Shared, who: &MachineIdentity) -> Result<Map<String, Value>, Failure> {
    let store = shared.store.as_ref();
    let (org, name) = (&who.org, &who.app);
    let gone = || Failure::from(ApiError::machine_not_found(who.machine.as_str()));
    let app = documents::app(store, org, name).await?;
    let app = app.ok_or_else(|| Failure::from(ApiError::app_not_found(name.as_str())))?;
    let placement = documents::placement(store, org, &who.machine).await?.ok_or_else(gone)?;
    let host = shared.hosts.get(&placement.document.host).ok_or_else(gone)?;
    let machine = host.client.machine(&who.machine).await?;
    let digest = machine.image_ref.digest.as_ref().map(ToString::to_string).unwrap_or_default();
    let claims = json!({
        "sub": format!("{org}:{name}:{}", machine.name),
        "app_id": app.id,
        "app_name": name,
        "org_id": org,
        "org_name": org,
        "machine_id": machine.id,
        "machine_name": machine.name,
        "machine_version": machine.instance,
        "image": machine.config.image,
        "image_digest": digest,
        "region": machine.region,
    });
    match claims {
        Value::Object(claims) => Ok(claims),
        _ => Err(Failure::new(Code::Internal, "the platform has a fault")),
    }
}

/// Returns claims as the session tags of AWS: every value is a list, and all go on.
fn aws_tags(claims: &Map<String, Value>) -> Value {
    let tags: Map<String, Value> = claims
        .iter()
        .filter(|(name, value)| *name != "sub" && value.as_str().is_some_and(|it| !it.is_empty()))
        .map(|(name, value)| (name.clone(), json!([value])))
        .collect();
    let names: Vec<&String> = tags.keys().collect();
    json!({"transitive_tag_keys": names, "principal_tags": tags})
}

fn issuer(shared: &Shared, org: &OrgSlug) -> String {
    format!("https://{LABEL}.{}/{org}", shared.platform.domain)
}

async fn sign(
    shared: &Shared,
    org: &OrgSlug,
    claims: &Map<String, Value>,
) -> Result<String, Failure> {
    let key = key(shared, org).await?;
    let public = key.document.public_key.as_ref().map(Octets::expose).unwrap_or_default();
    let header = json!({"alg": "ES256", "kid": kid(public), "typ": "JWT"});
    let part = |value: String| BASE64_URL.encode(value);
    let text =
        format!("{}.{}", part(header.to_string()), part(Value::Object(claims.clone()).to_string()));
    let plaintext = Octets::from(text.clone().into_bytes());
    let action = KeyAction::Sign(Sign { plaintext });
    let sealed = key.document.sealed.clone();
    let used =
        UseSecretKey { which: which(&key.of, key.head, key.document.version), sealed, action };
    let used = role::of(shared)?.use_secret_key(&used).await.map_err(role::away)?;
    Ok(format!("{text}.{}", BASE64_URL.encode(used.output.expose())))
}

/// The key of an organization.
struct SigningKey {
    of: AppRef,
    head: SecretsHead,
    document: SecretKeyDoc,
}

fn of(org: &OrgSlug) -> Result<AppRef, Failure> {
    let app: AppName =
        PLATFORM.parse().map_err(|_| Failure::new(Code::Internal, "the platform has a fault"))?;
    Ok(AppRef { org: org.clone(), app, app_id: PLATFORM.to_owned() })
}

fn which(of: &AppRef, head: SecretsHead, version: u64) -> SecretKeyRef {
    SecretKeyRef {
        of: of.clone(),
        key: head.key,
        name: KEY.to_owned(),
        kind: SecretKeyType::Es256,
        version,
    }
}

/// Returns the key of an organization, if it has one.
async fn there(shared: &Shared, org: &OrgSlug) -> Result<Option<SigningKey>, Failure> {
    let (of, store) = (of(org)?, shared.store.as_ref());
    let at = (org.clone(), of.app.clone());
    let head = get_doc::<SecretsHead>(store, &at).await.map_err(fault("read a key"))?;
    let at = (org.clone(), of.app.clone(), KEY.to_owned());
    let document = get_doc::<SecretKeyDoc>(store, &at).await.map_err(fault("read a key"))?;
    Ok(head.zip(document).map(|(head, document)| SigningKey {
        of,
        head: head.document,
        document: document.document,
    }))
}

/// Returns the key of an organization, made the first time.
async fn key(shared: &Shared, org: &OrgSlug) -> Result<SigningKey, Failure> {
    if let Some(key) = there(shared, org).await? {
        return Ok(key);
    }
    let of = of(org)?;
    let keys = role::of(shared)?;
    let key = keys.make(&of).await.map_err(role::away)?;
    let head = SecretsHead { app_id: of.app_id.clone(), version: 1, key };
    let which = which(&of, head.clone(), head.version);
    let made = MakeSecretKey { which, value: None };
    let made = keys.make_secret_key(&made).await.map_err(role::away)?;
    let now = shared.clock.now();
    let document = SecretKeyDoc {
        kind: SecretKeyType::Es256,
        sealed: made.sealed,
        version: head.version,
        public_key: made.public_key,
        created_at: now,
        updated_at: now,
    };
    let at = (org.clone(), of.app.clone());
    let compares: Vec<Compare> =
        compare::<SecretsHead>(&at, Expected::Absent).into_iter().collect();
    let put_head = put_op(&at, &head).map_err(fault("write a key"))?;
    let at = (org.clone(), of.app.clone(), KEY.to_owned());
    let put_key = put_op(&at, &document).map_err(fault("write a key"))?;
    let written = shared.store.txn(compares, vec![put_head, put_key]).await;
    match written.and_then(Txn::or_conflict) {
        Ok(_) => {
            keep(shared, org.clone(), document.public_key.as_ref());
            Ok(SigningKey { of, head, document })
        }
        // Somebody else was faster: theirs is the one.
        Err(StoreError::Conflict { .. }) => there(shared, org).await?.ok_or_else(|| {
            Failure::new(Code::Conflict, "the key was made at the same moment")
                .with_hint("try again")
        }),
        Err(error) => Err(fault("write a key")(error).into()),
    }
}

/// Returns what names a key: the hash of its public half (RFC 7638).
fn kid(public: &[u8]) -> String {
    BASE64_URL.encode(Sha256::digest(jwk(public).to_string()))
}

/// Returns the public half with its members in the order in which they are hashed.
fn jwk(point: &[u8]) -> Value {
    let numbers = point.get(1..).unwrap_or_default();
    let (x, y) = numbers.split_at_checked(NUMBER_BYTES).unwrap_or_default();
    json!({"crv": "P-256", "kty": "EC", "x": BASE64_URL.encode(x), "y": BASE64_URL.encode(y)})
}

impl Api {
    /// Returns the host name at which [`Self::identity_document`]s are to be served.
    #[must_use]
    pub fn identity_host(&self) -> String {
        format!("{LABEL}.{}", self.shared.platform.domain)
    }

    /// Returns a document with which identity tokens are checked, by its path: an organization's
    /// OpenID configuration or its keys.
    pub async fn identity_document(&self, path: &str) -> Option<Vec<u8>> {
        let (org, rest) = path.strip_prefix('/')?.split_once('/')?;
        let org: OrgSlug = org.parse().ok()?;
        let document = match rest {
            ".well-known/openid-configuration" => configuration(&issuer(&self.shared, &org)),
            ".well-known/jwks" => return keys_document(&self.shared, org).await,
            _ => return None,
        };
        Some(document.to_string().into_bytes())
    }
}

/// Returns the document of an organization's keys; the directory is read when that was not lately.
async fn keys_document(shared: &Shared, org: OrgSlug) -> Option<Vec<u8>> {
    let known = shared.identity_keys.get(&org, shared.clock.boot_ms());
    if known.is_some() {
        return known;
    }
    let key = there(shared, &org).await.ok()?;
    Some(keep(shared, org, key.and_then(|key| key.document.public_key).as_ref()))
}

/// Keeps the document of an organization's keys, and returns it.
fn keep(shared: &Shared, org: OrgSlug, public: Option<&Octets>) -> Vec<u8> {
    let document = jwks(public).to_string().into_bytes();
    let kept = (document.clone(), public.is_some());
    shared.identity_keys.put(org, kept, shared.clock.boot_ms());
    document
}

fn configuration(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "response_types_supported": ["id_token"],
        "response_modes_supported": ["query"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "scopes_supported": ["openid"],
        "claims_supported": [
            "sub", "aud", "exp", "iat", "iss", "jti", "nbf", "app_id", "app_name", "org_id",
            "org_name", "machine_id", "machine_name", "machine_version", "image", "image_digest",
            "region"
        ],
    })
}

fn jwks(public: Option<&Octets>) -> Value {
    let keys = public.into_iter().map(|public| {
        let mut key = jwk(public.expose());
        key["kid"] = json!(kid(public.expose()));
        key["alg"] = json!("ES256");
        key["use"] = json!("sig");
        key
    });
    json!({"keys": keys.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members are hashed in their order, and without spaces (RFC 7638, section 3.2).
    #[test]
    fn a_key_is_named_by_the_hash_of_its_members() {
        let point: Vec<u8> = std::iter::once(4).chain(0..64).collect();
        let text = jwk(&point).to_string();
        let x = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let y = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8";
        assert_eq!(text, format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#));
        assert_eq!(kid(&point).len(), 43);
    }

    #[test]
    fn tags_are_lists_of_what_is_there() {
        let claims = json!({"sub": "a:b:c", "app_name": "web", "image_digest": "", "n": 1});
        let Value::Object(claims) = claims else { panic!("an object") };
        assert_eq!(
            aws_tags(&claims),
            json!({"transitive_tag_keys": ["app_name"], "principal_tags": {"app_name": ["web"]}})
        );
    }
}
