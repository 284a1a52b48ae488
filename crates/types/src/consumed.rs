//! What machines have used, as a host tells the edge beside it.
//!
//! Never kept: whoever asks again is told what is now.

use serde::{Deserialize, Serialize};

use crate::MachineId;

/// What a machine has used since its boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConsumed {
    /// The machine.
    pub id: MachineId,
    /// Time on a CPU in its programs, in microseconds.
    pub cpu_user_us: u64,
    /// Time on a CPU in the kernel for them, in microseconds.
    pub cpu_system_us: u64,
    /// How long it would have run and was over its ceiling, in microseconds.
    pub throttled_us: u64,
    /// Memory in bytes now, page cache included.
    pub memory_bytes: u64,
    /// Bytes that came to it over its network.
    pub received_bytes: u64,
    /// Packets of them.
    pub received_packets: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
    /// Packets of them.
    pub sent_packets: u64,
}
