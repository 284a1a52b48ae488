//! Secret keys of an app (contract 1.9): their bodies, their document and their limits.
//!
//! Never a key in the clear but in the body that brings one: the role `keys` makes, keeps and uses
//! them, and answers what was made with them.

use serde::{Deserialize, Serialize};

use crate::directory::Document;
use crate::id::{AppName, OrgSlug};
use crate::octets::Octets;
use crate::secrets::prefix;
use crate::time::Timestamp;

/// The longest name in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Secret keys of one app.
pub const COUNT_MAX: usize = 64;
/// The longest key that can be brought, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024;
/// The most that is encrypted, decrypted, signed or verified at once, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Returns why a text cannot be the name of a secret key.
#[must_use]
pub fn name_fault(name: &str) -> Option<&'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let first_fine = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
    if name.len() <= NAME_BYTES_MAX && first_fine && name.bytes().all(plain) {
        return None;
    }
    Some("is not 1 to 64 letters, digits, `_`, `-` and `.`, a letter first")
}

/// What a key is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum SecretKeyType {
    /// Signs with ECDSA on P-256 and SHA-256; signatures are two numbers of 32 bytes, as in JWT.
    Es256,
    /// Signs with HMAC and SHA-256.
    Hs256,
    /// Signs with HMAC and SHA-384.
    Hs384,
    /// Signs with HMAC and SHA-512.
    Hs512,
    /// Encrypts with AES-256-GCM and a nonce of 24 bytes, which comes first.
    Xaes256gcm,
    /// Signs with HMAC and SHA-512, cut to 32 bytes.
    NaclAuth,
    /// Encrypts to its public half: whoever has that can encrypt too (a sealed box).
    NaclBox,
    /// Encrypts with XSalsa20 and Poly1305; the nonce of 24 bytes comes first.
    #[default]
    NaclSecretbox,
    /// Signs with Ed25519.
    NaclSign,
}

impl SecretKeyType {
    /// Every type.
    pub const ALL: [Self; 9] = [
        Self::Es256,
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Xaes256gcm,
        Self::NaclAuth,
        Self::NaclBox,
        Self::NaclSecretbox,
        Self::NaclSign,
    ];

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "es256",
            Self::Hs256 => "hs256",
            Self::Hs384 => "hs384",
            Self::Hs512 => "hs512",
            Self::Xaes256gcm => "xaes256gcm",
            Self::NaclAuth => "nacl_auth",
            Self::NaclBox => "nacl_box",
            Self::NaclSecretbox => "nacl_secretbox",
            Self::NaclSign => "nacl_sign",
        }
    }

    /// Returns whether it encrypts and decrypts; what does not signs and verifies.
    #[must_use]
    pub const fn encrypts(self) -> bool {
        matches!(self, Self::Xaes256gcm | Self::NaclBox | Self::NaclSecretbox)
    }

    /// Returns the words of all types, or of those that encrypt or sign.
    #[must_use]
    pub fn words(encrypting: Option<bool>) -> String {
        let some = Self::ALL.iter().filter(|it| encrypting.is_none_or(|it2| it.encrypts() == it2));
        some.map(|it| it.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl std::fmt::Display for SecretKeyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for SecretKeyType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|it| it.as_str() == text);
        found.ok_or_else(|| format!("is not one of {}", Self::words(None)))
    }
}

/// A secret key without what is secret of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey {
    /// The name.
    pub name: String,
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: SecretKeyType,
    /// The public half of `es256` (a point of 65 bytes), `nacl_box` and `nacl_sign`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Octets>,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

/// Answer of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecretKeys {
    /// The keys, by name.
    pub secret_keys: Vec<SecretKey>,
}

/// Body of setting a key, or of having one made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetSecretKey {
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: SecretKeyType,
    /// The key. 32 bytes; of `nacl_sign` also 64, with the public half behind; of `es256` also DER
    /// (PKCS#8 or SEC 1); of `hs256`, `hs384` and `hs512` at least the hash's length and at most
    /// 1024. Nothing where it is to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Octets>,
}

/// Answer of setting a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyIsSet {
    /// The key.
    #[serde(flatten)]
    pub key: SecretKey,
    /// The version of the app's secrets now.
    pub version: u64,
    /// The same, for clients that read the older spelling.
    #[serde(rename = "Version")]
    pub version_older: u64,
}

/// Body of encrypting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Encrypt {
    /// What to encrypt.
    #[serde(default)]
    pub plaintext: Octets,
    /// What has to be the same when it is decrypted; `xaes256gcm` alone takes it.
    #[serde(default)]
    pub associated_data: Octets,
}

/// Answer of encrypting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {
    /// What was made of it.
    pub ciphertext: Octets,
}

/// Body of decrypting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decrypt {
    /// What encrypting answered.
    #[serde(default)]
    pub ciphertext: Octets,
    /// What was said when it was encrypted.
    #[serde(default)]
    pub associated_data: Octets,
}

/// Answer of decrypting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decrypted {
    /// What was encrypted.
    pub plaintext: Octets,
}

/// Body of signing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sign {
    /// What to sign.
    #[serde(default)]
    pub plaintext: Octets,
}

/// Answer of signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The signature.
    pub signature: Octets,
}

/// Body of verifying.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verify {
    /// What was signed.
    #[serde(default)]
    pub plaintext: Octets,
    /// What signing answered.
    #[serde(default)]
    pub signature: Octets,
}

/// One secret key, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyDoc {
    /// What it is for; sealed into it.
    #[serde(rename = "type")]
    pub kind: SecretKeyType,
    /// The key, base64: the role `keys` alone can open it.
    pub sealed: String,
    /// The version with which it was set; sealed into it.
    pub version: u64,
    /// The public half, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Octets>,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

impl Document for SecretKeyDoc {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = "secrets/";
    const PARTS: usize = 4;

    fn key((org, app, name): &Self::Key) -> String {
        format!("{}keys/{name}", prefix(org, app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "Signing-key.v1", &"a".repeat(NAME_BYTES_MAX)] {
            assert_eq!(name_fault(good), None, "{good}");
        }
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", "1a", "_a", ".", "a/b", "a b", "ä", "a\n", long.as_str()] {
            assert!(name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn types_have_the_contracts_words() {
        for kind in SecretKeyType::ALL {
            let word = kind.as_str();
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{word}\""));
            assert_eq!(word.parse(), Ok(kind));
        }
        assert!("rsa".parse::<SecretKeyType>().unwrap_err().contains("nacl_sign"));
        assert_eq!(SecretKeyType::words(Some(true)), "xaes256gcm, nacl_box, nacl_secretbox");
    }

    #[test]
    fn t4_a_body_that_brings_a_key_does_not_show_it() {
        let body = r#"{"type":"hs256","value":"aHVudGVyMg=="}"#;
        let set: SetSecretKey = serde_json::from_str(body).unwrap();
        let shown = format!("{set:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVu"), "{shown}");
    }
}
