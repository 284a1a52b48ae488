//! Which slots of a host's IPv4 pool are taken, which wait out their quarantine (N10).
//!
//! Never reads a clock and never stores itself: the caller keeps it in its database in the same
//! transaction as the machine that got the slot.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// How long a slot stays unused after its machine is gone, so that flows and names of the old
/// owner do not reach the new one (security property N10): longer than connection tracking keeps
/// a quiet UDP flow, which is 120 s.
pub const QUARANTINE_MS: u64 = 180_000;

/// No slot is free now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take an address slot: all {slots} are taken or in quarantine")]
pub struct Exhausted {
    /// How many slots the pool has.
    pub slots: u32,
}

/// The state of all slots of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    taken: BTreeSet<u32>,
    /// Slot to the boot clock at its release. A clock that has not yet come as far was restarted
    /// by a reboot: then the quarantine begins anew. One that has come further ran at least as
    /// long as it shows, so comparing is safe across reboots.
    released: BTreeMap<u32, u64>,
}

impl Slots {
    /// Takes the lowest slot that is neither taken nor in quarantine.
    ///
    /// # Errors
    /// When there is none among the first `slots`.
    pub fn take(&mut self, slots: u32, boot_ms: u64) -> Result<u32, Exhausted> {
        self.end_quarantine(boot_ms);
        let free = (0..slots)
            .find(|slot| !self.taken.contains(slot) && !self.released.contains_key(slot))
            .ok_or(Exhausted { slots })?;
        self.taken.insert(free);
        Ok(free)
    }

    /// Marks a slot as taken, whatever it was: for machines that are found running.
    pub fn claim(&mut self, slot: u32) {
        self.released.remove(&slot);
        self.taken.insert(slot);
    }

    /// Gives a slot back; it may be taken again after [`QUARANTINE_MS`]. Twice is as once.
    pub fn release(&mut self, slot: u32, boot_ms: u64) {
        if self.taken.remove(&slot) {
            self.released.insert(slot, boot_ms);
        }
    }

    /// Returns the slots in use, ascending.
    pub fn taken(&self) -> impl Iterator<Item = u32> {
        self.taken.iter().copied()
    }

    fn end_quarantine(&mut self, boot_ms: u64) {
        for released_at in self.released.values_mut() {
            *released_at = (*released_at).min(boot_ms);
        }
        self.released.retain(|_, released_at| boot_ms - *released_at < QUARANTINE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_slot_out_of_quarantine_is_taken_n10() {
        let mut slots = Slots::default();
        assert_eq!(slots.take(3, 0), Ok(0));
        assert_eq!(slots.take(3, 0), Ok(1));
        slots.release(0, 1_000);
        assert_eq!(slots.take(3, 1_000), Ok(2));
        assert_eq!(slots.take(3, 1_000 + QUARANTINE_MS - 1), Err(Exhausted { slots: 3 }));
        assert_eq!(slots.take(3, 1_000 + QUARANTINE_MS), Ok(0));
    }

    #[test]
    fn a_second_release_does_not_lengthen_the_quarantine() {
        let mut slots = Slots::default();
        slots.claim(0);
        slots.release(0, 5);
        slots.release(0, 50_000);
        assert_eq!(slots.take(1, 5 + QUARANTINE_MS), Ok(0));
    }

    #[test]
    fn a_reboot_begins_the_quarantine_anew() {
        let mut slots = Slots::default();
        slots.claim(0);
        slots.release(0, 1_000_000);
        let mut slots: Slots =
            serde_json::from_str(&serde_json::to_string(&slots).unwrap()).unwrap();
        assert_eq!(slots.take(1, 10), Err(Exhausted { slots: 1 }));
        assert_eq!(slots.take(1, 9 + QUARANTINE_MS), Err(Exhausted { slots: 1 }));
        assert_eq!(slots.take(1, 10 + QUARANTINE_MS), Ok(0));
    }
}
