//! What the api and the host ask of the role `keys`, and what it answers.
//!
//! Never a value of an app secret: what goes to `keys` to be digested is hashed before. A secret key
//! goes there to be sealed, and never comes back. It is spoken over two Unix sockets, HTTP/1.1 with
//! JSON bodies under [`PREFIX`]; errors are [`crate::ApiError`].
//!
//! | socket | path, always `POST` | body | answer |
//! |---|---|---|---|
//! | the api's | [`MAKE`] | [`AppRef`] | [`crate::secrets::AppKey`] |
//! | the api's | [`DIGESTS`] | [`DigestsRequest`] | [`Digests`] |
//! | the api's | [`MAKE_SECRET_KEY`] | [`MakeSecretKey`] | [`MadeSecretKey`] |
//! | the api's | [`USE_SECRET_KEY`] | [`UseSecretKey`] | [`SecretKeyUsed`] |
//! | the host's | [`FOR_HOST`] | [`HostKeyRequest`] | [`HostKey`] |
//! | the host's | [`ROTATE`] | | [`Rotated`] |

use serde::{Deserialize, Serialize};

use crate::id::{AppName, OrgSlug};
use crate::octets::Octets;
use crate::secret_keys::{Decrypt, Encrypt, MESSAGE_BYTES_MAX, SecretKeyType, Sign, Verify};
use crate::secrets::AppKey;

/// What every path starts with.
pub const PREFIX: &str = "/keys/v1";
/// Makes a key for an app.
pub const MAKE: &str = "/make";
/// Makes digests of values.
pub const DIGESTS: &str = "/digests";
/// Makes a secret key, or takes one, and seals it.
pub const MAKE_SECRET_KEY: &str = "/secret-keys/make";
/// Does something with a secret key.
pub const USE_SECRET_KEY: &str = "/secret-keys/use";
/// Gives a host the key of an app that it runs a machine of.
pub const FOR_HOST: &str = "/for-host";
/// Makes a new master key and wraps every app's key with it.
pub const ROTATE: &str = "/rotate";
/// The most values that are digested at once.
pub const DIGESTS_MAX: usize = crate::secrets::CHANGES_MAX;
/// The length of a digest in hexadecimal digits.
pub const DIGEST_DIGITS: usize = 16;

/// Which app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRef {
    /// Who owns it.
    pub org: OrgSlug,
    /// Its name.
    pub app: AppName,
    /// Its id.
    pub app_id: String,
}

/// Values to be digested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestsRequest {
    /// Of which app.
    #[serde(flatten)]
    pub of: AppRef,
    /// Its key.
    pub key: AppKey,
    /// SHA-256 of each value, hexadecimal.
    pub sha256_hex: Vec<String>,
}

/// Keyed digests of values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// In the order of the request, hexadecimal.
    pub digests: Vec<String>,
}

/// Which secret key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyRef {
    /// Of which app.
    #[serde(flatten)]
    pub of: AppRef,
    /// The app's key.
    pub key: AppKey,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: SecretKeyType,
    /// The version with which it is set.
    pub version: u64,
}

/// A secret key is to be made, or taken and sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeSecretKey {
    /// Which.
    #[serde(flatten)]
    pub which: SecretKeyRef,
    /// The key, where it is not to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Octets>,
}

/// A secret key that `keys` has sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeSecretKey {
    /// The key, base64.
    pub sealed: String,
    /// Its public half, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Octets>,
}

/// Something is to be done with a secret key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseSecretKey {
    /// Which.
    #[serde(flatten)]
    pub which: SecretKeyRef,
    /// The key, as [`MadeSecretKey`] has it.
    pub sealed: String,
    /// What.
    pub action: KeyAction,
}

/// What is to be done with a secret key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyAction {
    /// Encrypt something.
    Encrypt(Encrypt),
    /// Decrypt something.
    Decrypt(Decrypt),
    /// Sign something.
    Sign(Sign),
    /// Look whether a signature is right; the answer is empty then.
    Verify(Verify),
}

impl KeyAction {
    /// Returns what it is done with, by the names of the body's fields; signing has but one, which
    /// is there twice.
    #[must_use]
    pub const fn fields(&self) -> [(&'static str, &Octets); 2] {
        match self {
            Self::Encrypt(it) => {
                [("plaintext", &it.plaintext), ("associated_data", &it.associated_data)]
            }
            Self::Decrypt(it) => {
                [("ciphertext", &it.ciphertext), ("associated_data", &it.associated_data)]
            }
            Self::Sign(it) => [("plaintext", &it.plaintext); 2],
            Self::Verify(it) => [("plaintext", &it.plaintext), ("signature", &it.signature)],
        }
    }

    /// Returns why one of its fields is too long, if one is; the text begins with the field.
    #[must_use]
    pub fn overlong(&self) -> Option<String> {
        let fields = self.fields();
        let (name, bytes) = fields.iter().find(|(_, bytes)| bytes.len() > MESSAGE_BYTES_MAX)?;
        Some(format!("{name}: {} bytes are more than {MESSAGE_BYTES_MAX}", bytes.len()))
    }
}

/// What was made with a secret key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyUsed {
    /// The ciphertext, the plaintext, the signature, or nothing.
    pub output: Octets,
}

/// A host wants the key of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKeyRequest {
    /// Who owns the app.
    pub org: OrgSlug,
    /// The app.
    pub app: AppName,
    /// The host's public key, base64: the app's is sealed to it.
    pub host_public: String,
}

/// The key of an app, sealed to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// The app, by its id.
    pub app_id: String,
    /// The public half, base64.
    pub public: String,
    /// The private half under the host's key, base64.
    pub sealed: String,
}

/// What a rotation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The version of the master key now.
    pub master: u32,
    /// How many apps' keys are wrapped with it.
    pub apps: usize,
}
