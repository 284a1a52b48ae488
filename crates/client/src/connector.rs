//! Opens one connection to one server: a Unix socket, TCP, or TLS over TCP.
//!
//! Never chooses the server by the request: a connector knows a single address.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::address::Address;
use crate::tls::pinned_config;

/// How long opening a connection may take, the TLS handshake included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is silent for that long is asked whether the other end is still there, so that
/// a session or a log that is followed ends when its server has gone without a word.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two such questions.
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);
/// How many of them go without an answer before the connection is given up.
const KEEPALIVE_PROBES_MAX: u32 = 3;

/// Opens connections to one address.
#[derive(Clone)]
pub(crate) struct Connector {
    address: Arc<Address>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("open the socket")]
    Socket(#[source] io::Error),
    #[error("agree on TLS")]
    Tls(#[source] io::Error),
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
}

/// An open connection.
pub(crate) struct Io(TokioIo<Box<dyn Duplex>>);

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connector {
    /// Makes a connector.
    ///
    /// # Errors
    /// When the host cannot be the name of a TLS server.
    pub(crate) fn new(address: Address) -> Result<Self, rustls::Error> {
        let tls = match &address {
            Address::Https { host, fingerprint, .. } => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| rustls::Error::General(format!("`{host}` is no server name")))?;
                Some((TlsConnector::from(Arc::new(pinned_config(*fingerprint)?)), name))
            }
            Address::Unix(_) | Address::Http { .. } => None,
        };
        Ok(Self { address: Arc::new(address), tls })
    }

    /// Makes a connector to a Unix socket.
    pub(crate) fn unix(path: impl Into<PathBuf>) -> Self {
        Self { address: Arc::new(Address::Unix(path.into())), tls: None }
    }

    async fn connect(self) -> Result<Box<dyn Duplex>, ConnectError> {
        let (host, port) = match self.address.as_ref() {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ConnectError::Socket)?;
                return Ok(Box::new(stream));
            }
            Address::Http { host, port } | Address::Https { host, port, .. } => (host, *port),
        };
        let stream =
            TcpStream::connect((host.as_str(), port)).await.map_err(ConnectError::Socket)?;
        stream.set_nodelay(true).map_err(ConnectError::Socket)?;
        keep_alive(&stream).map_err(ConnectError::Socket)?;
        match self.tls {
            Some((tls, name)) => {
                Ok(Box::new(tls.connect(name, stream).await.map_err(ConnectError::Tls)?))
            }
            None => Ok(Box::new(stream)),
        }
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES_MAX)?;
    Ok(())
}

impl Service<http::Uri> for Connector {
    type Response = Io;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Io, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: http::Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect()).await {
                Ok(stream) => Ok(Io(TokioIo::new(stream?))),
                Err(_) => Err(ConnectError::Timeout),
            }
        })
    }
}

impl Connection for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_connection_is_asked_whether_the_other_end_is_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(!sockopt::socket_keepalive(&stream).unwrap());
        keep_alive(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_IDLE);
    }
}
