//! What the types of secret keys do: pure but for the random numbers that the library draws.
//!
//! Never shows a key, and never says of a ciphertext or signature more than that it is not right.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};
use aws_lc_rs::{cmac, hmac};
use crypto_box::aead::OsRng;
use crypto_secretbox::XSalsa20Poly1305;
use crypto_secretbox::aead::{Aead as _, KeyInit as _};
use perch_types::secret_keys::SecretKeyType as Type;
use zeroize::Zeroizing;

/// The length of most keys in bytes.
const KEY_BYTES: usize = 32;
/// The length of the nonces that come before a ciphertext, in bytes.
const NONCE_BYTES: usize = 24;
/// The length of a tag of `nacl_auth` in bytes.
const AUTH_BYTES: usize = 32;
/// The longest key of `hs256`, `hs384` and `hs512` in bytes.
const HMAC_KEY_BYTES_MAX: usize = 1024;

/// Why nothing came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The ciphertext or the signature is not one of this key.
    NotRight,
    /// The library did not do its part.
    Library,
}

type Value = Zeroizing<Vec<u8>>;

/// Makes a key.
pub(crate) fn generate(kind: Type) -> Result<Value, Fault> {
    if kind == Type::Es256 {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        return scalar(&pair.map_err(|_| Fault::Library)?);
    }
    let mut value = Zeroizing::new(vec![0; hash(kind).map_or(KEY_BYTES, hash_bytes)]);
    aws_lc_rs::rand::fill(&mut value).map_err(|_| Fault::Library)?;
    Ok(value)
}

/// Returns a key that was brought as it is kept, or why it is none.
pub(crate) fn admit(kind: Type, brought: &[u8]) -> Result<Value, String> {
    let kept = |bytes: &[u8]| Ok(Zeroizing::new(bytes.to_vec()));
    let length = brought.len();
    match kind {
        Type::Hs256 | Type::Hs384 | Type::Hs512 => {
            let least = hash(kind).map_or(KEY_BYTES, hash_bytes);
            if (least..=HMAC_KEY_BYTES_MAX).contains(&length) {
                return kept(brought);
            }
            Err(format!("{length} bytes are not {least} to {HMAC_KEY_BYTES_MAX}"))
        }
        Type::Es256 => {
            let wrong = "is no key of P-256: 32 bytes, or PKCS#8 or SEC 1 in DER";
            let der = if length == KEY_BYTES { sec1(brought) } else { brought.to_vec().into() };
            let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &der);
            scalar(&pair.map_err(|_| wrong.to_owned())?).map_err(|_| wrong.to_owned())
        }
        Type::NaclSign if length == 2 * KEY_BYTES => {
            let (seed, public) = brought.split_at(KEY_BYTES);
            Ed25519KeyPair::from_seed_and_public_key(seed, public)
                .map_err(|_| "its second half is not the public half of its first".to_owned())?;
            kept(seed)
        }
        Type::NaclSign if length != KEY_BYTES => {
            Err(format!("{length} bytes are not {KEY_BYTES} or {}", 2 * KEY_BYTES))
        }
        _ if length == KEY_BYTES => kept(brought),
        _ => Err(format!("{length} bytes are not {KEY_BYTES}")),
    }
}

/// Returns the public half of a key, if it has one.
pub(crate) fn public(kind: Type, value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    match kind {
        Type::Es256 => Ok(Some(es256(value)?.public_key().as_ref().to_vec())),
        Type::NaclSign => Ok(Some(ed25519(value)?.public_key().as_ref().to_vec())),
        Type::NaclBox => Ok(Some(box_key(value)?.public_key().to_bytes().to_vec())),
        _ => Ok(None),
    }
}

/// Encrypts with a key that does.
pub(crate) fn encrypt(
    kind: Type,
    value: &[u8],
    plaintext: &[u8],
    associated_data: &[u8],
) -> Result<Vec<u8>, Fault> {
    if kind == Type::NaclBox {
        let public = box_key(value)?.public_key();
        return public.seal(&mut OsRng, plaintext).map_err(|_| Fault::Library);
    }
    let mut nonce = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Fault::Library)?;
    let sealed = match kind {
        Type::Xaes256gcm => xaes_seal(value, &nonce, plaintext, associated_data)?,
        Type::NaclSecretbox => {
            let sealed = secretbox(value)?.encrypt(&nonce.into(), plaintext);
            sealed.map_err(|_| Fault::Library)?
        }
        _ => return Err(Fault::Library),
    };
    Ok([nonce.as_slice(), &sealed].concat())
}

/// Decrypts with a key that does.
pub(crate) fn decrypt(
    kind: Type,
    value: &[u8],
    ciphertext: &[u8],
    associated_data: &[u8],
) -> Result<Vec<u8>, Fault> {
    if kind == Type::NaclBox {
        return box_key(value)?.unseal(ciphertext).map_err(|_| Fault::NotRight);
    }
    let (nonce, sealed) = ciphertext.split_first_chunk::<NONCE_BYTES>().ok_or(Fault::NotRight)?;
    match kind {
        Type::Xaes256gcm => xaes_open(value, nonce, sealed, associated_data),
        Type::NaclSecretbox => {
            let opened = secretbox(value)?.decrypt(&(*nonce).into(), sealed);
            opened.map_err(|_| Fault::NotRight)
        }
        _ => Err(Fault::Library),
    }
}

/// Signs with a key that does.
pub(crate) fn sign(kind: Type, value: &[u8], text: &[u8]) -> Result<Vec<u8>, Fault> {
    match kind {
        Type::Es256 => {
            let signed = es256(value)?.sign(&SystemRandom::new(), text);
            Ok(signed.map_err(|_| Fault::Library)?.as_ref().to_vec())
        }
        Type::NaclSign => Ok(ed25519(value)?.sign(text).as_ref().to_vec()),
        _ => tag(kind, value, text),
    }
}

/// Looks whether a signature is this key's.
pub(crate) fn verify(kind: Type, value: &[u8], text: &[u8], signature: &[u8]) -> Result<(), Fault> {
    let right = match kind {
        Type::Es256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, es256(value)?.public_key())
            .verify(text, signature),
        Type::NaclSign => {
            UnparsedPublicKey::new(&ED25519, ed25519(value)?.public_key()).verify(text, signature)
        }
        _ => aws_lc_rs::constant_time::verify_slices_are_equal(&tag(kind, value, text)?, signature),
    };
    right.map_err(|_| Fault::NotRight)
}

/// Returns the hash of the types that sign with one.
const fn hash(kind: Type) -> Option<hmac::Algorithm> {
    match kind {
        Type::Hs256 => Some(hmac::HMAC_SHA256),
        Type::Hs384 => Some(hmac::HMAC_SHA384),
        Type::Hs512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn hash_bytes(hash: hmac::Algorithm) -> usize {
    hash.digest_algorithm().output_len()
}

fn tag(kind: Type, value: &[u8], text: &[u8]) -> Result<Vec<u8>, Fault> {
    let (hash, length) = match (kind, hash(kind)) {
        (Type::NaclAuth, _) => (hmac::HMAC_SHA512, AUTH_BYTES),
        (_, Some(hash)) => (hash, hash_bytes(hash)),
        _ => return Err(Fault::Library),
    };
    let mut tag = hmac::sign(&hmac::Key::new(hash, value), text).as_ref().to_vec();
    tag.truncate(length);
    Ok(tag)
}

fn es256(value: &[u8]) -> Result<EcdsaKeyPair, Fault> {
    EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &sec1(value))
        .map_err(|_| Fault::Library)
}

/// Returns the DER of a key of P-256 (RFC 5915), without its public half.
fn sec1(value: &[u8]) -> Value {
    const BEFORE: [u8; 7] = [0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    const CURVE: [u8; 12] =
        [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    Zeroizing::new([BEFORE.as_slice(), value, &CURVE].concat())
}

fn scalar(pair: &EcdsaKeyPair) -> Result<Value, Fault> {
    let bytes: EcPrivateKeyBin<'static> =
        pair.private_key().as_be_bytes().map_err(|_| Fault::Library)?;
    Ok(Zeroizing::new(bytes.as_ref().to_vec()))
}

fn ed25519(value: &[u8]) -> Result<Ed25519KeyPair, Fault> {
    Ed25519KeyPair::from_seed_unchecked(value).map_err(|_| Fault::Library)
}

fn box_key(value: &[u8]) -> Result<crypto_box::SecretKey, Fault> {
    crypto_box::SecretKey::from_slice(value).map_err(|_| Fault::Library)
}

fn secretbox(value: &[u8]) -> Result<XSalsa20Poly1305, Fault> {
    XSalsa20Poly1305::new_from_slice(value).map_err(|_| Fault::Library)
}

/// Returns the key and nonce of AES-256-GCM for a nonce of 24 bytes: the key is derived with CMAC
/// from the nonce's first half (C2SP XAES-256-GCM).
fn xaes(value: &[u8], nonce: &[u8; NONCE_BYTES]) -> Result<(LessSafeKey, Nonce), Fault> {
    let (for_key, for_gcm) = nonce.split_at(NONCE_LEN);
    let key = cmac::Key::new(cmac::AES_256, value).map_err(|_| Fault::Library)?;
    let mut derived = Zeroizing::new(Vec::with_capacity(KEY_BYTES));
    for counter in [1, 2] {
        let block = [&[0, counter, b'X', 0], for_key].concat();
        derived.extend(cmac::sign(&key, &block).map_err(|_| Fault::Library)?.as_ref());
    }
    let key = UnboundKey::new(&AES_256_GCM, &derived).map_err(|_| Fault::Library)?;
    let nonce = Nonce::try_assume_unique_for_key(for_gcm).map_err(|_| Fault::Library)?;
    Ok((LessSafeKey::new(key), nonce))
}

fn xaes_seal(
    value: &[u8],
    nonce: &[u8; NONCE_BYTES],
    plaintext: &[u8],
    associated_data: &[u8],
) -> Result<Vec<u8>, Fault> {
    let (key, nonce) = xaes(value, nonce)?;
    let mut buffer = plaintext.to_vec();
    let sealed = key.seal_in_place_append_tag(nonce, Aad::from(associated_data), &mut buffer);
    sealed.map(|()| buffer).map_err(|_| Fault::Library)
}

fn xaes_open(
    value: &[u8],
    nonce: &[u8; NONCE_BYTES],
    sealed: &[u8],
    associated_data: &[u8],
) -> Result<Vec<u8>, Fault> {
    let (key, nonce) = xaes(value, nonce)?;
    let mut buffer = sealed.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(associated_data), &mut buffer);
    let length = opened.map_err(|_| Fault::NotRight)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests;
