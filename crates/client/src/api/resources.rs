//! Calls about what a machine uses while it runs.
//!
//! Never keeps anything between two calls.

use perch_types::api::{MachineMemory, ProcessStat, ReclaimMemory, ReclaimedMemory, SetMemory};
use perch_types::{AppName, MachineId, endpoint};

use super::Api;
use crate::error::Error;

/// In which order processes are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessOrder {
    /// The field that counts, such as `rss`; none is `pid`.
    pub sort_by: Option<String>,
    /// The largest first.
    pub descending: bool,
}

impl Api {
    /// Lists the processes of a machine.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn processes(
        &self,
        app: &AppName,
        id: &MachineId,
        order: &ProcessOrder,
    ) -> Result<Vec<ProcessStat>, Error> {
        let mut parts = self.of(endpoint::MACHINE_PS, app, id);
        if let Some(field) = &order.sort_by {
            parts = parts.with_query("sort_by", field);
        }
        if order.descending {
            parts = parts.with_query("order", "desc");
        }
        self.connection.json(parts).await
    }

    /// Returns a machine's memory.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn memory(&self, app: &AppName, id: &MachineId) -> Result<MachineMemory, Error> {
        self.connection.json(self.of(endpoint::MACHINE_MEMORY, app, id)).await
    }

    /// Changes how much memory a running machine may use, until it stops.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn set_memory(
        &self,
        app: &AppName,
        id: &MachineId,
        limit_mb: u64,
    ) -> Result<MachineMemory, Error> {
        let parts = self.of(endpoint::MACHINE_MEMORY_SET, app, id);
        self.connection.json(parts.with_json(&SetMemory { limit_mb })?).await
    }

    /// Takes back memory that a machine could do without.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn reclaim_memory(
        &self,
        app: &AppName,
        id: &MachineId,
        amount_mb: u64,
    ) -> Result<ReclaimedMemory, Error> {
        let parts = self.of(endpoint::MACHINE_MEMORY_RECLAIM, app, id);
        self.connection.json(parts.with_json(&ReclaimMemory { amount_mb })?).await
    }
}
