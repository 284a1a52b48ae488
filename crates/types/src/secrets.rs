//! App secrets (contract 1.9): their bodies, their documents and their limits.
//!
//! Never a value in the clear but in the body that sets it: documents hold what was sealed to the
//! app's key, and answers hold digests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Secret;
use crate::directory::Document;
use crate::id::{AppName, OrgSlug};
use crate::time::Timestamp;

/// The longest name in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The largest value in bytes.
pub const VALUE_BYTES_MAX: usize = 32 * 1024;
/// Secrets of one app.
pub const COUNT_MAX: usize = 256;
/// What the values of one app may take together, by [`weight`]: every machine gets them at once.
pub const TOTAL_BYTES_MAX: usize = 256 * 1024;
/// Names that one request may change.
pub const CHANGES_MAX: usize = 60;

/// Returns why a text cannot be the name of a secret: it is to be a variable's.
#[must_use]
pub fn name_fault(name: &str) -> Option<&'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first_fine = name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    if name.len() <= NAME_BYTES_MAX && first_fine && name.bytes().all(plain) {
        return None;
    }
    Some("is not 1 to 128 letters, digits and underscores, no digit first")
}

/// Returns what a value takes on its way to a machine, in bytes: it goes as JSON.
#[must_use]
pub fn weight(value: &Secret) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..32 => 6,
        _ => 1,
    };
    value.expose().bytes().map(escaped).sum()
}

/// Returns why a text cannot be the value of a secret.
#[must_use]
pub fn value_fault(value: &Secret) -> Option<&'static str> {
    if value.expose().len() > VALUE_BYTES_MAX {
        return Some("is longer than 32768 bytes");
    }
    value.expose().contains('\0').then_some("holds a NUL byte, which no variable can")
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSecret {
    /// The name, which is that of the variable too.
    pub name: String,
    /// A keyed digest of the value: the same for the same value of one app, and no way to guess it.
    pub digest: String,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

/// Answer of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppSecrets {
    /// The secrets, by name.
    pub secrets: Vec<AppSecret>,
    /// The version of the app's secrets.
    #[serde(default)]
    pub version: u64,
}

/// Body of a change of many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpdateSecrets {
    /// Values by name; nothing takes a secret away.
    pub values: BTreeMap<String, Option<Secret>>,
}

/// Answer of a change of many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpdatedSecrets {
    /// The secrets that were set, by name.
    pub secrets: Vec<AppSecret>,
    /// The version of the app's secrets now.
    pub version: u64,
    /// The same, for clients that read the older spelling.
    #[serde(rename = "Version")]
    pub version_older: u64,
}

/// Body of setting one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSecret {
    /// The value.
    pub value: Secret,
}

/// Answer of setting one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretIsSet {
    /// The secret.
    #[serde(flatten)]
    pub secret: AppSecret,
    /// The version of the app's secrets now.
    pub version: u64,
    /// The same, for clients that read the older spelling.
    #[serde(rename = "Version")]
    pub version_older: u64,
}

/// Answer of taking one away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretIsGone {
    /// The version of the app's secrets now.
    pub version: u64,
    /// The same, for clients that read the older spelling.
    #[serde(rename = "Version")]
    pub version_older: u64,
}

/// The key of an app, to which its secrets are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppKey {
    /// The public half, base64: whoever has it can seal and not open.
    pub public: String,
    /// The private half under the master key, base64: only `keys` can open it.
    pub wrapped: String,
    /// The version of the master key.
    pub master: u32,
}

/// What holds the secrets of an app together; every change of one makes its version larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsHead {
    /// The app, by its id: a later app of the same name has another.
    pub app_id: String,
    /// The version, from 1 on.
    pub version: u64,
    /// The app's key.
    pub key: AppKey,
}

/// One secret, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDoc {
    /// The value under the app's key, base64.
    pub sealed: String,
    /// The version with which it was set; sealed into it.
    pub version: u64,
    /// See [`AppSecret::digest`].
    pub digest: String,
    /// What the value takes, by [`weight`].
    pub bytes: usize,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

/// What every key of an app's secrets starts with: one list of it shows them all at one revision.
#[must_use]
pub fn prefix(org: &OrgSlug, app: &AppName) -> String {
    format!("{}{org}/{app}/", SecretsHead::PREFIX)
}

impl Document for SecretsHead {
    type Key = (OrgSlug, AppName);
    const PREFIX: &'static str = "secrets/";
    const PARTS: usize = 3;

    fn key((org, app): &Self::Key) -> String {
        format!("{}head", prefix(org, app))
    }
}

impl Document for SecretDoc {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = "secrets/";
    const PARTS: usize = 4;

    fn key((org, app, name): &Self::Key) -> String {
        format!("{}values/{name}", prefix(org, app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_variables() {
        for good in ["A", "_", "DATABASE_URL", "a1", &"A".repeat(NAME_BYTES_MAX)] {
            assert_eq!(name_fault(good), None, "{good}");
        }
        let long = "A".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", "1A", "A-B", "A.B", "A/B", "A=B", "A B", "Ä", "A\n", long.as_str()] {
            assert!(name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn values_have_a_length_and_no_nul() {
        assert_eq!(value_fault(&Secret::new("")), None);
        assert_eq!(value_fault(&Secret::new("a".repeat(VALUE_BYTES_MAX))), None);
        assert!(value_fault(&Secret::new("a".repeat(VALUE_BYTES_MAX + 1))).is_some());
        assert!(value_fault(&Secret::new("a\0b")).is_some());
    }

    #[test]
    fn a_value_weighs_what_its_json_is_long() {
        for text in ["", "plain", "a\"b\\c", "\n\r\t\u{8}\u{c}", "\u{1}\u{1f}", "ä€𝄞\u{7f}"] {
            let json = serde_json::to_string(text).unwrap();
            assert_eq!(weight(&Secret::new(text)) + 2, json.len(), "{text:?}");
        }
    }

    #[test]
    fn t4_a_body_that_sets_a_secret_does_not_show_it() {
        let body = r#"{"values":{"A":"hunter2","B":null}}"#;
        let update: UpdateSecrets = serde_json::from_str(body).unwrap();
        assert!(!format!("{update:?}").contains("hunter2"));
        assert_eq!(update.values.get("B"), Some(&None));
        let one: SetSecret = serde_json::from_str(r#"{"value":"hunter2"}"#).unwrap();
        assert!(!format!("{one:?}").contains("hunter2"));
    }

    #[test]
    fn keys_carry_the_organization_and_lie_together() {
        let (org, app): (OrgSlug, AppName) = (OrgSlug::personal(), "web".parse().unwrap());
        assert_eq!(SecretsHead::key(&(org.clone(), app.clone())), "secrets/personal/web/head");
        assert_eq!(
            SecretDoc::key(&(org.clone(), app.clone(), "A".to_owned())),
            "secrets/personal/web/values/A"
        );
        assert_eq!(prefix(&org, &app), "secrets/personal/web/");
    }
}
