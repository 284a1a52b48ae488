//! The rules of keys.
//!
//! Never changes a key to make it fit.

use crate::{Error, VALUE_BYTES_MAX};

/// How long a key may be.
pub const KEY_BYTES_MAX: usize = 512;

/// Accepts printable ASCII without spaces, in parts separated by single slashes.
pub(crate) fn check(key: &str) -> Result<(), Error> {
    let refuse =
        |reason: &str| Err(Error::InvalidKey { key: shortened(key), reason: reason.to_owned() });
    if key.len() > KEY_BYTES_MAX {
        return refuse("it is longer than 512 bytes");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("it has characters other than printable ASCII");
    }
    if key.split('/').any(str::is_empty) {
        return refuse("it has an empty part");
    }
    Ok(())
}

/// Accepts the beginning of a key, or nothing.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), Error> {
    if prefix.len() <= KEY_BYTES_MAX && prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    let reason = "it is too long or has characters other than printable ASCII".to_owned();
    Err(Error::InvalidKey { key: shortened(prefix), reason })
}

/// Returns a text behind every key that has the prefix: no key has a byte as high as its last.
pub(crate) fn behind(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

pub(crate) fn check_value(key: &str, value: &[u8]) -> Result<(), Error> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooLarge { key: key.to_owned(), bytes: value.len(), limit: VALUE_BYTES_MAX })
}

fn shortened(key: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    key.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_printable_and_parted_by_slashes() {
        for good in ["a", "apps/personal/web", "hosts/h1/alive", "names/hosts/*.example.com"] {
            check(good).unwrap();
        }
        let long = "a".repeat(KEY_BYTES_MAX + 1);
        for bad in ["", "/a", "a/", "a//b", "a b", "a\n", "\u{fc}", "a\0", "a\u{7f}", &long] {
            assert!(matches!(check(bad), Err(Error::InvalidKey { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_key_with_the_prefix_is_before_what_is_behind_it(
            prefix in "[!-~]{0,20}", rest in "[!-~]{0,20}", other in "[!-~]{1,20}",
        ) {
            let key = format!("{prefix}{rest}");
            prop_assert!(key.as_str() >= prefix.as_str() && key < behind(&prefix));
            let within = other.as_str() >= prefix.as_str() && other < behind(&prefix);
            prop_assert_eq!(within, other.starts_with(&prefix));
        }
    }
}
