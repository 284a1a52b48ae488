//! What is in flight to one machine.
//!
//! Never more than one number decides whether a request may begin: no lock, and no moment between
//! the look and the count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use perch_types::labels::WEIGHT_FULL;
use tokio::sync::Notify;

use crate::metrics::{AppMetrics, InstanceMetrics};
use crate::outlier::Health;
use crate::room::{Connected, Room};

/// The bits of [`Load`]: requests under way, tunnels among them, and whether the gate is closed.
const ONE_REQUEST: u64 = 1;
const ONE_TUNNEL: u64 = 1 << 32;
const CLOSED: u64 = 1 << 63;
const REQUESTS: u64 = ONE_TUNNEL - 1;
const TUNNELS: u64 = CLOSED - ONE_TUNNEL;
/// What the host is never told to be under way: nothing is as it was told.
const UNTOLD: u32 = u32::MAX;

/// What is in flight to one machine, and whether more may come; outlives a change of its record.
///
/// All of it is one number: a request that begins after the gate was closed is refused, and one
/// that began before is seen by whoever closed it.
#[derive(Debug, Default)]
pub(crate) struct Load {
    state: AtomicU64,
    changed: Notify,
    pub(crate) room: Room,
    pub(crate) health: Health,
    /// The most that was in flight since the host was told.
    peak: AtomicU32,
    /// What the host was told, or [`UNTOLD`].
    told: AtomicU32,
    /// What is missing from its full weight.
    lightness: AtomicU8,
    /// What is counted of the machine.
    pub(crate) instance: InstanceMetrics,
    /// What is counted of its app.
    pub(crate) app: Arc<AppMetrics>,
    /// Whether the machine is another host's: what is counted here is what this edge sends there.
    pub(crate) is_far: bool,
}

impl Load {
    pub(super) fn of(app: &Arc<AppMetrics>) -> Self {
        Self { app: Arc::clone(app), ..Self::default() }
    }

    pub(crate) fn of_far(app: &Arc<AppMetrics>) -> Self {
        Self { app: Arc::clone(app), is_far: true, ..Self::default() }
    }

    /// Returns how much of its share of requests it gets, in percent.
    pub(crate) fn weight(&self) -> u8 {
        WEIGHT_FULL.saturating_sub(self.lightness.load(Ordering::Relaxed))
    }

    pub(crate) fn set_weight(&self, weight: u8) {
        self.lightness.store(WEIGHT_FULL.saturating_sub(weight), Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        u32::try_from(self.state.load(Ordering::Acquire) & REQUESTS).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Counts one request until the guard is dropped; `None` when that would be more than `hard`
    /// or the gate is closed.
    pub(crate) fn begin(self: &Arc<Self>, hard: Option<u32>) -> Option<InFlight> {
        let hard = u64::from(hard.unwrap_or(u32::MAX));
        let under = |state: u64| {
            (state & CLOSED == 0 && state & REQUESTS < hard).then_some(state + ONE_REQUEST)
        };
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, under).ok()?;
        let now = u32::try_from((before & REQUESTS) + 1).unwrap_or(u32::MAX);
        if self.peak.load(Ordering::Relaxed) < now {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
        Some(InFlight { load: Arc::clone(self), counts: ONE_REQUEST, connected: None })
    }

    /// Returns how many requests are under way, or how many clients' connections stay with the
    /// machine, if these are more: one that stays is not done with it.
    fn in_use(&self) -> u32 {
        self.in_flight().max(self.room.connections())
    }

    /// Closes the gate if nothing is under way, nor was since the host was told; returns whether it
    /// is closed and nothing is.
    pub(super) fn close_if_idle(&self) -> bool {
        match self.state.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            // Whoever is counted after the gate was closed is refused by it.
            Ok(_) if self.peak.load(Ordering::Relaxed) == 0 && self.room.connections() == 0 => {
                self.changed.notify_waiters();
                true
            }
            Ok(_) => {
                self.set_open(true);
                false
            }
            Err(state) => state == CLOSED,
        }
    }

    /// Returns what is to be told to the host: what is in flight and the most that was, if either
    /// is news. With `all` whatever is or was.
    pub(super) fn news(&self, all: bool) -> Option<(u32, u32)> {
        let in_flight = self.in_use();
        let peak = self.peak.swap(in_flight, Ordering::Relaxed).max(in_flight);
        let told = self.told.swap(in_flight, Ordering::Relaxed);
        let is_news = if all { peak > 0 } else { peak != told || in_flight != told };
        is_news.then_some((in_flight, peak))
    }

    /// Takes note that the host may not have heard what it was told last, with this peak: that is
    /// news again, whatever has changed since.
    pub(super) fn untold(&self, peak: u32) {
        self.peak.fetch_max(peak, Ordering::Relaxed);
        self.told.store(UNTOLD, Ordering::Relaxed);
    }

    pub(crate) fn set_open(&self, open: bool) {
        if open {
            self.state.fetch_and(!CLOSED, Ordering::AcqRel);
        } else {
            self.state.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
    }

    /// Waits until the gate is closed and every request but tunnels has ended: a tunnel has no end
    /// of its own, so its app is told by the signal.
    pub(crate) async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listening begins before the look, so that no change falls in between.
            changed.as_mut().enable();
            if is_drained(self.state.load(Ordering::Acquire)) {
                return;
            }
            changed.await;
        }
    }
}

const fn is_drained(state: u64) -> bool {
    state & CLOSED != 0 && state & REQUESTS == (state & TUNNELS) >> 32
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Arc<Load>,
    /// What it adds to the load.
    counts: u64,
    /// The place of a connection that is the request's alone.
    connected: Option<Connected>,
}

impl InFlight {
    /// Returns what is counted of the app.
    pub(crate) fn metrics(&self) -> &AppMetrics {
        &self.load.app
    }

    /// Keeps the place of a connection for as long as the request is under way.
    pub(crate) fn with(mut self, connected: Option<Connected>) -> Self {
        self.connected = connected;
        self
    }

    /// Notes that the request has become a tunnel.
    pub(crate) fn into_tunnel(mut self) -> Self {
        self.load.state.fetch_add(ONE_TUNNEL, Ordering::AcqRel);
        self.counts += ONE_TUNNEL;
        self.load.changed.notify_waiters();
        self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.load.state.fetch_sub(self.counts, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.load.changed.notify_waiters();
        }
        self.load.room.tell();
    }
}
