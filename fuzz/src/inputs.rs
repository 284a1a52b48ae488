//! What inputs of fuzz targets are made of: bytes as digits, and changed seeds.
//!
//! Never in a server. Each crate whose seeds are digits has this file as a module: as a feature of a
//! crate that all use, it would have the whole workspace built once more for its tests.

#[cfg(test)]
use proptest::prelude::{Strategy, any};
#[cfg(test)]
use proptest::sample::{Index, select};

/// Returns the bytes that the digits of the first line are in hexadecimal: a change of one digit is
/// one of a byte.
pub(crate) fn unhex(bytes: &[u8]) -> Vec<u8> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let digits: Vec<u8> = line.iter().copied().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).filter_map(pair).collect()
}

/// One of the seeds with some changes: bytes that look like what is read get further into the
/// parsers.
#[cfg(test)]
pub(crate) fn changed(seeds: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<Index>(), any::<u8>(), 0_u8..3), 0..6);
    (select(seeds), changes).prop_map(|(seed, changes)| {
        let mut bytes = seed.as_bytes().to_vec();
        for (at, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = b"0123456789abcdef"[usize::from(byte) % 16],
                1 => bytes[at] = byte,
                _ => {
                    bytes.remove(at);
                }
            }
        }
        bytes
    })
}
