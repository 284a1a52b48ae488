//! Takes a public request to the right machine, waking it if needed.
//!
//! Never decides placement, and never asks the directory while it serves: it routes by a snapshot
//! and hears of machines from the host's own watch.
//!
//! A request passes these files in order, one a phase: [`listen`] (accept, limits), [`tls`]
//! (certificate by name) and [`connection`] (HTTP/1.1, or [`h2`]), [`strict`] (nothing in doubt
//! passes), [`shortcut`] (what is common, and all that follows at once: [`h1`] and [`h2`] take it) or
//! [`request`] (all that follows, in its order), [`route`] (host name to app),
//! [`redirect`] (to HTTPS), [`direction`] (where it wants to go), [`pick`] (a ready machine, less
//! loaded), [`wake`] (only if none is ready: start one and hold the request, or queue up),
//! [`forward`] (connect, copy: [`origin1`] and [`origin2`] speak HTTP to machines; what is large
//! and needs no look goes by [`splice`]), [`replaying`]
//! (again, elsewhere, if the app says so), [`compress`], [`reply`] (pages), [`account`] (until all
//! of it is over), [`access`] (one event), [`metrics`] (what is counted) and [`owners`] (a code in
//! the app's own log).
//!
//! A machine of another host is reached through the edge there, which counts, holds and wakes:
//! [`far`].
//!
//! Ports that apps have for themselves are [`raw`]'s: what is accepted there comes back to a loop
//! ([`handing`]), as HTTP or to pass as it is; datagrams go another way, to the machines of this
//! host. [`gate`] says which port that is, and whose.
#![forbid(unsafe_code)]

mod access;
mod account;
mod body;
mod buffers;
mod cause;
mod challenge;
mod compress;
mod connection;
mod crowd;
mod dial;
mod direction;
mod far;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod gather;
mod h1;
mod h2;
mod handing;
mod headers;
mod issuer;
mod listen;
mod live;
mod metrics;
mod origin1;
mod origin2;
mod outlier;
mod owners;
mod passage;
mod peer;
mod pick;
mod pool;
mod raw;
mod redirect;
mod regions;
mod replay;
mod replay_cache;
mod replaying;
mod reply;
mod request;
mod rewound;
mod room;
mod route;
mod shortcut;
mod splice;
mod statics;
mod sticky;
mod strict;
mod tls;
mod upload;
mod wake;

use std::convert::Infallible;
use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use perch_client::HostClient;
use perch_store::view::ViewHandle;
use perch_types::clock::Clock;
use perch_types::pulse::{Pulse, Watchdog};
use perch_types::{HostId, Region};
use tokio::task::JoinHandle;

use crate::access::Sampler;
use crate::far::Far;
use crate::handing::Loops;
use crate::listen::{Claimed, Listeners};
use crate::live::Live;
use crate::metrics::EdgeMetrics;
use crate::owners::Owners;
use crate::raw::Raw;
use crate::replay_cache::ReplayCache;
use crate::statics::Statics;
use crate::tls::Tls;
use crate::wake::Wakes;

pub use crate::cause::Cause;
pub use crate::far::{FarConfig, peer_name};
pub use crate::issuer::{Documents, Issuer};
pub use crate::metrics::Readings;
pub use crate::raw::{Binder, RawConfig, RawLimits};
pub use crate::tls::{Certificates, FirstOf, TlsError};

/// A loop or a task that has not turned for this long is wedged.
const WEDGED_MS: u64 = 20_000;
/// Defaults of [`Limits`].
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const HOLD_MAX: Duration = Duration::from_secs(30);
const STALE_MAX: Duration = Duration::from_secs(5);
/// The contract's default of `http_options.idle_timeout` (section 4.1).
const IDLE_MAX: Duration = Duration::from_secs(60);
const STALL_MAX: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
const BODY_STALL: Duration = Duration::from_secs(30);
const BODY_GRACE: Duration = Duration::from_secs(60);
const BODY_RATE_MIN: u32 = 64;
const LINGER: Duration = Duration::from_secs(1);
const HELD_MAX: usize = 10_000;
const HELD_APP_MAX: usize = 1_024;
const FILES_MAX: usize = 256;
const FILES_APP_MAX: usize = 32;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HANDSHAKES_MAX: usize = 1_024;
const HELLO_MAX: Duration = Duration::from_secs(1);
const SILENT_MAX: usize = 64;
const ADDRESS_CONNECTIONS_MAX: usize = 4_096;
const ADDRESS_H2_MAX: usize = 256;
const APP_CONNECTIONS_MAX: usize = 64 * 1024;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
const QUEUE_MAX: u32 = 1024;
/// How often each loop shows that it turns.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// What an edge is made of.
pub struct Config {
    /// One bound socket a core, all at the same port.
    pub listeners: Vec<TcpListener>,
    /// Where HTTPS is served, if it is: only then plain HTTP can be sent there.
    pub https: Option<Https>,
    /// Apps are served at `<app>.<domain>`.
    pub domain: String,
    /// What the platform itself serves at a host name.
    pub issuer: Option<Issuer>,
    /// Where this server stands.
    pub region: Region,
    /// This server; only its machines are connected to from here.
    pub host_id: HostId,
    /// The agent of this server.
    pub host: HostClient,
    /// Apps and host names.
    pub view: ViewHandle,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long and how much.
    pub limits: Limits,
    /// Ports that apps have claimed; without it none is opened.
    pub raw: Option<RawConfig>,
    /// Edges of other hosts: without it only machines of this one are served.
    pub far: Option<FarConfig>,
}

/// How HTTPS is served.
#[derive(Debug)]
pub struct Https {
    /// One bound socket a core, all at the same port.
    pub listeners: Vec<TcpListener>,
    /// The certificates.
    pub certificates: Arc<dyn Certificates>,
}

/// How long the phases of a request may take, and how many may wait.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a client may take to send a request's head, or stay silent between two requests.
    pub head: Duration,
    /// How long a machine of this server may take to accept a connection.
    pub connect: Duration,
    /// How long an app may take to begin its answer, counted from when the request's body last
    /// moved; a port's `http_options.idle_timeout` replaces it.
    pub answer: Duration,
    /// How large the body of a request may be.
    pub body_bytes_max: u64,
    /// How long a client may send nothing in the middle of a body that is not answered yet; a port's
    /// `http_options.idle_timeout` replaces it.
    pub body_stall: Duration,
    /// How many bytes a second a client has to send of such a body in the mean.
    pub body_rate_min: u32,
    /// For how long a client is waited for before that is looked at.
    pub body_grace: Duration,
    /// How long a request is held while its app starts.
    pub hold: Duration,
    /// How long what is known of a machine may lag behind it: for so long a machine that refuses
    /// connections although it should be ready is tried again, or its news waited for.
    pub stale: Duration,
    /// How long an app may send nothing in the middle of an answer, and how long nothing may move
    /// over a tunnel; a port's `http_options.idle_timeout` replaces it.
    pub idle: Duration,
    /// How long a client may take nothing of what it is sent.
    pub stall: Duration,
    /// How many requests are held at once, all apps together.
    pub held_max: usize,
    /// How many of them are one app's: an app that does not get up leaves places to the others. Once
    /// half of all are taken, it is a few.
    pub held_app_max: usize,
    /// How many files of images are sent at once, all apps together: each holds a connection to the
    /// host until its client has taken it.
    pub files_max: usize,
    /// How many of them are one app's; more wait as for a machine that is full.
    pub files_app_max: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How many handshakes a loop has under way at once, of clients that have begun one; half of them
    /// from one address.
    pub handshakes_max: usize,
    /// How long a client may say nothing before it counts among those who do.
    pub hello: Duration,
    /// How many of those a loop has of one address, or of one network of IPv6.
    pub silent_max: usize,
    /// How many connections of one address, or of one network of IPv6, a loop has.
    pub address_connections_max: usize,
    /// How many of them are HTTP/2: each carries many requests, and holds some of every answer.
    pub address_h2_max: usize,
    /// How many connections of clients one app has, plain or under TLS, all loops together; never
    /// more than half of what all of them take.
    pub app_connections_max: usize,
    /// How long a request waits for a place in machines that are all at their hard limit.
    pub queue: Duration,
    /// How many requests wait so, an app.
    pub queue_max: u32,
    /// How many events a second the access log has at most.
    pub access_per_s: u32,
    /// How long a connection without a request stays open after the edge was stopped.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: HEAD_TIMEOUT,
            connect: CONNECT_TIMEOUT,
            answer: ANSWER_TIMEOUT,
            body_bytes_max: BODY_BYTES_MAX,
            body_stall: BODY_STALL,
            body_rate_min: BODY_RATE_MIN,
            body_grace: BODY_GRACE,
            hold: HOLD_MAX,
            stale: STALE_MAX,
            idle: IDLE_MAX,
            stall: STALL_MAX,
            held_max: HELD_MAX,
            held_app_max: HELD_APP_MAX,
            files_max: FILES_MAX,
            files_app_max: FILES_APP_MAX,
            handshake: HANDSHAKE_MAX,
            handshakes_max: HANDSHAKES_MAX,
            hello: HELLO_MAX,
            silent_max: SILENT_MAX,
            address_connections_max: ADDRESS_CONNECTIONS_MAX,
            address_h2_max: ADDRESS_H2_MAX,
            app_connections_max: APP_CONNECTIONS_MAX,
            queue: QUEUE_TIMEOUT,
            queue_max: QUEUE_MAX,
            access_per_s: access::PER_S_DEFAULT,
            linger: LINGER,
        }
    }
}

impl Limits {
    /// Returns them for so many loops.
    fn shared_by(mut self, loops: usize) -> Self {
        let half = loops.saturating_mul(listen::CONNECTIONS_MAX) / 2;
        self.app_connections_max = self.app_connections_max.min(half);
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// What every loop of an edge shares.
pub(crate) struct Shared {
    pub(crate) domain: String,
    pub(crate) issuer: Option<Issuer>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Where HTTPS is served for all apps, if it is.
    pub(crate) https_port: Option<u16>,
    /// What answers challenges over plain HTTP, which needs no TLS.
    pub(crate) proofs: Option<Arc<dyn Certificates>>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) region: Region,
    pub(crate) host_id: HostId,
    pub(crate) far: Option<Arc<Far>>,
    pub(crate) metrics: EdgeMetrics,
    pub(crate) sampler: Sampler,
    pub(crate) view: ViewHandle,
    pub(crate) live: Arc<Live>,
    pub(crate) statics: Statics,
    pub(crate) wakes: Wakes,
    pub(crate) replays: ReplayCache,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) owners: Owners,
    watchdog: Watchdog,
}

/// A running edge; it ends when this is dropped.
#[derive(Debug)]
pub struct Edge {
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
    stop: tokio::sync::watch::Sender<bool>,
    /// Nothing is ever sent: it ends when the last loop does.
    loops: tokio::sync::mpsc::Receiver<Infallible>,
}

/// An edge that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or a runtime.
    #[error("start a loop of the edge")]
    Loop(#[source] std::io::Error),
    /// TLS.
    #[error("start TLS of the edge")]
    Tls(#[source] TlsError),
}

impl Edge {
    /// Starts one loop for each listener; must be called inside a runtime, on which the host is
    /// followed and machines are woken.
    ///
    /// # Errors
    /// When a thread or a runtime cannot be made, or TLS cannot be prepared.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let live = Arc::new(Live::default());
        let of_https = config.https.as_ref().map(|https| &https.certificates);
        let of_raw = || config.raw.as_ref()?.certificates.as_ref();
        let proofs = of_https.or_else(of_raw).cloned();
        let (tls, tls_listeners) = match config.https {
            Some(Https { listeners, certificates }) => {
                let tls = Tls::new(certificates).map_err(StartError::Tls)?;
                (Some(Arc::new(tls)), listeners)
            }
            None => (None, Vec::new()),
        };
        let https_port = tls_listeners.first().and_then(|one| one.local_addr().ok());
        let mut listeners = pairs(config.listeners, tls_listeners);
        let far = match config.far {
            Some(far) => {
                let far = Far::new(far, config.host_id.clone(), &config.limits);
                let (far, sockets) = far.map_err(StartError::Tls)?;
                far::deal(&mut listeners, sockets);
                Some(Arc::new(far))
            }
            None => None,
        };
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared {
            domain: config.domain,
            issuer: config.issuer,
            tls,
            https_port: https_port.map(|address| address.port()),
            proofs,
            runtime: runtime.clone(),
            region: config.region,
            host_id: config.host_id.clone(),
            far,
            metrics: EdgeMetrics::default(),
            sampler: Sampler::new(config.limits.access_per_s),
            view: config.view,
            live: Arc::clone(&live),
            statics: Statics::new(config.host.clone(), runtime.clone(), &config.limits),
            wakes: Wakes::new(config.host.clone(), runtime.clone()),
            replays: ReplayCache::default(),
            clock: config.clock,
            limits: config.limits.shared_by(listeners.len()),
            owners: Owners::new(config.host.clone(), &runtime),
            watchdog: Watchdog::new(WEDGED_MS),
        });
        let pulses = [shared.watched("machines"), shared.watched("loads")];
        let follower = tokio::spawn(live::follow(live, config.host, config.host_id, pulses));
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let (turning, ended) = tokio::sync::mpsc::channel(1);
        let raw = config.raw.map(|raw| Raw::new(Arc::clone(&shared), raw, turning.clone()));
        let raw = raw.transpose().map_err(StartError::Tls)?.map(Arc::new);
        let mut loops = Loops::default();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let claimed = Claimed { raw: raw.clone(), handed: loops.add() };
            let (shared, stopping) = (Arc::clone(&shared), stopping.clone());
            let (turning, pulse) = (turning.clone(), shared.watched("loop"));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StartError::Loop)?;
            std::thread::Builder::new()
                .name(format!("edge-{index}"))
                .spawn(move || {
                    let (at, from) = ((index, pulse), (listeners, claimed));
                    listen::run(&runtime, &shared, at, from, stopping);
                    drop(turning);
                })
                .map_err(StartError::Loop)?;
        }
        drop(turning);
        if let Some(raw) = raw {
            raw::spawn(raw, loops, stopping);
        }
        Ok(Self { shared, follower, stop, loops: ended })
    }

    /// Returns the loops and tasks that have not turned for too long, if somebody asks now and then;
    /// one is a reason to restart: a stuck loop holds its connections, and what a stuck task knows
    /// of machines and ports grows old.
    #[must_use]
    pub fn wedged(&self) -> Vec<&'static str> {
        self.shared.watchdog.wedged(self.shared.clock.boot_ms())
    }

    /// Returns what reads the numbers that it counts.
    #[must_use]
    pub fn readings(&self) -> Readings {
        Readings(Arc::clone(&self.shared))
    }

    /// Waits until no connection and no tunnel is left after [`Edge::stop`].
    pub async fn ended(&mut self) {
        // Nothing can come: this is the end.
        let _end = self.loops.recv().await;
    }

    /// Stops accepting and lets requests under way end, for as long as the process lives.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Gives each loop its listeners; the plain ones and those of TLS are usually as many.
fn pairs(plain: Vec<TcpListener>, tls: Vec<TcpListener>) -> Vec<Listeners> {
    let loops = plain.len().max(tls.len());
    let (mut plain, mut tls) = (plain.into_iter(), tls.into_iter());
    (0..loops).map(|_| Listeners { plain: plain.next(), tls: tls.next(), far: None }).collect()
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop();
        self.follower.abort();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Shared {
    /// Returns by what a loop or a task has to show from now on that it turns.
    fn watched(&self, name: &'static str) -> Pulse {
        let pulse = Pulse::default();
        self.watchdog.watch(name, pulse.clone(), self.clock.boot_ms());
        pulse
    }
}
