//! Seals a text to a public key, and opens it with the private one (HPKE, RFC 9180).
//!
//! Never keeps a key, reads a file or talks to anybody. What is sealed is bound to what it is for:
//! under another organization, app, name or version it does not open.
//!
//! A sealed text is base64 of one byte of the format's version, the encapsulated key, and the
//! ciphertext with its tag. The suite is X25519, HKDF-SHA256 and AES-256-GCM; the implementation
//! is the one that the TLS library brings along.

#![forbid(unsafe_code)]

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::{AppName, OrgSlug, Secret};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use zeroize::{Zeroize as _, Zeroizing};

/// The format of sealed texts.
const FORMAT: u8 = 1;
/// The length of a key of X25519, and of an encapsulated one, in bytes.
pub const KEY_BYTES: usize = 32;

/// Why a text was not sealed or opened. Never says what was in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A key has another length, or is not base64.
    #[error("read a key: it is not one of X25519")]
    Key,
    /// A sealed text is not of the format.
    #[error("read a sealed text: it is not of format {FORMAT}")]
    Format,
    /// Another key, or sealed for something else, or changed.
    #[error("open a sealed text: it is not for this key and purpose")]
    Open,
    /// The value is no text.
    #[error("read an opened text: it is not UTF-8")]
    Text,
    /// The library gave no result.
    #[error("seal a text: the library refuses")]
    Library,
}

/// What a sealed text is for; it opens for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// A secret of an app.
    AppSecret {
        /// Who owns the app.
        org: &'a OrgSlug,
        /// The app.
        app: &'a AppName,
        /// The secret's name.
        name: &'a str,
        /// The version with which it was set.
        version: u64,
    },
    /// The key of an app for a host.
    KeyForHost {
        /// Who owns the app.
        org: &'a OrgSlug,
        /// The app.
        app: &'a AppName,
        /// The app, by its id.
        app_id: &'a str,
    },
    /// The private key of a certificate, for edges.
    CertificateKey {
        /// Who owns the app.
        org: &'a OrgSlug,
        /// The app.
        app: &'a AppName,
        /// The app, by its id.
        app_id: &'a str,
        /// The host name.
        hostname: &'a str,
    },
    /// The private key of the platform's account at an issuer of certificates.
    AcmeAccountKey {
        /// The issuer's address.
        directory: &'a str,
    },
}

impl Purpose<'_> {
    const fn info(&self) -> &'static [u8] {
        match self {
            Self::AppSecret { .. } => b"perch app secret 1",
            Self::KeyForHost { .. } => b"perch app key for host 1",
            Self::CertificateKey { .. } => b"perch certificate key 1",
            Self::AcmeAccountKey { .. } => b"perch acme account key 1",
        }
    }

    fn associated_data(&self) -> Vec<u8> {
        match self {
            Self::AppSecret { org, app, name, version } => bind(&[
                org.as_str().as_bytes(),
                app.as_str().as_bytes(),
                name.as_bytes(),
                &version.to_be_bytes(),
            ]),
            Self::KeyForHost { org, app, app_id } => {
                bind(&[org.as_str().as_bytes(), app.as_str().as_bytes(), app_id.as_bytes()])
            }
            Self::CertificateKey { org, app, app_id, hostname } => bind(&[
                org.as_str().as_bytes(),
                app.as_str().as_bytes(),
                app_id.as_bytes(),
                hostname.as_bytes(),
            ]),
            Self::AcmeAccountKey { directory } => bind(&[directory.as_bytes()]),
        }
    }
}

/// Puts parts one behind the other, each with its length: no two lists of parts give the same.
#[must_use]
pub fn bind(parts: &[&[u8]]) -> Vec<u8> {
    let mut bound = Vec::new();
    for part in parts {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        bound.extend(length.to_be_bytes());
        bound.extend(*part);
    }
    bound
}

/// The public half of a key: it seals.
#[derive(Debug, Clone)]
pub struct PublicKey(HpkePublicKey);

impl PublicKey {
    /// Reads a key from base64.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let bytes = BASE64.decode(text).map_err(|_| Error::Key)?;
        if bytes.len() != KEY_BYTES {
            return Err(Error::Key);
        }
        Ok(Self(HpkePublicKey(bytes)))
    }

    /// Returns the key in base64.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0.0)
    }

    /// Seals bytes for a purpose.
    ///
    /// # Errors
    /// When the library refuses, such as for a key that is no point of the curve.
    pub fn seal(&self, purpose: Purpose<'_>, plain: &[u8]) -> Result<String, Error> {
        let (encapsulated, ciphertext) = SUITE
            .seal(purpose.info(), &purpose.associated_data(), plain, &self.0)
            .map_err(|_| Error::Library)?;
        let mut sealed = Vec::with_capacity(1 + encapsulated.0.len() + ciphertext.len());
        sealed.push(FORMAT);
        sealed.extend(&encapsulated.0);
        sealed.extend(&ciphertext);
        Ok(BASE64.encode(sealed))
    }
}

/// The private half of a key: it opens. Its memory is cleared when it is dropped.
pub struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PrivateKey {
    /// Takes a key from bytes.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if bytes.len() != KEY_BYTES {
            return Err(Error::Key);
        }
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    /// Returns the bytes. Each use is a place to look at in a review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// Opens what was sealed for a purpose.
    ///
    /// # Errors
    /// When it is of another format, key or purpose, or was changed.
    pub fn open(&self, purpose: Purpose<'_>, sealed: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let bytes = BASE64.decode(sealed).map_err(|_| Error::Format)?;
        let (FORMAT, rest) =
            bytes.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest))
        else {
            return Err(Error::Format);
        };
        let (encapsulated, ciphertext) = rest.split_at_checked(KEY_BYTES).ok_or(Error::Format)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let key = HpkePrivateKey::from(self.0.to_vec());
        SUITE
            .open(&encapsulated, purpose.info(), &purpose.associated_data(), ciphertext, &key)
            .map(Zeroizing::new)
            .map_err(|_| Error::Open)
    }

    /// Opens a text.
    ///
    /// # Errors
    /// As [`PrivateKey::open`], and when it is not UTF-8.
    pub fn open_text(&self, purpose: Purpose<'_>, sealed: &str) -> Result<Secret, Error> {
        let mut plain = self.open(purpose, sealed)?;
        match String::from_utf8(std::mem::take(&mut plain)) {
            Ok(text) => Ok(Secret::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(Error::Text)
            }
        }
    }
}

/// Makes a new pair of keys.
///
/// # Errors
/// When the library gives none.
pub fn generate() -> Result<(PublicKey, PrivateKey), Error> {
    let (public, private) = SUITE.generate_key_pair().map_err(|_| Error::Library)?;
    Ok((PublicKey(public), PrivateKey::from_bytes(private.secret_bytes())?))
}

#[cfg(test)]
mod tests;
