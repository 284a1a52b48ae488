//! Takes requests that other edges pass on, and answers them from this host's machines; connections
//! that they carry here are [`super::carried`]'s.
//!
//! Never takes one from anybody but the edge of a host that the directory knows, and never passes
//! one on: whoever sent it may try elsewhere if no machine here has seen anything of it.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use perch_sockets::Patient;
use perch_types::HostId;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::account::{Account, Accounted};
use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::connection::asked_to_stop;
use crate::crowd::Seat;
use crate::direction::Direction;
use crate::forward::{Hop, Outbound, Refused};
use crate::listen::Worker;
use crate::origin2::OnLoop;
use crate::peer::Once;
use crate::pick::Door;
use crate::replaying::note_health;
use crate::upload::{BodyLimits, Progress, RequestBody};
use crate::wake::{self, Tried, Wanted};
use crate::{headers, origin2};

use super::hop::{Order, Verdict};
use super::{CONNECTION_WINDOW_BYTES, Far, H2, STREAM_WINDOW_BYTES, STREAMS_MAX, is_of};

/// Handshakes at once of a loop, and of those from one address: an edge needs one for each app whose
/// connections it carries, perhaps at once.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKES_ADDRESS_MAX: usize = 128;
/// The largest head: what a client may send, and what edges add.
const HEAD_BYTES_MAX: u32 = 128 * 1024;
const HTTP1_HEAD_BYTES_MAX: usize = 128 * 1024;
const HEAD_FIELDS_MAX: usize = 256;
/// How much of an answer is held for an edge that does not take it.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// How often a connection has to show that it is whole, and how quickly.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(20);

type Secured = TlsStream<Patient<TcpStream>>;

/// Serves a connection of another edge to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    far: Arc<Far>,
    (stream, client): (Patient<TcpStream>, IpAddr),
    stopping: watch::Receiver<bool>,
) {
    let Some(seat) = seat(&worker, client) else { return };
    let limit = worker.shared.limits.handshake;
    let shaking = TlsAcceptor::from(Arc::clone(&far.server)).accept(stream);
    let stream = match tokio::time::timeout(limit, shaking).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake with another edge failed");
            return;
        }
        Err(_) => {
            tracing::debug!("handshake with another edge took too long");
            return;
        }
    };
    drop(seat);
    let session = stream.get_ref().1;
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first).cloned() else {
        return;
    };
    let is_h2 = session.alpn_protocol() == Some(H2);
    let guest = Rc::new(Guest { certificate, host: OnceCell::new() });
    if is_h2 {
        Box::pin(serve_http2(worker, guest, stream, stopping)).await;
    } else {
        Box::pin(serve_http1(worker, guest, stream)).await;
    }
}

fn seat(worker: &Worker, client: IpAddr) -> Option<Seat> {
    let seat = worker.crowd.seat_far(client, HANDSHAKES_MAX, HANDSHAKES_ADDRESS_MAX);
    if seat.is_none() {
        tracing::debug!(limit = HANDSHAKES_MAX, "handshakes of other edges at their limit");
    }
    seat
}

/// Many requests.
async fn serve_http2(
    worker: Rc<Worker>,
    guest: Rc<Guest>,
    stream: Secured,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let (worker, guest) = (Rc::clone(&worker), Rc::clone(&guest));
        async move { Ok::<_, Infallible>(worker.arrive(&guest, request).await) }
    });
    let connection = http2::Builder::new(OnLoop)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = asked_to_stop(&mut stopping) => {
            // The edge there is told not to begin anything; what is under way goes on.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of another edge ended");
    }
}

/// One request, which switches protocols.
async fn serve_http1(worker: Rc<Worker>, guest: Rc<Guest>, stream: Secured) {
    let head = worker.shared.limits.head;
    let service = service_fn(move |request| {
        let (worker, guest) = (Rc::clone(&worker), Rc::clone(&guest));
        async move { Ok::<_, Infallible>(worker.arrive(&guest, request).await) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HTTP1_HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of another edge ended");
    }
}

/// Who is at the other end of a connection.
#[derive(Debug)]
struct Guest {
    certificate: CertificateDer<'static>,
    /// The host that it said it is, as soon as that was checked.
    host: OnceCell<HostId>,
}

impl Guest {
    /// Returns whether it is the edge of a host.
    fn is(&self, host: &HostId) -> bool {
        if let Some(known) = self.host.get() {
            return known == host;
        }
        let is_it = is_of(&self.certificate, host);
        if is_it {
            self.host.get_or_init(|| host.clone());
        }
        is_it
    }
}

impl Worker {
    async fn arrive(&self, guest: &Guest, request: Request<Incoming>) -> Response<Accounted> {
        let id = request.headers().get(headers::REQUEST_ID).cloned();
        let id = id.unwrap_or_else(|| HeaderValue::from_static(""));
        let account = Account::open(&self.shared, id, &request, true).told_elsewhere();
        let account = Rc::new(account);
        let (mut parts, body) = request.into_parts();
        let is_carried = parts.method == Method::CONNECT;
        if is_carried {
            account.is_no_request();
        }
        let said = parts.headers.remove(headers::HOP);
        let order = said.as_ref().and_then(Order::of);
        let order = order.filter(|it| it.ends.is_some() == is_carried);
        let view = self.shared.view.load();
        let order = order.filter(|it| guest.is(&it.from) && view.edge(&it.from).is_some());
        drop(view);
        let received = match &order {
            Some(order) => {
                account.is_of(&order.app);
                match order.ends {
                    Some(ends) => {
                        let client = parts.extensions.remove::<OnUpgrade>();
                        Box::pin(self.receive_carried(order, (ends, client))).await
                    }
                    None => self.receive(order, parts, body, &account).await,
                }
            }
            None => {
                tracing::warn!("request of another edge refused: it is not clear whose it is");
                Err((Cause::HostAway, true))
            }
        };
        let (mut response, verdict) = match received {
            Ok(answer) => answer,
            Err((cause, is_unsent)) => {
                let mut response = Response::new(ReplyBody::Page(None));
                *response.status_mut() = cause.status();
                // Nobody else is asked, or knows whose log that is.
                if order.as_ref().is_some_and(|it| !is_unsent || !it.wait.is_zero()) {
                    account.explain(cause);
                }
                let verdict = if is_unsent {
                    // Whoever answers it in the end counts it.
                    account.passed_on(self.reach.known.uncounted());
                    Verdict::Unsent(cause)
                } else {
                    Verdict::Failed(cause)
                };
                (response, verdict)
            }
        };
        *response.version_mut() = Version::HTTP_11;
        response.headers_mut().insert(headers::HOP, verdict.value());
        let status = response.status();
        account.answers(status, None);
        response.map(|body| Accounted::new(body, account, status))
    }

    /// Has a machine of this host answer; else says why none does, and whether none has seen
    /// anything of the request.
    async fn receive(
        &self,
        order: &Order,
        parts: Parts,
        body: Incoming,
        account: &Rc<Account>,
    ) -> Result<(Response<ReplyBody>, Verdict), (Cause, bool)> {
        let live = &self.shared.live;
        // Files are where the app is: not at a port that it does not list.
        if order.machine.is_none() && self.face(&order.app, order.public_port).is_some() {
            let file = self.shared.statics.answer(live, &order.app, &parts).await;
            if let Some(response) = file.map_err(|cause| (cause, true))? {
                return Ok((response, Verdict::Static));
            }
        }
        let mut outbound = self.taken_over(parts, body, account);
        let upload = outbound.request.body().keeper();
        let only = order.machine.clone().map(Into::into);
        let direction = Direction { only, ..Direction::default() };
        let deadline = Instant::now() + order.wait;
        let limits = &self.shared.limits;
        let mut tried = Tried::default();
        loop {
            let wanted = Wanted {
                app: &order.app,
                door: Door::Http(order.public_port),
                asks: &Once,
                direction: &direction,
                tried: &tried,
                random: self.random(),
                sticky: None,
            };
            // Looked at once even when nothing is to be waited for.
            let finding = wake::ready_machine(&self.shared, &wanted);
            let late = if order.wait.is_zero() { Cause::Full } else { Cause::ReplayLate };
            let found = tokio::time::timeout_at(deadline, finding).await.unwrap_or(Err(late));
            let wake::Place { target, in_flight, connected, woke } =
                found.map_err(|cause| (cause, true))?;
            account.goes_to(&target.record.id, woke);
            let hop = Hop {
                pool: &self.pool,
                limits,
                target: &target,
                public_port: order.public_port,
                client: 0,
                in_flight: in_flight.with(connected),
                account,
            };
            let sent = hop.send(outbound).await;
            note_health(&target, &sent, &upload);
            match sent {
                Ok(sent) => return Ok((sent.response, Verdict::From(target.record.id.clone()))),
                Err(Refused { unsent: Some(unsent), cause }) => {
                    if !tried.note(&target.record, limits.stale) {
                        return Err((cause, true));
                    }
                    outbound = unsent;
                }
                Err(Refused { unsent: None, cause }) => return Err((cause, false)),
            }
        }
    }

    /// Makes a request one that can go to a machine. What the app is told is as the edge that the
    /// client came to has written it.
    fn taken_over(&self, mut parts: Parts, body: Incoming, account: &Account) -> Box<Outbound> {
        let switch = headers::upgrade(&parts.method, &parts.headers);
        let takes_trailers = headers::takes_trailers(&parts.headers);
        headers::strip(&mut parts.headers);
        let switch = switch.and_then(|protocol| {
            let client = parts.extensions.remove::<OnUpgrade>()?;
            headers::restore_upgrade(&mut parts.headers, protocol.clone());
            Some((protocol, client))
        });
        let is_h2 = parts.version == Version::HTTP_2;
        let progress = Progress::new();
        let limits = BodyLimits::of(&self.shared.limits, None);
        let received = account.received();
        let body = RequestBody::new(body, progress.clone(), limits, &self.budget, received);
        // Whoever passed it on has what a replay needs, and judges how slow the client is.
        body.keeper().answered();
        let mut request = Request::from_parts(parts, body);
        if is_h2 {
            origin2::undress(&mut request);
        }
        *request.version_mut() = Version::HTTP_11;
        Box::new(Outbound { request, progress, switch, takes_trailers })
    }
}
