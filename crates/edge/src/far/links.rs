//! Connections to edges of other hosts, one pool a loop.
//!
//! Never one to somebody who has not shown the certificate of that host's edge.

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

/// Connections of one loop, by host.
#[derive(Debug, Default)]
pub(super) struct Links(RefCell<HashMap<HostId, Vec<Link>>>);

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

impl Links {
    /// Takes a place on a connection that there is.
    pub(super) fn take(&self, host: &HostId, address: SocketAddr) -> Option<Stream> {
        let mut links = self.0.borrow_mut();
        let now = Instant::now();
        let of_host = links.get_mut(host)?;
        of_host.retain(|link| link.address == address && link.is_worth_keeping(now));
        let link = of_host.iter_mut().find(|it| Rc::strong_count(&it.streams) <= REQUESTS_MAX)?;
        link.used = now;
        Some(Stream { sender: link.sender.clone(), streams: Rc::clone(&link.streams) })
    }

    /// Keeps a new connection, and takes the first place on it.
    pub(super) fn share(
        &self,
        host: &HostId,
        address: SocketAddr,
        sender: http2::SendRequest<RequestBody>,
    ) -> Stream {
        let (streams, used) = (Rc::new(()), Instant::now());
        let stream = Stream { sender: sender.clone(), streams: Rc::clone(&streams) };
        let mut links = self.0.borrow_mut();
        links.retain(|_, of_host| {
            of_host.retain(|link| link.is_worth_keeping(used));
            !of_host.is_empty()
        });
        links.entry(host.clone()).or_default().push(Link { address, sender, streams, used });
        stream
    }

    /// Gives up the connection that a place was on: nothing more can be sent over it.
    pub(super) fn retire(&self, host: &HostId, streams: &Rc<()>) {
        if let Some(of_host) = self.0.borrow_mut().get_mut(host) {
            of_host.retain(|link| !Rc::ptr_eq(&link.streams, streams));
        }
    }
}

/// Connects to the edge of a host, for many requests.
pub(super) async fn dial(
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
) -> Option<Origin> {
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
