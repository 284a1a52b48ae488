//! One common request and its answer.
//!
//! Never sends anything of a request that is not surely common: it goes the general way, whole.
//! What was sent is answered here, whatever comes of it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use perch_sockets::Timer;
use perch_types::service::HttpOptions;
use tokio::time::Instant;

use super::answer::{self, Ends};
use super::body::{self, Frames, Machine};
use super::client::{Client, Wire};
use super::request::{self, Asked};
use super::{Alarm, Front, Turn};
use crate::account::{Account, Accounted};
use crate::cause::Cause;
use crate::compress::{self, Accepted};
use crate::direction::Direction;
use crate::forward::{self, Answer, Hop, Outbound};
use crate::headers::{self, Seen};
use crate::listen::Worker;
use crate::live::{AppKey, InFlight, Target};
use crate::origin1::{self, Head, Origin, Wrote};
use crate::peer::{Asks as _, Peer};
use crate::pick::{self, Door};
use crate::pool::Key;
use crate::replaying::{self, Original, Reached};
use crate::request::{Passage, face_of};
use crate::strict::{self, Link};
use crate::upload::{Progress, RequestBody};
use crate::wake::{self, Place, Tried, Wanted};
use crate::{far, redirect, route};

/// How long a machine may take to accept a connection before the general path sees to it.
const CONNECT_MAX: Duration = Duration::from_millis(100);

/// Where a common request goes.
struct Common {
    app: AppKey,
    host: String,
    target: Arc<Target>,
    in_flight: InFlight,
    key: Key,
}

impl Worker {
    /// Returns where a request goes, if that is plain: to a machine of this host that is ready.
    fn common(&self, asked: &Asked<'_>, peer: &Peer) -> Option<Common> {
        let shared = &self.shared;
        let host = route::host_in(asked.host)?;
        if shared.issuer.as_ref().is_some_and(|issuer| issuer.host == host) {
            return None;
        }
        let app = route::app_of(&host, &shared.domain, &shared.view.load())?;
        let is_admitted = peer.gate.admits(Some(&app))
            && peer.secure.as_ref().is_none_or(|secure| secure.admits(&host, Some(&app)));
        if !is_admitted || !peer.sits_with(shared, &app) {
            return None;
        }
        let (machines, port) = (shared.live.machines_of(&app)?, peer.public_port());
        let face = face_of(&machines, port)?;
        let (now, door) = (Instant::now(), Door::from(port));
        if !is_plain(face, port)
            || self.sends_to_https(face, peer)
            || machines.iter().any(|target| !target.record.statics.is_empty())
            || !shared.replays.is_empty_for(&app, now)
        {
            return None;
        }
        let is_at_ease =
            |target: &Arc<Target>| peer.stays_with(target) || pick::is_at_ease(target, door, now);
        // Else one of another host may be better.
        if shared.far.is_some() && !machines.iter().any(is_at_ease) {
            return None;
        }
        let wanted = Wanted {
            app: &app,
            door,
            asks: peer,
            direction: &Direction::default(),
            tried: &Tried::default(),
            random: self.random(),
            sticky: None,
        };
        let Place { target, in_flight, connected, .. } = wake::ready_at_once(shared, &wanted)?;
        if !is_plain(&target, port) {
            return None;
        }
        let key = forward::key(&target, port, client_of(&target, peer))?;
        if let Some(connected) = connected {
            peer.keep(&target, connected, &self.pool, key.clone());
        }
        Some(Common { app, host, target, in_flight, key })
    }

    fn sends_to_https(&self, face: &Target, peer: &Peer) -> bool {
        let port = peer.public_port();
        let service = pick::service(&face.record.services, port);
        self.shared.https_port.is_some()
            && !peer.over_tls()
            && service.is_some_and(|service| redirect::is_forced(service, port))
    }

    fn seen<'a>(&'a self, peer: &'a Peer, request_id: &'a HeaderValue) -> Seen<'a> {
        Seen {
            client: &peer.client,
            port: &peer.port,
            region: &self.region,
            request_id,
            over_tls: peer.over_tls(),
            version: Version::HTTP_11,
        }
    }
}

/// Returns the number of the client's connection, where the machine's side of it is for it alone.
fn client_of(target: &Target, peer: &Peer) -> u64 {
    let service = pick::service(&target.record.services, peer.public_port());
    if service.is_none_or(pick::counts_requests) { 0 } else { peer.number }
}

/// Returns what a machine's port says of HTTP.
fn options(target: &Target, port: u16) -> Option<&HttpOptions> {
    pick::options(pick::service(&target.record.services, port)?, port)
}

/// Returns whether a machine's port wants nothing special.
fn is_plain(target: &Target, port: u16) -> bool {
    let Some(options) = options(target, port) else {
        return true;
    };
    options.compress != Some(true)
        && options.h2_backend != Some(true)
        && options.headers_read_timeout.is_none()
        && options.response.is_none()
        && options.replay_cache.is_empty()
        && options.sticky.is_none()
}

/// What is known of a request that was sent.
struct Sent<'a> {
    app: &'a AppKey,
    host: String,
    target: &'a Arc<Target>,
    method: &'a Method,
    request_id: &'a HeaderValue,
    account: &'a Rc<Account>,
    /// Whether the client wants its answer to be the last.
    closes: bool,
    /// How long its head is.
    end: usize,
}

impl<S: Wire> Front<S> {
    /// Serves the request of which something has come.
    pub(super) async fn request(&mut self) -> Turn {
        let Some(end) = strict::lone_head(&self.client.input) else { return Turn::General };
        let buffers = self.worker.pool.buffers().clone();
        let mut out = buffers.take();
        let turn = self.exchange(end, &mut out).await;
        if turn == Turn::Again {
            self.client.forget(end, &buffers);
        }
        buffers.give(out);
        turn
    }

    async fn exchange(&mut self, end: usize, out: &mut BytesMut) -> Turn {
        let (worker, peer) = (Rc::clone(&self.worker), &self.peer);
        let head = self.client.input.get(..end).unwrap_or_default();
        let Some(asked) = Asked::read(head, out) else { return Turn::General };
        let Some(common) = worker.common(&asked, peer) else { return Turn::General };
        let Common { app, host, target, in_flight, key } = common;
        let request_id = worker.request_id();
        let of = (asked.method.clone(), Version::HTTP_11);
        let account = Rc::new(Account::of(&worker.shared, request_id, of, peer.over_tls()));
        account.is_of(&app);
        account.goes_to(&target.record.id, None);
        asked.tell(&worker.seen(peer, account.request_id()), out);
        let (method, closes) = (asked.method, asked.closes);
        let hop = Hop {
            pool: &worker.pool,
            limits: &worker.shared.limits,
            target: &target,
            public_port: peer.public_port(),
            client: key.client,
            in_flight,
            account: &account,
        };
        let began = Instant::now();
        let set = options(&target, peer.public_port()).and_then(pick::idle_timeout);
        let deadline = began + set.unwrap_or(hop.limits.answer);
        let asked = {
            let asking = pin!(ask(&hop, &key, out, &method, deadline));
            unless_left(&mut self.client, asking).await
        };
        let Some(asked) = asked else { return Turn::Broken };
        let Some(mut origin) = asked else {
            // Nobody has seen anything of it.
            account.begins_anew();
            return Turn::General;
        };
        out.clear();
        let heard = hear(&mut self.client, &mut origin, &mut self.alarm, deadline).await;
        let Some(heard) = heard else { return Turn::Broken };
        let (target, request_id, account) = (&target, account.request_id(), &account);
        let sent =
            Sent { app: &app, host, target, method: &method, request_id, account, closes, end };
        let head = match heard {
            Ok(head) => head,
            Err(cause) => {
                replaying::note_outcome(target, Err((cause, true)), true);
                drop((origin, hop));
                return self.refuse(sent, cause, out).await;
            }
        };
        target.load.instance.answered(&target.record.instance, head.status, began.elapsed());
        let status = StatusCode::from_u16(head.status).ok();
        match status.filter(|_| !head.is_switch() && answer::is_common(origin.fields())) {
            Some(status) => {
                replaying::note_outcome(target, Ok(status), true);
                account.answers(status, None);
                let idle = set.unwrap_or(hop.limits.idle);
                let machine = Machine { origin, key, hop, idle, silence: Timer::default() };
                self.pass(&sent, (status, head), machine, out).await
            }
            None => Box::pin(self.go_on(sent, head, (origin, hop, key), out)).await,
        }
    }

    /// Passes a common answer on.
    async fn pass(
        &mut self,
        sent: &Sent<'_>,
        (status, head): (StatusCode, Head),
        machine: Machine<'_>,
        out: &mut BytesMut,
    ) -> Turn {
        let origin = &machine.origin;
        let is_last = self.is_last(sent.closes);
        let (ends, has_length) = (Ends::of(head.framing), answer::has_length(&head, sent.method));
        answer::put_status(status, head.reason.within(origin.head_bytes()), out);
        let has_date = answer::put_fields(origin.fields(), has_length, out);
        answer::tell_client(sent.request_id, head.minor, out);
        self.put_end((ends, has_date, is_last), out);
        let is_sent = body::pass(&mut self.client, out, (ends, is_last), machine).await;
        Turn::behind((is_sent, is_last))
    }

    /// Answers in the place of a machine that did not.
    async fn refuse(&mut self, sent: Sent<'_>, cause: Cause, out: &mut BytesMut) -> Turn {
        let (method, closes, link) = (sent.method, sent.closes, Link::default());
        let passage = sent.passage(&self.peer, &link);
        let page = self.worker.conclude(Err(cause), &passage, (method, Accepted::default()));
        self.respond(page, (method, closes), out).await
    }

    /// Goes the general way with an answer that is not common, such as one that asks for a replay.
    async fn go_on(
        &mut self,
        sent: Sent<'_>,
        head: Head,
        (origin, hop, key): (Origin, Hop<'_>, Key),
        out: &mut BytesMut,
    ) -> Turn {
        let Self { worker, client, peer, .. } = self;
        let (method, closes, target) = (sent.method, sent.closes, sent.target);
        let asked = client.input.get(..sent.end).and_then(request::general);
        let asked = asked.unwrap_or_else(|| Request::new(()));
        let accepted = compress::accepted(asked.headers());
        let original = original(asked, &worker.seen(peer, sent.request_id));
        let answered = Answer::heard(origin, &head).and_then(|answer| hop.finish(answer, key));
        let outcome = match &answered {
            Ok(sent) => Ok(sent.response.status()),
            Err(refused) => Err((refused.cause, true)),
        };
        replaying::note_outcome(target, outcome, true);
        let (app, link) = (sent.app, Link::default());
        let mut passage = sent.passage(peer, &link);
        let travelling = async {
            let sent = answered.map_err(|refused| refused.cause)?;
            let reached = Box::new(Reached { sent, target: Arc::clone(target) });
            let mut response = worker.travel_on(&mut passage, app, &original, reached).await?;
            headers::strip_answer(response.headers_mut());
            far::settle(response.headers_mut());
            Ok::<_, Cause>(response)
        };
        let Some(outcome) = unless_left(client, pin!(travelling)).await else {
            return Turn::Broken;
        };
        let response = worker.conclude(outcome, &passage, (method, accepted));
        self.respond(response, (method, closes), out).await
    }

    /// Sends an answer of the general path.
    async fn respond(
        &mut self,
        response: Response<Accounted>,
        (method, closes): (&Method, bool),
        out: &mut BytesMut,
    ) -> Turn {
        let exact = response.body().size_hint().exact();
        let exact = if response.body().is_end_stream() { Some(0) } else { exact };
        let ends = answer::ends_of(&response, method, exact);
        let is_last = self.is_last(closes || answer::is_last(response.headers()));
        let has_date = answer::put_response(&response, method, (ends, exact), out);
        self.put_end((ends, has_date, is_last), out);
        let frames = Frames::new(response.into_body());
        let is_sent = body::pass(&mut self.client, out, (ends, is_last), frames).await;
        Turn::behind((is_sent, is_last))
    }

    fn put_end(&self, (ends, has_date, is_last): (Ends, bool, bool), out: &mut BytesMut) {
        if !has_date {
            self.worker.date.put(self.worker.shared.clock.now(), out);
        }
        answer::put_end(ends, is_last, out);
    }

    /// Returns whether an answer is the last: the client wants that, or the edge was stopped.
    fn is_last(&self, closes: bool) -> bool {
        closes || *self.stopping.borrow()
    }
}

impl<'a> Sent<'a> {
    /// Returns what the general path knows of it.
    fn passage<'p>(self, peer: &'p Peer, link: &'p Link) -> Passage<'p>
    where
        'a: 'p,
    {
        Passage {
            host: self.host,
            face: Some(Arc::clone(self.target)),
            peer,
            request_id: self.request_id,
            link,
            account: self.account,
        }
    }
}

/// Returns a request as it was sent, to be sent again.
fn original(mut asked: Request<()>, seen: &Seen<'_>) -> Original {
    headers::strip(asked.headers_mut());
    headers::tell_app(asked.headers_mut(), seen);
    Original::of(&Outbound {
        request: asked.map(|()| RequestBody::none()),
        progress: Progress::new(),
        switch: None,
        takes_trailers: false,
    })
}

/// Sends a request over a connection of the pool, or a new one; nothing when nothing was sent.
async fn ask(
    hop: &Hop<'_>,
    key: &Key,
    head: &[u8],
    method: &Method,
    deadline: Instant,
) -> Option<Origin> {
    let asked = origin1::Asked { is_head: *method == Method::HEAD };
    // Each may have been closed by the app a moment ago.
    while let Some(mut origin) = hop.pool.take(key) {
        if !matches!(origin.ask(head, asked, deadline).await, Wrote::Nothing) {
            return Some(origin);
        }
    }
    let connecting = Box::pin(hop.open(key));
    let mut origin = tokio::time::timeout(CONNECT_MAX, connecting).await.ok().flatten()?;
    (!matches!(origin.ask(head, asked, deadline).await, Wrote::Nothing)).then_some(origin)
}

/// Waits for the answer's head; nothing when the client has left.
async fn hear<S: Wire>(
    client: &mut Client<S>,
    origin: &mut Origin,
    alarm: &mut Alarm,
    deadline: Instant,
) -> Option<Result<Head, Cause>> {
    let heard = poll_fn(|context| {
        if let Poll::Ready(heard) = origin.poll_answer(context) {
            return Poll::Ready(Some(Ok(heard)));
        }
        if client.poll_left(context).is_ready() {
            return Poll::Ready(None);
        }
        alarm.poll(deadline, context).map(|()| Some(Err(Cause::Slow)))
    });
    Some(heard.await?.and_then(|heard| {
        heard.map_err(|fault| {
            tracing::debug!(error = %fault, "machine did not answer");
            fault.cause()
        })
    }))
}

/// Waits for something; nothing when the client has left before.
async fn unless_left<S: Wire, F: Future>(
    client: &mut Client<S>,
    mut waiting: Pin<&mut F>,
) -> Option<F::Output> {
    poll_fn(|context| match waiting.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => client.poll_left(context).map(|()| None),
    })
    .await
}
