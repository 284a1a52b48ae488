//! A request's account: what became of it and what passed, told when all of it is over. That is the
//! answer's last byte, the end of a tunnel, or that the client has left.
//!
//! Never told twice, and never while a part of the request goes on: whoever has one holds it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use perch_types::MachineId;
use tokio::time::Instant;

use crate::Shared;
use crate::access::Access;
use crate::body::{BodyError, ReplyBody, bytes_of};
use crate::cause::Cause;
use crate::live::AppKey;
use crate::metrics::AppMetrics;

/// What is counted when the client left before there was an answer; nobody is sent it.
const CLIENT_LEFT: u16 = 499;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum End {
    /// The client left, or took nothing more.
    #[default]
    Left,
    /// All of it passed.
    Whole,
    /// Whoever answered broke off.
    Broken,
    /// Nothing moved for too long.
    Idle,
}

impl End {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Left => "client_left",
            Self::Whole => "whole",
            Self::Broken => "broken",
            Self::Idle => "idle",
        }
    }
}

/// What a client has sent of a body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    metrics: Option<Arc<AppMetrics>>,
    bytes: Rc<Cell<u64>>,
}

impl Received {
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        if let Some(metrics) = &self.metrics {
            metrics.bytes_in.add(bytes);
        }
    }
}

/// What is known of a request; told when it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    shared: Arc<Shared>,
    began: Instant,
    request_id: HeaderValue,
    method: Method,
    version: Version,
    over_tls: bool,
    received: Rc<Cell<u64>>,
    sent: Cell<u64>,
    known: RefCell<Known>,
    /// Whether another edge passed the request on, and tells of it.
    is_told_elsewhere: bool,
    /// Whether another account has it.
    is_void: Cell<bool>,
}

#[derive(Debug, Default)]
struct Known {
    app: Option<AppKey>,
    /// What is counted of the app, if it has machines here.
    metrics: Option<Arc<AppMetrics>>,
    /// The machine that it went to last.
    machine: Option<MachineId>,
    /// How long it waited for a start.
    woke: Option<Duration>,
    /// The status, why the edge answered itself, and how long all that took.
    answer: Option<(u16, Option<Cause>, Duration)>,
    end: End,
}

impl Account {
    /// Begins the account of a request.
    pub(crate) fn open<B>(
        shared: &Arc<Shared>,
        request_id: HeaderValue,
        request: &Request<B>,
        over_tls: bool,
    ) -> Self {
        let asked = (request.method().clone(), request.version());
        Self::of(shared, request_id, asked, over_tls)
    }

    /// Begins the account of a request by its method and version.
    pub(crate) fn of(
        shared: &Arc<Shared>,
        request_id: HeaderValue,
        (method, version): (Method, Version),
        over_tls: bool,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            began: Instant::now(),
            request_id,
            method,
            version,
            over_tls,
            received: Rc::default(),
            sent: Cell::new(0),
            known: RefCell::default(),
            is_told_elsewhere: false,
            is_void: Cell::new(false),
        }
    }

    /// Has nothing be counted or told: the request begins anew, with another account.
    pub(crate) fn begins_anew(&self) {
        self.is_void.set(true);
    }

    /// Has nothing be counted or told: it is a connection that another edge carries here, and is
    /// counted and told as one.
    pub(crate) fn is_no_request(&self) {
        self.is_void.set(true);
    }

    /// Makes it that of a request which another edge passed on: it is counted here, and told there.
    pub(crate) fn told_elsewhere(mut self) -> Self {
        self.is_told_elsewhere = true;
        self
    }

    /// Returns its name.
    pub(crate) const fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    /// Notes whose request it is.
    pub(crate) fn is_of(&self, app: &AppKey) {
        let mut known = self.known.borrow_mut();
        known.metrics = self.shared.live.metrics_of(app);
        known.app = Some(app.clone());
    }

    /// Notes that the edge of another host counts it.
    pub(crate) fn passed_on(&self, uncounted: &Arc<AppMetrics>) {
        self.known.borrow_mut().metrics = Some(Arc::clone(uncounted));
    }

    /// Notes which machine gets it, and how long it waited for that one's start if it did.
    pub(crate) fn goes_to(&self, machine: &MachineId, woke: Option<Duration>) {
        let mut known = self.known.borrow_mut();
        known.machine = Some(machine.clone());
        known.woke = woke.or(known.woke);
    }

    /// Notes that no machine has seen anything of it: another is looked for.
    pub(crate) fn comes_back(&self) {
        self.known.borrow_mut().machine = None;
    }

    /// Notes what the client is told.
    pub(crate) fn answers(&self, status: StatusCode, cause: Option<Cause>) {
        self.known.borrow_mut().answer = Some((status.as_u16(), cause, self.began.elapsed()));
    }

    /// Tells the app's owner why the edge answers in its place.
    pub(crate) fn explain(&self, cause: Cause) {
        let known = self.known.borrow();
        if let Some(app) = &known.app {
            self.shared.tell_owner(app, known.machine.as_ref(), cause);
        }
    }

    /// Returns where it is noted what the client sends.
    pub(crate) fn received(&self) -> Received {
        let metrics = self.known.borrow().metrics.clone();
        Received { metrics, bytes: Rc::clone(&self.received) }
    }

    /// Notes what passed over a tunnel that has ended.
    pub(crate) fn tunnelled(&self, received: u64, sent: u64, end: End) {
        self.received().add(received);
        self.pays_out(sent);
        self.ends(end);
    }

    /// Notes that the client is sent so much of a body.
    pub(crate) fn pays_out(&self, bytes: u64) {
        self.sent.set(self.sent.get().saturating_add(bytes));
        let known = self.known.borrow();
        known.metrics.as_ref().unwrap_or(&self.shared.metrics.nobodys).bytes_out.add(bytes);
    }

    /// Notes the same of what the kernel moves.
    pub(crate) fn splices(&self, bytes: u64) {
        self.pays_out(bytes);
        self.shared.metrics.spliced.add(bytes);
    }

    /// Notes how it ends; what was said first counts.
    pub(crate) fn ends(&self, end: End) {
        let mut known = self.known.borrow_mut();
        if known.end == End::Left {
            known.end = end;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_void.get() {
            return;
        }
        let known = self.known.get_mut();
        let metrics = known.metrics.as_ref().unwrap_or(&self.shared.metrics.nobodys);
        match known.answer {
            Some((status, _, took)) => metrics.answered(status, took),
            None => metrics.left(CLIENT_LEFT),
        }
        if self.is_told_elsewhere {
            return;
        }
        Access {
            request_id: self.request_id.to_str().unwrap_or_default(),
            method: &self.method,
            protocol: protocol(self.version),
            over_tls: self.over_tls,
            app: known.app.as_ref().map(|app| &app.name),
            machine: known.machine.as_ref(),
            status: known.answer.map_or(CLIENT_LEFT, |(status, ..)| status),
            cause: known.answer.and_then(|(_, cause, _)| cause),
            bytes_in: self.received.get(),
            bytes_out: self.sent.get(),
            wake: known.woke,
            head: known.answer.map(|(.., took)| took),
            took: self.began.elapsed(),
            end: known.end,
        }
        .write(&self.shared.sampler, self.shared.clock.boot_ms());
    }
}

/// Returns what a version is called.
fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_2 {
        "h2"
    } else if version == Version::HTTP_10 {
        "http/1.0"
    } else {
        "http/1.1"
    }
}

/// An answer's body, of which it is noted what the client takes.
#[derive(Debug)]
pub(crate) struct Accounted {
    inner: ReplyBody,
    account: Rc<Account>,
    /// Whether the request ends with it: a tunnel goes on.
    is_last: bool,
}

impl Accounted {
    /// Follows the body of an answer that has this status.
    pub(crate) fn new(inner: ReplyBody, account: Rc<Account>, status: StatusCode) -> Self {
        let is_last = status != StatusCode::SWITCHING_PROTOCOLS;
        let has_no_body = account.method == Method::HEAD
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = Self { inner, account, is_last };
        if has_no_body {
            body.passed();
        }
        body
    }

    /// Notes that all of it has passed.
    fn passed(&self) {
        if self.is_last {
            self.account.ends(End::Whole);
        }
    }
}

impl Body for Accounted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.account.pays_out(bytes_of(frame));
                // Nothing comes behind these, and nobody asks.
                if frame.is_trailers() {
                    this.passed();
                }
            }
            Poll::Ready(Some(Err(_))) => this.account.ends(End::Broken),
            Poll::Ready(None) => this.passed(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        // One whose length is known is not asked for its end.
        if self.inner.is_end_stream() {
            self.passed();
        }
    }
}
