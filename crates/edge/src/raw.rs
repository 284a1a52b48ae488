//! Ports that apps have claimed, and bytes that pass as they are: without HTTP, perhaps out of TLS or
//! behind a PROXY header.
//!
//! Never decides whose a port is: that is claimed in the directory. Listeners are opened and closed
//! as the view changes ([`doors`]), one task accepts at each, and a loop has the connection from then
//! on ([`tcp`]). What passes takes the same way as a request: a ready machine is picked or woken
//! ([`machine`]), here or through the edge of another host, and it is counted there until it ends.
//! Datagrams go to machines of this host alone ([`udp`]).

mod caps;
mod doors;
mod machine;
pub(crate) mod pg_tls;
mod proxy_proto;
mod tcp;
mod udp;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perch_types::ports::RawPort;
use perch_types::service::{Handler, Port, Protocol};
use perch_types::{HostId, MachineId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::caps::Caps;
pub(crate) use self::caps::Place;
pub(crate) use self::machine::Search;
pub(crate) use self::tcp::{pass_named, pass_opened};
use crate::Shared;
use crate::handing::Loops;
use crate::live::AppKey;
use crate::passage::{Ended, How, Terms};
use crate::pick::{Door, mixed};
use crate::tls::{Certificates, Tls, TlsError};

/// Bytes of a connection that are under way in one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// Who binds public ports for the edge.
pub trait Binder: Send + Sync + fmt::Debug {
    /// Listens for connections at a port.
    ///
    /// # Errors
    /// When somebody else has the port.
    fn tcp(&self, port: u16) -> io::Result<TcpListener>;

    /// Takes datagrams at a port.
    ///
    /// # Errors
    /// When somebody else has the port.
    fn udp(&self, port: u16) -> io::Result<UdpSocket>;

    /// Closes what it keeps bound of any other port than these.
    ///
    /// # Errors
    /// When that cannot be said to whoever keeps them.
    fn only(&self, ports: &BTreeSet<RawPort>) -> io::Result<()>;
}

/// What an edge needs to serve raw ports.
#[derive(Debug)]
pub struct RawConfig {
    /// Who binds them.
    pub binder: Arc<dyn Binder>,
    /// Certificates for ports that end TLS; without them these take no connection.
    pub certificates: Option<Arc<dyn Certificates>>,
    /// How long and how much.
    pub limits: RawLimits,
}

/// How long things may take at raw ports, and how many there may be at once. A connection that is
/// carried between hosts has a place at both edges, under its client's address.
#[derive(Debug, Clone)]
pub struct RawLimits {
    /// Connections, all together.
    pub connections: usize,
    /// Flows of datagrams, all together: their sources may be made up, so they take no connection's
    /// place.
    pub flows: usize,
    /// Of either, at one port.
    pub of_port: usize,
    /// Of either, to one app.
    pub of_app: usize,
    /// Of either, from one address; of IPv6 one network of 64 bits.
    pub of_address: usize,
    /// How long nothing may move over a connection.
    pub idle: Duration,
    /// The same once one side has ended its half.
    pub half_idle: Duration,
    /// How long a client may take to begin, where TLS is ended.
    pub handshake: Duration,
    /// How long a flow of datagrams stays without one.
    pub flow_idle: Duration,
    /// The same while the machine has answered nothing: its source may be made up.
    pub flow_unanswered: Duration,
    /// How long a port that somebody else has is left alone before it is tried again.
    pub bind_pause: Duration,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections: 16 * 1024,
            flows: 16 * 1024,
            of_port: 8 * 1024,
            of_app: 2 * 1024,
            of_address: 512,
            // Databases and brokers keep silent connections; dead ones are found by probes.
            idle: Duration::from_secs(60 * 60),
            half_idle: Duration::from_secs(60),
            handshake: Duration::from_secs(10),
            flow_idle: Duration::from_secs(60),
            flow_unanswered: Duration::from_secs(10),
            bind_pause: Duration::from_secs(1),
        }
    }
}

/// What all claimed ports share, and the one at which TLS ends for all apps.
#[derive(Debug)]
pub(crate) struct Raw {
    shared: Arc<Shared>,
    binder: Arc<dyn Binder>,
    tls: Option<Arc<Tls>>,
    limits: RawLimits,
    caps: Arc<Caps>,
    /// For datagrams that wait.
    waiting: udp::Room,
    lots: AtomicU64,
    /// Held by whatever is under way: the edge ends when nobody holds one any more.
    _under_way: mpsc::Sender<Infallible>,
}

/// Where something came in, and whose that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) app: AppKey,
}

impl Entry {
    const fn door(&self) -> Door {
        Door::Raw(self.protocol, self.port)
    }
}

/// Who speaks to which public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) public: SocketAddr,
}

/// A connection that passed, to its end.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) ended: Ended,
    pub(crate) machine: MachineId,
    /// The other host that it was carried to, or came from.
    pub(crate) other: Option<HostId>,
}

impl Passed {
    /// Writes its event.
    pub(crate) fn tell(&self, entry: &Entry, began: Instant) {
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Self { ended: Ended { sent, received, how }, machine, other } = self;
        let (end, error) = match how {
            How::Closed => ("closed", None),
            How::Broken(error) => ("broken", Some(tracing::field::display(error))),
            How::Idle => ("idle", None),
        };
        let (app, port) = (&entry.app.name, entry.port);
        let other = other.as_ref().map(tracing::field::display);
        tracing::debug!(
            %app, port, %machine, other, sent, received, end, error, took_us, "connection passed"
        );
    }
}

/// Opens and closes claimed ports until the edge is stopped; must be called inside a runtime.
pub(crate) fn spawn(raw: Arc<Raw>, loops: Loops, stopping: watch::Receiver<bool>) {
    let pulse = raw.shared.watched("raw ports");
    tokio::spawn(doors::follow(raw, Arc::new(loops), pulse, stopping));
}

impl Raw {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: RawConfig,
        under_way: mpsc::Sender<Infallible>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            lots: AtomicU64::new(shared.clock.boot_ms()),
            shared,
            binder: config.binder,
            tls: config.certificates.map(Tls::new).transpose()?.map(Arc::new),
            caps: Arc::new(Caps::new(&config.limits)),
            waiting: udp::Room::of_all(),
            limits: config.limits,
            _under_way: under_way,
        })
    }

    /// Takes a place for a connection that another edge carries here; nothing when there is none
    /// left.
    pub(crate) fn enter(&self, entry: &Entry, client: IpAddr) -> Option<Place> {
        self.caps.enter((entry.protocol, entry.port), Some(&entry.app), client)
    }

    /// Returns how bytes pass.
    pub(crate) const fn terms(&self) -> Terms {
        let RawLimits { idle, half_idle, .. } = self.limits;
        Terms { buffer_bytes: BUFFER_BYTES, idle, half_idle }
    }

    /// Draws a number that only spreads load.
    fn lot(&self) -> u64 {
        mixed(0, self.lots.fetch_add(1, Ordering::Relaxed))
    }
}

/// What is done with a connection before its bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Nothing.
    Plain,
    /// A loop speaks HTTP with the client.
    Http,
    /// A loop ends TLS, and then does what the app wants that the client has named.
    Tls,
    /// TLS ends here once a Postgres client has asked for it.
    PgTls,
}

impl Opening {
    fn of(port: &Port) -> Self {
        if port.handlers.contains(&Handler::PgTls) {
            Self::PgTls
        } else if port.handlers.contains(&Handler::Tls) {
            Self::Tls
        } else if port.is_raw() {
            Self::Plain
        } else {
            Self::Http
        }
    }
}
