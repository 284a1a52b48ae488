//! One attempt of a check. Whoever is asked is hostile: an answer that is too long, too slow or
//! never ends is cut, and what is kept of it is printable.
//!
//! Never follows a redirect, and never connects to another address than the one it was given.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use perch_runtime::{ExecRequest, GuestExec, Instance};
use perch_types::error::chain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::tls;
use crate::shared::Shared;

/// Bytes of an answer that are kept, and read at most.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of an answer.
const HEADERS_MAX: usize = 64;
/// How long the end of an answer whose status is known is waited for.
const BODY_WAIT_MAX: Duration = Duration::from_secs(1);

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// A connection.
    Tcp {
        /// Where to.
        address: SocketAddr,
    },
    /// A request.
    Http {
        /// Where to.
        address: SocketAddr,
        /// Which.
        request: Request,
    },
    /// A program inside a container.
    Exec {
        /// The container.
        container: String,
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// By which way an attempt is made.
#[derive(Debug, Clone, Default)]
pub enum Dial {
    /// From the host, to an address of the machine.
    #[default]
    Direct,
    /// From inside the machine.
    Inside {
        /// Its network namespace.
        namespace: Arc<OwnedFd>,
        /// What makes a socket in it.
        shared: Arc<Shared>,
        /// What runs a program in it.
        instance: Arc<dyn Instance>,
    },
}

impl Dial {
    /// Returns the way that begins inside a boot.
    #[must_use]
    pub fn inside(namespace: OwnedFd, shared: &Arc<Shared>, instance: &Arc<dyn Instance>) -> Self {
        let (shared, instance) = (Arc::clone(shared), Arc::clone(instance));
        Self::Inside { namespace: Arc::new(namespace), shared, instance }
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let Self::Inside { namespace, shared, .. } = self else {
            return TcpStream::connect(address).await;
        };
        let namespace = namespace.try_clone()?;
        let socket = shared.effects.networks.tcp_socket(namespace).map_err(io::Error::other)?;
        TcpSocket::from_std_stream(socket.into()).connect(address).await
    }

    async fn exec(
        &self,
        container: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<(bool, String), String> {
        let Self::Inside { instance, .. } = self else {
            return Err("a program is run inside a machine only".to_owned());
        };
        let exec = GuestExec {
            argv: command.to_vec(),
            container: Some(container.to_owned()),
            ..GuestExec::default()
        };
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = ExecRequest {
            exec,
            timeout_ms,
            output_bytes_max: OUTPUT_BYTES_MAX,
            ..ExecRequest::default()
        };
        let output = instance.exec(request).await.map_err(|error| chain(&error))?;
        if output.timed_out {
            return Err(format!("no end within {limit:?}"));
        }
        let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let said = format!("exit {} {}", output.ended.code, String::from_utf8_lossy(said));
        Ok((output.ended.code == 0, said))
    }
}

/// A request, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Whether it goes through TLS.
    pub tls: bool,
    /// Whether any certificate will do.
    pub skip_verify: bool,
    /// The name that the certificate must have; the address when unset.
    pub server_name: Option<String>,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
}

impl Attempt {
    /// Tries; returns whether it passed, and what was answered.
    pub async fn carry_out(&self, limit: Duration, dial: &Dial) -> (bool, String) {
        let deadline = tokio::time::Instant::now() + limit;
        let connect = async |address: SocketAddr| {
            let stream = dial.connect(address).await;
            stream.map_err(|error| format!("connect to port {}: {error}", address.port()))
        };
        let attempt = async {
            match self {
                Self::Tcp { address } => {
                    connect(*address).await.map(|_stream| (true, "connected".to_owned()))
                }
                Self::Http { address, request } => {
                    let stream = connect(*address).await?;
                    if request.tls {
                        let stream = tls::connect(stream, request, address.ip()).await?;
                        ask(stream, request, *address, deadline).await
                    } else {
                        ask(stream, request, *address, deadline).await
                    }
                }
                Self::Exec { container, command } => dial.exec(container, command, limit).await,
            }
        };
        let (passed, output) = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => (false, reason),
            Err(_) => (false, format!("no answer within {limit:?}")),
        };
        (passed, clean(&output))
    }
}

async fn ask<S>(
    stream: S,
    request: &Request,
    address: SocketAddr,
    deadline: tokio::time::Instant,
) -> Result<(bool, String), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    let request = built(request, address)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let status = answer.status();
        let wait = (tokio::time::Instant::now() + BODY_WAIT_MAX).min(deadline);
        let body = beginning(answer.into_body(), wait).await;
        Ok::<_, String>((status, body))
    };
    tokio::pin!(exchange);
    let (status, body) = tokio::select! {
        biased;
        result = &mut exchange => result?,
        // The answer may have come with the end of the connection.
        _ended = connection => exchange.await?,
    };
    let body = String::from_utf8_lossy(&body);
    Ok((status.is_success(), format!("{} {}", status.as_u16(), body.trim())))
}

fn built(request: &Request, address: SocketAddr) -> Result<http::Request<Empty<Bytes>>, String> {
    let mut builder = http::Request::builder()
        .method(request.method.as_str())
        .uri(request.path.as_str())
        .header(http::header::CONNECTION, "close");
    let has = |name: &str| request.headers.iter().any(|(one, _)| one.eq_ignore_ascii_case(name));
    if !has("host") {
        builder = builder.header(http::header::HOST, address.to_string());
    }
    if !has("user-agent") {
        builder = builder.header(http::header::USER_AGENT, "perch-check");
    }
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|error| chain(&error))
}

/// Reads the beginning of a body. One that is longer, or that does not end in time, has been
/// answered all the same: its status is known.
async fn beginning(mut body: Incoming, until: tokio::time::Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < OUTPUT_BYTES_MAX {
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(until, body.frame()).await else {
            break;
        };
        if let Some(data) = frame.data_ref() {
            let room = OUTPUT_BYTES_MAX.saturating_sub(bytes.len());
            bytes.extend(data.iter().take(room));
        }
    }
    bytes
}

/// Returns a text that may be shown: one line of printable characters, cut.
pub(super) fn clean(text: &str) -> String {
    let printable = text.chars().map(|one| {
        // Characters that turn the direction of a line around are no better than controls.
        let turns = matches!(one, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if one.is_control() || turns { ' ' } else { one }
    });
    let mut cleaned = String::new();
    for one in printable {
        if cleaned.len() + one.len_utf8() > OUTPUT_BYTES_MAX {
            break;
        }
        cleaned.push(one);
    }
    cleaned.trim().to_owned()
}

#[cfg(test)]
mod tests;
