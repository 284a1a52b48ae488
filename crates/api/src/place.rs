//! Chooses a host for a machine.
//!
//! Never asks anybody: what is known of the hosts comes in, a host or the reasons come out.

use std::fmt::Write as _;

use perch_types::api::RegionInfo;
use perch_types::{Code, HostId, Region};

use crate::reply::Failure;

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: HostId,
    pub(crate) region: Region,
    /// Memory in MiB; `None` when the host has not said yet.
    pub(crate) memory_mb: Option<u64>,
    /// Memory of the machines on it that run or are about to.
    pub(crate) memory_used_mb: u64,
}

impl Candidate {
    /// Returns its free memory in MiB; `None` when the host has not said what it has.
    pub(crate) fn free_mb(&self) -> Option<u64> {
        self.memory_mb.map(|memory| memory.saturating_sub(self.memory_used_mb))
    }
}

/// What a machine needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    /// A code, or a list of codes and aliases in the order of preference (contract 1.3).
    pub(crate) region: Option<&'a str>,
    pub(crate) memory_mb: u64,
}

/// Returns the host with the most free memory in the first region of the preference that has room.
pub(crate) fn place<'a>(
    candidates: &'a [Candidate],
    regions: &[RegionInfo],
    want: Want<'_>,
) -> Result<&'a Candidate, Failure> {
    let terms: Vec<&str> = match want.region.map(str::trim).filter(|region| !region.is_empty()) {
        Some(region) => region.split(',').map(str::trim).collect(),
        None => vec!["any"],
    };
    let mut full = Vec::new();
    let mut is_known = false;
    for term in &terms {
        let within: Vec<_> =
            candidates.iter().filter(|host| is_in(term, &host.region, regions)).collect();
        is_known |= !within.is_empty();
        let (fitting, others): (Vec<_>, Vec<_>) = within
            .into_iter()
            .partition(|host| host.free_mb().is_none_or(|free| free >= want.memory_mb));
        // The first of equals, so that the choice can be told again.
        let best = fitting.into_iter().rev().max_by_key(|host| host.free_mb().unwrap_or(u64::MAX));
        if let Some(best) = best {
            return Ok(best);
        }
        full.extend(others);
    }
    if !is_known {
        return Err(no_such_region(candidates, &terms.join(",")));
    }
    let mut text = String::from("could not reserve resource for machine: ");
    for (index, host) in full.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let free = host.free_mb().unwrap_or_default();
        write!(text, "{comma}host {} in {} has {free} MiB free", host.id, host.region).ok();
    }
    write!(text, ", {} MiB are needed", want.memory_mb).ok();
    Err(Failure::new(Code::InsufficientCapacity, text)
        .with_hint("stop or destroy machines, ask for less memory, or add a host"))
}

/// Returns the regions of a preference that have hosts, in its order, each once.
pub(crate) fn ranked(
    candidates: &[Candidate],
    regions: &[RegionInfo],
    preference: &str,
) -> Result<Vec<Region>, Failure> {
    let mut found: Vec<Region> = Vec::new();
    for term in preference.split(',').map(str::trim) {
        let mut within: Vec<&Candidate> =
            candidates.iter().filter(|host| is_in(term, &host.region, regions)).collect();
        within.sort_by_key(|host| std::cmp::Reverse(host.free_mb().unwrap_or(u64::MAX)));
        for host in within {
            if !found.contains(&host.region) {
                found.push(host.region.clone());
            }
        }
    }
    if found.is_empty() {
        return Err(no_such_region(candidates, preference));
    }
    Ok(found)
}

fn no_such_region(candidates: &[Candidate], asked: &str) -> Failure {
    let mut codes: Vec<_> = candidates.iter().map(|host| host.region.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    if codes.is_empty() {
        return Failure::new(
            Code::InsufficientCapacity,
            "could not reserve resource for machine: the platform has no host",
        );
    }
    let asked: String = asked.chars().take(80).collect();
    let text = format!("region: `{asked}` has no host; allowed are {}", codes.join(", "));
    Failure::new(Code::InvalidValue, text)
}

fn is_in(term: &str, region: &Region, regions: &[RegionInfo]) -> bool {
    if term == region.as_str() || term == "any" {
        return true;
    }
    let parts: &[&str] = match term {
        "eu" => &["europe"],
        "na" | "us" | "usa" => &["north_america"],
        "sa" => &["south_america"],
        "apac" => &["asia_pacific"],
        _ => return false,
    };
    regions.iter().any(|info| info.code == *region && parts.contains(&info.geo_region.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u64, region: &str, memory_mb: Option<u64>, memory_used_mb: u64) -> Candidate {
        let (id, region) = (HostId::from_bits(number), region.parse().unwrap());
        Candidate { id, region, memory_mb, memory_used_mb }
    }

    fn info(code: &str, geo_region: &str) -> RegionInfo {
        RegionInfo {
            code: code.parse().unwrap(),
            name: code.to_owned(),
            latitude: 0.0,
            longitude: 0.0,
            gateway_available: false,
            requires_paid_plan: false,
            deprecated: false,
            geo_region: geo_region.to_owned(),
        }
    }

    #[test]
    fn the_first_region_with_room_and_there_the_emptiest_host_is_chosen() {
        let hosts = [
            host(1, "fra", Some(1000), 900),
            host(2, "fra", Some(1000), 100),
            host(3, "iad", Some(4000), 0),
            host(4, "iad", Some(4000), 0),
        ];
        let regions = [info("fra", "europe"), info("iad", "north_america")];
        for (region, memory_mb, expected) in [
            (None, 100, 3),
            (Some("fra"), 100, 2),
            (Some("eu"), 100, 2),
            (Some("us"), 100, 3),
            (Some("fra,iad"), 2000, 3),
            (Some(" any "), 3000, 3),
            (Some("syd,iad"), 1, 3),
        ] {
            let chosen = place(&hosts, &regions, Want { region, memory_mb }).unwrap();
            assert_eq!(chosen.id, HostId::from_bits(expected), "{region:?} {memory_mb}");
        }
    }

    #[test]
    fn regions_are_ranked_by_the_preference_and_there_by_room() {
        let hosts = [
            host(1, "fra", Some(1000), 0),
            host(2, "ams", Some(2000), 0),
            host(3, "iad", Some(500), 0),
        ];
        let regions = [info("fra", "europe"), info("ams", "europe"), info("iad", "north_america")];
        for (preference, expected) in [
            ("eu", &["ams", "fra"][..]),
            ("fra,any", &["fra", "ams", "iad"]),
            ("us, fra", &["iad", "fra"]),
            ("syd,iad", &["iad"]),
        ] {
            let ranked = ranked(&hosts, &regions, preference).unwrap();
            let ranked: Vec<&str> = ranked.iter().map(Region::as_str).collect();
            assert_eq!(ranked, expected, "{preference}");
        }
        ranked(&hosts, &regions, "syd").unwrap_err();
    }

    #[test]
    fn a_refusal_says_why() {
        let hosts = [host(1, "fra", Some(1000), 900)];
        let text = |region, memory_mb| {
            let failure = place(&hosts, &[], Want { region, memory_mb }).unwrap_err();
            format!("{}: {}", failure.error().code, failure.error().error)
        };
        insta::assert_snapshot!(text(Some("fra"), 256), @"insufficient_capacity: could not reserve resource for machine: host 000000000001 in fra has 100 MiB free, 256 MiB are needed");
        insta::assert_snapshot!(text(Some("syd"), 1), @"invalid_value: region: `syd` has no host; allowed are fra");
        place(&[], &[], Want { region: None, memory_mb: 1 }).unwrap_err();
    }

    #[test]
    fn a_host_that_has_not_said_its_size_is_tried() {
        let hosts = [host(1, "fra", None, 0)];
        place(&hosts, &[], Want { region: None, memory_mb: 1 << 20 }).unwrap();
    }
}
