//! HTTP/1.1 as most requests are: a head that came in one piece, without a body, for a machine of
//! this host that is ready.
//!
//! Never a way around a rule: what is not surely common goes through [`crate::request`] with all
//! that was read of it, and its connection stays there. Heads are judged by the strict layer;
//! hosts, machines and fields by what the general path asks too. It has no map of fields, no task
//! and no channel between a client and its machine: these took most of the edge's own time.

mod answer;
mod body;
mod client;
mod date;
mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod request;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::Limits;
use crate::connection::{self, Serving, asked_to_stop};
use crate::listen::Worker;
use crate::peer::Peer;
use crate::rewound::Rewound;

pub(crate) use self::date::Date;

use self::client::{Client, Wire};

/// How long what an answer took is kept for the next request; who is silent for longer takes less
/// memory from then on.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// A connection whose requests were all common so far.
struct Front<S> {
    worker: Rc<Worker>,
    client: Client<S>,
    peer: Peer,
    stopping: watch::Receiver<bool>,
    alarm: Alarm,
}

/// What comes behind a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Perhaps another.
    Again,
    /// The end of the connection.
    Over,
    /// The same, at once: its answer is not whole, or nobody is there to take it.
    Broken,
    /// It was not common, and nothing of it was sent.
    General,
}

impl Turn {
    /// Returns what comes behind an answer.
    const fn behind((is_sent, is_last): (bool, bool)) -> Self {
        match (is_sent, is_last) {
            (true, false) => Self::Again,
            (true, true) => Self::Over,
            (false, _) => Self::Broken,
        }
    }
}

/// Serves a connection to its end.
pub(crate) fn serve<S>(
    worker: Rc<Worker>,
    stream: S,
    peer: Peer,
    stopping: watch::Receiver<bool>,
) -> impl Future<Output = ()>
where
    S: Wire + Send + 'static,
{
    let client = Client { stream, input: BytesMut::new() };
    let alarm = Alarm::new(worker.shared.limits.head);
    let mut front = Front { worker, client, peer, stopping, alarm };
    // An `async fn` would have all of it twice, and a connection lies idle for long.
    async move {
        match front.turns().await {
            Turn::Again | Turn::Over => front.client.end().await,
            Turn::Broken => {}
            Turn::General => front.hand_over().await,
        }
    }
}

impl<S: Wire> Front<S> {
    /// Serves requests until one is the last here.
    async fn turns(&mut self) -> Turn {
        let (shared, mut stopping) = (Arc::clone(&self.worker.shared), self.stopping.clone());
        let stop = pin!(asked_to_stop(&mut stopping));
        let mut pause = Pause { stop, is_stopped: false, limits: &shared.limits };
        loop {
            match self.rest(&mut pause, Duration::MAX).await {
                Pass::Request => {}
                Pass::Later => continue,
                Pass::End => return Turn::Over,
            }
            // Apart, so that one that is idle takes little.
            let turn = Box::pin(self.busy(&mut pause)).await;
            if turn != Turn::Again {
                return turn;
            }
        }
    }

    /// Has the connection go on the general way, with all that was read of it.
    fn hand_over(self) -> Serving
    where
        S: Send + 'static,
    {
        let Self { worker, client, peer, stopping, .. } = self;
        let stream = Rewound::new(client.input, client.stream);
        Box::pin(connection::serve_http1(worker, stream, peer, stopping))
    }

    /// Serves a request, and those that follow soon.
    async fn busy<F: Future<Output = ()>>(&mut self, pause: &mut Pause<'_, F>) -> Turn {
        loop {
            let turn = self.request().await;
            if turn != Turn::Again {
                return turn;
            }
            match self.rest(pause, BUSY_MAX).await {
                Pass::Request => {}
                Pass::Later => return Turn::Again,
                Pass::End => return Turn::Over,
            }
        }
    }

    /// Waits for the next request, and at most so long. After a stop it may be on its way already,
    /// and is answered.
    async fn rest<F: Future<Output = ()>>(
        &mut self,
        pause: &mut Pause<'_, F>,
        most: Duration,
    ) -> Pass {
        let Self { client, worker, alarm, .. } = self;
        if !client.input.is_empty() {
            return Pass::Request;
        }
        let mut since = Instant::now();
        poll_fn(|context| {
            if let Poll::Ready(is_there) = client.poll_begin(worker.pool.buffers(), context) {
                return Poll::Ready(if is_there { Pass::Request } else { Pass::End });
            }
            if !pause.is_stopped && pause.stop.as_mut().poll(context).is_ready() {
                (pause.is_stopped, since) = (true, Instant::now());
            }
            let limit = if pause.is_stopped { pause.limits.linger } else { pause.limits.head };
            let rings = alarm.poll(since + limit.min(most), context);
            rings.map(|()| if limit > most { Pass::Later } else { Pass::End })
        })
        .await
    }
}

/// What a pause between two requests comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Request,
    /// Nothing yet.
    Later,
    /// The client has left, or was silent for too long.
    End,
}

/// What a pause between two requests depends on.
struct Pause<'a, F> {
    /// Ends when the edge is stopped, and is not asked again.
    stop: Pin<&'a mut F>,
    is_stopped: bool,
    limits: &'a Limits,
}

/// The one timer of a connection. It rings at some time and is set anew then: what is nearly always
/// over before costs nothing.
struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    fn new(first: Duration) -> Self {
        Self(Box::pin(tokio::time::sleep(first)))
    }

    /// Waits until a time.
    fn poll(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.0.deadline() > until {
            self.0.as_mut().reset(until);
        }
        while self.0.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(until);
        }
        Poll::Pending
    }
}
