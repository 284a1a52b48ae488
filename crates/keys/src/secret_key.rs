//! Secret keys of apps: made or taken, sealed, used.
//!
//! Never given out: what leaves this process is sealed with a key that only it has, or was made
//! with one. A sealed key opens for its app, name, type and version only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::keys::{
    KeyAction, MadeSecretKey, MakeSecretKey, SecretKeyRef, SecretKeyUsed, UseSecretKey,
};
use perch_types::secret_keys::SecretKeyType;
use perch_types::{ApiError, Code, Octets};
use zeroize::Zeroizing;

use crate::algorithms::{self, Fault};
use crate::app_key::{self, AppSecret};
use crate::envelope;
use crate::error::Error;
use crate::keys::{Keys, answer};

/// The format of sealed keys.
const FORMAT: u8 = 1;

impl Keys {
    /// Makes a secret key, or takes one, and seals it.
    ///
    /// # Errors
    /// When the key is none of its type, or the app's key does not open.
    pub fn make_secret_key(&self, request: &MakeSecretKey) -> Result<MadeSecretKey, ApiError> {
        let MakeSecretKey { which, value } = request;
        let value = match value {
            Some(value) => algorithms::admit(which.kind, value.expose()).map_err(|fault| {
                ApiError::new(Code::InvalidValue, format!("value: {fault}"))
                    .with_hint(format!("the key is of type {}", which.kind))
            })?,
            None => algorithms::generate(which.kind).map_err(library)?,
        };
        let public = algorithms::public(which.kind, &value).map_err(library)?;
        let sealed = self.app_secret(which).and_then(|secret| seal(&secret, which, &value));
        let sealed = sealed.map_err(answer)?;
        Ok(MadeSecretKey { sealed, public_key: public.map(Octets::from) })
    }

    /// Does something with a secret key.
    ///
    /// # Errors
    /// When its type cannot, what it is done with is too long or not right, or it does not open.
    pub fn use_secret_key(&self, request: &UseSecretKey) -> Result<SecretKeyUsed, ApiError> {
        let UseSecretKey { which, sealed, action } = request;
        let kind = which.kind;
        admit(kind, action)?;
        let value = self.app_secret(which).and_then(|secret| open(&secret, which, sealed));
        let value = value.map_err(answer)?;
        let (output, told) = match action {
            KeyAction::Encrypt(it) => {
                let associated = it.associated_data.expose();
                (algorithms::encrypt(kind, &value, it.plaintext.expose(), associated), "")
            }
            KeyAction::Decrypt(it) => {
                let associated = it.associated_data.expose();
                let output = algorithms::decrypt(kind, &value, it.ciphertext.expose(), associated);
                (output, "ciphertext: this key does not open it, or not with this associated_data")
            }
            KeyAction::Sign(it) => (algorithms::sign(kind, &value, it.plaintext.expose()), ""),
            KeyAction::Verify(it) => {
                let (text, signature) = (it.plaintext.expose(), it.signature.expose());
                let output = algorithms::verify(kind, &value, text, signature);
                (output.map(|()| Vec::new()), "signature: is not this key's of this plaintext")
            }
        };
        match output {
            Ok(output) => Ok(SecretKeyUsed { output: Octets::from(output) }),
            Err(Fault::NotRight) => Err(ApiError::new(Code::InvalidRequest, told)),
            Err(Fault::Library) => Err(library(Fault::Library)),
        }
    }

    fn app_secret(&self, which: &SecretKeyRef) -> Result<AppSecret, Error> {
        app_key::open(&self.master(), &which.of, &which.key)
    }
}

fn library(_: Fault) -> ApiError {
    answer(Error::Library)
}

/// Refuses what a type cannot do, and what is too long.
fn admit(kind: SecretKeyType, action: &KeyAction) -> Result<(), ApiError> {
    let (verb, encrypts) = match action {
        KeyAction::Encrypt(_) => ("encrypt", true),
        KeyAction::Decrypt(_) => ("decrypt", true),
        KeyAction::Sign(_) => ("sign", false),
        KeyAction::Verify(_) => ("verify", false),
    };
    let refuse = |text: String| Err(ApiError::new(Code::InvalidValue, text));
    if kind.encrypts() != encrypts {
        let can = SecretKeyType::words(Some(encrypts));
        return refuse(format!("type: a key of type {kind} does not {verb}; these do: {can}"));
    }
    if let Some(text) = action.overlong() {
        return refuse(text);
    }
    for (name, bytes) in action.fields() {
        let takes_none = name == "associated_data" && kind != SecretKeyType::Xaes256gcm;
        if takes_none && !bytes.is_empty() {
            return refuse(format!(
                "{name}: a key of type {kind} takes none; {} does",
                SecretKeyType::Xaes256gcm
            ));
        }
    }
    Ok(())
}

fn seal(secret: &AppSecret, which: &SecretKeyRef, value: &[u8]) -> Result<String, Error> {
    let sealed = envelope::seal(&secret.for_secret_keys(), &bound_to(which), value)?;
    Ok(BASE64.encode([&[FORMAT], sealed.as_slice()].concat()))
}

fn open(
    secret: &AppSecret,
    which: &SecretKeyRef,
    sealed: &str,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = BASE64.decode(sealed).map_err(|_| Error::Unwrap)?;
    let Some((&FORMAT, sealed)) = bytes.split_first() else {
        return Err(Error::Unwrap);
    };
    envelope::open(&secret.for_secret_keys(), &bound_to(which), sealed)
}

fn bound_to(which: &SecretKeyRef) -> Vec<u8> {
    let SecretKeyRef { of, key: _, name, kind, version } = which;
    perch_seal::bind(&[
        b"perch secret key 1",
        of.org.as_str().as_bytes(),
        of.app.as_str().as_bytes(),
        of.app_id.as_bytes(),
        name.as_bytes(),
        kind.as_str().as_bytes(),
        &version.to_be_bytes(),
    ])
}

#[cfg(test)]
mod tests;
