//! What the made-up platform has beside an app's machines: secrets, secret keys, addresses.
//!
//! Never checks anything. The tests of the CLI use this file too.

use axum::body::Bytes;
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use perch_types::Timestamp;
use perch_types::ips::{AssignIp, IpAssignment, IpAssignments, IpType};
use perch_types::secret_keys::{SecretKey, SecretKeyIsSet, SecretKeys, SetSecretKey};
use perch_types::secrets::{AppSecret, AppSecrets, SecretIsGone, UpdateSecrets, UpdatedSecrets};

use crate::fake::{THEN, World, json};

pub(crate) fn secret_keys(
    world: &mut World,
    method: &Method,
    rest: &[&str],
    body: &Bytes,
) -> Response {
    let at = Timestamp::from_unix_ms(THEN);
    let shown = |name: &str, kind| {
        let name = name.to_owned();
        SecretKey { name, kind, public_key: None, created_at: at, updated_at: at }
    };
    let Some(name) = rest.first() else {
        let keys = world.secret_keys.iter().map(|(name, set)| shown(name, set.kind));
        return json(200, &SecretKeys { secret_keys: keys.collect() });
    };
    if method == Method::DELETE {
        world.secret_keys.remove(*name);
        return json(200, &SecretIsGone { version: 1, version_older: 1 });
    }
    let set: SetSecretKey = serde_json::from_slice(body).unwrap();
    let key = shown(name, set.kind);
    world.secret_keys.insert((*name).to_owned(), set);
    json(201, &SecretKeyIsSet { key, version: 1, version_older: 1 })
}

pub(crate) fn secrets(world: &mut World, method: &Method, body: &Bytes) -> Response {
    if method == Method::POST {
        let update: UpdateSecrets = serde_json::from_slice(body).unwrap();
        for (name, value) in update.values {
            match value {
                Some(value) => world.secrets.insert(name, value.expose().to_owned()),
                None => world.secrets.remove(&name),
            };
        }
        world.secrets_version += 1;
    }
    let version = world.secrets_version;
    let secrets = world.secrets.keys().map(|name| AppSecret {
        name: name.clone(),
        digest: "0011223344556677".to_owned(),
        created_at: Timestamp::from_unix_ms(THEN),
        updated_at: Timestamp::from_unix_ms(THEN),
    });
    let secrets = secrets.collect();
    if method == Method::POST {
        return json(200, &UpdatedSecrets { secrets, version, version_older: version });
    }
    json(200, &AppSecrets { secrets, version })
}

pub(crate) fn ips(world: &mut World, method: &Method, rest: &[&str], body: &Bytes) -> Response {
    match (method, rest.first()) {
        (&Method::GET, _) => json(200, &IpAssignments { ips: world.ips.clone() }),
        (&Method::DELETE, Some(ip)) => {
            world.ips.retain(|it| it.ip.to_string() != **ip);
            axum::http::StatusCode::NO_CONTENT.into_response()
        }
        _ => {
            let wanted: AssignIp = serde_json::from_slice(body).unwrap();
            let ip = if wanted.kind == IpType::V6 { "2001:db8::1" } else { "192.0.2.1" };
            world.ips.push(IpAssignment {
                ip: ip.parse().unwrap(),
                region: "fra".parse().unwrap(),
                service_name: String::new(),
                shared: wanted.kind == IpType::SharedV4,
                created_at: Timestamp::from_unix_ms(THEN),
            });
            json(200, world.ips.last().unwrap())
        }
    }
}
