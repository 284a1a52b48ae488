//! One attempt of a check. Whoever is asked is hostile: an answer that is too long, too slow or
//! never ends is cut, and what is kept of it is printable.
//!
//! Never follows a redirect, and never connects to another address than the one it was given.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::tls;

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
    /// Returns where it goes.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp { address } | Self::Http { address, .. } => *address,
        }
    }

    /// Tries; returns whether it passed, and what was answered.
    pub(super) async fn carry_out(&self, limit: Duration) -> (bool, String) {
        let deadline = tokio::time::Instant::now() + limit;
        let attempt = async {
            let address = self.address();
            let stream = TcpStream::connect(address)
                .await
                .map_err(|error| format!("connect to port {}: {error}", address.port()))?;
            match self {
                Self::Tcp { .. } => Ok((true, "connected".to_owned())),
                Self::Http { request, .. } if request.tls => {
                    let stream = tls::connect(stream, request, address.ip()).await?;
                    ask(stream, request, address, deadline).await
                }
                Self::Http { request, .. } => ask(stream, request, address, deadline).await,
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

fn chain(error: &dyn std::error::Error) -> String {
    crate::effects::chain(error)
}

#[cfg(test)]
mod tests;
