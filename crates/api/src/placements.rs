//! Where machines would be placed (contract 1.11).
//!
//! Never reserves anything: by the time they are made there may be less room.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{Placements, PlacementsRequest, RegionPlacement};
use perch_types::machine_config::{CpuKind, GuestConfig};
use perch_types::{Code, MachineConfig, Region};

use crate::admit;
use crate::body::Json;
use crate::config::Shared;
use crate::machines::create::candidates;
use crate::place::{Candidate, ranked};
use crate::reply::Failure;
use crate::routes::Caller;

/// Machines that can be asked about at once.
const COUNT_MAX: u64 = 10_000;
/// What can be weighed.
const WEIGHTS: [&str; 2] = ["region", "spread"];
/// Memory of a machine about which nothing was said.
const MEMORY_MB_DEFAULT: u32 = 2048;

pub(crate) async fn placements(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<PlacementsRequest>,
) -> Result<JsonReply<Placements>, Failure> {
    let wanted = admit(&caller, &request, shared.platform.region.as_str())?;
    let hosts = candidates(&shared).await?;
    let regions = ranked(&hosts, &shared.regions, &wanted.region)?;
    let room = room(&regions, &hosts, wanted.memory_mb);
    Ok(JsonReply(Placements { regions: share(room, wanted.count, wanted.spreads) }))
}

#[derive(Debug)]
struct Wanted {
    region: String,
    memory_mb: u64,
    count: u64,
    spreads: bool,
}

fn admit(caller: &Caller, request: &PlacementsRequest, own: &str) -> Result<Wanted, Failure> {
    let refuse = |code, text: String| Err(Failure::new(code, text));
    let slug = &request.org_slug;
    if !caller.0.iter().any(|principal| principal.org.as_str() == slug) {
        let shown: String = slug.chars().take(80).collect();
        let text = format!("org_slug: the token does not reach `{shown}`");
        return refuse(Code::Forbidden, text);
    }
    for (key, asks) in [
        ("volume_name", request.volume_name.as_ref().is_some_and(|name| !name.is_empty())),
        ("volume_size_bytes", request.volume_size_bytes.is_some_and(|bytes| bytes > 0)),
    ] {
        if asks {
            let text = format!("{key}: is not supported by this server yet");
            return refuse(Code::UnsupportedKey, text);
        }
    }
    let count = request.count.unwrap_or(0);
    if count > COUNT_MAX {
        return refuse(Code::InvalidValue, format!("count: {count} is not 0 to {COUNT_MAX}"));
    }
    if let Some(unknown) = request.weights.keys().find(|key| !WEIGHTS.contains(&key.as_str())) {
        let shown: String = unknown.chars().take(80).collect();
        let text = format!("weights.{shown}: allowed are {}", WEIGHTS.join(", "));
        return refuse(Code::InvalidValue, text);
    }
    let weight = |key: &str| request.weights.get(key).copied().unwrap_or(0);
    let region = request.region.as_deref().map(str::trim).filter(|region| !region.is_empty());
    Ok(Wanted {
        region: region.map_or_else(|| format!("{own},any"), str::to_owned),
        memory_mb: memory_mb(request.compute.as_ref())?,
        count,
        spreads: weight("spread") > weight("region"),
    })
}

fn memory_mb(compute: Option<&GuestConfig>) -> Result<u64, Failure> {
    let compute = compute.cloned().unwrap_or_else(|| GuestConfig {
        cpu_kind: Some(CpuKind::Performance),
        memory_mb: Some(MEMORY_MB_DEFAULT),
        ..GuestConfig::default()
    });
    let config = MachineConfig { guest: Some(compute), ..MachineConfig::default() };
    admit::guest("compute", &config)?;
    Ok(u64::from(config.memory_mb()))
}

/// Counts how many machines have room in each region, and on how many hosts.
fn room(regions: &[Region], hosts: &[Candidate], memory_mb: u64) -> Vec<RegionPlacement> {
    let of = |region: &Region| {
        let within = hosts.iter().filter(|host| host.region == *region);
        let fits = within.map(|host| host.free_mb().unwrap_or(0) / memory_mb.max(1));
        let fits: Vec<u64> = fits.filter(|fits| *fits > 0).collect();
        let concurrency = u64::try_from(fits.len()).unwrap_or(u64::MAX);
        RegionPlacement { region: region.clone(), count: fits.iter().sum(), concurrency }
    };
    regions.iter().map(of).filter(|placement| placement.count > 0).collect()
}

/// Shares so many machines out over regions that have room for at least `count` each.
fn share(mut room: Vec<RegionPlacement>, count: u64, spreads: bool) -> Vec<RegionPlacement> {
    if count == 0 {
        return room;
    }
    let mut given: BTreeMap<Region, u64> = BTreeMap::new();
    let mut left = count;
    while left > 0 {
        let before = left;
        for placement in &room {
            let given = given.entry(placement.region.clone()).or_default();
            let free = placement.count - *given;
            let more = if spreads { free.min(1) } else { free }.min(left);
            *given += more;
            left -= more;
        }
        if left == before {
            break;
        }
    }
    room.retain_mut(|placement| {
        placement.count = given.get(&placement.region).copied().unwrap_or(0);
        placement.count > 0
    });
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room_of(counts: &[(&str, u64)]) -> Vec<RegionPlacement> {
        let of = |(region, count): &(&str, u64)| RegionPlacement {
            region: region.parse().unwrap(),
            count: *count,
            concurrency: 1,
        };
        counts.iter().map(of).collect()
    }

    #[test]
    fn machines_fill_regions_in_order_or_are_spread() {
        let room = [("fra", 3), ("iad", 5), ("syd", 1)];
        for (count, spreads, expected) in [
            (0, false, &room[..]),
            (2, false, &[("fra", 2)]),
            (4, false, &[("fra", 3), ("iad", 1)]),
            (4, true, &[("fra", 2), ("iad", 1), ("syd", 1)]),
            (99, true, &room),
            (99, false, &room),
        ] {
            assert_eq!(share(room_of(&room), count, spreads), room_of(expected), "{count}");
        }
        assert_eq!(share(Vec::new(), 5, true), []);
    }
}
