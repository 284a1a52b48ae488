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
mod rewound;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::Limits;
use crate::buffers::Buffers;
use crate::connection::{self, asked_to_stop};
use crate::listen::Worker;
use crate::peer::Peer;

pub(crate) use self::date::Date;

use self::client::{Client, Wire};
use self::rewound::Rewound;

/// A connection whose requests were all common so far.
struct Front<S> {
    worker: Rc<Worker>,
    client: Client<S>,
    peer: Peer,
    stopping: watch::Receiver<bool>,
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
pub(crate) async fn serve<S>(
    worker: Rc<Worker>,
    stream: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) where
    S: Wire + Send + 'static,
{
    let client = Client { stream, input: BytesMut::new() };
    let mut front = Front { worker, client, peer, stopping: stopping.clone() };
    let turn = {
        let shared = Arc::clone(&front.worker.shared);
        let limits = &shared.limits;
        let stop = pin!(asked_to_stop(&mut stopping));
        let silence = pin!(tokio::time::sleep(limits.head));
        let mut pause = Pause { stop, is_stopped: false, silence, limits };
        loop {
            if !pause.ends(&mut front.client, front.worker.pool.buffers()).await {
                break Turn::Over;
            }
            // Apart, so that one that is idle takes little.
            let turn = Box::pin(front.request()).await;
            if turn != Turn::Again {
                break turn;
            }
        }
    };
    match turn {
        Turn::Again | Turn::Over => {
            front.client.stream.shutdown().await.ok();
        }
        Turn::Broken => {}
        Turn::General => {
            let Front { worker, client, peer, stopping } = front;
            let stream = Rewound::new(client.input, client.stream);
            Box::pin(connection::serve_http1(worker, stream, peer, stopping)).await;
        }
    }
}

/// The time between two requests.
struct Pause<'a, F> {
    /// Ends when the edge is stopped, and is not asked again.
    stop: Pin<&'a mut F>,
    is_stopped: bool,
    /// Ends at some time: whether that is too late is looked at then.
    silence: Pin<&'a mut Sleep>,
    limits: &'a Limits,
}

impl<F: Future<Output = ()>> Pause<'_, F> {
    /// Waits for the next request; returns whether there is one. After a stop it may be on its way
    /// already, and is answered.
    async fn ends<S: Wire>(&mut self, client: &mut Client<S>, buffers: &Buffers) -> bool {
        if !client.input.is_empty() {
            return true;
        }
        let mut since = Instant::now();
        poll_fn(|context| {
            if let Poll::Ready(is_there) = client.poll_begin(buffers, context) {
                return Poll::Ready(is_there);
            }
            if !self.is_stopped && self.stop.as_mut().poll(context).is_ready() {
                (self.is_stopped, since) = (true, Instant::now());
            }
            let limit = if self.is_stopped { self.limits.linger } else { self.limits.head };
            let until = since + limit;
            if self.silence.deadline() > until {
                self.silence.as_mut().reset(until);
            }
            while self.silence.as_mut().poll(context).is_ready() {
                if Instant::now() >= until {
                    return Poll::Ready(false);
                }
                self.silence.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

/// Writes a field, its name in lower case as the general path does.
fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    let at = out.len();
    out.extend_from_slice(name);
    if let Some(name) = out.get_mut(at..) {
        name.make_ascii_lowercase();
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
