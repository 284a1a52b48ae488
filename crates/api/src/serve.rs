//! Serves a router on a listener: a bounded number of connections, all together and of one address,
//! each with a limit on how long a request's head may take and how large it may be, and on how long
//! the client may take nothing of its answer.
//!
//! Never knows a route. Streams are given as they are accepted, so TLS and Unix sockets are the
//! same here.

mod limiter;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use perch_sockets::{Patience, Patient, keep_alive};
use perch_types::address::client_of;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(crate) use self::limiter::Limiter;
use self::limiter::Place;

/// Where requests come in.
pub enum Listener {
    /// Plain TCP: loopback only.
    Tcp(TcpListener),
    /// TLS over TCP.
    Tls(TcpListener, TlsAcceptor),
    /// A Unix socket; who may open it is the file's mode's business.
    Unix(UnixListener),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Tls(..) => "Tls",
            Self::Unix(_) => "Unix",
        })
    }
}

/// Limits of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Connections of one address at once; more are closed at once. They cannot wait in the
    /// kernel's queue: it is the same for all addresses.
    pub connections_of_address_max: usize,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub header_read_timeout: Duration,
    /// How long a client may take nothing of what it is sent. A stream with nothing to send, as of
    /// a log that is followed, is not counted.
    pub stall_timeout: Duration,
    /// Header lines of a request.
    pub headers_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long requests under way may take after the end was asked for.
    pub drain_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_of_address_max: CONNECTIONS_OF_ADDRESS_MAX,
            header_read_timeout: Duration::from_secs(30),
            stall_timeout: STALL_TIMEOUT,
            headers_max: 64,
            head_bytes_max: 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Who is at the other end, for limits of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<SocketAddr>);

/// A quarter of all connections, so that no address alone keeps others out. It is many because one
/// address may be many clients: an office behind one, a proxy before the API, and on loopback every
/// client of the server itself. A busy client has some ten connections: its calls at once, its
/// waits for machines and the log that it follows.
const CONNECTIONS_OF_ADDRESS_MAX: usize = 256;
/// As long as the edge waits for a client of an app.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait after an accept that failed, such as for too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` completes; then requests under way may finish.
pub async fn serve(
    listener: Listener,
    router: axum::Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let addresses = Limiter::new(limits.connections_of_address_max);
    let (ending, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = place_of(&addresses, peer) else {
            tracing::debug!(?peer, "connection closed: its address has too many");
            continue;
        };
        let (router, ended) = (router.clone(), ended.clone());
        connections.spawn(async move {
            let _held = (permit, place);
            accepted_connection(stream, router, peer, (limits, ended)).await;
        });
    }
    drop(listener);
    ending.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, drained).await.is_err() {
        connections.shutdown().await;
    }
}

/// An address that has all its places.
struct Full;

/// Takes a place of the peer's address. Peers on a Unix socket have none and need none: who they
/// may be is the file's mode's business.
fn place_of(addresses: &Limiter<IpAddr>, peer: Peer) -> Result<Option<Place<IpAddr>>, Full> {
    let place = peer.0.map(|address| addresses.take(&client_of(address.ip())).ok_or(Full));
    place.transpose()
}

enum Accepted {
    Tcp(TcpStream),
    Tls(TcpStream, TlsAcceptor),
    Unix(UnixStream),
}

type Connected = (Accepted, Peer, OwnedSemaphorePermit);

async fn accept(listener: &Listener, permits: &Arc<Semaphore>) -> Option<Connected> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    let accepted: io::Result<(Accepted, Peer)> = match listener {
        Listener::Tcp(listener) => {
            listener.accept().await.map(|(stream, peer)| (Accepted::Tcp(stream), Peer(Some(peer))))
        }
        Listener::Tls(listener, acceptor) => listener
            .accept()
            .await
            .map(|(stream, peer)| (Accepted::Tls(stream, acceptor.clone()), Peer(Some(peer)))),
        Listener::Unix(listener) => {
            listener.accept().await.map(|(stream, _)| (Accepted::Unix(stream), Peer(None)))
        }
    };
    match accepted {
        Ok((stream, peer)) => {
            if let Accepted::Tcp(tcp) | Accepted::Tls(tcp, _) = &stream {
                // Best effort: answers are small and should not wait for each other.
                tcp.set_nodelay(true).ok();
                // Also: without it a client that is gone costs its place for longer.
                keep_alive(tcp).ok();
            }
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            None
        }
    }
}

async fn accepted_connection(
    stream: Accepted,
    router: axum::Router,
    peer: Peer,
    (limits, ended): (ServeLimits, watch::Receiver<bool>),
) {
    let patience = Patience::reading_nothing(limits.stall_timeout);
    let patient = patience.clone();
    match stream {
        Accepted::Tcp(stream) => {
            connection(Patient::new(stream, patient), patience, router, peer, (limits, ended))
                .await;
        }
        Accepted::Unix(stream) => {
            connection(Patient::new(stream, patient), patience, router, peer, (limits, ended))
                .await;
        }
        Accepted::Tls(stream, acceptor) => {
            let handshake = acceptor.accept(Patient::new(stream, patient));
            match tokio::time::timeout(limits.handshake_timeout, handshake).await {
                Ok(Ok(stream)) => connection(stream, patience, router, peer, (limits, ended)).await,
                Ok(Err(error)) => tracing::debug!(%error, "tls handshake refused"),
                Err(_) => tracing::debug!("tls handshake timed out"),
            }
        }
    }
}

/// Serves one connection to its end. Its socket is a [`Patient`] one, below TLS if there is any.
pub(crate) async fn connection<S>(
    stream: S,
    patience: Patience,
    router: axum::Router,
    peer: Peer,
    (limits, mut ended): (ServeLimits, watch::Receiver<bool>),
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let service = service_fn(move |request| {
        let (answer, patience) = (service.call(request), patience.clone());
        async move {
            let answer = answer.await?;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                patience.upgrade();
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        // The guard that a watch gives must not live across an await.
        () = async { ended.wait_for(|ended| *ended).await.map(drop).unwrap_or_default() } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_is_silent_is_asked_whether_it_is_still_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let accepted = accept(&Listener::Tcp(listener), &Arc::new(Semaphore::new(1))).await;
        let (Accepted::Tcp(stream), ..) = accepted.unwrap() else {
            panic!("it is TCP");
        };
        assert!(rustix::net::sockopt::socket_keepalive(&stream).unwrap());
    }
}
