//! Bytes in JSON.
//!
//! Written as base64. Read as that or as a list of numbers, because clients of the contract send
//! both (1.9). Never shown: what they are may be a key or what one protects. Their memory is
//! cleared when they are dropped.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Padding is written, and need not be there.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The most that is reserved before the bytes have come.
const RESERVED_MAX: usize = 4096;

/// Bytes, base64 in JSON.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Octets(Zeroizing<Vec<u8>>);

impl Octets {
    /// Reads base64, with padding or without.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        BASE64.decode(text).ok().map(Self::from)
    }

    /// Returns base64. Each use is a place to look at in a review.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(&*self.0)
    }

    /// Returns the bytes themselves. Each use is a place to look at in a review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Octets {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Octets({} bytes)", self.0.len())
    }
}

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(self.to_base64()))
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OctetsVisitor)
    }
}

struct OctetsVisitor;

impl<'de> Visitor<'de> for OctetsVisitor {
    type Value = Octets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64 or a list of numbers from 0 to 255")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Octets, E> {
        // The text may be a key: the error does not show it.
        Octets::from_base64(text)
            .ok_or_else(|| E::invalid_value(Unexpected::Other("another text"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Octets, A::Error> {
        let reserved = list.size_hint().unwrap_or(0).min(RESERVED_MAX);
        let mut bytes = Vec::with_capacity(reserved);
        while let Some(number) = list.next_element::<u64>()? {
            let byte = u8::try_from(number).map_err(|_| {
                A::Error::invalid_value(Unexpected::Other("a larger number"), &self)
            })?;
            bytes.push(byte);
        }
        Ok(Octets::from(bytes))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Octets, E> {
        Ok(Octets::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_base64_is_written() {
        for json in [r#""aGVsbG8=""#, r#""aGVsbG8""#, "[104,101,108,108,111]"] {
            let octets: Octets = serde_json::from_str(json).unwrap();
            assert_eq!(octets.expose(), b"hello", "{json}");
            assert_eq!(serde_json::to_string(&octets).unwrap(), r#""aGVsbG8=""#);
        }
        for json in ["null", "[]", r#""""#] {
            assert!(serde_json::from_str::<Octets>(json).unwrap().is_empty(), "{json}");
        }
    }

    #[test]
    fn t4_what_is_wrong_is_told_and_what_is_in_it_is_not() {
        for json in [r#""hunter2 hunter2""#, "[256]", "[-1]", "7", "{}", "[[]]", "[\"a\"]"] {
            let error = serde_json::from_str::<Octets>(json).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", Octets::from(b"hunter2".to_vec()));
        assert_eq!(shown, "Octets(7 bytes)");
    }
}
