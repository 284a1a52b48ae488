//! One loop of the edge: accepts and limits connections.
//!
//! Never shares a connection or a pool with another loop: one thread, one listener, one runtime.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use perch_sockets::{keep_alive, send_at_once};
use perch_types::pulse::Pulse;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::compress::Places;
use crate::connection::{self, Door};
use crate::crowd::Crowd;
use crate::far::Reach;
use crate::gate::Gate;
use crate::h1::Date;
use crate::handing::Handed;
use crate::pick::mixed;
use crate::pool::Pool;
use crate::raw::{Place, Raw};
use crate::upload::Budget;
use crate::{BEAT_EVERY, Shared};

/// The most connections of one loop.
pub(crate) const CONNECTIONS_MAX: usize = 16 * 1024;
/// How often it is told that there are too many.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// The pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where one loop's connections come from; one of them at least.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) plain: Option<StdTcpListener>,
    pub(crate) tls: Option<StdTcpListener>,
    /// For other edges.
    pub(crate) far: Option<StdTcpListener>,
}

/// What a loop has to do with claimed ports.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) raw: Option<Arc<Raw>>,
    /// What was accepted there. It ends when nothing more can come.
    pub(crate) handed: mpsc::Receiver<Handed>,
}

/// Runs the loop until the edge is stopped and its connections have ended.
pub(crate) fn run(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    (index, pulse): (usize, Pulse),
    (listeners, claimed): (Listeners, Claimed),
    stopping: watch::Receiver<bool>,
) {
    let local = LocalSet::new();
    let accepting = accept(Arc::clone(shared), (index, pulse), (listeners, claimed), stopping);
    let outcome = local.block_on(runtime, accepting);
    if let Err(error) = outcome {
        tracing::error!(%error, "edge loop ended");
    }
    // Tunnels are tasks of their own, and go on.
    runtime.block_on(local);
}

async fn accept(
    shared: Arc<Shared>,
    (index, pulse): (usize, Pulse),
    (listeners, claimed): (Listeners, Claimed),
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let plain = Entrance::new(listeners.plain, |port| Door::Plain(Gate::http(port)))?;
    let tls = match &shared.tls {
        Some(tls) => {
            let door = |port| Door::Tls(Gate::https(port), Arc::clone(tls));
            Entrance::new(listeners.tls, door)?
        }
        None => None,
    };
    let far = match &shared.far {
        Some(far) => Entrance::new(listeners.far, |_| Door::Far(Arc::clone(far)))?,
        None => None,
    };
    let Claimed { raw, mut handed } = claimed;
    let seed = mixed(shared.clock.boot_ms(), index as u64);
    let region = HeaderValue::from_str(shared.region.as_str())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let worker = Rc::new(Worker {
        shared,
        raw,
        pool: Pool::default(),
        crowd: Crowd::default(),
        places: Places::default(),
        budget: Budget::default(),
        reach: Reach::default(),
        date: Date::default(),
        region,
        state: Cell::new(random_seed().unwrap_or(seed) | 1),
        connections: Cell::new(0),
        told: Told::default(),
    });
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        let accepted = tokio::select! {
            _ = beats.tick() => {
                pulse.beat();
                worker.pool.sweep();
                worker.reach.sweep();
                continue;
            }
            accepted = next(plain.as_ref()) => accepted,
            accepted = next(tls.as_ref()) => accepted,
            accepted = next(far.as_ref()) => accepted,
            Some(handed) = handed.recv() => {
                worker.take(handed, &stopping);
                continue;
            }
            _ = stopping.changed() => break,
        };
        match accepted {
            Ok((stream, peer, door)) => worker.admit(stream, peer, (door, None), stopping.clone()),
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever accepts from here on is another process: this one holds the port no longer.
    drop((plain, tls, far));
    drain(&worker, &pulse, handed, stopping).await;
    Ok(())
}

/// Serves what is still on its way from claimed ports, and ends what is under way.
async fn drain(
    worker: &Rc<Worker>,
    pulse: &Pulse,
    mut handed: mpsc::Receiver<Handed>,
    stopping: watch::Receiver<bool>,
) {
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            handed = handed.recv() => match handed {
                Some(handed) => worker.take(handed, &stopping),
                None => break,
            },
            _ = beats.tick() => pulse.beat(),
        }
    }
    while worker.connections.get() > 0 {
        beats.tick().await;
        pulse.beat();
    }
}

/// A listener of the loop and what is behind it.
struct Entrance {
    listener: TcpListener,
    door: Door,
}

impl Entrance {
    fn new(
        listener: Option<StdTcpListener>,
        door: impl FnOnce(u16) -> Door,
    ) -> std::io::Result<Option<Self>> {
        let Some(listener) = listener else { return Ok(None) };
        listener.set_nonblocking(true)?;
        // What is accepted has both of the listener.
        keep_alive(&listener)?;
        send_at_once(&listener)?;
        let listener = TcpListener::from_std(listener)?;
        let door = door(listener.local_addr()?.port());
        Ok(Some(Self { listener, door }))
    }
}

/// Waits for the next connection; for ever where there is no listener.
async fn next(entrance: Option<&Entrance>) -> std::io::Result<(TcpStream, SocketAddr, Door)> {
    match entrance {
        Some(Entrance { listener, door }) => {
            let (stream, peer) = listener.accept().await?;
            Ok((stream, peer, door.clone()))
        }
        None => std::future::pending().await,
    }
}

fn random_seed() -> Option<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Counts a connection until this is dropped, however its task ends.
struct Counted(Rc<Worker>);

impl Counted {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        worker.shared.metrics.connects.add(1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Self(worker) = self;
        worker.connections.set(worker.connections.get().saturating_sub(1));
        worker.shared.metrics.disconnects.add(1);
    }
}

/// What one loop has for itself.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    /// What passes connections on that are no HTTP.
    pub(crate) raw: Option<Arc<Raw>>,
    pub(crate) pool: Pool,
    pub(crate) crowd: Crowd,
    /// Answers that are compressed.
    pub(crate) places: Places,
    /// What is kept of requests' bodies.
    pub(crate) budget: Budget,
    /// Machines of other hosts, and the way there.
    pub(crate) reach: Reach,
    /// What answers say that have no date of their own.
    pub(crate) date: Date,
    pub(crate) region: HeaderValue,
    pub(crate) state: Cell<u64>,
    connections: Cell<usize>,
    told: Told,
}

/// When it was told that there are too many connections.
#[derive(Debug, Default)]
struct Told(Cell<Option<Instant>>);

impl Told {
    /// Returns whether it is time to tell, and takes that as done.
    fn is_due(&self, now: Instant) -> bool {
        let is_due = self.0.get().is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        if is_due {
            self.0.set(Some(now));
        }
        is_due
    }
}

impl Worker {
    /// Serves a connection that was accepted at a claimed port.
    fn take(self: &Rc<Self>, handed: Handed, stopping: &watch::Receiver<bool>) {
        let Handed { stream, client, door, place } = handed;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.admit(stream, client, (door, Some(place)), stopping.clone()),
            Err(error) => tracing::warn!(%error, "connection not taken over"),
        }
    }

    fn admit(
        self: &Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        (door, place): (Door, Option<Place>),
        stopping: watch::Receiver<bool>,
    ) {
        if self.connections.get() >= CONNECTIONS_MAX {
            if self.told.is_due(Instant::now()) {
                tracing::warn!(limit = CONNECTIONS_MAX, "connections at their limit");
            }
            return;
        }
        let most = self.shared.limits.address_connections_max;
        let Some(seat) = self.crowd.seat_address(peer.ip(), most) else {
            tracing::debug!(limit = most, "connections of an address at their limit");
            return;
        };
        let counted = Counted::new(self);
        let serving = connection::serve(Rc::clone(self), door, stream, peer.ip(), stopping);
        tokio::task::spawn_local(async move {
            serving.await;
            drop((seat, place, counted));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_is_silent_is_asked_whether_it_is_there_and_is_sent_all_at_once() {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let entrance = Entrance::new(Some(listener), |port| Door::Plain(Gate::http(port))).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, ..) = next(entrance.as_ref()).await.unwrap();
        assert!(rustix::net::sockopt::socket_keepalive(&stream).unwrap());
        assert!(stream.nodelay().unwrap());
    }

    #[test]
    fn it_is_told_once_a_minute_that_there_are_too_many() {
        let (told, now) = (Told::default(), Instant::now());
        for (after_s, want) in [(0, true), (0, false), (59, false), (60, true), (61, false)] {
            assert_eq!(told.is_due(now + Duration::from_secs(after_s)), want, "{after_s}");
        }
    }
}
