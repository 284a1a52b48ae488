//! One request's way through the phases, to an answer.
//!
//! Never ends without one, but when the client leaves.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use perch_types::ports::PUBLIC_HTTPS_PORT;
use perch_types::service::HttpOptions;

use crate::account::{Account, Accounted};
use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::compress::Accepted;
use crate::forward::Outbound;
use crate::headers::{self, Seen};
use crate::listen::Worker;
use crate::live::{AppKey, Target};
use crate::peer::Peer;
use crate::reply;
use crate::strict::Link;
use crate::upload::{BodyLimits, Progress, RequestBody};
use crate::{challenge, compress, far, origin2, pick, redirect, route};

/// As long as a request's name gets: a ULID, a dash and the longest region.
const REQUEST_ID_BYTES: usize = 26 + 1 + 8;

impl Worker {
    /// Takes one request through the phases and always answers. The request is over when nobody
    /// holds its account any more.
    pub(crate) async fn serve(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        link: &Link,
    ) -> Response<Accounted> {
        let request_id = self.request_id();
        let account = Rc::new(Account::open(&self.shared, request_id, &request, peer.over_tls()));
        let method = request.method().clone();
        let accepted = compress::accepted(request.headers());
        let mut passage = Passage {
            host: String::new(),
            face: None,
            peer,
            request_id: account.request_id(),
            link,
            account: &account,
        };
        let outcome = self.phases(request, &mut passage).await;
        let is_switch = |it: &Response<ReplyBody>| it.status() == StatusCode::SWITCHING_PROTOCOLS;
        link.settle(outcome.as_ref().is_ok_and(is_switch));
        self.conclude(outcome, &passage, (&method, accepted))
    }

    /// Makes the client's answer of what a request came to.
    pub(crate) fn conclude(
        &self,
        outcome: Result<Response<ReplyBody>, Cause>,
        passage: &Passage<'_>,
        (method, accepted): (&Method, Accepted),
    ) -> Response<Accounted> {
        let account = passage.account;
        let (mut response, cause) = match outcome {
            Ok(response) => (response, None),
            Err(cause) => {
                let id = account.request_id().to_str().unwrap_or_default();
                (reply::page(cause, id), Some(cause))
            }
        };
        let status = response.status();
        account.answers(status, cause);
        if let Some(cause) = cause {
            account.explain(cause);
        }
        let options = passage.options();
        if cause.is_none() && options.is_some_and(|options| options.compress == Some(true)) {
            response = compress::answer(response, method, accepted, &self.places);
        }
        finish(&mut response, passage.request_id.clone(), options);
        response.map(|body| Accounted::new(body, Rc::clone(account), status))
    }

    /// Returns whose a request is, or what the platform itself answers.
    async fn owner(
        &self,
        parts: &Parts,
        passage: &mut Passage<'_>,
    ) -> Result<ControlFlow<Response<ReplyBody>, AppKey>, Cause> {
        if !parts.headers.contains_key(http::header::HOST) {
            return Err(passage.link.refusal());
        }
        if parts.method == Method::CONNECT {
            return Err(Cause::BadRequest);
        }
        passage.host = route::host_of(parts)?;
        let (host, gate) = (&passage.host, &passage.peer.gate);
        let issuer = self.shared.issuer.as_ref().filter(|issuer| issuer.host == *host);
        let mut app = route::app_of(host, &self.shared.domain, &self.shared.view.load());
        if app.is_none() && issuer.is_none() {
            // At a port of its own an app has whatever name nobody else has.
            app = gate.only().cloned();
        }
        let secure = passage.peer.secure.as_ref();
        // The other way round, what a client keeps for one app would be shown to another.
        if !gate.admits(app.as_ref()) || secure.is_some_and(|it| !it.admits(host, app.as_ref())) {
            return Err(Cause::Misdirected);
        }
        if let Some(response) = challenge::answer(&self.shared, passage.peer, host, parts) {
            return Ok(ControlFlow::Break(response));
        }
        if let Some(issuer) = issuer {
            let response = issuer.answer(&self.shared.runtime, parts).await?;
            return Ok(ControlFlow::Break(response));
        }
        let app = app.ok_or(Cause::UnknownHost)?;
        passage.account.is_of(&app);
        if !passage.peer.sits_with(&self.shared, &app) {
            return Err(Cause::Crowded);
        }
        Ok(ControlFlow::Continue(app))
    }

    async fn phases(
        &self,
        request: Request<Incoming>,
        passage: &mut Passage<'_>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let (mut parts, body) = request.into_parts();
        let app = match self.owner(&parts, passage).await? {
            ControlFlow::Continue(app) => app,
            ControlFlow::Break(response) => return Ok(response),
        };
        if let Some(uncounted) = self.far_metrics(&app) {
            passage.account.passed_on(&uncounted);
        }
        passage.face = self.face(&app, passage.peer.public_port());
        if let Some(response) = self.redirect(passage, &app, &parts) {
            return Ok(response);
        }
        if let Some(limit) = passage.options().and_then(|options| options.headers_read_timeout)
            && limit > 0
            && passage.link.head_took() > Duration::from_secs(u64::from(limit))
        {
            return Err(Cause::HeadSlow);
        }
        let live = &self.shared.live;
        // Files are where the app is: not at a port that it does not list.
        if passage.face.is_some()
            && let Some(mut response) = self.shared.statics.answer(live, &app, &parts).await?
        {
            let status = HeaderValue::from_static("HIT");
            response.headers_mut().insert(headers::CACHE_STATUS, status);
            return Ok(response);
        }
        let switch = headers::upgrade(&parts.method, &parts.headers);
        let takes_trailers = headers::takes_trailers(&parts.headers);
        headers::strip(&mut parts.headers);
        let seen = Seen {
            client: &passage.peer.client,
            port: &passage.peer.port,
            region: &self.region,
            request_id: passage.request_id,
            over_tls: passage.peer.over_tls(),
            version: parts.version,
        };
        headers::tell_app(&mut parts.headers, &seen);
        if let (Some(_), Some(target)) = (parts.uri.scheme(), parts.uri.path_and_query()) {
            parts.uri = target.as_str().parse().map_err(|_| Cause::BadRequest)?;
        }
        parts.version = Version::HTTP_11;
        let progress = Progress::new();
        let switch = switch.map(|protocol| {
            headers::restore_upgrade(&mut parts.headers, protocol.clone());
            let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
            client.map(|client| (protocol, client))
        });
        let limits = BodyLimits::of(&self.shared.limits, passage.options());
        if body.size_hint().lower() > limits.bytes_max {
            return Err(Cause::BodyTooLarge);
        }
        let received = passage.account.received();
        let body = RequestBody::new(body, progress.clone(), limits, &self.budget, received);
        let mut request = Request::from_parts(parts, body);
        if seen.version == Version::HTTP_2 {
            origin2::frame(&mut request);
        }
        let switch = switch.flatten();
        let outbound = Box::new(Outbound { request, progress, switch, takes_trailers });
        let mut response = self.travel(passage, &app, outbound).await?;
        headers::strip_answer(response.headers_mut());
        far::settle(response.headers_mut());
        Ok(response)
    }

    /// Returns a machine whose port says how an app's requests are treated before one is chosen:
    /// one of this host where any lists it.
    pub(crate) fn face(&self, app: &AppKey, port: u16) -> Option<Arc<Target>> {
        let here = self.shared.live.machines_of(app);
        let here = here.and_then(|machines| face_of(&machines, port).cloned());
        here.or_else(|| face_of(&self.far_machines(app)?, port).cloned())
    }

    /// Sends a client to HTTPS where the app wants it or is there alone, and where there is any.
    fn redirect(
        &self,
        passage: &Passage<'_>,
        app: &AppKey,
        parts: &Parts,
    ) -> Option<Response<ReplyBody>> {
        let peer = passage.peer;
        let of_all = self.shared.https_port.filter(|_| !peer.over_tls())?;
        let port = peer.public_port();
        let secure = match &passage.face {
            Some(face) => {
                let service = pick::service(&face.record.services, port)?;
                redirect::is_forced(service, port).then(|| redirect::secure_port(service, of_all))
            }
            None => self.face(app, PUBLIC_HTTPS_PORT).map(|_| of_all),
        };
        redirect::to_https(&passage.host, secure?, parts)
    }

    /// Returns the next number of a sequence that is only for spreading load and naming requests.
    pub(crate) fn random(&self) -> u64 {
        let mut state = self.state.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.set(state);
        state
    }

    /// Names a request.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let now = self.shared.clock.now().unix_ms().unsigned_abs();
        let random = (u128::from(self.random()) << 64) | u128::from(self.random());
        let mut id = String::with_capacity(REQUEST_ID_BYTES);
        perch_types::id::push_ulid(now, random, &mut id);
        id.push('-');
        id.push_str(self.shared.region.as_str());
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}

/// Returns the one of an app's machines whose port says how its requests are treated.
pub(crate) fn face_of(machines: &[Arc<Target>], port: u16) -> Option<&Arc<Target>> {
    let mut serving =
        machines.iter().filter(|target| pick::service(&target.record.services, port).is_some());
    let first = serving.clone().find(|target| target.record.ready);
    first.or_else(|| serving.next())
}

/// Puts on an answer what the client is told, and changes what its port says.
fn finish(
    response: &mut Response<ReplyBody>,
    request_id: HeaderValue,
    options: Option<&HttpOptions>,
) {
    let version = response.version();
    *response.version_mut() = Version::HTTP_11;
    let changes = options.and_then(|options| options.response.as_ref());
    if changes.is_some_and(|changes| changes.pristine == Some(true)) {
        response.headers_mut().remove(headers::CACHE_STATUS);
    } else {
        headers::tell_client(response.headers_mut(), request_id, version);
    }
    if let Some(changes) = changes {
        headers::change(response.headers_mut(), changes);
    }
}

/// What is known of a request on its way.
pub(crate) struct Passage<'a> {
    /// The one host name that it was sent to.
    pub(crate) host: String,
    /// The machine whose port says how it is treated: the one that answered, as soon as one has.
    pub(crate) face: Option<Arc<Target>>,
    pub(crate) peer: &'a Peer,
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) link: &'a Link,
    /// What becomes of it.
    pub(crate) account: &'a Rc<Account>,
}

impl Passage<'_> {
    /// Returns what its port says of HTTP.
    pub(crate) fn options(&self) -> Option<&HttpOptions> {
        let port = self.peer.public_port();
        let service = pick::service(&self.face.as_ref()?.record.services, port)?;
        pick::options(service, port)
    }
}
