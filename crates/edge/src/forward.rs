//! Connects to a machine and hands the request over.
//!
//! Never sends a request twice: another machine is tried only when nothing of it was sent.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::service::HttpOptions;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Limits;
use crate::account::{Account, End};
use crate::body::{MachineBody, ReplyBody, Source};
use crate::cause::Cause;
use crate::live::{InFlight, Target};
use crate::origin1::{self, Exchange, Flow, Head, Origin, Switched};
use crate::passage::{self, Ended, How, Terms};
use crate::pool::{Key, Pool, Stream};
use crate::upload::{Progress, RequestBody};
use crate::{dial, headers, origin2, pick};

/// Bytes of a tunnel that are under way in one direction.
const TUNNEL_BUFFER_BYTES: usize = 8 * 1024;

/// The protocol to switch to, and the client's side of the switch.
pub(crate) type Switch = (HeaderValue, OnUpgrade);

/// A request on its way to a machine.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) request: Request<RequestBody>,
    /// How its body gets on.
    pub(crate) progress: Progress,
    pub(crate) switch: Option<Switch>,
    /// Whether the client takes fields behind the answer's body.
    pub(crate) takes_trailers: bool,
}

/// What a machine answered, and the switch that it did not take.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) response: Response<ReplyBody>,
    pub(crate) switch: Option<Switch>,
}

/// Why a machine did not answer, and the request if another may have it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) cause: Cause,
    pub(crate) unsent: Option<Box<Outbound>>,
}

impl Refused {
    fn sent(cause: Cause) -> Self {
        Self { cause, unsent: None }
    }
}

/// A connection that a request can go over.
#[derive(Debug)]
pub(crate) enum Sender {
    Single(Box<Origin>),
    Stream(Stream),
}

/// One machine that is to have a request, in which it is counted.
#[derive(Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) limits: &'a Limits,
    pub(crate) target: &'a Arc<Target>,
    pub(crate) public_port: u16,
    /// The client's connection, where the machine's side of it is for it alone.
    pub(crate) client: u64,
    pub(crate) in_flight: InFlight,
    pub(crate) account: &'a Rc<Account>,
}

/// Returns under what a machine's connections are kept.
pub(crate) fn key(target: &Target, public_port: u16, client: u64) -> Option<Key> {
    let service = pick::service(&target.record.services, public_port)?;
    Some(Key {
        machine: target.record.id.clone(),
        instance: target.record.instance.clone(),
        port: service.internal_port,
        client,
    })
}

impl Hop<'_> {
    /// Sends the request and returns the answer as soon as its head is there.
    pub(crate) async fn send(self, outbound: Box<Outbound>) -> Result<Sent, Refused> {
        let Some(key) = key(self.target, self.public_port, self.client) else {
            return Err(Refused { cause: Cause::NoMachine, unsent: Some(outbound) });
        };
        // A switch of protocols is HTTP/1.1's alone.
        let is_shared = outbound.switch.is_none()
            && self.options().is_some_and(|it| it.h2_backend == Some(true));
        let mut unsent = outbound;
        // A connection from the pool may have been closed by the app a moment ago: then nothing
        // was sent, and the request goes over a new one.
        while let Some(sender) = self.take(&key, is_shared) {
            match self.exchange(&key, sender, unsent).await {
                Ok(answer) => return self.finish(answer, key),
                Err(Refused { unsent: Some(outbound), .. }) => unsent = outbound,
                Err(refused) => return Err(refused),
            }
        }
        let Some(sender) = self.connect(&key, is_shared).await else {
            return Err(Refused { cause: Cause::NotListening, unsent: Some(unsent) });
        };
        let answer = self.exchange(&key, sender, unsent).await?;
        self.finish(answer, key)
    }

    fn options(&self) -> Option<&HttpOptions> {
        let service = pick::service(&self.target.record.services, self.public_port)?;
        pick::options(service, self.public_port)
    }

    /// Returns how long nothing may move: what the port says, else the edge's own.
    pub(crate) fn idle(&self) -> Duration {
        self.options().and_then(pick::idle_timeout).unwrap_or(self.limits.idle)
    }

    /// Returns the same of the time before an answer begins.
    pub(crate) fn patience(&self) -> Duration {
        self.options().and_then(pick::idle_timeout).unwrap_or(self.limits.answer)
    }

    fn take(&self, key: &Key, is_shared: bool) -> Option<Sender> {
        if is_shared {
            self.pool.take_stream(key).map(Sender::Stream)
        } else {
            self.pool.take(key).map(Sender::Single)
        }
    }

    async fn connect(&self, key: &Key, is_shared: bool) -> Option<Sender> {
        if !is_shared {
            return self.open(key).await.map(Sender::Single);
        }
        for address in dial::addresses(&self.target.record) {
            let Some(stream) = self.reach(SocketAddr::new(address, key.port)).await else {
                continue;
            };
            let load = Arc::clone(&self.target.load);
            if let Some(sender) = origin2::handshake(stream, load).await {
                return Some(Sender::Stream(self.pool.share(key, sender)));
            }
        }
        None
    }

    /// Connects for one request at a time.
    pub(crate) async fn open(&self, key: &Key) -> Option<Box<Origin>> {
        for address in dial::addresses(&self.target.record) {
            if let Some(stream) = self.reach(SocketAddr::new(address, key.port)).await {
                let load = Arc::clone(&self.target.load);
                return Some(Origin::over(stream, load, self.pool.buffers()));
            }
        }
        None
    }

    async fn reach(&self, address: SocketAddr) -> Option<TcpStream> {
        let limit = self.limits.connect;
        dial::reach(self.target, address, limit, |stream| stream.set_nodelay(true)).await
    }

    pub(crate) async fn exchange(
        &self,
        key: &Key,
        sender: Sender,
        outbound: Box<Outbound>,
    ) -> Result<Answer, Refused> {
        match sender {
            Sender::Single(origin) => self.ask(origin, outbound).await,
            Sender::Stream(stream) => self.ask_among(key, stream, outbound).await,
        }
    }

    /// Asks over a connection that is the request's for so long.
    async fn ask(&self, origin: Box<Origin>, outbound: Box<Outbound>) -> Result<Answer, Refused> {
        let Outbound { request, progress, switch, takes_trailers } = *outbound;
        let began = Instant::now();
        progress.moves();
        let (parts, body) = request.into_parts();
        let upload = body.keeper();
        let mut exchange = Exchange::new(origin, &parts, body);
        let answered = self.in_time(&progress, exchange.answer()).await?;
        match answered {
            Ok(head) => {
                self.hears(head.status, began);
                let response = exchange.origin().response(&head, |_| true);
                let response = response.map_err(|_| Refused::sent(Cause::BadAnswer))?;
                let rest = Rest::Single(Box::new(exchange.into_flow()));
                Ok(Answer { response, rest, switch })
            }
            Err(fault) if exchange.is_unsent() && !fault.is_clients() => {
                tracing::debug!(%fault, "connection to a machine was over before it was used");
                let cause = Cause::Upstream;
                // What of the body was read for it is read again.
                let body = upload.again().ok_or_else(|| Refused::sent(cause))?;
                let request = Request::from_parts(parts, body);
                let unsent = Outbound { request, progress, switch, takes_trailers };
                Err(Refused { cause, unsent: Some(Box::new(unsent)) })
            }
            Err(fault) => {
                tracing::debug!(%fault, "machine did not answer");
                Err(Refused::sent(progress.fault().unwrap_or_else(|| fault.cause())))
            }
        }
    }

    /// Asks over a connection that carries others too.
    async fn ask_among(
        &self,
        key: &Key,
        mut stream: Stream,
        outbound: Box<Outbound>,
    ) -> Result<Answer, Refused> {
        if stream.sender.ready().await.is_err() {
            self.pool.give_up(key, &stream);
            return Err(Refused { cause: Cause::Upstream, unsent: Some(outbound) });
        }
        let Outbound { mut request, progress, switch, takes_trailers } = *outbound;
        let began = Instant::now();
        progress.moves();
        origin2::dress(&mut request, takes_trailers);
        let sending = stream.sender.try_send_request(request);
        let answered = self.in_time(&progress, sending).await?;
        match answered {
            Ok(response) => {
                self.hears(response.status().as_u16(), began);
                if !origin1::answer::has_clear_length(response.headers()) {
                    return Err(Refused::sent(Cause::BadAnswer));
                }
                let (parts, incoming) = response.into_parts();
                let rest = Rest::Stream(incoming, stream);
                Ok(Answer { response: Response::from_parts(parts, ()), rest, switch })
            }
            Err(mut error) => {
                let Some(mut request) = error.take_message() else {
                    let cause = progress.fault().unwrap_or_else(|| cause_of(&error.into_error()));
                    return Err(Refused::sent(cause));
                };
                origin2::undress(&mut request);
                self.pool.give_up(key, &stream);
                let unsent = Outbound { request, progress, switch, takes_trailers };
                Err(Refused { cause: Cause::Upstream, unsent: Some(Box::new(unsent)) })
            }
        }
    }

    /// Waits for an answer, for so long after the last byte of the body that moved: an upload may
    /// take its time.
    async fn in_time<F: Future>(
        &self,
        progress: &Progress,
        answer: F,
    ) -> Result<F::Output, Refused> {
        let patience = self.patience();
        let mut answer = std::pin::pin!(answer);
        loop {
            let deadline = progress.last() + patience;
            match tokio::time::timeout_at(deadline, answer.as_mut()).await {
                Ok(answer) => return Ok(answer),
                Err(_) if progress.last() + patience > Instant::now() => {}
                Err(_) => return Err(Refused::sent(progress.why_still())),
            }
        }
    }

    fn hears(&self, status: u16, began: Instant) {
        let Target { record, load, .. } = self.target.as_ref();
        load.instance.answered(&record.instance, status, began.elapsed());
    }

    pub(crate) fn finish(self, answer: Answer, key: Key) -> Result<Sent, Refused> {
        let Answer { mut response, rest, switch } = answer;
        let protocol = response.headers_mut().remove(http::header::UPGRADE);
        headers::strip(response.headers_mut());
        response.headers_mut().remove(TRANSFER_ENCODING);
        if !self.target.load.is_far {
            response.headers_mut().remove(headers::HOP);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Only to what was asked for (RFC 9110, section 7.8), and by a machine that keeps the
            // request to itself.
            let (Some((asked, client)), Some(protocol)) = (switch, protocol) else {
                return Err(Refused::sent(Cause::BadAnswer));
            };
            if response.headers().contains_key(&crate::replay::FIELD) {
                return Err(Refused::sent(Cause::ReplaySwitched));
            }
            if !headers::offers(&asked, &protocol) {
                return Err(Refused::sent(Cause::BadAnswer));
            }
            let Some(machine) = rest.into_switched() else {
                return Err(Refused::sent(Cause::BadAnswer));
            };
            headers::restore_upgrade(response.headers_mut(), protocol);
            let idle = self.idle();
            let in_flight = self.in_flight.into_tunnel();
            let account = Rc::clone(self.account);
            tokio::task::spawn_local(tunnel(client, machine, idle, in_flight, account));
            return Ok(Sent { response: response.map(|()| ReplyBody::Page(None)), switch: None });
        }
        Ok(Sent { response: response.map(|()| self.reply(rest, key)), switch })
    }

    /// Returns the body of an answer, of which nothing is left but to pass it on.
    pub(crate) fn pass(self, origin: Box<Origin>, key: Key) -> ReplyBody {
        self.reply(Rest::Single(Box::new(Flow::new(origin))), key)
    }

    fn reply(self, rest: Rest, key: Key) -> ReplyBody {
        let idle = self.idle();
        let source = match rest {
            Rest::Single(flow) => {
                // That to another edge was for a switch alone.
                let back = (!self.target.load.is_far).then(|| (self.pool.clone(), key));
                Source::Single(flow, back)
            }
            Rest::Stream(incoming, stream) => Source::Stream(incoming, Some(stream)),
        };
        ReplyBody::Machine(Box::new(MachineBody::new(source, idle, self.in_flight)))
    }
}

/// What a machine said, and the connection over which it goes on.
#[derive(Debug)]
pub(crate) struct Answer {
    response: Response<()>,
    rest: Rest,
    switch: Option<Switch>,
}

impl Answer {
    /// Makes it of a head that was read, of an answer to a request without a body.
    pub(crate) fn heard(origin: Box<Origin>, head: &Head) -> Result<Self, Refused> {
        let response = origin.response(head, |_| true);
        let response = response.map_err(|_| Refused::sent(Cause::BadAnswer))?;
        let rest = Rest::Single(Box::new(Flow::new(origin)));
        Ok(Self { response, rest, switch: None })
    }
}

/// Where the rest of an answer comes from.
#[derive(Debug)]
enum Rest {
    Single(Box<Flow>),
    Stream(Incoming, Stream),
}

impl Rest {
    fn into_switched(self) -> Option<Switched> {
        match self {
            Self::Single(flow) => flow.into_switched(),
            // Nothing switches there.
            Self::Stream(..) => None,
        }
    }
}

/// Returns whose fault it is that an exchange broke off.
fn cause_of(error: &hyper::Error) -> Cause {
    if error.is_parse() {
        Cause::BadAnswer
    } else if error.is_user() {
        // The body that was being sent broke: the client is gone, or was in doubt.
        Cause::BadRequest
    } else {
        Cause::Upstream
    }
}

/// Copies bytes both ways until one side ends or nothing moves for `idle`.
async fn tunnel(
    client: OnUpgrade,
    machine: Switched,
    idle: Duration,
    in_flight: InFlight,
    account: Rc<Account>,
) {
    let Ok(client) = client.await else {
        return;
    };
    let terms = Terms { buffer_bytes: TUNNEL_BUFFER_BYTES, idle, half_idle: idle };
    let client = TokioIo::new(client);
    let Switched { stream, counted } = machine;
    let Ended { sent, received, how } = passage::pass(client, stream, terms).await;
    drop(counted);
    let end = match how {
        How::Closed => End::Whole,
        How::Broken(error) => {
            tracing::debug!(%error, "tunnel ended");
            End::Broken
        }
        How::Idle => {
            tracing::debug!(limit_s = idle.as_secs(), "tunnel over which nothing moved ended");
            End::Idle
        }
    };
    account.tunnelled(sent, received, end);
    drop(in_flight);
}
