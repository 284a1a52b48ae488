//! Connections to edges of other hosts: a loop has one pool for requests, and one an app for what
//! is carried ([`super::carriers`]).
//!
//! Never one to somebody who has not shown the certificate of that host's edge, and never more at
//! once that begin than those that wait for them need.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use perch_types::HostId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Limits;
use crate::buffers::Buffers;
use crate::origin1::Origin;
use crate::origin2::{self, Bounds};
use crate::pool::Stream;
use crate::upload::RequestBody;

use super::{CONNECTION_WINDOW_BYTES, Far, STREAM_WINDOW_BYTES, peer_name};

/// How many requests are under way at once over a connection; for more there is another. Fewer than
/// the edge there takes.
const REQUESTS_MAX: usize = 100;
/// How long a connection without a request is kept.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How much may be under way over one.
const BOUNDS: Bounds = Bounds {
    head_bytes: 128 * 1024,
    stream_bytes: STREAM_WINDOW_BYTES,
    connection_bytes: CONNECTION_WINDOW_BYTES,
    send_bytes: 256 * 1024,
};
/// How often a connection has to show that it is whole, and how quickly.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_MAX: Duration = Duration::from_secs(10);

/// Connections of one pool, by host.
#[derive(Debug)]
pub(super) struct Links {
    /// How much each takes at once.
    most: usize,
    open: RefCell<HashMap<HostId, Vec<Link>>>,
    /// Those that somebody dials right now.
    dials: RefCell<Vec<Dial>>,
}

/// A connection that begins; how that went is told to all who wait for it.
#[derive(Debug, Clone)]
struct Dial {
    host: HostId,
    address: SocketAddr,
    is_there: Rc<watch::Sender<Option<bool>>>,
}

/// What a request does that found no place on a connection.
enum Turn<'a> {
    Dials(Dialing<'a>),
    Waits(watch::Receiver<Option<bool>>),
}

/// Whoever dials; others dial instead once this is dropped without an outcome.
struct Dialing<'a> {
    links: &'a Links,
    dial: Dial,
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        let is_own = |dial: &Dial| Rc::ptr_eq(&dial.is_there, &self.dial.is_there);
        self.links.dials.borrow_mut().retain(|dial| !is_own(dial));
    }
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    sender: http2::SendRequest<RequestBody>,
    streams: Rc<()>,
    used: Instant,
}

impl Link {
    fn is_worth_keeping(&self, now: Instant) -> bool {
        let is_used = Rc::strong_count(&self.streams) > 1;
        !self.sender.is_closed() && (is_used || now.duration_since(self.used) < IDLE_MAX)
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::of(REQUESTS_MAX)
    }
}

impl Links {
    /// Makes those of which each takes so much at once.
    pub(super) fn of(most: usize) -> Self {
        Self { most, open: RefCell::default(), dials: RefCell::default() }
    }

    /// Returns a place on a connection to the edge of a host, and whether that is new; nothing when
    /// it cannot be reached.
    pub(super) async fn place(
        &self,
        far: &Far,
        host: &HostId,
        address: SocketAddr,
    ) -> Option<(Stream, bool)> {
        if let Some(stream) = self.take(host, address) {
            return Some((stream, false));
        }
        let dialing = Box::pin(dial(far, host, address));
        let stream = self.begin(host, address, far.limits.connect, dialing).await?;
        Some((stream, true))
    }

    /// Takes a place on a connection that there is.
    fn take(&self, host: &HostId, address: SocketAddr) -> Option<Stream> {
        let mut links = self.open.borrow_mut();
        let now = Instant::now();
        let of_host = links.get_mut(host)?;
        of_host.retain(|link| link.address == address && link.is_worth_keeping(now));
        let link = of_host.iter_mut().find(|it| Rc::strong_count(&it.streams) <= self.most)?;
        link.used = now;
        Some(Stream { sender: link.sender.clone(), streams: Rc::clone(&link.streams) })
    }

    /// Returns a place on a new connection: `dial` makes it, unless somebody makes one to there
    /// already: that one is waited for no longer than `patience`.
    async fn begin(
        &self,
        host: &HostId,
        address: SocketAddr,
        patience: Duration,
        dial: impl Future<Output = Option<http2::SendRequest<RequestBody>>>,
    ) -> Option<Stream> {
        let until = Instant::now() + patience;
        loop {
            let mut outcome = match self.turn(host, address) {
                Turn::Waits(outcome) => outcome,
                Turn::Dials(dialing) => {
                    let dialed = dial.await;
                    let stream = dialed.map(|sender| self.share(host, address, sender));
                    dialing.dial.is_there.send_replace(Some(stream.is_some()));
                    return stream;
                }
            };
            let heard = tokio::time::timeout_at(until, outcome.wait_for(Option::is_some)).await;
            match heard.map(|told| told.map(|is_there| *is_there)) {
                Ok(Ok(Some(true))) => {}
                // Whoever dialed has left.
                Ok(Err(_)) => continue,
                Ok(Ok(Some(false) | None)) | Err(_) => return None,
            }
            if let Some(stream) = self.take(host, address) {
                return Some(stream);
            }
        }
    }

    /// Returns what is to be waited for, if it leaves a place.
    fn turn(&self, host: &HostId, address: SocketAddr) -> Turn<'_> {
        let mut dials = self.dials.borrow_mut();
        let leaves_place = |dial: &&Dial| {
            let is_there = (&dial.host, dial.address) == (host, address);
            // The first place is for whoever dials.
            is_there && dial.is_there.receiver_count() + 1 < self.most
        };
        if let Some(dial) = dials.iter().find(leaves_place) {
            return Turn::Waits(dial.is_there.subscribe());
        }
        let is_there = Rc::new(watch::Sender::new(None));
        let dial = Dial { host: host.clone(), address, is_there };
        dials.push(dial.clone());
        Turn::Dials(Dialing { links: self, dial })
    }

    /// Keeps a new connection, and takes the first place on it.
    fn share(
        &self,
        host: &HostId,
        address: SocketAddr,
        sender: http2::SendRequest<RequestBody>,
    ) -> Stream {
        let (streams, used) = (Rc::new(()), Instant::now());
        let stream = Stream { sender: sender.clone(), streams: Rc::clone(&streams) };
        let mut links = self.open.borrow_mut();
        links.entry(host.clone()).or_default().push(Link { address, sender, streams, used });
        stream
    }

    /// Ends connections that nobody used for a while; returns whether any are left.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut links = self.open.borrow_mut();
        links.retain(|_, of_host| {
            of_host.retain(|link| link.is_worth_keeping(now));
            !of_host.is_empty()
        });
        !links.is_empty()
    }

    /// Gives up the connection that a place was on: nothing more can be sent over it.
    pub(super) fn retire(&self, host: &HostId, streams: &Rc<()>) {
        if let Some(of_host) = self.open.borrow_mut().get_mut(host) {
            of_host.retain(|link| !Rc::ptr_eq(&link.streams, streams));
        }
    }
}

/// Connects to the edge of a host, for many requests.
async fn dial(
    far: &Far,
    host: &HostId,
    address: SocketAddr,
) -> Option<http2::SendRequest<RequestBody>> {
    let stream = connect(&far.h2, &far.limits, host, address).await?;
    let handshake = origin2::builder(BOUNDS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.ok()?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to another edge ended");
        }
    });
    Some(sender)
}

/// Connects to the edge of a host, for one switch of protocols.
pub(super) async fn dial_once(
    far: &Far,
    host: &HostId,
    address: SocketAddr,
    buffers: &Buffers,
) -> Option<Box<Origin>> {
    let stream = connect(&far.http1, &far.limits, host, address).await?;
    Some(Origin::over_tls(stream, buffers))
}

async fn connect(
    config: &Arc<ClientConfig>,
    limits: &Limits,
    host: &HostId,
    address: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let name = ServerName::try_from(peer_name(host)).ok()?;
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await
    };
    match tokio::time::timeout(limits.connect, connecting).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::warn!(%host, %address, %error, "edge of another host not reached");
            None
        }
        Err(_) => {
            tracing::warn!(%host, %address, "edge of another host did not answer in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::OptionFuture;
    use tokio::sync::oneshot;
    use tokio::task::{JoinHandle, LocalSet};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    type Asking = Vec<JoinHandle<Option<Stream>>>;

    /// A connection whose other end says nothing.
    async fn connection() -> Option<http2::SendRequest<RequestBody>> {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (sender, connection) =
            origin2::builder(BOUNDS).handshake(TokioIo::new(client)).await.ok()?;
        tokio::task::spawn_local(async move {
            let _stays = server;
            connection.await.ok();
        });
        Some(sender)
    }

    struct World {
        links: Rc<Links>,
        dialed: Rc<Cell<usize>>,
    }

    impl World {
        fn new() -> Self {
            Self { links: Rc::default(), dialed: Rc::default() }
        }

        /// Has a request find a place; its own dial, if it is one that dials, goes as is told.
        fn asks(&self, bits: u64, told: oneshot::Receiver<bool>) -> JoinHandle<Option<Stream>> {
            let (links, dialed) = (Rc::clone(&self.links), Rc::clone(&self.dialed));
            tokio::task::spawn_local(async move {
                let dial = async {
                    dialed.set(dialed.get() + 1);
                    let goes_well = told.await.unwrap_or_default();
                    OptionFuture::from(goes_well.then(connection)).await.flatten()
                };
                let address = "192.0.2.1:1".parse().unwrap();
                links.begin(&HostId::from_bits(bits), address, PATIENCE, dial).await
            })
        }

        /// Has some ask of which only the first is told anything.
        async fn ask(&self, bits: u64, count: usize) -> (oneshot::Sender<bool>, Asking) {
            let (tell, told) = oneshot::channel();
            let mut asking = vec![self.asks(bits, told)];
            asking.extend((1..count).map(|_| self.asks(bits, oneshot::channel().1)));
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            (tell, asking)
        }
    }

    fn on_loop(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn one_dials_for_all_that_wait() {
        on_loop(async {
            let world = World::new();
            let (tell, asking) = world.ask(1, 20).await;
            let (tell_other, other) = world.ask(2, 1).await;
            assert_eq!(world.dialed.get(), 2, "one for each host");
            tell.send(true).unwrap();
            tell_other.send(false).unwrap();
            let mut streams = Vec::new();
            for one in asking {
                streams.push(one.await.unwrap().unwrap().streams);
            }
            assert!(streams.iter().all(|one| Rc::ptr_eq(one, &streams[0])));
            for one in other {
                assert!(one.await.unwrap().is_none());
            }
            assert_eq!(world.dialed.get(), 2);
            assert!(world.links.dials.borrow().is_empty());
        });
    }

    #[test]
    fn a_dial_that_fails_fails_for_all_that_wait() {
        on_loop(async {
            let world = World::new();
            let (tell, asking) = world.ask(1, 20).await;
            tell.send(false).unwrap();
            for one in asking {
                assert!(one.await.unwrap().is_none());
            }
            assert_eq!(world.dialed.get(), 1);
            // The next one tries for itself.
            let (tell, asking) = world.ask(1, 1).await;
            tell.send(true).unwrap();
            for one in asking {
                assert!(one.await.unwrap().is_some());
            }
        });
    }

    #[test]
    fn another_dials_when_whoever_did_has_left() {
        on_loop(async {
            let world = World::new();
            let (_tell, first) = world.ask(1, 1).await;
            let (tell, second) = world.ask(1, 1).await;
            assert_eq!(world.dialed.get(), 1);
            first.into_iter().for_each(|one| one.abort());
            tell.send(true).unwrap();
            for one in second {
                assert!(one.await.unwrap().is_some());
            }
            assert_eq!(world.dialed.get(), 2);
        });
    }

    #[test]
    fn a_connection_that_nobody_uses_ends_in_a_while() {
        on_loop(async {
            let world = World::new();
            let (tell, mut asking) = world.ask(1, 1).await;
            tell.send(true).unwrap();
            let stream = asking.remove(0).await.unwrap();
            let now = Instant::now();
            assert!(world.links.sweep(now + IDLE_MAX), "it is used");
            drop(stream);
            assert!(world.links.sweep(now), "it may be again");
            assert!(!world.links.sweep(now + IDLE_MAX));
        });
    }

    #[test]
    fn no_more_wait_for_a_connection_than_it_takes() {
        for most in [8, REQUESTS_MAX] {
            on_loop(async {
                let world = World { links: Rc::new(Links::of(most)), ..World::new() };
                let (_tell, _asking) = world.ask(1, most).await;
                assert_eq!(world.dialed.get(), 1);
                let (_tell, _asking) = world.ask(1, most).await;
                assert_eq!(world.dialed.get(), 2);
            });
        }
    }
}
