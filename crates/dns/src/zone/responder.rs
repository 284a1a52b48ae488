//! Serves a zone: datagrams and connections of anybody in, answers out.
//!
//! Never binds a port: it is given sockets by who may bind them. Never lets one network take the
//! answers, or the connections, of all.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::rates::{Rates, Verdict, network};
use super::{QUESTION_BYTES_MAX, TextSource, Way, Zone};
use crate::limits::{Limits, Place};
use crate::server::rest;

/// Questions over one connection.
const QUESTIONS_PER_CONNECTION_MAX: usize = 32;
/// How long a connection may be silent, or not take what it asked for.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lasts at the most.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The server of a zone. Clones share their limits.
#[derive(Debug, Clone)]
pub struct Responder {
    zone: Arc<Zone>,
    texts: TextSource,
    rates: Arc<Rates>,
    limits: Limits,
}

impl Responder {
    /// Makes a server of a zone whose names have these texts.
    #[must_use]
    pub fn new(zone: Zone, texts: TextSource) -> Self {
        let rates = Arc::new(Rates::new(Instant::now()));
        Self { zone: Arc::new(zone), texts, rates, limits: Limits::default() }
    }

    /// Serves the sockets until dropped. Every task ends with the returned future.
    pub async fn serve(self, udp: Vec<UdpSocket>, tcp: Vec<TcpListener>) {
        let mut tasks = JoinSet::new();
        for socket in udp {
            tasks.spawn(self.clone().serve_datagrams(socket));
        }
        for listener in tcp {
            tasks.spawn(self.clone().serve_connections(listener));
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn serve_datagrams(self, socket: UdpSocket) {
        // One byte more: what is longer than a question may be is none.
        let mut buffer = vec![0; QUESTION_BYTES_MAX + 1];
        loop {
            let (length, source) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error of an earlier answer; the next receive is another matter.
                Err(error) => {
                    rest(&error).await;
                    continue;
                }
            };
            let way = match self.rates.ask(source.ip(), Instant::now()) {
                Verdict::Answered => Way::Datagram,
                Verdict::Told => Way::Crowded,
                Verdict::Dropped => continue,
            };
            let question = buffer.get(..length).unwrap_or_default();
            if let Some(answer) = self.zone.answer(question, way, &self.texts) {
                // Whoever asked asks again.
                let _sent = socket.send_to(&answer, source).await;
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
            let source = network(source.ip());
            if let Some(place) = self.limits.take(source, Place::Connection, Instant::now()) {
                let responder = self.clone();
                connections.spawn(async move {
                    let served = responder.serve_connection(stream, source);
                    // One that ends early is the business of who made it.
                    let _ended = timeout(CONNECTION_TIMEOUT, served).await;
                    drop(place);
                });
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, source: IpAddr) -> io::Result<()> {
        for _ in 0..QUESTIONS_PER_CONNECTION_MAX {
            let length = usize::from(timeout(IDLE_TIMEOUT, stream.read_u16()).await??);
            if length > QUESTION_BYTES_MAX {
                return Ok(());
            }
            let mut question = vec![0; length];
            timeout(IDLE_TIMEOUT, stream.read_exact(&mut question)).await??;
            if !self.limits.ask(source, Instant::now()) {
                return Ok(());
            }
            let Some(answer) = self.zone.answer(&question, Way::Connection, &self.texts) else {
                return Ok(());
            };
            let Ok(length) = u16::try_from(answer.len()) else {
                return Ok(());
            };
            let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
            timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
        }
        Ok(())
    }
}
