//! One connection: plain, or under TLS; HTTP/1.1, or HTTP/2. All of them lead to the same service, but
//! what is no HTTP.
//!
//! Never reads a request that the strict layer has not judged.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use perch_sockets::{Patience, Patient};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::StartHandshake;

use crate::crowd::Seat;
use crate::far::{self, Far};
use crate::gate::Gate;
use crate::listen::Worker;
use crate::peer::Peer;
use crate::raw::{self, Opening};
use crate::strict::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX, Link, Strict};
use crate::tls::{self, Session, Tls};
use crate::{h1, h2, pick};

/// How long the last bytes of a handshake that was all may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where connections come in.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// Plain HTTP, at a port.
    Plain(Gate),
    /// TLS, at a port.
    Tls(Gate, Arc<Tls>),
    /// Neither, at an app's own port.
    Raw(Gate, Opening),
    /// Requests that other edges pass on.
    Far(Arc<Far>),
}

/// A connection that is served to its end.
pub(crate) type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// Serves a connection to its end. It is plain where the listener is.
///
/// What has come to its end is nowhere kept beside what goes on: an idle connection is small.
pub(crate) fn serve(
    worker: Rc<Worker>,
    door: Door,
    stream: TcpStream,
    client: IpAddr,
    stopping: watch::Receiver<bool>,
) -> Serving {
    let stall = worker.shared.limits.stall;
    let patient = |stream| Patient::new(stream, Patience::reading_on(stall));
    match door {
        Door::Plain(gate) => {
            let peer = Peer::new(client, gate, None);
            Box::pin(h1::serve(worker, patient(stream), peer, stopping))
        }
        Door::Tls(gate, tls) => {
            let shaking =
                shake_hands(Rc::clone(&worker), (tls, gate.clone()), patient(stream), client);
            let shaking = Box::pin(shaking);
            Box::pin(async move {
                let shaken = shaking.await;
                let Some(session) = shaken else { return };
                if let Some(serving) = secured(worker, session, (gate, client), stopping) {
                    serving.await;
                }
            })
        }
        Door::Raw(gate, opening) => Box::pin(async move {
            raw::pass_opened(&worker, &gate, opening, stream).await;
        }),
        Door::Far(far) => Box::pin(far::serve(worker, far, (patient(stream), client), stopping)),
    }
}

/// Serves what a client has said under TLS that it wants; nothing where that is too much.
fn secured(
    worker: Rc<Worker>,
    session: Session<Patient<TcpStream>>,
    (gate, client): (Gate, IpAddr),
    stopping: watch::Receiver<bool>,
) -> Option<Serving> {
    let Session { mut stream, secure, is_h2, is_raw, is_challenge } = session;
    if is_challenge {
        return Some(Box::pin(async move {
            // The client has seen what it came for.
            tokio::time::timeout(CLOSE_MAX, stream.shutdown()).await.ok();
        }));
    }
    let tenant = secure.tenant.clone();
    let peer = Peer::new(client, gate, Some(secure));
    // A plain connection is counted with its first request: until then it is nobody's.
    if tenant.as_ref().is_some_and(|app| !peer.sits_with(&worker.shared, app)) {
        let limit = worker.shared.limits.app_connections_max;
        tracing::debug!(limit, "connections to an app at their limit");
        return None;
    }
    if is_raw {
        // Without one nobody has said so.
        let app = tenant?;
        return Some(Box::pin(async move {
            raw::pass_named(&worker, &peer.gate, app, stream).await;
            // It is counted until here.
            drop(peer);
        }));
    }
    if is_h2 {
        let seat = seat_h2(&worker, client)?;
        let serving = Box::pin(h2::serve(worker, stream, peer, stopping));
        return Some(Box::pin(async move {
            serving.await;
            drop(seat);
        }));
    }
    Some(Box::pin(h1::serve(worker, stream, peer, stopping)))
}

async fn shake_hands<S>(
    worker: Rc<Worker>,
    (tls, gate): (Arc<Tls>, Gate),
    stream: S,
    client: IpAddr,
) -> Option<Session<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &worker.shared.limits;
    let began = Instant::now();
    let shaking = async {
        let Some(start) = hello(&worker, stream, client).await? else { return Ok(None) };
        // Only now: whoever says nothing would keep others out.
        let Some(_seat) = worker.crowd.seat_handshake(client, limits.handshakes_max) else {
            tracing::debug!(limit = limits.handshakes_max, "handshakes at their limit");
            return Ok(None);
        };
        tls.accept(&worker.shared, &gate, start).await
    };
    let session = match tokio::time::timeout(limits.handshake, shaking).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("handshake took too long");
            None
        }
    };
    worker.shared.metrics.handshake(began.elapsed(), session.is_some());
    session
}

fn seat_h2(worker: &Worker, client: IpAddr) -> Option<Seat> {
    let limit = worker.shared.limits.address_h2_max;
    let seat = worker.crowd.seat_h2(client, limit);
    if seat.is_none() {
        tracing::debug!(limit, "HTTP/2 connections of an address at their limit");
    }
    seat
}

/// Waits for a client's first words. Only so many of one address may let it wait for long.
async fn hello<S>(
    worker: &Worker,
    stream: S,
    client: IpAddr,
) -> std::io::Result<Option<StartHandshake<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &worker.shared.limits;
    let mut hello = std::pin::pin!(tls::hello(stream));
    if let Ok(start) = tokio::time::timeout(limits.hello, hello.as_mut()).await {
        return start.map(Some);
    }
    let Some(_seat) = worker.crowd.seat_silent(client, limits.silent_max) else {
        let limit = limits.silent_max;
        tracing::debug!(limit, "silent connections of an address at their limit");
        return Ok(None);
    };
    hello.await.map(Some)
}

/// Serves HTTP/1.1 whatever is asked.
pub(crate) async fn serve_http1<S>(
    worker: Rc<Worker>,
    stream: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let link = Arc::new(Link::impatient(head_max(&worker, &peer)));
    let peer = Rc::new(peer);
    let (served, told, last) = (Rc::clone(&worker), Arc::clone(&link), stopping.clone());
    let service = service_fn(move |request| {
        let (worker, link, peer) = (Rc::clone(&served), Arc::clone(&told), Rc::clone(&peer));
        let stopping = last.clone();
        async move {
            let mut response = worker.serve(request, &peer, &link).await;
            say_if_last(&mut response, &stopping);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(worker.shared.limits.head)
        // What is too large was refused before; this only has to hold it.
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(Strict::new(stream, link)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = asked_to_stop(&mut stopping) => {
            // A request may be on its way over one that lies idle: it is answered, and the client
            // is told that it was the last.
            let linger = worker.shared.limits.linger;
            if let Ok(ended) = tokio::time::timeout(linger, connection.as_mut()).await {
                ended
            } else {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Returns how long a client may take for a head, where the connection's name says of which app it
/// is (`http_options.headers_read_timeout`). Where it says nothing, who is asked is known only when
/// a head is whole.
pub(crate) fn head_max(worker: &Worker, peer: &Peer) -> Option<Duration> {
    let app = peer.secure.as_ref()?.tenant.as_ref()?;
    let port = peer.public_port();
    let face = worker.face(app, port)?;
    let options = pick::options(pick::service(&face.record.services, port)?, port)?;
    let seconds = options.headers_read_timeout.filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(u64::from(seconds)))
}

/// Tells a client whose edge has been stopped that this answer is the last of its connection.
fn say_if_last<B>(response: &mut Response<B>, stopping: &watch::Receiver<bool>) {
    if *stopping.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Waits until the edge stops.
///
/// The guard that a watch gives does not live on behind this: the next stop would wait for it, and
/// all behind that. An end of the sender means the same.
pub(crate) async fn asked_to_stop(stopping: &mut watch::Receiver<bool>) {
    stopping.wait_for(|stopping| *stopping).await.map(drop).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Secured;

    /// What may be kept for an idle connection, beside its task, its socket's entry and its timer:
    /// who is at the other end, what is waited for, and nothing of what it was or may come to.
    const IDLE_BYTES_MAX: usize = 2 * 1024;

    /// Returns how much that takes which a function returns.
    fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_takes_little() {
        let sizes =
            [size(h1::serve::<Patient<TcpStream>>), size(h1::serve::<Secured<Patient<TcpStream>>>)];
        assert!(sizes.into_iter().all(|size| size <= IDLE_BYTES_MAX), "{sizes:?}");
    }
}
