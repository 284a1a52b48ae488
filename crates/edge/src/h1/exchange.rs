//! One common request and its answer.
//!
//! Never sends anything of a request that is not surely common: it goes the general way, whole.
//! What was sent is answered here, whatever comes of it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use perch_sockets::Timer;
use tokio::time::Instant;

use super::answer::{self, Ends};
use super::body::{self, Frames, Machine};
use super::client::{Client, Wire};
use super::request::{self, Asked};
use super::{Alarm, Front, Turn};
use crate::account::{Account, Accounted};
use crate::cause::Cause;
use crate::compress::{self, Accepted};
use crate::forward::Hop;
use crate::live::{AppKey, Target};
use crate::origin1::{self, Head, Lone, Origin};
use crate::peer::Peer;
use crate::request::Passage;
use crate::shortcut::{self, Common, Heard, fields};
use crate::strict::{self, Link};
use crate::{replaying, route};

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
        let common = route::host_in(asked.host).and_then(|host| worker.common(host, peer));
        let Some(Common { app, host, target, in_flight, key }) = common else {
            return Turn::General;
        };
        let request_id = worker.request_id();
        let of = (asked.method.clone(), Version::HTTP_11);
        let account = Rc::new(Account::of(&worker.shared, request_id, of, peer.over_tls()));
        account.is_of(&app);
        account.goes_to(&target.record.id, None);
        asked.tell(&worker.seen(peer, account.request_id(), Version::HTTP_11), out);
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
        let deadline = began + hop.patience();
        let asked = {
            let lone = Lone { head: out, asked: origin1::Asked::by(&method), deadline };
            let asking = pin!(shortcut::ask(&hop, &key, &lone));
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
        match status.filter(|_| !head.is_switch() && fields::is_common(origin.fields())) {
            Some(status) => {
                replaying::note_outcome(target, Ok(status), true);
                account.answers(status, None);
                let idle = hop.idle();
                let machine = Machine { origin, key, hop, idle, silence: Timer::default() };
                self.pass(&sent, (status, head), machine, out).await
            }
            None => Box::pin(self.go_on(sent, Heard { origin, head, hop, key }, out)).await,
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
    async fn go_on(&mut self, sent: Sent<'_>, heard: Heard<'_>, out: &mut BytesMut) -> Turn {
        let Self { worker, client, peer, .. } = self;
        let (method, closes, app) = (sent.method, sent.closes, sent.app);
        let asked = client.input.get(..sent.end).and_then(request::general);
        let asked = asked.unwrap_or_else(|| Request::new(()));
        let accepted = compress::accepted(asked.headers());
        let seen = worker.seen(peer, sent.request_id, Version::HTTP_11);
        let (original, link) = (shortcut::original(asked, &seen), Link::default());
        let mut passage = sent.passage(peer, &link);
        let travelling = worker.travel_from(&mut passage, app, &original, heard);
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
    Some(heard.await?.and_then(|heard| heard.map_err(|fault| shortcut::cause_of(&fault))))
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
