//! The server: datagrams and connections of machines in, answers out.
//!
//! Never binds a port: it is given sockets by who may bind them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use perch_types::view::View;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{Answer, Asking, answer};
use crate::limits::{Limits, Place, Taken};
use crate::{message, upstream};

/// The longest question over UDP that is read.
const QUESTION_BYTES_MAX: usize = 4_096;
/// The longest question over TCP that is read.
const TCP_QUESTION_BYTES_MAX: u16 = 4_096;
/// Questions over one TCP connection.
const QUESTIONS_PER_CONNECTION_MAX: usize = 1_000;
/// How long a TCP connection may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to rest when the system is out of what a socket needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where the current view comes from.
#[derive(Clone)]
pub struct ViewSource(Arc<dyn Fn() -> Arc<View> + Send + Sync>);

impl ViewSource {
    /// Takes a function that returns the current view without waiting.
    pub fn new(load: impl Fn() -> Arc<View> + Send + Sync + 'static) -> Self {
        Self(Arc::new(load))
    }
}

impl fmt::Debug for ViewSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewSource")
    }
}

/// The resolver. Clones share their limits.
#[derive(Debug, Clone)]
pub struct Resolver {
    view: ViewSource,
    upstreams: Arc<[SocketAddr]>,
    limits: Limits,
}

impl Resolver {
    /// Makes a resolver that answers from a view and asks `upstreams` about other names.
    #[must_use]
    pub fn new(view: ViewSource, upstreams: Vec<SocketAddr>) -> Self {
        Self { view, upstreams: upstreams.into(), limits: Limits::default() }
    }

    /// Serves the sockets until dropped. Every task ends with the returned future.
    pub async fn serve(self, udp: Vec<UdpSocket>, tcp: Vec<TcpListener>) {
        let mut tasks = JoinSet::new();
        for socket in udp {
            tasks.spawn(self.clone().serve_datagrams(Arc::new(socket)));
        }
        for listener in tcp {
            tasks.spawn(self.clone().serve_connections(listener));
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn serve_datagrams(self, socket: Arc<UdpSocket>) {
        let mut pending = JoinSet::new();
        let mut buffer = vec![0; QUESTION_BYTES_MAX];
        loop {
            let (length, source) = tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    // An ICMP error of an earlier answer; the next receive is another matter.
                    Err(error) => { rest(&error).await; continue }
                },
                Some(_) = pending.join_next() => continue,
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            match self.first(bytes, source.ip()) {
                First::Ignore => {}
                First::Answer(to, response) => send(&socket, &to, &response, source).await,
                First::Forward(to, place) => {
                    let (resolver, socket) = (self.clone(), socket.clone());
                    pending.spawn(async move {
                        let response = resolver.forward(&to).await;
                        drop(place);
                        send(&socket, &to, &response, source).await;
                    });
                }
            }
        }
    }

    async fn serve_connections(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let (stream, source) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => { rest(&error).await; continue }
                },
                Some(_) = connections.join_next() => continue,
            };
            let source = source.ip().to_canonical();
            if let Some(place) = self.limits.take(source, Place::Connection, Instant::now()) {
                let resolver = self.clone();
                connections.spawn(async move {
                    // A connection that ends early is its machine's business.
                    let _ended = resolver.serve_connection(stream, source).await;
                    drop(place);
                });
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, source: IpAddr) -> io::Result<()> {
        for _ in 0..QUESTIONS_PER_CONNECTION_MAX {
            let length = timeout(IDLE_TIMEOUT, stream.read_u16()).await??;
            if length > TCP_QUESTION_BYTES_MAX {
                return Ok(());
            }
            let mut bytes = vec![0; usize::from(length)];
            timeout(IDLE_TIMEOUT, stream.read_exact(&mut bytes)).await??;
            let response = match self.first(&bytes, source) {
                First::Ignore => return Ok(()),
                First::Answer(_, response) => response,
                First::Forward(to, place) => {
                    let response = self.forward(&to).await;
                    drop(place);
                    Box::new(response)
                }
            };
            let Ok(bytes) = response.to_vec() else {
                return Ok(());
            };
            let Ok(length) = u16::try_from(bytes.len()) else {
                return Ok(());
            };
            let framed = [&length.to_be_bytes(), bytes.as_slice()].concat();
            timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    /// Decides what becomes of a question; everything but forwarding ends here.
    fn first(&self, bytes: &[u8], source: IpAddr) -> First {
        let source = source.to_canonical();
        let now = Instant::now();
        if !self.limits.ask(source, now) {
            return First::Ignore;
        }
        let Ok(to) = Message::from_vec(bytes) else {
            return First::Ignore;
        };
        let query = match message::question(&to) {
            None => return First::Ignore,
            Some(Err(code)) => {
                let response = Box::new(message::respond(&to, code));
                return First::Answer(Box::new(to), response);
            }
            Some(Ok(query)) => query,
        };
        let Some(labels) = message::labels(query.name()) else {
            let response = Box::new(message::respond(&to, ResponseCode::NXDomain));
            return First::Answer(Box::new(to), response);
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let view = (self.view.0)();
        let asking = Asking::at(&view, source);
        let kind = message::kind(query.query_type());
        let response = match answer(&view, asking.as_ref(), &labels, kind) {
            Some(Answer::Forward) => match self.limits.take(source, Place::Pending, now) {
                Some(place) => return First::Forward(Box::new(to), place),
                None => message::respond(&to, ResponseCode::ServFail),
            },
            Some(answer) => message::respond_with(&to, query, answer),
            // A machine that is younger than the view asks again.
            None => message::respond(&to, ResponseCode::ServFail),
        };
        First::Answer(Box::new(to), Box::new(response))
    }

    async fn forward(&self, to: &Message) -> Message {
        let Some(query) = to.queries.first() else {
            return message::respond(to, ResponseCode::FormErr);
        };
        match upstream::ask(&self.upstreams, query).await {
            Ok(said) => upstream::hand_on(to, said),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "question not answered");
                message::respond(to, ResponseCode::ServFail)
            }
        }
    }
}

enum First {
    Ignore,
    Answer(Box<Message>, Box<Message>),
    Forward(Box<Message>, Taken),
}

async fn send(socket: &UdpSocket, to: &Message, response: &Message, source: SocketAddr) {
    if let Some(bytes) = message::datagram(to, response) {
        // The machine may be gone; nobody else wants the answer.
        let _sent = socket.send_to(&bytes, source).await;
    }
}

pub(crate) async fn rest(error: &io::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "socket not ready");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
