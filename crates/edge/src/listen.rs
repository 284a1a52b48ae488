//! One loop of the edge: accepts, limits, and takes each request through the phases.
//!
//! Never shares a connection or a pool with another loop: one thread, one listener, one runtime.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::body::{ReplyBody, RequestBody};
use crate::cause::Cause;
use crate::forward::{Hop, Outbound, Refused};
use crate::headers::{self, Seen};
use crate::live::AppKey;
use crate::patience::Patient;
use crate::pool::Pool;
use crate::reply::{self, Access};
use crate::strict::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX, Link, Strict};
use crate::wake::{self, Tried, Wanted};
use crate::{BEAT_EVERY, Shared, route};

/// The most connections of one loop.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// The public port that this listener stands for, whatever port it is bound to.
const PUBLIC_HTTP_PORT: u16 = 80;
/// The pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs the loop until the edge is stopped and its connections have ended.
pub(crate) fn run(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    index: usize,
    listener: StdTcpListener,
    stopping: watch::Receiver<bool>,
) {
    let local = LocalSet::new();
    let outcome = local.block_on(runtime, accept(Arc::clone(shared), index, listener, stopping));
    if let Err(error) = outcome {
        tracing::error!(%error, "edge loop ended");
    }
}

async fn accept(
    shared: Arc<Shared>,
    index: usize,
    listener: StdTcpListener,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    let seed = shared.clock.boot_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64;
    let region = HeaderValue::from_str(shared.region.as_str())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let worker = Rc::new(Worker {
        shared,
        pool: Pool::default(),
        port: HeaderValue::from(port),
        region,
        state: Cell::new(random_seed().unwrap_or(seed) | 1),
        connections: Cell::new(0),
    });
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            _ = beats.tick() => worker.shared.beat(index),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => worker.admit(stream, peer.ip(), stopping.clone()),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = stopping.changed() => break,
        }
    }
    while worker.connections.get() > 0 {
        beats.tick().await;
        worker.shared.beat(index);
    }
    Ok(())
}

fn random_seed() -> Option<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// What one loop has for itself.
struct Worker {
    shared: Arc<Shared>,
    pool: Pool,
    port: HeaderValue,
    region: HeaderValue,
    state: Cell<u64>,
    connections: Cell<usize>,
}

impl Worker {
    fn admit(
        self: &Rc<Self>,
        stream: TcpStream,
        client: IpAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        if self.connections.get() >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "connections at their limit");
            return;
        }
        if stream.set_nodelay(true).is_err() {
            return;
        }
        self.connections.set(self.connections.get() + 1);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let link = Arc::new(Link::default());
            let stream = Patient::new(stream, worker.shared.limits.stall);
            let (served, told) = (Rc::clone(&worker), Arc::clone(&link));
            let client = headers::client_value(client);
            let service = service_fn(move |request| {
                let (worker, link) = (Rc::clone(&served), Arc::clone(&told));
                let client = client.clone();
                async move { Ok::<_, Infallible>(worker.serve(request, &client, &link).await) }
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
                // An end of the sender means the same.
                _stopped = stopping.wait_for(|stopping| *stopping) => {
                    // An idle one is closed at once, another after its answer.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            worker.connections.set(worker.connections.get() - 1);
        });
    }

    /// Takes one request through the phases and always answers.
    async fn serve(
        &self,
        request: Request<Incoming>,
        client: &HeaderValue,
        link: &Link,
    ) -> Response<ReplyBody> {
        let began = Instant::now();
        let (id, request_id) = self.request_id();
        let method = request.method().clone();
        let mut passage = Passage { app: None, client, request_id: &request_id, link };
        let (mut response, cause) = match self.phases(request, &mut passage).await {
            Ok(response) => (response, None),
            Err(cause) => (reply::page(cause, &id), Some(cause)),
        };
        link.settle(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        Access {
            request_id: &id,
            method: &method,
            app: passage.app.as_ref().map(|app| &app.name),
            status: response.status().as_u16(),
            cause,
            took: began.elapsed(),
        }
        .write();
        headers::tell_client(response.headers_mut(), request_id);
        response
    }

    async fn phases(
        &self,
        request: Request<Incoming>,
        passage: &mut Passage<'_>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let (mut parts, body) = request.into_parts();
        if !parts.headers.contains_key(http::header::HOST) {
            return Err(passage.link.refusal());
        }
        if parts.method == Method::CONNECT {
            return Err(Cause::BadRequest);
        }
        let host = route::host_of(&parts)?;
        if let Some(issuer) = self.shared.issuer.as_ref().filter(|issuer| issuer.host == host) {
            return issuer.answer(&self.shared.runtime, &parts).await;
        }
        let view = self.shared.view.load();
        let app = route::app_of(&host, &self.shared.domain, &view).ok_or(Cause::UnknownHost)?;
        drop(view);
        let app = passage.app.insert(app);
        let live = &self.shared.live;
        if let Some(response) = self.shared.statics.answer(live, app, &parts).await {
            return Ok(response);
        }
        let switch = headers::upgrade(&parts.method, &parts.headers);
        headers::strip(&mut parts.headers);
        let seen = Seen {
            client: passage.client,
            port: &self.port,
            region: &self.region,
            request_id: passage.request_id,
        };
        headers::tell_app(&mut parts.headers, &seen);
        if let (Some(_), Some(target)) = (parts.uri.scheme(), parts.uri.path_and_query()) {
            parts.uri = target.as_str().parse().map_err(|_| Cause::BadRequest)?;
        }
        parts.version = http::Version::HTTP_11;
        let progress = Rc::new(Cell::new(Instant::now()));
        let switch = switch.map(|protocol| {
            headers::restore_upgrade(&mut parts.headers, protocol.clone());
            let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
            client.map(|client| (protocol, client))
        });
        let body = RequestBody::new(body, Rc::clone(&progress));
        let request = Request::from_parts(parts, body);
        let outbound = Outbound { request, progress, switch: switch.flatten() };
        self.offer(app, Box::new(outbound)).await
    }

    /// Offers the request to one machine after the other while nothing of it was sent.
    async fn offer(
        &self,
        app: &AppKey,
        mut outbound: Box<Outbound>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let mut tried = Tried::default();
        loop {
            let wanted =
                Wanted { app, port: PUBLIC_HTTP_PORT, tried: &tried, random: self.random() };
            let (target, in_flight) = wake::ready_machine(&self.shared, &wanted).await?;
            let hop = Hop {
                pool: &self.pool,
                limits: &self.shared.limits,
                target: &target,
                public_port: PUBLIC_HTTP_PORT,
                in_flight,
            };
            match hop.send(outbound).await {
                Ok(response) => return Ok(response),
                Err(Refused { unsent: Some(unsent), cause }) => {
                    if !tried.note(&target.record, self.shared.limits.stale) {
                        return Err(cause);
                    }
                    outbound = unsent;
                }
                Err(Refused { cause, unsent: None }) => return Err(cause),
            }
        }
    }

    /// Returns the next number of a sequence that is only for spreading load and naming requests.
    fn random(&self) -> u64 {
        let mut state = self.state.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.set(state);
        state
    }

    /// Names a request: the text and the same as a header's value.
    fn request_id(&self) -> (String, HeaderValue) {
        let now = self.shared.clock.now().unix_ms().unsigned_abs();
        let random = (u128::from(self.random()) << 64) | u128::from(self.random());
        let mut id = perch_types::id::ulid(now, random);
        id.push('-');
        id.push_str(self.shared.region.as_str());
        let value = HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"));
        (id, value)
    }
}

/// What is known of a request on its way.
struct Passage<'a> {
    app: Option<AppKey>,
    client: &'a HeaderValue,
    request_id: &'a HeaderValue,
    link: &'a Link,
}
