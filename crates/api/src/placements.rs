//! Where machines would be placed (contract 1.11).
//!
//! Never reserves anything: by the time they are made there may be less room.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{Placements, PlacementsRequest, RegionPlacement};
use perch_types::machine_config::{CpuKind, GuestConfig};
use perch_types::volume::{GIB, SIZE_GB_MAX};
use perch_types::{Code, HostId, MachineConfig, OrgSlug, Region};

use crate::admit;
use crate::body::Json;
use crate::config::Shared;
use crate::machines::create::candidates;
use crate::place::{Candidate, ranked};
use crate::reply::Failure;
use crate::routes::Caller;
use crate::volumes::name as volume_name;

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
    let volumes = volumes(&shared, &wanted, &hosts).await;
    let room = room(&regions, &hosts, wanted.memory_mb, volumes.as_ref());
    Ok(JsonReply(Placements { regions: share(room, wanted.count, wanted.spreads) }))
}

#[derive(Debug)]
struct Wanted {
    org: OrgSlug,
    region: String,
    memory_mb: u64,
    count: u64,
    spreads: bool,
    /// The volume that each mounts.
    volume: Option<WantedVolume>,
}

#[derive(Debug)]
struct WantedVolume {
    name: Option<String>,
    /// How large it is at least; nothing when it has to be there already.
    size_gb: Option<u64>,
}

fn admit(caller: &Caller, request: &PlacementsRequest, own: &str) -> Result<Wanted, Failure> {
    let refuse = |code, text: String| Err(Failure::new(code, text));
    let slug = &request.org_slug;
    let mut reached = caller.0.iter().map(|principal| &principal.org);
    let Some(org) = reached.find(|org| org.as_str() == slug).cloned() else {
        let shown: String = slug.chars().take(80).collect();
        let text = format!("org_slug: the token does not reach `{shown}`");
        return refuse(Code::Forbidden, text);
    };
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
        org,
        region: region.map_or_else(|| format!("{own},any"), str::to_owned),
        memory_mb: memory_mb(request.compute.as_ref())?,
        count,
        spreads: weight("spread") > weight("region"),
        volume: volume(request)?,
    })
}

fn volume(request: &PlacementsRequest) -> Result<Option<WantedVolume>, Failure> {
    let name = request.volume_name.clone().filter(|name| !name.is_empty());
    if let Some(name) = &name {
        volume_name("volume_name", name)?;
    }
    let bytes = request.volume_size_bytes.unwrap_or(0);
    let most = u64::from(SIZE_GB_MAX) * GIB;
    if bytes > most {
        let text = format!("volume_size_bytes: {bytes} is not 0 to {most}");
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let size_gb = (bytes > 0).then(|| bytes.div_ceil(GIB));
    let asks = name.is_some() || size_gb.is_some();
    Ok(asks.then_some(WantedVolume { name, size_gb }))
}

/// Returns how many such volumes each host has or has room for; nothing when none is asked for.
async fn volumes(
    shared: &Shared,
    wanted: &Wanted,
    hosts: &[Candidate],
) -> Option<BTreeMap<HostId, u64>> {
    let volume = wanted.volume.as_ref()?;
    let view = shared.view.load();
    let mut counts = BTreeMap::new();
    for host in hosts {
        let free = view.volumes().filter(|one| {
            one.host == host.id
                && one.org == wanted.org
                && volume.name.as_ref() == Some(&one.name)
                && one.attached.is_none()
                && one.state.is_usable()
                && volume.size_gb.is_none_or(|least| u64::from(one.size_gb) >= least)
        });
        let there = u64::try_from(free.count()).unwrap_or(u64::MAX);
        let new = match (volume.size_gb, shared.hosts.get(&host.id)) {
            (Some(size_gb), Some(known)) => match known.client.pool_room().await {
                Ok(room) => room.free_gb / size_gb.max(1),
                Err(error) => {
                    tracing::warn!(host = %host.id, %error, "room for volumes is not known");
                    0
                }
            },
            _ => 0,
        };
        counts.insert(host.id.clone(), there.saturating_add(new));
    }
    Some(counts)
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

/// Counts how many machines have room in each region, and on how many hosts; where `volumes` says
/// how many each host has, no more than those.
fn room(
    regions: &[Region],
    hosts: &[Candidate],
    memory_mb: u64,
    volumes: Option<&BTreeMap<HostId, u64>>,
) -> Vec<RegionPlacement> {
    let with_volume = |host: &Candidate| {
        volumes.map_or(u64::MAX, |counts| counts.get(&host.id).copied().unwrap_or(0))
    };
    let of = |region: &Region| {
        let within = hosts.iter().filter(|host| host.region == *region);
        let fits = within
            .map(|host| (host.free_mb().unwrap_or(0) / memory_mb.max(1)).min(with_volume(host)));
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
    fn a_host_has_room_for_as_many_as_it_has_memory_and_volumes_for() {
        let host = |number: u64, region: &str, memory_mb| Candidate {
            id: HostId::from_bits(number),
            region: region.parse().unwrap(),
            memory_mb: Some(memory_mb),
            memory_used_mb: 0,
        };
        let hosts = [host(1, "fra", 1024), host(2, "fra", 512), host(3, "iad", 4096)];
        let regions = ["fra".parse().unwrap(), "iad".parse().unwrap()];
        let counted = |volumes: Option<&[(u64, u64)]>| -> Vec<(u64, u64)> {
            let volumes: Option<BTreeMap<HostId, u64>> = volumes.map(|counts| {
                counts.iter().map(|(host, count)| (HostId::from_bits(*host), *count)).collect()
            });
            let room = room(&regions, &hosts, 256, volumes.as_ref());
            room.iter().map(|one| (one.count, one.concurrency)).collect()
        };
        assert_eq!(counted(None), [(6, 2), (16, 1)]);
        assert_eq!(counted(Some(&[(1, 3), (2, 9), (3, 1)])), [(5, 2), (1, 1)]);
        assert_eq!(counted(Some(&[(1, 0), (2, 1)])), [(1, 1)]);
        assert_eq!(counted(Some(&[])), []);
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
