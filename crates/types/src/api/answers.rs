//! How a machine answered requests.
//!
//! Never more than a shape, and what is computed of it.

use serde::{Deserialize, Serialize};

use crate::InstanceId;

/// How the version that a machine runs answered requests, as the edge of its server counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// The version.
    pub instance_id: InstanceId,
    /// Requests that it has had.
    pub count: u64,
    /// Those of them that it answered with a status of 500 or more, or not at all.
    pub errors: u64,
}
