//! Where machines would be placed (contract 1.11).
//!
//! Never more than shapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Region;
use crate::machine_config::{GuestConfig, null_is_default};

/// Body of the question where machines would be placed (contract 1.11).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlacementsRequest {
    /// Whose machines.
    pub org_slug: String,
    /// What each needs; default a machine of one performance CPU and 2 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<GuestConfig>,
    /// Where; a code, or codes and aliases in the order of preference. Default: the platform's
    /// own region, then any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How many; 0 or nothing asks how many each region has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The volume that each mounts: one of this name that no machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// That volume's size at least. Where there is none of the name, or no name, a new one of this
    /// size counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size_bytes: Option<u64>,
    /// What counts more: `region` (the order of preference) or `spread` (as many in each). Equal
    /// weights, and none, are for the order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub weights: BTreeMap<String, i64>,
}

/// Answer of the question where machines would be placed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placements {
    /// In the order of preference, those with room.
    pub regions: Vec<RegionPlacement>,
}

/// How many machines a region would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionPlacement {
    /// Where.
    pub region: Region,
    /// How many.
    pub count: u64,
    /// On how many hosts: so many can be made there at once without waiting for each other.
    pub concurrency: u64,
}
