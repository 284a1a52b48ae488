//! One request's way through the phases, to an answer.
//!
//! Never ends without one, and never knows over which kind of connection the request came.

use std::cell::Cell;
use std::rc::Rc;

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::body::{ReplyBody, RequestBody};
use crate::cause::Cause;
use crate::forward::{Hop, Outbound, Refused};
use crate::headers::{self, Seen};
use crate::listen::Worker;
use crate::live::AppKey;
use crate::reply::{self, Access};
use crate::route;
use crate::strict::Link;
use crate::wake::{self, Tried, Wanted};

/// The public port that this listener stands for, whatever port it is bound to.
const PUBLIC_HTTP_PORT: u16 = 80;

impl Worker {
    /// Takes one request through the phases and always answers.
    pub(crate) async fn serve(
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
                Wanted { app, door: PUBLIC_HTTP_PORT.into(), tried: &tried, random: self.random() };
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
