//! Names of groups of regions, as `fly-replay` and `fly-prefer-region` know them (contract 4.3).
//!
//! Never guesses: a region that is in no group is only in `any`. Pure.

use perch_types::Region;

/// What a word for regions means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// This one.
    One(Region),
    /// Those of a group.
    Of(&'static [&'static str]),
    /// Each.
    Any,
}

const AFRICA: &[&str] = &["jnb"];
const ASIA_PACIFIC: &[&str] = &["bom", "hkg", "nrt", "sin", "syd", "maa", "mel", "del", "icn"];
const EUROPE: &[&str] = &[
    "ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw", "dub", "hel", "nbg", "fsn", "mxp",
    "vie", "zrh",
];
const NORTH_AMERICA: &[&str] = &[
    "atl", "bos", "den", "dfw", "ewr", "gdl", "iad", "lax", "mia", "ord", "phx", "qro", "sea",
    "sjc", "yul", "yyz",
];
const SOUTH_AMERICA: &[&str] = &["bog", "eze", "gig", "gru", "scl"];
const UNITED_STATES: &[&str] =
    &["atl", "bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc"];

impl Wish {
    /// Reads a word; nothing when it can be no region.
    pub(crate) fn of(word: &str) -> Option<Self> {
        let word = word.trim().to_ascii_lowercase();
        Some(match word.as_str() {
            "any" => Self::Any,
            "apac" => Self::Of(ASIA_PACIFIC),
            "eu" => Self::Of(EUROPE),
            "na" => Self::Of(NORTH_AMERICA),
            "sa" => Self::Of(SOUTH_AMERICA),
            "us" => Self::Of(UNITED_STATES),
            "af" => Self::Of(AFRICA),
            _ => Self::One(word.parse().ok()?),
        })
    }

    pub(crate) fn has(&self, region: &Region) -> bool {
        match self {
            Self::One(one) => one == region,
            Self::Of(group) => group.contains(&region.as_str()),
            Self::Any => true,
        }
    }
}

/// The groups, each of which is a part of the world.
const PARTS: [&[&str]; 5] = [AFRICA, ASIA_PACIFIC, EUROPE, NORTH_AMERICA, SOUTH_AMERICA];

/// Returns how far one region is from another: 0 is itself, 1 the same part of the world, 2 any
/// other. Nearer is not measured: a region that is in no part is far from all but itself.
pub(crate) fn distance(here: &Region, there: &Region) -> u8 {
    if here == there {
        return 0;
    }
    let has_both = |part: &&[&str]| part.contains(&here.as_str()) && part.contains(&there.as_str());
    if PARTS.iter().any(has_both) { 1 } else { 2 }
}

/// The most words of one list.
const WORDS_MAX: usize = 32;

/// Reads a list of words, the most wanted first; what can be no region is left out.
pub(crate) fn list(text: &str) -> Vec<Wish> {
    text.split(',').filter_map(Wish::of).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_regions_groups_or_nothing() {
        for (word, region, want) in [
            ("ams", "ams", Some(true)),
            ("AMS ", "ams", Some(true)),
            ("ams", "fra", Some(false)),
            ("eu", "ams", Some(true)),
            ("eu", "ord", Some(false)),
            ("us", "ord", Some(true)),
            ("us", "yyz", Some(false)),
            ("na", "yyz", Some(true)),
            ("sa", "gru", Some(true)),
            ("apac", "nrt", Some(true)),
            ("any", "home1", Some(true)),
            ("eu", "home1", Some(false)),
            ("a region", "ams", None),
            ("", "ams", None),
        ] {
            let has = Wish::of(word).map(|wish| wish.has(&region.parse().unwrap()));
            assert_eq!(has, want, "{word} {region}");
        }
        for (here, there, want) in [
            ("ams", "ams", 0),
            ("home1", "home1", 0),
            ("ams", "fra", 1),
            ("ord", "yyz", 1),
            ("ams", "ord", 2),
            ("home1", "home2", 2),
        ] {
            let found = distance(&here.parse().unwrap(), &there.parse().unwrap());
            assert_eq!(found, want, "{here} {there}");
        }
        assert_eq!(list("ams, ,eu,a b").len(), 2);
        assert_eq!(list(&"ams,".repeat(100)).len(), WORDS_MAX);
    }
}
