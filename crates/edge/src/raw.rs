//! Ports of apps at which the edge does not speak HTTP: connections and datagrams that pass as they
//! are, perhaps out of TLS or behind a PROXY header.
//!
//! Never decides whose a port is: that is claimed in the directory. Listeners are opened and closed
//! as the view changes ([`doors`]), one task accepts at each; what comes takes the same way as a
//! request: a ready machine is picked or woken, and it is counted there until it ends.

mod caps;
mod doors;
mod passage;
mod pg_tls;
mod proxy_proto;
mod tcp;
mod tls;
mod udp;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perch_types::service::{Handler, Port, Protocol};
use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, watch};

use self::caps::Caps;
use crate::Shared;
use crate::cause::Cause;
use crate::live::AppKey;
use crate::pick::{self, Door};
use crate::tls::Certificates;

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

/// How long things may take at raw ports, and how many there may be at once.
#[derive(Debug, Clone)]
pub struct RawLimits {
    /// Connections and flows of datagrams, all together.
    pub all: usize,
    /// Of those, at one port.
    pub of_port: usize,
    /// Of those, to one app.
    pub of_app: usize,
    /// Of those, from one address; of IPv6 one network of 64 bits.
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
            all: 16 * 1024,
            of_port: 8 * 1024,
            of_app: 8 * 1024,
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

/// What all raw ports share.
#[derive(Debug)]
struct Raw {
    shared: Arc<Shared>,
    binder: Arc<dyn Binder>,
    certificates: Option<Arc<dyn Certificates>>,
    provider: Arc<CryptoProvider>,
    limits: RawLimits,
    caps: Arc<Caps>,
    lots: AtomicU64,
    /// Held by whatever is under way: the edge ends when nobody holds one any more.
    _under_way: mpsc::Sender<Infallible>,
}

/// Where something came in, and whose that is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    protocol: Protocol,
    port: u16,
    app: AppKey,
}

impl Entry {
    const fn door(&self) -> Door {
        Door::Raw(self.protocol, self.port)
    }
}

/// Opens and closes raw ports until the edge is stopped; must be called inside a runtime.
pub(crate) fn spawn(
    shared: Arc<Shared>,
    config: RawConfig,
    stopping: watch::Receiver<bool>,
    under_way: mpsc::Sender<Infallible>,
) {
    let caps = Arc::new(Caps::new(&config.limits));
    let raw = Raw {
        lots: AtomicU64::new(shared.clock.boot_ms()),
        shared,
        binder: config.binder,
        certificates: config.certificates,
        provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        limits: config.limits,
        caps,
        _under_way: under_way,
    };
    let pulse = raw.shared.watched("raw ports");
    tokio::spawn(doors::follow(Arc::new(raw), pulse, stopping));
}

impl Raw {
    /// Draws a number that only spreads load.
    fn lot(&self) -> u64 {
        // The finalizer of splitmix64.
        let mut lot = self.lots.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        lot = (lot ^ (lot >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        lot = (lot ^ (lot >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        lot ^ (lot >> 31)
    }

    /// Returns what the app says of a port: whatever machine says it first, as all of a release
    /// say the same. Waits for the host's first word if that is not there yet.
    async fn port_of(&self, entry: &Entry) -> Result<Port, Cause> {
        let mut changes = self.shared.live.changes();
        let known = async {
            while !self.shared.live.is_known() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // If it does not come the app has no machine that is known.
        tokio::time::timeout(self.shared.limits.hold, known).await.ok();
        let machines = self.shared.live.machines_of(&entry.app).unwrap_or_default();
        let mut ports = machines.iter().filter_map(|target| {
            pick::raw(&target.record.services, entry.protocol, entry.port).map(|(_, port)| port)
        });
        ports.next().cloned().ok_or(Cause::NoMachine)
    }
}

/// What is done with a connection before its bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Nothing.
    Plain,
    /// TLS ends here.
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
        } else {
            Self::Plain
        }
    }
}
