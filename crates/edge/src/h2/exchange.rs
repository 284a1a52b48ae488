//! One common request of a stream, and its answer.
//!
//! Never sends anything of a request that is not surely common: it goes the general way, whole. What
//! was sent is answered here, whatever comes of it. A client that leaves has this dropped, and the
//! machine's connection with it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use http::request::Parts;
use http::{Request, Response};
use perch_sockets::Timer;
use tokio::time::Instant;

use super::request;
use crate::account::{Account, Accounted};
use crate::cause::Cause;
use crate::compress::{self, Accepted};
use crate::forward::Hop;
use crate::headers;
use crate::listen::Worker;
use crate::live::{AppKey, Target};
use crate::origin1::{self, Lone};
use crate::peer::Peer;
use crate::request::Passage;
use crate::shortcut::{self, Common, Heard, fields};
use crate::strict::Link;
use crate::{replaying, route};

/// Answers a request that is all in its head, and that the strict layer has found good, if it is
/// common.
pub(super) async fn answer(
    worker: &Worker,
    peer: &Peer,
    parts: &Parts,
) -> Option<Response<Accounted>> {
    let buffers = worker.pool.buffers();
    let mut out = buffers.take();
    let Some((common, account)) = begin(worker, peer, parts, &mut out) else {
        buffers.give(out);
        return None;
    };
    // Together, as most of it waits for what comes seldom: what holds a stream is to be small.
    let Common { app, target, in_flight, key, .. } = common;
    let to = Box::new((app, target, key));
    let (app, target, key) = &*to;
    let hop = Hop {
        pool: &worker.pool,
        limits: &worker.shared.limits,
        target,
        public_port: peer.public_port(),
        client: key.client,
        in_flight,
        account: &account,
    };
    let began = Instant::now();
    let deadline = began + hop.patience();
    let lone = Lone { head: &out, asked: origin1::Asked::by(&parts.method), deadline };
    let asked = shortcut::ask(&hop, key, &lone).await;
    buffers.give(out);
    let Some(mut origin) = asked else {
        // Nobody has seen anything of it.
        account.begins_anew();
        return None;
    };
    let (left, mut silence) =
        (deadline.saturating_duration_since(Instant::now()), Timer::default());
    let heard = poll_fn(|context| match origin.poll_answer(context) {
        Poll::Ready(heard) => Poll::Ready(heard.map_err(|fault| shortcut::cause_of(&fault))),
        Poll::Pending if silence.is_over(left, context) => Poll::Ready(Err(Cause::Slow)),
        Poll::Pending => Poll::Pending,
    });
    let head = match heard.await {
        Ok(head) => head,
        Err(cause) => {
            replaying::note_outcome(target, Err((cause, true)), true);
            drop((origin, hop));
            let (asked, link) = ((&parts.method, Accepted::default()), Link::default());
            let passage = passage(parts, target, peer, &link, &account);
            return Some(worker.conclude(Err(cause), &passage, asked));
        }
    };
    target.load.instance.answered(&target.record.instance, head.status, began.elapsed());
    let is_common = !head.is_switch() && fields::is_common(origin.fields());
    let response = is_common.then(|| origin.response(&head, fields::goes_on));
    let Some(Ok(mut response)) = response else {
        let heard = Heard { origin, head, hop, key: key.clone() };
        return Some(Box::pin(go_on(worker, parts, app, (target, peer, &account), heard)).await);
    };
    let (status, version) = (response.status(), response.version());
    replaying::note_outcome(target, Ok(status), true);
    account.answers(status, None);
    headers::tell_client(response.headers_mut(), account.request_id().clone(), version);
    let body = hop.pass(origin, key.clone());
    Some(response.map(|()| Accounted::new(body, account, status)))
}

/// Finds where a request goes, and writes what its machine is sent.
fn begin(
    worker: &Worker,
    peer: &Peer,
    parts: &Parts,
    out: &mut BytesMut,
) -> Option<(Common, Rc<Account>)> {
    let way = request::put(parts, out)?;
    let common = worker.common(route::host_of(parts).ok()?, peer)?;
    let of = (parts.method.clone(), parts.version);
    let account = Account::of(&worker.shared, worker.request_id(), of, peer.over_tls());
    account.is_of(&common.app);
    account.goes_to(&common.target.record.id, None);
    let seen = worker.seen(peer, account.request_id(), parts.version);
    way.tell(request::pairs(&parts.headers), &seen, out);
    Some((common, Rc::new(account)))
}

/// Returns what the general path knows of a request that was sent.
fn passage<'a>(
    parts: &Parts,
    target: &Arc<Target>,
    peer: &'a Peer,
    link: &'a Link,
    account: &'a Rc<Account>,
) -> Passage<'a> {
    let (face, request_id) = (Some(Arc::clone(target)), account.request_id());
    // There is one: it was found by that.
    let host = route::host_of(parts).unwrap_or_default();
    Passage { host, face, peer, request_id, link, account }
}

/// Goes the general way with an answer that is not common, such as one that asks for a replay.
async fn go_on(
    worker: &Worker,
    parts: &Parts,
    app: &AppKey,
    (target, peer, account): (&Arc<Target>, &Peer, &Rc<Account>),
    heard: Heard<'_>,
) -> Response<Accounted> {
    let link = Link::default();
    let mut passage = passage(parts, target, peer, &link, account);
    let mut asked = Request::new(());
    *asked.method_mut() = parts.method.clone();
    *asked.uri_mut() = parts.uri.clone();
    *asked.headers_mut() = parts.headers.clone();
    let seen = worker.seen(passage.peer, passage.request_id, parts.version);
    let original = shortcut::original(asked, &seen);
    let outcome = worker.travel_from(&mut passage, app, &original, heard).await;
    let accepted = compress::accepted(&parts.headers);
    worker.conclude(outcome, &passage, (&parts.method, accepted))
}
