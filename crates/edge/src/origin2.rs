//! HTTP/2 without TLS to a machine, by prior knowledge (contract 4.1, `h2_backend`).
//!
//! Never asked of a machine whose port does not say that it speaks it.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TE, TRANSFER_ENCODING};
use http::{Request, Uri, Version};
use http_body::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::live::Load;
use crate::upload::RequestBody;

/// How much may be under way over a connection of HTTP/2 that the edge makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The largest head of an answer, counted as HTTP/2 does.
    pub(crate) head_bytes: u32,
    /// How much of one answer may be on its way unread.
    pub(crate) stream_bytes: u32,
    /// How much of all answers may be.
    pub(crate) connection_bytes: u32,
    /// How much of one request is held when the other side does not read.
    pub(crate) send_bytes: usize,
}

/// To a machine.
const BOUNDS: Bounds = Bounds {
    head_bytes: 64 * 1024,
    stream_bytes: 256 * 1024,
    connection_bytes: 1024 * 1024,
    send_bytes: 64 * 1024,
};

/// Runs what a connection needs on the loop that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnLoop;

impl<F> hyper::rt::Executor<F> for OnLoop
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Returns what begins to speak HTTP/2 over a connection.
pub(crate) fn builder(bounds: Bounds) -> http2::Builder<OnLoop> {
    let mut builder = http2::Builder::new(OnLoop);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(bounds.stream_bytes)
        .initial_connection_window_size(bounds.connection_bytes)
        .max_header_list_size(bounds.head_bytes)
        .max_send_buf_size(bounds.send_bytes);
    builder
}

/// Begins to speak HTTP/2 over a connection to a machine, which counts its end.
pub(crate) async fn handshake(
    stream: TcpStream,
    load: Arc<Load>,
) -> Option<http2::SendRequest<RequestBody>> {
    let handshake = builder(BOUNDS).handshake(TokioIo::new(stream)).await;
    let Ok((sender, connection)) = handshake else {
        load.instance.disconnected();
        return None;
    };
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a machine ended");
        }
        load.instance.disconnected();
    });
    Some(sender)
}

/// Makes a request one of HTTP/2: its host is part of its target, and what frames it is not among
/// its fields.
pub(crate) fn dress<B>(request: &mut Request<B>, takes_trailers: bool) {
    let host = request.headers_mut().remove(HOST);
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let target = Uri::builder().scheme("http").authority(host).path_and_query(path).build();
    // Without one the library refuses the request, unsent.
    if let Ok(target) = target {
        *request.uri_mut() = target;
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(TRANSFER_ENCODING);
    if takes_trailers {
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes it again what it was.
pub(crate) fn undress<B: Body>(request: &mut Request<B>) {
    let host = request.uri().authority().map(|host| HeaderValue::from_str(host.as_str()));
    if let Some(Ok(host)) = host {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Ok(target) = path.parse() {
        *request.uri_mut() = target;
    }
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().remove(TE);
    frame(request);
}

/// Says how a body without a length is framed: HTTP/2 needs no word for it, HTTP/1.1 does.
pub(crate) fn frame<B: Body>(request: &mut Request<B>) {
    if !request.headers().contains_key(CONTENT_LENGTH) && !request.body().is_end_stream() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_wears_its_host_in_its_target_and_back() {
        let request = Request::builder()
            .uri("/a?b=c")
            .header(HOST, "web.example:8080")
            .header(TRANSFER_ENCODING, "chunked")
            .header("x-a", "1");
        let mut request = request.body("abc".to_owned()).unwrap();
        dress(&mut request, true);
        assert_eq!(request.uri(), "http://web.example:8080/a?b=c");
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()[TE], "trailers");
        assert!(!request.headers().contains_key(HOST));
        assert!(!request.headers().contains_key(TRANSFER_ENCODING));
        undress(&mut request);
        assert_eq!(request.uri(), "/a?b=c");
        assert_eq!(request.version(), Version::HTTP_11);
        assert_eq!(request.headers()[HOST], "web.example:8080");
        assert!(!request.headers().contains_key(TE));
        assert_eq!(request.headers()[TRANSFER_ENCODING], "chunked");
        assert_eq!(request.headers()["x-a"], "1");
    }
}
