//! The platform's account at an issuer. Its key is written down before the issuer hears of it, so
//! a crash in between leads to the same account.
//!
//! Never makes a second account at one issuer.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use instant_acme::{Account, AccountCredentials, Key};
use perch_seal::Purpose;
use perch_store::{Expected, Store, Versioned, get_doc, put_doc};
use perch_types::certificate_docs::AcmeAccount;
use perch_types::error::chain;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::edge_key::EdgeKey;
use crate::error::{Error, store as fault};
use crate::net::Net;

/// How often it is begun anew because another worker was faster.
const ATTEMPTS_MAX: usize = 4;

/// An account that can be used.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) account: Account,
    /// The digest of its public key, which is in every answer to a challenge (RFC 7638).
    pub(crate) thumbprint: String,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("account", &self.account.id()).finish_non_exhaustive()
    }
}

/// Why there is no account.
#[derive(Debug)]
pub(crate) enum NoAccount {
    /// The platform has a fault.
    Own(Error),
    /// The issuer did not do its part.
    Issuer(instant_acme::Error),
}

impl From<Error> for NoAccount {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

/// What an account is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) key: &'a EdgeKey,
    pub(crate) net: &'a Net,
    pub(crate) directory: &'a str,
    pub(crate) email: Option<&'a str>,
}

/// Returns the name of the document of an account, by the issuer's address.
pub(crate) fn digest_of(directory: &str) -> String {
    let digest = Sha256::digest(directory.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Parts<'_> {
    /// Returns the account, made if there is none.
    pub(crate) async fn open(self) -> Result<Session, NoAccount> {
        let mut attempts = ATTEMPTS_MAX;
        loop {
            attempts -= 1;
            match self.try_open().await {
                Err(NoAccount::Own(Error::Store {
                    source: perch_store::Error::Conflict { .. },
                    ..
                })) if attempts > 0 => {}
                done => return done,
            }
        }
    }

    async fn try_open(self) -> Result<Session, NoAccount> {
        let found = self.document().await?;
        let found = match found {
            Some(found) => found,
            None => self.make().await?,
        };
        let der = self.key.open_bytes(self.purpose(), &found.document.sealed_key)?;
        let thumbprint = thumbprint(&der)?;
        let account = match &found.document.id {
            Some(id) => self.restore(id, &der).await?,
            None => self.register(&der).await?,
        };
        let id = account.id().to_owned();
        let email = self.email.map(str::to_owned);
        if found.document.id.as_ref() != Some(&id) || found.document.email != email {
            self.introduce(&account).await?;
            let told = AcmeAccount { id: Some(id), email, ..found.document };
            self.write(&told, Expected::Revision(found.revision)).await?;
        }
        Ok(Session { account, thumbprint })
    }

    /// Forgets what the issuer calls the account, which it does not know any more.
    pub(crate) async fn forget(self) -> Result<(), Error> {
        let Some(found) = self.document().await? else { return Ok(()) };
        let forgotten = AcmeAccount { id: None, email: None, ..found.document };
        self.write(&forgotten, Expected::Revision(found.revision)).await
    }

    async fn document(self) -> Result<Option<Versioned<AcmeAccount>>, Error> {
        let found = get_doc::<AcmeAccount>(self.store, &(digest_of(self.directory),)).await;
        found.map_err(fault("read an account"))
    }

    async fn write(self, document: &AcmeAccount, expected: Expected) -> Result<(), Error> {
        let key = (digest_of(self.directory),);
        let written = put_doc(self.store, &key, document, expected).await;
        written.map(drop).map_err(fault("write an account"))
    }

    /// Makes the key of an account and writes it down.
    async fn make(self) -> Result<Versioned<AcmeAccount>, NoAccount> {
        let (_, der) = Key::generate_pkcs8().map_err(NoAccount::Issuer)?;
        let sealed = self.key.public().seal(self.purpose(), der.secret_pkcs8_der());
        let document = AcmeAccount {
            directory: self.directory.to_owned(),
            sealed_key: sealed.map_err(Error::Seal)?,
            id: None,
            email: None,
            ordered: Vec::new(),
            ordered_by: BTreeMap::new(),
            rate_limited_until: None,
        };
        self.write(&document, Expected::Absent).await?;
        let gone = || Error::Key("the account is gone again".to_owned());
        Ok(self.document().await?.ok_or_else(gone)?)
    }

    /// Makes the account at the issuer; the same one again for the same key.
    async fn register(self, der: &[u8]) -> Result<Account, NoAccount> {
        let own = PrivatePkcs8KeyDer::from(der.to_vec());
        let key = Key::from_pkcs8_der(own.clone_key()).map_err(NoAccount::Issuer)?;
        let builder = Account::builder_with_http(Box::new(self.net.clone()));
        let made =
            builder.create_from_key((key, PrivateKeyDer::Pkcs8(own)), self.directory.to_owned());
        let (account, _credentials) = made.await.map_err(NoAccount::Issuer)?;
        Ok(account)
    }

    async fn restore(self, id: &str, der: &[u8]) -> Result<Account, NoAccount> {
        let encoded = Zeroizing::new(BASE64_URL.encode(der));
        let credentials = serde_json::json!({
            "id": id, "key_pkcs8": encoded.as_str(), "directory": self.directory,
        });
        let credentials: AccountCredentials =
            serde_json::from_value(credentials).map_err(|error| Error::Key(chain(&error)))?;
        let builder = Account::builder_with_http(Box::new(self.net.clone()));
        builder.from_credentials(credentials).await.map_err(NoAccount::Issuer)
    }

    async fn introduce(self, account: &Account) -> Result<(), NoAccount> {
        let Some(email) = self.email else { return Ok(()) };
        let contact = format!("mailto:{email}");
        account.update_contacts(&[contact.as_str()]).await.map_err(NoAccount::Issuer)
    }

    fn purpose(&self) -> Purpose<'_> {
        Purpose::AcmeAccountKey { directory: self.directory }
    }
}

/// Returns the digest of the public half of a key of P-256 (RFC 7638, section 3).
fn thumbprint(der: &[u8]) -> Result<String, Error> {
    let der = PrivatePkcs8KeyDer::from(der.to_vec());
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| Error::Key(chain(&error)))?;
    let point = pair.public_key_raw();
    let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else {
        return Err(Error::Key("the account's key is not one of P-256".to_owned()));
    };
    let (x, y) = (BASE64_URL.encode(x), BASE64_URL.encode(y));
    // The members in the order of their names, without spaces: the digest is of exactly this.
    let public = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Ok(BASE64_URL.encode(Sha256::digest(public.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_kept_under_the_digest_of_its_issuers_address() {
        let digest = digest_of("https://issuer.example/directory");
        assert_eq!(digest.len(), 32);
        assert_eq!(digest, digest_of("https://issuer.example/directory"));
        assert_ne!(digest, digest_of("https://issuer.example/other"));
    }

    #[test]
    fn the_digest_of_a_public_key_is_of_its_members_in_order() {
        let (_, der) = Key::generate_pkcs8().unwrap();
        let one = thumbprint(der.secret_pkcs8_der()).unwrap();
        assert_eq!(BASE64_URL.decode(&one).unwrap().len(), 32);
        assert_eq!(one, thumbprint(der.secret_pkcs8_der()).unwrap());
        let (_, other) = Key::generate_pkcs8().unwrap();
        assert_ne!(one, thumbprint(other.secret_pkcs8_der()).unwrap());
        thumbprint(b"nonsense").unwrap_err();
    }
}
