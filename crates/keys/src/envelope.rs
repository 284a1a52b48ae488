//! Bytes under a key of 32 bytes: AES-256-GCM with a random nonce, which comes first.
//!
//! Never keeps a key, and never says of what does not open more than that.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use crate::error::Error;

/// The length of a key in bytes.
pub(crate) const KEY_BYTES: usize = 32;

/// Seals bytes, bound to what they are for.
pub(crate) fn seal(key: &[u8; KEY_BYTES], bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| Error::Library)?;
    let mut buffer = Zeroizing::new(plain.to_vec());
    let nonce = key.seal_in_place_append_tag(Aad::from(bound_to), &mut *buffer);
    let nonce = nonce.map_err(|_| Error::Library)?;
    Ok([nonce.as_ref().as_slice(), buffer.as_slice()].concat())
}

/// Opens what was sealed for the same.
pub(crate) fn open(
    key: &[u8; KEY_BYTES],
    bound_to: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Error::Unwrap)?;
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| Error::Library)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = key.open_in_place(nonce, Aad::from(bound_to), &mut buffer);
    let length = opened.map_err(|_| Error::Unwrap)?.len();
    buffer.truncate(length);
    Ok(buffer)
}
