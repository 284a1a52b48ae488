//! One request with whatever body, and its answer, both at once: an app may answer before it has
//! read all, and may read on while it does.
//!
//! Never lets what the client sends wait for what it reads: what is left of a body when the answer
//! has begun is sent by a task of its own. It ends with an answer that is given up; behind one that
//! is over it goes on for as long as the machine takes something.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http_body::{Body, Frame};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::upload::UploadError;

use super::outgoing::Outgoing;
use super::{Asked, Fault, Head, Origin, Switched};

/// A request that was not answered yet.
#[derive(Debug)]
pub(crate) struct Exchange<B> {
    origin: Box<Origin>,
    outgoing: Outgoing<B>,
}

impl<B> Exchange<B>
where
    B: Body<Data = Bytes, Error = UploadError> + Unpin + 'static,
{
    /// Begins one over a connection on which nothing is under way.
    pub(crate) fn new(mut origin: Box<Origin>, parts: &Parts, body: B) -> Self {
        origin.begins(Asked::by(&parts.method));
        let outgoing = Outgoing::new(parts, body, &origin.buffers);
        Self { origin, outgoing }
    }

    /// Sends the request until the head of the answer is there.
    pub(crate) async fn answer(&mut self) -> Result<Head, Fault> {
        poll_fn(|context| self.poll_answer(context)).await
    }

    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Head, Fault>> {
        if let Poll::Ready(sent) = self.outgoing.poll_send(&self.origin.link.wire, context) {
            self.origin.is_sent = sent?;
        }
        self.origin.poll_answer(context)
    }

    /// Returns whether nothing of the request was sent.
    pub(crate) fn is_unsent(&self) -> bool {
        self.outgoing.is_unsent()
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the answer's body, while what is left of the request's goes on.
    pub(crate) fn into_flow(self) -> Flow {
        let Self { origin, mut outgoing } = self;
        if outgoing.is_over() {
            return Flow::new(origin);
        }
        let (link, moved) = (Rc::clone(&origin.link), outgoing.moved());
        let (alone, told) = oneshot::channel();
        let task = tokio::task::spawn_local(async move {
            let sending = poll_fn(|context| outgoing.poll_send(&link.wire, context));
            tokio::select! {
                sent = sending => sent,
                () = stands_still(told, &moved) => {
                    tracing::debug!("rest of a request that was answered not sent");
                    Ok(false)
                }
            }
        });
        Flow { origin, sending: Some(Sending(Some((task, alone)))) }
    }
}

/// Waits until nothing has moved for as long as it is told; it may never be told.
async fn stands_still(told: oneshot::Receiver<Duration>, moved: &Cell<Instant>) {
    let Ok(limit) = told.await else {
        return pending().await;
    };
    let mut until = Instant::now() + limit;
    while Instant::now() < until {
        tokio::time::sleep_until(until).await;
        until = until.max(moved.get() + limit);
    }
}

/// Sends what is left of a request.
type Task = JoinHandle<Result<bool, Fault>>;

/// What is left of a request is sent for as long as somebody has this.
#[derive(Debug)]
struct Sending(Option<(Task, oneshot::Sender<Duration>)>);

impl Sending {
    /// Lets it end by itself, or when nothing has moved for so long: nobody looks at it any more.
    fn goes_on(mut self, idle: Duration) {
        if let Some((_, alone)) = self.0.take() {
            // It may have ended a moment ago.
            alone.send(idle).ok();
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some((task, _)) = &self.0 {
            task.abort();
        }
    }
}

/// The body of an answer, and what is left of the request's.
#[derive(Debug)]
pub(crate) struct Flow {
    origin: Box<Origin>,
    sending: Option<Sending>,
}

impl Flow {
    /// Makes that of an answer to a request that was sent.
    pub(crate) fn new(origin: Box<Origin>) -> Self {
        Self { origin, sending: None }
    }

    /// Returns what comes next.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some(fault) = self.poll_sending(context) {
            return Poll::Ready(Some(Err(fault)));
        }
        Poll::Ready(match ready!(self.origin.poll_more(context)) {
            Ok(true) => Some(Ok(Frame::data(self.origin.take_data()))),
            Ok(false) => match self.origin.take_trailers() {
                Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                Err(doubt) => Some(Err(doubt.into())),
            },
            Err(fault) => Some(Err(fault)),
        })
    }

    /// Looks whether the request was sent whole by now; returns why it cannot be.
    fn poll_sending(&mut self, context: &mut Context<'_>) -> Option<Fault> {
        let (task, _) = self.sending.as_mut()?.0.as_mut()?;
        let Poll::Ready(sent) = Pin::new(task).poll(context) else {
            return None;
        };
        self.sending = None;
        match sent {
            Ok(Ok(is_whole)) => {
                self.origin.is_sent = is_whole;
                None
            }
            Ok(Err(fault)) => Some(fault),
            // Only whoever drops it ends the task.
            Err(_) => None,
        }
    }

    /// Returns whether nothing comes any more.
    pub(crate) fn is_over(&self) -> bool {
        self.origin.is_over() && !self.origin.has_trailers()
    }

    /// Returns how many bytes come yet, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.origin.left()
    }

    /// Returns the connection, when the answer is over. What is left of the request goes on until
    /// it is sent, or nothing has moved for so long, and then the connection ends with it.
    pub(crate) fn into_origin(mut self, idle: Duration) -> Box<Origin> {
        if let Some(sending) = self.sending.take() {
            sending.goes_on(idle);
        }
        self.origin
    }

    /// Returns the connection for another protocol; nothing while the request is still being sent.
    pub(crate) fn into_switched(self) -> Option<Switched> {
        self.origin.into_switched()
    }
}
