//! Draws ids and names.
//!
//! Never repeats one by intent: ids are random, names only friendly.

use perch_types::id::ulid as write_ulid;
use perch_types::{InstanceId, MachineId, SnapshotId, Timestamp, VolumeId};

use crate::error::Error;

const ADJECTIVES: [&str; 32] = [
    "amber", "autumn", "bold", "brave", "bright", "calm", "clear", "cold", "crimson", "dawn",
    "deep", "early", "fair", "gentle", "golden", "green", "hidden", "icy", "late", "lively",
    "misty", "patient", "polished", "quick", "quiet", "silver", "snowy", "spring", "still", "warm",
    "wild", "winter",
];
const NOUNS: [&str; 32] = [
    "bird", "breeze", "brook", "cloud", "dew", "dune", "field", "firefly", "fjord", "flower",
    "forest", "frost", "glade", "grove", "harbor", "haze", "hill", "lake", "leaf", "meadow",
    "moon", "morning", "pine", "pond", "rain", "reef", "river", "shore", "star", "surf", "tide",
    "wave",
];

/// Returns random bits.
pub(crate) fn random() -> Result<u128, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|source| Error::Random { source })?;
    Ok(u128::from_le_bytes(bytes))
}

/// Returns a new machine's id.
pub(crate) fn machine_id() -> Result<MachineId, Error> {
    random().map(|bits| MachineId::from_bits(low_half(bits)))
}

/// Returns a new volume's id.
pub(crate) fn volume_id() -> Result<VolumeId, Error> {
    random().map(VolumeId::from_bits)
}

/// What ids of network policies begin with.
const NETWORK_POLICY: &str = "np_";

/// Returns a new network policy's id.
pub(crate) fn network_policy_id() -> Result<String, Error> {
    random().map(|bits| format!("{NETWORK_POLICY}{:016x}", low_half(bits)))
}

/// Returns whether a text can be a network policy's id.
pub(crate) fn is_network_policy_id(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let digits = text.strip_prefix(NETWORK_POLICY);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(digit))
}

/// Returns a new snapshot's id.
pub(crate) fn snapshot_id() -> Result<SnapshotId, Error> {
    random().map(SnapshotId::from_bits)
}

/// Returns a new version's id.
pub(crate) fn instance_id(now: Timestamp) -> Result<InstanceId, Error> {
    random().map(|bits| InstanceId::from_parts(unix_ms(now), bits))
}

/// Returns a ULID for something that only has to be told apart; without random bits it is the
/// time alone.
pub(crate) fn ulid(now: Timestamp) -> String {
    write_ulid(unix_ms(now), random().unwrap_or_default())
}

/// Returns an app's id: `app_` and a ULID.
pub(crate) fn app_id(now: Timestamp) -> Result<String, Error> {
    Ok(format!("app_{}", write_ulid(unix_ms(now), random()?).to_ascii_lowercase()))
}

/// Returns a friendly name such as `quiet-river-4711`.
pub(crate) fn machine_name() -> Result<String, Error> {
    random().map(machine_name_of)
}

fn machine_name_of(bits: u128) -> String {
    let index = |shift: u32| usize::try_from((bits >> shift) & 31).unwrap_or_default();
    let number = (bits >> 10) % 10_000;
    format!("{}-{}-{number:04}", ADJECTIVES[index(0)], NOUNS[index(5)])
}

fn low_half(bits: u128) -> u64 {
    u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default()
}

fn unix_ms(now: Timestamp) -> u64 {
    u64::try_from(now.unix_ms()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_ids_differ() {
        for bits in [0, 1, u128::MAX, 0x1234_5678_9abc_def0] {
            let name = machine_name_of(bits);
            assert!(name.parse::<perch_types::AppName>().is_ok(), "{name}");
        }
        assert_ne!(machine_id().unwrap(), machine_id().unwrap());
        let now = Timestamp::from_unix_ms(1_700_000_000_000);
        assert_ne!(instance_id(now).unwrap(), instance_id(now).unwrap());
        assert_eq!(ulid(now).len(), 26);
    }
}
