//! What is the same for common requests whatever version of HTTP they come over: which machine gets
//! one, how that is asked, and how an answer that is not common goes on.
//!
//! Never a rule of its own: hosts, machines and fields are judged by what the general path asks too.
//! What is not plain is nothing here, before anything of it was sent.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, Version};
use perch_types::service::HttpOptions;
use tokio::time::Instant;

use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::direction::Direction;
use crate::forward::{self, Answer, Hop, Outbound};
use crate::headers::{self, Seen};
use crate::listen::Worker;
use crate::live::{AppKey, InFlight, Target};
use crate::origin1::{Fault, Head, Lone, Origin, Wrote};
use crate::peer::{Asks as _, Peer};
use crate::pick::{self, Door};
use crate::pool::Key;
use crate::replaying::{self, Original, Reached};
use crate::request::{Passage, face_of};
use crate::upload::{Progress, RequestBody};
use crate::wake::{self, Place, Tried, Wanted};
use crate::{far, redirect, route};

pub(crate) mod fields;

/// How long a machine may take to accept a connection before the general path sees to it.
const CONNECT_MAX: Duration = Duration::from_millis(100);

/// Where a common request goes.
pub(crate) struct Common {
    pub(crate) app: AppKey,
    pub(crate) host: String,
    pub(crate) target: Arc<Target>,
    pub(crate) in_flight: InFlight,
    pub(crate) key: Key,
}

/// An answer of which the head was heard, and what is held for it.
pub(crate) struct Heard<'a> {
    pub(crate) origin: Box<Origin>,
    pub(crate) head: Head,
    pub(crate) hop: Hop<'a>,
    pub(crate) key: Key,
}

impl Worker {
    /// Returns where a request to a host goes, if that is plain: to a machine of this host that is
    /// ready.
    pub(crate) fn common(&self, host: String, peer: &Peer) -> Option<Common> {
        let shared = &self.shared;
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

    /// Returns what the app is told of whoever asks.
    pub(crate) fn seen<'a>(
        &'a self,
        peer: &'a Peer,
        request_id: &'a HeaderValue,
        version: Version,
    ) -> Seen<'a> {
        Seen {
            client: &peer.client,
            port: &peer.port,
            region: &self.region,
            request_id,
            over_tls: peer.over_tls(),
            version,
        }
    }

    /// Takes a request on whose answer is not common, such as one that asks for a replay.
    pub(crate) async fn travel_from(
        &self,
        passage: &mut Passage<'_>,
        app: &AppKey,
        original: &Original,
        heard: Heard<'_>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let Heard { origin, head, hop, key } = heard;
        let target = Arc::clone(hop.target);
        let answered = Answer::heard(origin, &head).and_then(|answer| hop.finish(answer, key));
        let outcome = match &answered {
            Ok(sent) => Ok(sent.response.status()),
            Err(refused) => Err((refused.cause, true)),
        };
        replaying::note_outcome(&target, outcome, true);
        let sent = answered.map_err(|refused| refused.cause)?;
        let reached = Box::new(Reached { sent, target });
        let mut response = self.travel_on(passage, app, original, reached).await?;
        headers::strip_answer(response.headers_mut());
        far::settle(response.headers_mut());
        Ok(response)
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

/// Sends a request that is a head alone over a connection of the pool, or a new one; nothing when
/// nothing was sent.
pub(crate) async fn ask(hop: &Hop<'_>, key: &Key, lone: &Lone<'_>) -> Option<Box<Origin>> {
    // Each may have been closed by the app a moment ago.
    while let Some(mut origin) = hop.pool.take(key) {
        if !matches!(origin.ask(lone).await, Wrote::Nothing) {
            return Some(origin);
        }
    }
    // Apart: most do not come here, and are small.
    Box::pin(ask_anew(hop, key, lone)).await
}

async fn ask_anew(hop: &Hop<'_>, key: &Key, lone: &Lone<'_>) -> Option<Box<Origin>> {
    let opening = tokio::time::timeout(CONNECT_MAX, hop.open(key));
    let mut origin = opening.await.ok().flatten()?;
    (!matches!(origin.ask(lone).await, Wrote::Nothing)).then_some(origin)
}

/// Returns why there is no answer to a request that was sent.
pub(crate) fn cause_of(fault: &Fault) -> Cause {
    tracing::debug!(error = %fault, "machine did not answer");
    fault.cause()
}

/// Returns a request without a body as it was sent, to be sent again.
pub(crate) fn original(mut asked: Request<()>, seen: &Seen<'_>) -> Original {
    let takes_trailers = headers::takes_trailers(asked.headers());
    headers::strip(asked.headers_mut());
    headers::tell_app(asked.headers_mut(), seen);
    Original::of(&Outbound {
        request: asked.map(|()| RequestBody::none()),
        progress: Progress::new(),
        switch: None,
        takes_trailers,
    })
}
