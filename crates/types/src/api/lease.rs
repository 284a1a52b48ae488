//! Bodies of leases (contract section 1.6).
//!
//! Never more than shapes.

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;

/// Body of a lease's acquisition or refresh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Seconds that it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A lease of a machine as answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What whoever holds it sends with a change.
    pub nonce: String,
    /// When it ends, in seconds since 1970.
    pub expires_at: i64,
    /// The name of the token that holds it.
    pub owner: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// The machine's version when it was acquired or refreshed.
    pub version: InstanceId,
}

/// A lease in its envelope; the fields stand at the top level too, because clients disagree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// Always `success`.
    pub status: String,
    /// The lease.
    pub data: Lease,
    /// The same again.
    #[serde(flatten)]
    pub lease: Lease,
}

impl From<Lease> for LeaseReply {
    fn from(lease: Lease) -> Self {
        Self { status: SUCCESS.to_owned(), data: lease.clone(), lease }
    }
}

/// Answer of a lease's release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReleased {
    /// Always `success`.
    pub status: String,
    /// Always `ok`.
    pub data: super::Done,
    /// Always true.
    pub ok: bool,
}

impl Default for LeaseReleased {
    fn default() -> Self {
        Self { status: SUCCESS.to_owned(), data: super::Done { ok: true }, ok: true }
    }
}

const SUCCESS: &str = "success";
