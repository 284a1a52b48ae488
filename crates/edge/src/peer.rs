//! The other end of a connection, and the machine that its requests stay with.
//!
//! Never shared between two connections.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use perch_types::{InstanceId, MachineId};

use crate::Shared;
use crate::crowd::AppSeat;
use crate::gate::Gate;
use crate::headers;
use crate::live::{AppKey, Target};
use crate::pool::{Key, Pool};
use crate::room::Connected;
use crate::tls::Secure;

/// Who asks over a connection, and how the connection came.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its address, as the app is told.
    pub(crate) client: HeaderValue,
    /// The port that was connected to.
    pub(crate) gate: Gate,
    /// The same, as the app is told.
    pub(crate) port: HeaderValue,
    /// The name that it was made for, if it is under TLS.
    pub(crate) secure: Option<Secure>,
    /// Tells connections of this process apart; never 0.
    pub(crate) number: u64,
    /// Apart, as few have one.
    stay: RefCell<Option<Box<Stay>>>,
    /// Among which app's connections it is counted.
    seat: RefCell<Option<(AppKey, AppSeat)>>,
}

impl Peer {
    pub(crate) fn new(client: IpAddr, gate: Gate, secure: Option<Secure>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            client: headers::client_value(client),
            port: HeaderValue::from(gate.told),
            gate,
            secure,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            stay: RefCell::new(None),
            seat: RefCell::new(None),
        }
    }

    /// Returns whether what comes over it came over TLS.
    pub(crate) const fn over_tls(&self) -> bool {
        self.secure.is_some()
    }

    /// Returns the public port that the connection stands for.
    pub(crate) const fn public_port(&self) -> u16 {
        self.gate.public
    }

    /// Counts the connection among an app's, unless it is; returns whether there is room. One over
    /// which another app was asked for before is that one's no more.
    pub(crate) fn sits_with(&self, shared: &Shared, app: &AppKey) -> bool {
        if self.seat.borrow().as_ref().is_some_and(|(seated, _)| seated == app) {
            return true;
        }
        let of_others = || shared.far.as_ref().map(|far| far.seats_of(app));
        // To an app without machines anywhere nothing is held.
        let Some(metrics) = shared.live.metrics_of(app).or_else(of_others) else { return true };
        let seat = AppSeat::take(&metrics, shared.limits.app_connections_max);
        let has_room = seat.is_some();
        let before = self.seat.replace(seat.map(|seat| (app.clone(), seat)));
        drop(before);
        has_room
    }

    /// Keeps the connection with a machine in which it was counted, until it ends or goes to
    /// another.
    pub(crate) fn keep(&self, target: &Arc<Target>, connected: Connected, pool: &Pool, key: Key) {
        let stay = Stay {
            machine: target.record.id.clone(),
            instance: target.record.instance.clone(),
            pool: pool.clone(),
            key,
            _connected: connected,
        };
        let before = self.stay.replace(Some(Box::new(stay)));
        drop(before);
    }
}

/// Whoever asks for a machine.
pub(crate) trait Asks {
    /// Returns whether it already counts in a machine.
    fn stays_with(&self, target: &Target) -> bool;
}

impl Asks for Peer {
    fn stays_with(&self, target: &Target) -> bool {
        self.stay.borrow().as_ref().is_some_and(|stay| {
            stay.machine == target.record.id && stay.instance == target.record.instance
        })
    }
}

/// One that asks once: what it is given it keeps to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Once;

impl Asks for Once {
    fn stays_with(&self, _: &Target) -> bool {
        false
    }
}

/// A machine that a client's connection goes to, and the machine's side of it.
#[derive(Debug)]
struct Stay {
    machine: MachineId,
    instance: InstanceId,
    pool: Pool,
    key: Key,
    _connected: Connected,
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.pool.forget(&self.key);
    }
}
