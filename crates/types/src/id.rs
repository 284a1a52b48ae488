//! Typed identifiers, each checked when it is parsed.
//!
//! Never makes an id: randomness is the caller's, see [`MachineId::from_bits`] and
//! [`InstanceId::from_parts`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, format_smolstr};

/// An identifier that was not of its kind's shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {kind}: {rule}")]
pub struct InvalidId {
    /// What was expected, with its article: "a machine id".
    pub kind: &'static str,
    /// The rule that did not hold.
    pub rule: &'static str,
    /// The text as it came, cut to 80 characters.
    pub value: String,
}

impl InvalidId {
    fn new(kind: &'static str, rule: &'static str, value: &str) -> Self {
        Self { kind, rule, value: value.chars().take(80).collect() }
    }
}

// Most fit where a pointer to text would lie, and a clone of the others takes no memory: they are cloned for each request.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl $name {
            /// Returns the id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(SmolStr::new(text)))
                } else {
                    Err(InvalidId::new($kind, $rule, text))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The longest app name: it must fit a DNS label.
pub const APP_NAME_BYTES_MAX: usize = 63;
/// The longest organization slug.
pub const ORG_SLUG_BYTES_MAX: usize = 63;

text_id!(
    /// A machine's id: 14 lowercase hexadecimal digits (contract 1.3), the machine's for its life.
    MachineId, "a machine id", "14 lowercase hexadecimal digits",
    |text| text.len() == 14 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);
text_id!(
    /// One version of a machine: a ULID that changes on every update, not on start or stop.
    InstanceId, "an instance id", "26 characters of a ULID",
    |text| text.len() == 26
        && text.bytes().all(|b| CROCKFORD.contains(&b))
        && text.as_bytes().first().is_some_and(|b| *b <= b'7')
);
text_id!(
    /// An app's name, global on a platform and a DNS label (contract 1.2).
    AppName, "an app name",
    "1 to 63 lowercase letters, digits and dashes, neither first nor last a dash",
    |text| dns_label(text, APP_NAME_BYTES_MAX)
);
text_id!(
    /// An organization's slug; `personal` is the one every installation has.
    OrgSlug, "an organization slug",
    "1 to 63 lowercase letters, digits and dashes, neither first nor last a dash",
    |text| dns_label(text, ORG_SLUG_BYTES_MAX)
);
text_id!(
    /// A region's code of two to eight lowercase letters and digits, such as `ams`.
    Region, "a region code", "2 to 8 lowercase letters and digits",
    |text| (2..=8).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
);
text_id!(
    /// A host's id: 12 lowercase hexadecimal digits, minted once on the server.
    HostId, "a host id", "12 lowercase hexadecimal digits",
    |text| text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

text_id!(
    /// A volume's id: `vol_` and 16 lowercase letters and digits (contract 1.8).
    VolumeId, "a volume id", "`vol_` and 16 lowercase letters and digits",
    |text| drawn(text, VOLUME_PREFIX)
);
text_id!(
    /// A snapshot's id: `vs_` and 16 lowercase letters and digits (contract 1.8).
    SnapshotId, "a snapshot id", "`vs_` and 16 lowercase letters and digits",
    |text| drawn(text, SNAPSHOT_PREFIX)
);

const VOLUME_PREFIX: &str = "vol_";
const SNAPSHOT_PREFIX: &str = "vs_";
/// Characters behind the prefix of a drawn id.
const DRAWN_BYTES: usize = 16;
const BASE36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

fn drawn(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == DRAWN_BYTES && rest.bytes().all(|byte| BASE36.contains(&byte))
    })
}

/// Returns a drawn id of random bits, of which the 16 characters hold 82.
fn draw(prefix: &str, mut bits: u128) -> String {
    let mut text = String::from(prefix);
    for _ in 0..DRAWN_BYTES {
        let digit = usize::try_from(bits % 36).unwrap_or_default();
        text.push(char::from(BASE36[digit]));
        bits /= 36;
    }
    text
}

impl VolumeId {
    /// Makes an id of random bits.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        Self(draw(VOLUME_PREFIX, bits).into())
    }
}

impl SnapshotId {
    /// Makes an id of random bits.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        Self(draw(SNAPSHOT_PREFIX, bits).into())
    }
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

fn dns_label(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl MachineId {
    /// Makes an id of the low 56 bits of `bits`, which the caller drew at random.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(format_smolstr!("{:014x}", bits & 0x00ff_ffff_ffff_ffff))
    }

    /// Returns the 56 bits of the id.
    #[must_use]
    pub fn bits(&self) -> u64 {
        u64::from_str_radix(&self.0, 16).unwrap_or_default()
    }
}

impl HostId {
    /// Makes an id of the low 48 bits of `bits`, which the caller drew at random.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(format_smolstr!("{:012x}", bits & 0xffff_ffff_ffff))
    }
}

impl InstanceId {
    /// Makes a ULID of milliseconds since 1970 and 80 random bits.
    #[must_use]
    pub fn from_parts(unix_ms: u64, random: u128) -> Self {
        Self(ulid(unix_ms, random).into())
    }
}

impl OrgSlug {
    /// Returns the organization that every installation has.
    #[must_use]
    pub fn personal() -> Self {
        Self(SmolStr::new_static("personal"))
    }
}

/// How long a ULID is.
const ULID_BYTES: usize = 26;

/// Returns the 26 characters of a ULID of milliseconds since 1970 and 80 random bits.
#[must_use]
pub fn ulid(unix_ms: u64, random: u128) -> String {
    let mut text = String::with_capacity(ULID_BYTES);
    push_ulid(unix_ms, random, &mut text);
    text
}

/// Writes the same behind other text.
pub fn push_ulid(unix_ms: u64, random: u128, text: &mut String) {
    // 10 characters of the time, and twice 8 of the rest: numbers that a register holds.
    let halves = [(unix_ms & 0xffff_ffff_ffff, 10), (low_40(random >> 40), 8), (low_40(random), 8)];
    for (value, count) in halves {
        text.extend((0..count).rev().map(|place| {
            let digit = usize::try_from((value >> (place * 5)) & 31).unwrap_or_default();
            char::from(CROCKFORD[digit])
        }));
    }
}

fn low_40(bits: u128) -> u64 {
    u64::try_from(bits & 0xff_ffff_ffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_their_shape_and_nothing_else() {
        assert_eq!(MachineId::from_bits(u64::MAX).as_str(), "ffffffffffffff");
        assert_eq!(MachineId::from_bits(0xabc).bits(), 0xabc);
        for bad in ["", "0123456789abc", "0123456789ABCD", "0123456789abcg", "0123456789abcde"] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad}");
        }
        for good in ["a", "web-1", "9lives"] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn drawn_ids_have_their_prefix_and_sixteen_characters() {
        for bits in [0, 1, 35, 36, u128::MAX] {
            let (volume, snapshot) = (VolumeId::from_bits(bits), SnapshotId::from_bits(bits));
            assert_eq!(volume.as_str().parse::<VolumeId>().unwrap(), volume);
            assert_eq!(snapshot.as_str().parse::<SnapshotId>().unwrap(), snapshot);
        }
        for bad in ["vol_", "vol_0123456789abcde", "vol_0123456789abcdeF", "vs_0123456789abcdef"] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ulid_has_time_first_and_parses() {
        let id = InstanceId::from_parts(1_469_918_176_385, 0);
        assert_eq!(id.as_str(), "01ARYZ6S410000000000000000");
        let later = InstanceId::from_parts(1_469_918_176_386, 0);
        assert!(later > id);
        "81ARYZ6S410000000000000000".parse::<InstanceId>().unwrap_err();
    }

    #[test]
    fn an_id_says_what_was_wrong_with_it() {
        let error = "Web".parse::<AppName>().unwrap_err();
        insta::assert_snapshot!(error, @"`Web` is not an app name: 1 to 63 lowercase letters, digits and dashes, neither first nor last a dash");
    }
}
