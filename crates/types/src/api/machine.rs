//! Bodies of machines' labels and versions, and of lists of a whole organization (contract
//! sections 1.3 and 1.7).
//!
//! Never more than shapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AppName, InstanceId, MachineId, Region};
use crate::labels::Labels;
use crate::machine_config::{GuestConfig, MachineConfig};
use crate::state::MachineState;
use crate::time::Timestamp;

/// Body of a change of a machine's labels: PUT replaces all, PATCH changes those that are named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpdateMetadata {
    /// The labels; nothing and an empty text take one away.
    pub metadata: BTreeMap<String, Option<String>>,
    /// Refuse unless this is its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_version: Option<String>,
    /// When the caller made the change; only its form is checked, the order of arrival counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// Body of a change of one label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetMetadata {
    /// Its value; an empty text takes it away.
    pub value: String,
    /// As in [`UpdateMetadata`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// Answer of one label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MetadataValue {
    /// Its value.
    pub value: String,
}

/// One version of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineVersion {
    /// Its id.
    pub version: InstanceId,
    /// Its configuration, defaults resolved.
    pub user_config: MachineConfig,
}

/// A machine in a list of a whole organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgMachine {
    /// Its app.
    pub app_name: AppName,
    /// Its id.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub region: Region,
    /// Its state.
    pub state: MachineState,
    /// Its version, under its older key.
    pub instance_id: InstanceId,
    /// Its version.
    pub version: InstanceId,
    /// Its private IPv6 address.
    pub private_ip: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// What it runs; not in a summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<OrgMachineConfig>,
}

/// What a machine runs, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgMachineConfig {
    /// Its size.
    pub guest: GuestConfig,
    /// The image as configured.
    pub image: String,
    /// Its labels.
    pub metadata: Labels,
}

/// Machines of a whole organization, one page.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct OrgMachines {
    /// The machines, the one that changed longest ago first.
    pub machines: Vec<OrgMachine>,
    /// Give it back as `cursor` for those that follow; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
    /// The last machine of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_machine_id: Option<MachineId>,
    /// When that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_at: Option<Timestamp>,
    /// Regions of which only what was known last is told.
    #[serde(default)]
    pub error_regions: Vec<Region>,
}
