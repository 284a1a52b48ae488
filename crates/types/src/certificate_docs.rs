//! Documents of certificates: what is wanted, what is served, and the order under way.
//!
//! Never a private key but sealed. All of a host name lies under one prefix of its app, so that one
//! list shows it, one watch follows it, and it ends with the app.
//!
//! | key under `certificates/<org>/<app>/` | who writes it | until |
//! |---|---|---|
//! | `<hostname>` ([`CertificateDoc`]) | the api | the certificate is removed |
//! | `<hostname>/order` ([`CertificateOrder`]) | the api makes, nudges and deletes it; whoever holds its lease does the rest | no certificate is to be got |
//! | `<hostname>/served/<source>` ([`ServedCertificate`]) | the api for `custom`, the order's worker for `fly` | that source is removed |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::certificates::{
    CertificateSource, CertificateValidationError, DnsRecords, KeyKind, WILDCARD,
};
use crate::directory::Document;
use crate::id::{AppName, OrgSlug};
use crate::time::Timestamp;

/// What every key begins with that has to do with an app's certificates.
pub const PREFIX: &str = "certificates/";
/// The app under which the certificate of all names of the platform's own domain is kept. No app
/// can be called so.
pub const PLATFORM_APP: &str = "perch-own-domain";
/// The id of that app.
pub const PLATFORM_APP_ID: &str = "platform";
/// Errors that are kept of an order, newest first.
pub const ERRORS_MAX: usize = 8;
/// The longest message of an error that is kept, in characters.
pub const ERROR_CHARS_MAX: usize = 400;

/// What every key of an app's certificates starts with.
#[must_use]
pub fn prefix(org: &OrgSlug, app: &AppName) -> String {
    format!("{PREFIX}{org}/{app}/")
}

/// Returns the key under which what is kept of all names under the platform's domain is.
#[must_use]
pub fn platform_key(domain: &str) -> Option<(OrgSlug, AppName, String)> {
    Some((OrgSlug::personal(), PLATFORM_APP.parse().ok()?, format!("{WILDCARD}{domain}")))
}

/// A host name of an app, and what is wanted for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateDoc {
    /// The app, by its id: a later app of the same name has no part in it.
    pub app_id: String,
    /// Whether the platform is to get a certificate.
    pub acme_requested: bool,
    /// Another app has the host name, and its records do not say yet that it is this one's: there
    /// is no claim and no order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending_ownership: bool,
    /// The platform wants it for a name under its own domain; the app's people neither see nor
    /// change it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_platform: bool,
    /// The host name's records, as they were seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<DnsRecords>,
    /// Since when the app has the host name.
    pub created_at: Timestamp,
    /// When this last changed.
    pub updated_at: Timestamp,
}

impl CertificateDoc {
    /// Makes the document of a host name that an app has from now on.
    #[must_use]
    pub const fn new(app_id: String, now: Timestamp) -> Self {
        Self {
            app_id,
            acme_requested: false,
            pending_ownership: false,
            of_platform: false,
            seen: None,
            created_at: now,
            updated_at: now,
        }
    }
}

impl Document for CertificateDoc {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = PREFIX;
    const PARTS: usize = 3;

    fn key((org, app, hostname): &Self::Key) -> String {
        format!("{}{hostname}", prefix(org, app))
    }
}

/// Returns which certificate a key of [`CertificateDoc`] is about.
#[must_use]
pub fn certificate_key(key: &str) -> Option<(OrgSlug, AppName, String)> {
    let parts: Vec<&str> = key.strip_prefix(PREFIX)?.split('/').collect();
    let [org, app, hostname] = parts.as_slice() else { return None };
    Some((org.parse().ok()?, app.parse().ok()?, (*hostname).to_owned()))
}

/// A certificate that edges serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedCertificate {
    /// The app, by its id: sealed into the key.
    pub app_id: String,
    /// The certificate and those that it is signed with, as PEM.
    pub chain: String,
    /// Its private key, PEM, sealed to the edges' key, base64.
    pub sealed_key: String,
    /// Its facts.
    pub leaf: Leaf,
    /// Since when it is served.
    pub created_at: Timestamp,
}

/// Facts of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// The kind of its key.
    pub kind: KeyKind,
    /// Who issued it.
    pub issuer: String,
    /// When it begins.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// Its name for who issued it (RFC 9773, section 4.1); nothing where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_id: Option<RenewalId>,
}

/// What a certificate is called when its renewal is asked about (RFC 9773, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalId {
    /// The identifier of the key that signed it, base64url.
    pub authority: String,
    /// Its serial number as it stands in the certificate, base64url.
    pub serial: String,
}

impl std::fmt::Display for RenewalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.authority, self.serial)
    }
}

/// Which certificate: organization, app, host name, source.
pub type ServedKey = (OrgSlug, AppName, String, CertificateSource);

impl Document for ServedCertificate {
    type Key = ServedKey;
    const PREFIX: &'static str = PREFIX;
    const PARTS: usize = 5;

    fn key((org, app, hostname, source): &Self::Key) -> String {
        format!("{}{hostname}/served/{}", prefix(org, app), source.as_str())
    }
}

/// Returns which certificate a key of [`ServedCertificate`] is about.
#[must_use]
pub fn served_key(key: &str) -> Option<ServedKey> {
    let parts: Vec<&str> = key.strip_prefix(PREFIX)?.split('/').collect();
    let [org, app, hostname, "served", source] = parts.as_slice() else {
        return None;
    };
    let source = CertificateSource::ALL.into_iter().find(|it| it.as_str() == *source)?;
    Some((org.parse().ok()?, app.parse().ok()?, (*hostname).to_owned(), source))
}

/// How far an order is. What a step does is written down before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStep {
    /// A certificate is to be ordered when it is due.
    #[default]
    Due,
    /// An order is being placed.
    Placing,
    /// It is placed: a way to show whose the host name is is being chosen.
    Placed,
    /// The answer to the challenge lies in the directory, and the issuer is being told.
    Telling,
    /// The issuer looks.
    Validating,
    /// The issuer is satisfied; the certificate with the key that is kept here is being had.
    Finalizing,
}

/// How it is shown whose a host name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChallengeMethod {
    /// By a request to the host name (HTTP-01).
    #[default]
    Http,
    /// By the first bytes of a connection to it (TLS-ALPN-01).
    TlsAlpn,
    /// By a record of DNS (DNS-01).
    Dns,
}

/// The answer to a challenge, which every edge gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeAnswer {
    /// How it is given.
    pub method: ChallengeMethod,
    /// What is asked for.
    pub token: String,
    /// What is answered. It is public: whoever asks gets it.
    pub key_authorization: String,
    /// The value of the TXT record.
    pub txt: String,
}

/// The order of a host name's certificate: the one under way, or when the next is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateOrder {
    /// The app, by its id.
    pub app_id: String,
    /// How far it is.
    pub step: OrderStep,
    /// When something is to be done.
    pub due: Timestamp,
    /// When that was written down: by a clock that was ahead it may be far away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Timestamp>,
    /// How often this step was tried.
    #[serde(default)]
    pub tries: u32,
    /// Orders that failed one after the other.
    #[serde(default)]
    pub failures: u32,
    /// Where it is at the issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The answer to its challenge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<ChallengeAnswer>,
    /// The private key of the certificate that is being had, sealed as
    /// [`ServedCertificate::sealed_key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<String>,
    /// When certificates were issued, in seconds since 1970, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issued: Vec<i64>,
    /// When orders failed, in seconds since 1970, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<i64>,
    /// Until when the issuer wants no order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_until: Option<Timestamp>,
    /// When the issuer was last asked by when to renew, and when it is to be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask_again: Option<Timestamp>,
    /// What went wrong, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<CertificateValidationError>,
}

impl CertificateOrder {
    /// Makes the order of a certificate that is wanted now.
    #[must_use]
    pub const fn new(app_id: String, now: Timestamp) -> Self {
        Self {
            app_id,
            step: OrderStep::Due,
            due: now,
            written: Some(now),
            tries: 0,
            failures: 0,
            url: None,
            answer: None,
            sealed_key: None,
            issued: Vec::new(),
            failed: Vec::new(),
            rate_limited_until: None,
            ask_again: None,
            errors: Vec::new(),
        }
    }
}

impl Document for CertificateOrder {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = PREFIX;
    const PARTS: usize = 4;

    fn key((org, app, hostname): &Self::Key) -> String {
        format!("{}{hostname}/order", prefix(org, app))
    }
}

/// Returns which order a key of [`CertificateOrder`] is about.
#[must_use]
pub fn order_key(key: &str) -> Option<(OrgSlug, AppName, String)> {
    let parts: Vec<&str> = key.strip_prefix(PREFIX)?.split('/').collect();
    let [org, app, hostname, "order"] = parts.as_slice() else {
        return None;
    };
    Some((org.parse().ok()?, app.parse().ok()?, (*hostname).to_owned()))
}

/// Who works on an order; it ends with its lease, or with whoever takes it over after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderWorker {
    /// The server.
    pub host: String,
}

impl Document for OrderWorker {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = "certificate_workers/";
    const PARTS: usize = 3;

    fn key((org, app, hostname): &Self::Key) -> String {
        format!("{}{org}/{app}/{hostname}", Self::PREFIX)
    }
}

/// The platform's account at an issuer, by the digest of the issuer's address. It stays: whoever
/// orders again there needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// The issuer's address.
    pub directory: String,
    /// The account's private key, PKCS #8 in DER, sealed to the edges' key, base64. Written down
    /// before the issuer hears of it.
    pub sealed_key: String,
    /// What the issuer calls the account, once it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The address at which the issuer was told that somebody can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// When orders were placed, in seconds since 1970, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ordered: Vec<i64>,
    /// Of those, the orders of each organization.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ordered_by: BTreeMap<OrgSlug, Vec<i64>>,
    /// Until when the issuer wants nothing of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_until: Option<Timestamp>,
}

impl Document for AcmeAccount {
    type Key = (String,);
    const PREFIX: &'static str = "acme_accounts/";
    const PARTS: usize = 1;

    fn key((digest,): &Self::Key) -> String {
        format!("{}{digest}", Self::PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_host_name_lies_under_its_app_and_is_told_apart() {
        let (org, app): (OrgSlug, AppName) = (OrgSlug::personal(), "web".parse().unwrap());
        let name = "*.shop.example".to_owned();
        let key = (org.clone(), app.clone(), name.clone());
        let served = (org.clone(), app.clone(), name, CertificateSource::Custom);
        let keys = [
            CertificateDoc::key(&key),
            CertificateOrder::key(&key),
            ServedCertificate::key(&served),
        ];
        assert_eq!(
            keys,
            [
                "certificates/personal/web/*.shop.example",
                "certificates/personal/web/*.shop.example/order",
                "certificates/personal/web/*.shop.example/served/custom",
            ]
        );
        assert!(keys.iter().all(|it| it.starts_with(&prefix(&org, &app))));
        assert_eq!(keys.each_ref().map(|it| order_key(it).is_some()), [false, true, false]);
        assert_eq!(keys.each_ref().map(|it| served_key(it).is_some()), [false, false, true]);
        assert_eq!(keys.each_ref().map(|it| certificate_key(it).is_some()), [true, false, false]);
        assert_eq!(
            (order_key(&keys[1]), certificate_key(&keys[0])),
            (Some(key.clone()), Some(key))
        );
        assert_eq!(served_key(&keys[2]), Some(served));
    }

    #[test]
    fn the_platforms_own_certificate_is_kept_like_any_other() {
        let key = platform_key("perch.example").unwrap();
        let path = CertificateDoc::key(&key);
        assert_eq!(path, "certificates/personal/perch-own-domain/*.perch.example");
        assert_eq!(order_key(&CertificateOrder::key(&key)), Some(key));
    }

    #[test]
    fn a_certificate_of_a_release_before_still_reads() {
        let text = r#"{"app_id":"app_1","acme_requested":false,
            "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}"#;
        let document: CertificateDoc = serde_json::from_str(text).unwrap();
        let now = Timestamp::from_unix_ms(1_767_225_600_000);
        assert_eq!(document, CertificateDoc::new("app_1".to_owned(), now));
    }

    #[test]
    fn an_order_of_a_release_before_still_reads() {
        let text = r#"{"app_id":"app_1","step":"due","due":"2026-01-01T00:00:00Z"}"#;
        let order: CertificateOrder = serde_json::from_str(text).unwrap();
        let due = Timestamp::from_unix_ms(1_767_225_600_000);
        let new = CertificateOrder::new("app_1".to_owned(), due);
        assert_eq!(order, CertificateOrder { written: None, ..new });
    }
}
