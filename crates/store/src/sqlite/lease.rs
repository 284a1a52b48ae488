//! Leases: who holds one until when, on a clock that does not jump.
//!
//! Never on the disk: after a restart every lease has its whole time again, as nobody could
//! prolong it meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use perch_types::clock::Clock;

use super::{Changer, commit::Change};
use crate::{Error, LeaseId, Purpose};

/// How late a lease may end.
const EXPIRY_TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl_ms: u64,
    ends_boot_ms: u64,
}

pub(super) struct Leases {
    clock: Arc<dyn Clock>,
    changer: Changer,
    held: Mutex<BTreeMap<LeaseId, Lease>>,
}

impl Leases {
    pub(super) fn new(clock: Arc<dyn Clock>, changer: Changer, known: Vec<(LeaseId, u32)>) -> Self {
        let leases = Self { clock, changer, held: Mutex::default() };
        for (lease, ttl_s) in known {
            leases.begin(lease, ttl_s);
        }
        leases
    }

    pub(super) fn begin(&self, lease: LeaseId, ttl_s: u32) {
        let ttl_ms = u64::from(ttl_s) * 1000;
        let ends_boot_ms = self.clock.boot_ms().saturating_add(ttl_ms);
        self.held().insert(lease, Lease { ttl_ms, ends_boot_ms });
    }

    pub(super) fn prolong(&self, lease: LeaseId) -> Result<(), Error> {
        let now_ms = self.clock.boot_ms();
        let mut held = self.held();
        match held.get_mut(&lease) {
            Some(found) if found.ends_boot_ms > now_ms => {
                found.ends_boot_ms = now_ms.saturating_add(found.ttl_ms);
                Ok(())
            }
            Some(_) | None => Err(Error::NoSuchLease { lease }),
        }
    }

    /// Forgets a lease; returns whether it was held.
    pub(super) fn end(&self, lease: LeaseId) -> bool {
        self.held().remove(&lease).is_some()
    }

    fn due(&self) -> Vec<LeaseId> {
        let now_ms = self.clock.boot_ms();
        let held = self.held();
        held.iter().filter(|(_, lease)| lease.ends_boot_ms <= now_ms).map(|(id, _)| *id).collect()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends leases that were not prolonged, for as long as the store lives.
pub(super) fn spawn_expiry(leases: &Arc<Leases>) {
    // Weak: the file closes with the store, not a tick later.
    let leases = Arc::downgrade(leases);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EXPIRY_TICK);
        loop {
            ticks.tick().await;
            let Some(leases) = leases.upgrade() else {
                return;
            };
            for lease in leases.due() {
                let work = move |change: &mut Change<'_, '_>| change.revoke(lease);
                match leases.changer.change(Purpose::Freeing, work).await {
                    Ok(_) => {
                        leases.end(lease);
                    }
                    // It stays due, so the next tick tries again.
                    Err(error) => tracing::warn!(%lease, %error, "cannot end lease"),
                }
            }
        }
    });
}
