//! A request's way from machine to machine: offered to one after the other while nothing of it was
//! sent, and sent again, whole, where an app says so (`fly-replay`, contract 4.3).
//!
//! Never replays on its own: a request that was sent is sent again only because its app said so,
//! a bounded number of times, and never into another organization or network unless the organization
//! there lets it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use http_body::Body as _;
use perch_types::{AppName, MachineId};
use tokio::time::Instant;

use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::direction::{Direction, Instance};
use crate::far::Asked;
use crate::forward::{self, Hop, Outbound, Refused, Sent, Switch};
use crate::headers;
use crate::listen::Worker;
use crate::live::{AppKey, Target};
use crate::outlier::Failure;
use crate::replay::{self, Fallback, Remember, Replay, Unclear};
use crate::replay_cache::{Entry, Found, Key, Query, Step};
use crate::request::Passage;
use crate::upload::Keeper;
use crate::wake::{self, Tried, Wanted};
use crate::{pick, sticky};

mod original;

pub(crate) use self::original::Original;

/// How often one request is replayed.
const REPLAYS_MAX: u32 = 5;
/// The largest body that says where to.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// One leg of the way: an app, and which of its machines.
struct Leg {
    app: AppKey,
    direction: Direction,
    /// Until when a machine has to be found.
    deadline: Option<Instant>,
    /// Who answers when none is, and what was asked of whom.
    back: Option<Back>,
    /// Whether the answer may ask for a replay.
    may_replay: bool,
    /// Under what it is remembered that the request goes here.
    remembered: Option<Key>,
    /// Whether nobody but that memory sent it here.
    is_hit: bool,
}

impl Leg {
    fn to(app: AppKey, direction: Direction) -> Self {
        Self {
            app,
            direction,
            deadline: None,
            back: None,
            may_replay: true,
            remembered: None,
            is_hit: false,
        }
    }
}

/// The way back to whoever asked for a replay.
struct Back {
    app: AppKey,
    machine: MachineId,
    how: Fallback,
    began: Instant,
    /// What was asked for, as the one who asked is told.
    asked: String,
}

/// What a leg came to.
pub(crate) struct Reached {
    pub(crate) sent: Sent,
    pub(crate) target: Arc<Target>,
}

/// How far a request is on a leg.
enum Stage {
    /// It has to be sent.
    Leaves(Box<Outbound>),
    /// It was answered.
    Arrived(Box<Reached>),
}

impl Worker {
    /// Takes a request to its app's answer, over as many machines as it takes.
    pub(crate) async fn travel(
        &self,
        passage: &mut Passage<'_>,
        app: &AppKey,
        outbound: Box<Outbound>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let original = Original::of(&outbound);
        let session = sticky::session(passage.options(), &original.headers);
        let (leg, outbound) = self.first(passage, app, outbound);
        self.go_on(passage, (app, session, &original), (leg, Stage::Leaves(outbound))).await
    }

    /// Takes a request on to its app's answer that was sent to the first machine in its way already.
    pub(crate) async fn travel_on(
        &self,
        passage: &mut Passage<'_>,
        app: &AppKey,
        original: &Original,
        reached: Box<Reached>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let leg = Leg::to(app.clone(), Direction::default());
        self.go_on(passage, (app, None, original), (leg, Stage::Arrived(reached))).await
    }

    async fn go_on(
        &self,
        passage: &mut Passage<'_>,
        (app, session, original): (&AppKey, Option<u64>, &Original),
        (mut leg, mut stage): (Leg, Stage),
    ) -> Result<Response<ReplyBody>, Cause> {
        let mut replays = 0;
        loop {
            let outcome = match stage {
                Stage::Arrived(reached) => Ok(*reached),
                Stage::Leaves(outbound) => {
                    // It is a session of the app whose port says so, and of no other.
                    let sticky = session.filter(|_| leg.app == *app);
                    let port = self.port_of(&leg, passage, app);
                    self.offer(passage, (&leg, sticky, port), outbound).await
                }
            };
            let reached = match outcome {
                Ok(reached) => reached,
                Err(Refused { cause, unsent }) => {
                    let cause = if replays > 0 { of_replay(cause) } else { cause };
                    let unsent = unsent.ok_or(cause)?;
                    let back = self.turn_back(app, leg, original, (cause, unsent.switch))?;
                    (leg, stage) = (back.0, Stage::Leaves(back.1));
                    continue;
                }
            };
            let Reached { mut sent, target } = reached;
            passage.face = Some(Arc::clone(&target));
            let asked = asked(&mut sent.response).await.map_err(|unclear| {
                tracing::info!(app = %leg.app.name, machine = %target.record.id, reason = unclear.0,
                    code = Cause::ReplayBad.code(), "replay not understood");
                Cause::ReplayBad
            })?;
            let Some(wish) = asked else {
                if target.load.is_far {
                    // The edge there counts it.
                    passage.account.passed_on(&target.load.app);
                }
                original.body.answered();
                if let Some(key) =
                    leg.remembered.filter(|_| replay::forgets(sent.response.headers()))
                {
                    self.shared.replays.forget(app, &key);
                }
                return Ok(sent.response);
            };
            replays += 1;
            if replays > REPLAYS_MAX || !leg.may_replay {
                return Err(Cause::ReplayLoop);
            }
            let query = Query {
                host: &passage.host,
                path: original.path.path(),
                headers: &original.headers,
                options: passage.options(),
                now: Instant::now(),
            };
            // Only the first step is remembered, and only as the app itself says it.
            let is_first = replays == 1 && !leg.is_hit;
            let (next, mut outbound) =
                self.next(&leg, &wish, &target, original.again(sent.switch)?)?;
            leg = next;
            if is_first {
                leg.remembered = self.remember(app, &query, &wish, &leg);
            }
            if leg.remembered.is_some() {
                let status = HeaderValue::from_static("miss");
                outbound.request.headers_mut().insert(headers::REPLAY_CACHE_STATUS, status);
            }
            stage = Stage::Leaves(outbound);
        }
    }

    /// Returns the first leg: where the request wants to go, or where the last one like it went.
    fn first(
        &self,
        passage: &Passage<'_>,
        app: &AppKey,
        mut outbound: Box<Outbound>,
    ) -> (Leg, Box<Outbound>) {
        let fields = outbound.request.headers();
        let direct = Leg::to(app.clone(), Direction::of(fields));
        let query = Query {
            host: &passage.host,
            path: outbound.request.uri().path(),
            headers: fields,
            options: passage.options(),
            now: Instant::now(),
        };
        let (leg, status) = match self.shared.replays.look(app, &query) {
            None => return (direct, outbound),
            Some(Found::Bypass) => (direct, "bypass"),
            Some(Found::Hit(key, step)) => match self.app_of(app, step.app.as_ref()) {
                Ok(other) => {
                    let leg = Leg::to(other, step.direction);
                    (Leg { remembered: Some(key), is_hit: true, ..leg }, "hit")
                }
                Err(_) => {
                    self.shared.replays.forget(app, &key);
                    return (direct, outbound);
                }
            },
        };
        let status = HeaderValue::from_static(status);
        outbound.request.headers_mut().insert(headers::REPLAY_CACHE_STATUS, status);
        (leg, outbound)
    }

    /// Returns the leg that an app asks for.
    fn next(
        &self,
        leg: &Leg,
        wish: &Replay,
        responder: &Target,
        mut outbound: Box<Outbound>,
    ) -> Result<(Leg, Box<Outbound>), Cause> {
        let app = self.app_of(&leg.app, wish.app.as_ref())?;
        let (record, now) = (&responder.record, Instant::now());
        let request = &mut outbound.request;
        if let Some(mut path) = request.uri().path_and_query().cloned() {
            wish.transform.apply(&mut path, request.headers_mut());
            *request.uri_mut() = Uri::from(path);
        }
        let micros = self.shared.clock.now().unix_ms().saturating_mul(1000);
        let (id, region) = (&record.id, &record.region);
        let mut source = format!("instance={id};region={region};t={micros}");
        if let Some(state) = &wish.state {
            source.push_str(";state=");
            source.push_str(&replay::quoted(state));
        }
        let source = HeaderValue::from_str(&source).map_err(|_| Cause::ReplayBad)?;
        request.headers_mut().insert(headers::REPLAY_SRC, source);
        let back = wish.fallback.map(|how| Back {
            app: leg.app.clone(),
            machine: record.id.clone(),
            how,
            began: now,
            asked: told(wish, &app),
        });
        let direction = wish.direction(&record.id);
        let deadline = wish.timeout.map(|timeout| now + timeout);
        Ok((Leg { deadline, back, ..Leg::to(app, direction) }, outbound))
    }

    /// Returns the leg that follows one on which nobody was reached, and of which nothing was sent.
    fn turn_back(
        &self,
        app: &AppKey,
        leg: Leg,
        original: &Original,
        (cause, switch): (Cause, Option<Switch>),
    ) -> Result<(Leg, Box<Outbound>), Cause> {
        if let Some(key) = leg.remembered.as_ref().filter(|_| leg.is_hit) {
            // What was remembered is not there any more: the app says anew where to.
            self.shared.replays.forget(app, key);
            let outbound = original.again(switch)?;
            let direction = Direction::of(outbound.request.headers());
            return Ok((Leg::to(app.clone(), direction), outbound));
        }
        let back = leg.back.ok_or(cause)?;
        let mut outbound = original.again(switch)?;
        let failed = HeaderValue::from_str(&failure(&back, cause)).map_err(|_| cause)?;
        outbound.request.headers_mut().insert(headers::REPLAY_FAILED, failed);
        let machine = Some(back.machine.into());
        let direction = match back.how {
            Fallback::ForceSelf => Direction { only: machine, ..Direction::default() },
            Fallback::PreferSelf => Direction { prefer: machine, ..Direction::default() },
        };
        Ok((Leg { may_replay: false, ..Leg::to(back.app, direction) }, outbound))
    }

    /// Returns an app that another may send requests to: itself, one of the same organization and
    /// network, or one whose organization says so.
    fn app_of(&self, from: &AppKey, name: Option<&AppName>) -> Result<AppKey, Cause> {
        let Some(name) = name.filter(|name| **name != from.name) else {
            return Ok(from.clone());
        };
        let view = self.shared.view.load();
        let (Some(here), Some(there)) = (view.app(&from.name), view.app(name)) else {
            return Err(Cause::ReplayDenied);
        };
        // A name can be another organization's since the request came in.
        (here.org == from.org && view.may_replay(here, there))
            .then(|| AppKey { org: there.org.clone(), name: there.name.clone() })
            .ok_or(Cause::ReplayDenied)
    }

    /// Remembers a replay if the app or a rule of its port wants it; returns under what.
    fn remember(&self, app: &AppKey, query: &Query<'_>, wish: &Replay, leg: &Leg) -> Option<Key> {
        let (key, ttl, allow_bypass) = match &wish.cache {
            Some(Remember::Forget { paths }) => {
                self.shared.replays.forget(app, &query.shared(paths.clone()));
                return None;
            }
            Some(Remember::Paths { host, .. })
                if host.as_ref().is_some_and(|it| *it != query.host) =>
            {
                return None;
            }
            Some(Remember::Paths { paths, ttl, allow_bypass, .. }) => {
                (query.shared(paths.clone()), *ttl, *allow_bypass)
            }
            None => query.session()?,
        };
        if !wish.is_plain() {
            return None;
        }
        let other = (leg.app != *app).then(|| leg.app.name.clone());
        let step = Step { app: other, direction: leg.direction.clone() };
        let entry = Entry { step, until: query.now + ttl, allow_bypass };
        self.shared.replays.put(app, key.clone(), entry, query.now);
        Some(key)
    }

    /// Returns at which public port the app of a leg answers: where the request came in, unless
    /// another app sends it on to one that has no such port.
    fn port_of(&self, leg: &Leg, passage: &Passage<'_>, asked: &AppKey) -> u16 {
        let peer = passage.peer;
        let (app, is_sent_on) = (&leg.app, leg.app != *asked);
        let machines = || self.shared.live.machines_of(app).or_else(|| self.far_machines(app));
        match is_sent_on.then(machines).flatten() {
            Some(machines) => peer.gate.sent_on(&machines, peer.over_tls()),
            None => peer.public_port(),
        }
    }

    /// Offers a request to one machine after the other while nothing of it was sent.
    async fn offer(
        &self,
        passage: &Passage<'_>,
        (leg, sticky, public_port): (&Leg, Option<u64>, u16),
        mut outbound: Box<Outbound>,
    ) -> Result<Reached, Refused> {
        let (peer, account) = (passage.peer, passage.account);
        let upload = outbound.request.body().keeper();
        let mut tried = Tried::default();
        let mut elsewhere = Asked::default();
        loop {
            let wanted = Wanted {
                app: &leg.app,
                door: public_port.into(),
                asks: peer,
                direction: &leg.direction,
                tried: &tried,
                random: self.random(),
                sticky,
            };
            if let Some(choice) = self.choose_far(&wanted, &elsewhere, leg.deadline) {
                tell_preference(outbound.request.headers_mut(), &leg.direction, &choice.target);
                account.goes_to(&choice.target.record.id, None);
                match Box::pin(self.pass_on(choice, &mut elsewhere, outbound, account)).await {
                    Err(Refused { unsent: Some(unsent), .. }) => {
                        account.comes_back();
                        outbound = unsent;
                    }
                    done => return done,
                }
                continue;
            }
            let finding = wake::ready_machine(&self.shared, &wanted);
            let found = match leg.deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, finding)
                    .await
                    .unwrap_or(Err(Cause::ReplayLate)),
                None => finding.await,
            };
            let wake::Place { target, in_flight, connected, woke } = match found {
                Ok(place) => place,
                Err(cause) => {
                    return Err(Refused { cause: elsewhere.cause(cause), unsent: Some(outbound) });
                }
            };
            account.goes_to(&target.record.id, woke);
            tell_preference(outbound.request.headers_mut(), &leg.direction, &target);
            let service = pick::service(&target.record.services, public_port);
            let client = if service.is_none_or(pick::counts_requests) { 0 } else { peer.number };
            let key = forward::key(&target, public_port, client);
            if let (Some(connected), Some(key)) = (connected, key) {
                peer.keep(&target, connected, &self.pool, key);
            }
            let limits = &self.shared.limits;
            let (pool, asked) = (&self.pool, &target);
            let hop = Hop { pool, limits, target: asked, public_port, client, in_flight, account };
            let sent = hop.send(outbound).await;
            note_health(&target, &sent, &upload);
            match sent {
                Ok(sent) => return Ok(Reached { sent, target }),
                Err(Refused { unsent: Some(unsent), cause }) => {
                    if !tried.note(&target.record, limits.stale) {
                        return Err(Refused { cause, unsent: Some(unsent) });
                    }
                    outbound = unsent;
                }
                Err(refused) => return Err(refused),
            }
        }
    }
}

/// Returns what an answer says of a replay, if it asks for one.
async fn asked(response: &mut Response<ReplyBody>) -> Result<Option<Replay>, Unclear> {
    if response.headers().contains_key(&replay::FIELD) {
        return replay::from_fields(response.headers());
    }
    if !replay::is_body(response.headers()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    loop {
        let body = response.body_mut();
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        let Some(frame) = frame else {
            return replay::from_body(&bytes).map(Some);
        };
        let frame = frame.map_err(|_| Unclear("the body breaks off"))?;
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        if bytes.len() > BODY_BYTES_MAX {
            return Err(Unclear("the body is too large"));
        }
    }
}

/// Tells a machine that it is not the one that was asked for.
fn tell_preference(headers: &mut HeaderMap, direction: &Direction, target: &Target) {
    let missed = direction.prefer.as_ref().filter(|prefer| !prefer.is(&target.record));
    match missed.map(|prefer| HeaderValue::from_str(prefer.as_str())) {
        Some(Ok(missed)) => {
            headers.insert(headers::PREFERRED_UNAVAILABLE, missed);
        }
        Some(Err(_)) | None => {
            headers.remove(headers::PREFERRED_UNAVAILABLE);
        }
    }
}

/// Notes how a machine did. What broke because of the client says nothing of it, nor what is late
/// while the client has not said everything.
pub(crate) fn note_health(target: &Target, sent: &Result<Sent, Refused>, upload: &Keeper) {
    let outcome = match sent {
        Ok(sent) => Ok(sent.response.status()),
        Err(Refused { cause, unsent }) => Err((*cause, unsent.is_none())),
    };
    note_outcome(target, outcome, upload.is_over());
}

/// Notes the same by the status of the answer, or by why there is none and whether the request is
/// lost with it.
pub(crate) fn note_outcome(
    target: &Target,
    outcome: Result<StatusCode, (Cause, bool)>,
    is_upload_over: bool,
) {
    let (Target { record, load, .. }, now) = (target, Instant::now());
    let failure = match outcome {
        Ok(status) if status.is_server_error() => Failure::Error,
        Ok(_) => return load.health.succeeded(now),
        Err((cause, _)) => match failure_of(cause, is_upload_over) {
            Some(failure) => failure,
            None => return,
        },
    };
    if let Err((_, true)) = outcome {
        // One that another machine gets is lost to nobody.
        load.instance.broke(&record.instance);
    }
    load.health.failed(now, failure);
}

/// Returns what a cause says of the machine that had the request; nothing when it says nothing.
const fn failure_of(cause: Cause, is_upload_over: bool) -> Option<Failure> {
    match cause {
        Cause::NotListening => Some(Failure::Deaf),
        Cause::Slow if !is_upload_over => None,
        Cause::Slow | Cause::Upstream | Cause::BadAnswer | Cause::ReplaySwitched => {
            Some(Failure::Break)
        }
        // The client's, or never a machine's.
        _ => None,
    }
}

/// Returns what a replay's failure is to the client: it did not choose where the request went.
const fn of_replay(cause: Cause) -> Cause {
    match cause {
        Cause::InstanceUnknown | Cause::RegionEmpty => Cause::NoMachine,
        cause => cause,
    }
}

/// Says what a replay asked for.
fn told(wish: &Replay, app: &AppKey) -> String {
    let instance = wish.instance.as_ref().or(wish.prefer_instance.as_ref());
    let instance = instance.map(Instance::as_str).unwrap_or_default();
    let region = wish.region.as_deref().unwrap_or_default();
    format!("instance={instance};app={};region={region}", app.name)
}

/// Says why a replay came back.
fn failure(back: &Back, cause: Cause) -> String {
    let reason = match cause {
        Cause::ReplayLate => "timeout",
        Cause::NoMachine
        | Cause::NotStartable
        | Cause::InstanceUnknown
        | Cause::RegionEmpty
        | Cause::Full
        | Cause::QueueFull => "no_candidate",
        _ => "retries_exhausted",
    };
    format!(
        "{asked};replay_source={source};reason={reason};elapsed_ms={elapsed}",
        asked = back.asked,
        source = back.machine,
        elapsed = back.began.elapsed().as_millis(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Fault;

    #[test]
    fn what_clients_bring_about_is_no_fault_of_a_machine() {
        for cause in Cause::ALL {
            for is_upload_over in [true, false] {
                let failure = failure_of(cause, is_upload_over);
                if cause.fault() == Fault::Client {
                    assert_eq!(failure, None, "{cause:?}");
                }
            }
        }
        for (cause, is_upload_over, want) in [
            (Cause::Slow, true, Some(Failure::Break)),
            (Cause::Slow, false, None),
            (Cause::NotListening, false, Some(Failure::Deaf)),
            (Cause::Upstream, false, Some(Failure::Break)),
            (Cause::BadRequest, true, None),
            (Cause::Full, true, None),
        ] {
            assert_eq!(failure_of(cause, is_upload_over), want, "{cause:?} {is_upload_over}");
        }
    }
}
