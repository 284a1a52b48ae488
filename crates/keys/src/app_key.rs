//! The key of an app: made, wrapped with the master key, used.
//!
//! Never shown: it goes out wrapped, or sealed to a host.

use aws_lc_rs::hmac;
use perch_seal::{PrivateKey, PublicKey, Purpose};
use perch_types::keys::{AppRef, DIGEST_DIGITS};
use perch_types::secrets::AppKey;
use zeroize::Zeroizing;

use crate::envelope;
use crate::error::Error;
use crate::master::Master;

/// The length of what only `keys` needs of an app's key, in bytes.
const INNER_BYTES: usize = 32;

/// The secret part of an app's key.
pub(crate) struct AppSecret {
    /// Opens the app's secrets; hosts get it.
    private: PrivateKey,
    /// Keys the digests; nobody gets it.
    inner: Zeroizing<[u8; INNER_BYTES]>,
}

/// Makes a key for an app.
pub(crate) fn make(master: &Master, of: &AppRef) -> Result<AppKey, Error> {
    let (public, private) = perch_seal::generate().map_err(|_| Error::Library)?;
    let mut inner = Zeroizing::new([0; INNER_BYTES]);
    aws_lc_rs::rand::fill(inner.as_mut_slice()).map_err(|_| Error::Library)?;
    let secret = AppSecret { private, inner };
    secret.wrap(master, of, public.to_base64())
}

/// Opens the wrapped key of an app.
pub(crate) fn open(master: &Master, of: &AppRef, key: &AppKey) -> Result<AppSecret, Error> {
    let plain = master.unwrap(&bound_to(of, &key.public), &key.wrapped)?;
    let (private, inner) = plain.split_at_checked(perch_seal::KEY_BYTES).ok_or(Error::Unwrap)?;
    let mut secret = AppSecret {
        private: PrivateKey::from_bytes(private).map_err(|_| Error::Unwrap)?,
        inner: Zeroizing::new([0; INNER_BYTES]),
    };
    if inner.len() != INNER_BYTES {
        return Err(Error::Unwrap);
    }
    secret.inner.copy_from_slice(inner);
    Ok(secret)
}

impl AppSecret {
    /// Wraps the key with the newest master key.
    pub(crate) fn wrap(
        &self,
        master: &Master,
        of: &AppRef,
        public: String,
    ) -> Result<AppKey, Error> {
        let mut plain = Zeroizing::new(Vec::with_capacity(perch_seal::KEY_BYTES + INNER_BYTES));
        plain.extend(self.private.expose());
        plain.extend(self.inner.iter());
        let wrapped = master.wrap(&bound_to(of, &public), &plain)?;
        Ok(AppKey { public, wrapped, master: master.version() })
    }

    /// Returns the digest of a value that was hashed before.
    pub(crate) fn digest(&self, hash: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.inner.as_slice());
        let bound = perch_seal::bind(&[b"perch secret digest 1", hash]);
        let tag = hmac::sign(&key, &bound);
        let mut digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        digits.truncate(DIGEST_DIGITS);
        digits
    }

    /// Returns the key under which the app's secret keys are sealed. It is made of what no host
    /// gets, so nobody but `keys` opens them.
    pub(crate) fn for_secret_keys(&self) -> Zeroizing<[u8; envelope::KEY_BYTES]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.inner.as_slice());
        let tag = hmac::sign(&key, &perch_seal::bind(&[b"perch secret keys 1"]));
        let mut derived = Zeroizing::new([0; envelope::KEY_BYTES]);
        derived.copy_from_slice(tag.as_ref());
        derived
    }

    /// Seals what opens the app's secrets to a host.
    pub(crate) fn for_host(&self, of: &AppRef, host: &PublicKey) -> Result<String, Error> {
        let purpose = Purpose::KeyForHost { org: &of.org, app: &of.app, app_id: &of.app_id };
        host.seal(purpose, self.private.expose()).map_err(|_| Error::Library)
    }
}

/// The public half is bound in too: nobody can put another one beside a wrapped key.
fn bound_to(of: &AppRef, public: &str) -> Vec<u8> {
    perch_seal::bind(&[
        b"perch app key 1",
        of.org.as_str().as_bytes(),
        of.app.as_str().as_bytes(),
        of.app_id.as_bytes(),
        public.as_bytes(),
    ])
}

#[cfg(test)]
mod tests {
    use perch_types::OrgSlug;

    use super::*;

    fn of(app: &str, id: &str) -> AppRef {
        AppRef { org: OrgSlug::personal(), app: app.parse().unwrap(), app_id: id.to_owned() }
    }

    #[test]
    fn t13_a_wrapped_key_opens_for_its_app_and_public_half_only() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::open(folder.path()).unwrap();
        let web = of("web", "app_1");
        let key = make(&master, &web).unwrap();
        open(&master, &web, &key).unwrap();
        open(&master, &of("api", "app_1"), &key).map(drop).unwrap_err();
        open(&master, &of("web", "app_2"), &key).map(drop).unwrap_err();
        let other = make(&master, &web).unwrap();
        let mixed = AppKey { public: other.public, ..key };
        open(&master, &web, &mixed).map(drop).unwrap_err();
    }

    #[test]
    fn t4_digests_are_keyed_by_app_and_stay_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::open(folder.path()).unwrap();
        let web = of("web", "app_1");
        let key = make(&master, &web).unwrap();
        let secret = open(&master, &web, &key).unwrap();
        let digest = secret.digest(b"hash");
        assert_eq!(digest.len(), DIGEST_DIGITS);
        assert_eq!(open(&master, &web, &key).unwrap().digest(b"hash"), digest);
        assert_ne!(secret.digest(b"hasi"), digest);
        let other = make(&master, &web).unwrap();
        assert_ne!(open(&master, &web, &other).unwrap().digest(b"hash"), digest);
        let rotated = master.with_new_version().unwrap();
        let again = secret.wrap(&rotated, &web, key.public).unwrap();
        assert_eq!(open(&rotated, &web, &again).unwrap().digest(b"hash"), digest);
    }
}
