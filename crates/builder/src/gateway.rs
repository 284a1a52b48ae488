//! The registry's window in a cage: a port on the cage's own loopback that leads to the platform's
//! registry and adds the credentials on the way.
//!
//! Never lets the credentials into the cage, and never lets more through than the phase needs:
//! reading while the user's instructions run; writing, to one repository, in a later cage in
//! which nothing of the user runs. So a package that a build installs can neither steal a token
//! nor push (security T4).

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use perch_types::Secret;
use perch_types::image::Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::error::Error;

/// The port inside the cage. Nothing else listens in there, so it needs no choice.
pub(crate) const PORT: u16 = 5000;
/// Connections from one cage at a time; the build tool uses about six.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a manifest.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the registry may take to begin an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_mins(5);
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

type Body = BoxBody<Bytes, hyper::Error>;

/// What may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Window {
    /// Reading, as far as the credentials reach.
    Pull,
    /// Reading, and writing to one repository.
    Push {
        /// Its name.
        repository: String,
    },
}

impl Window {
    /// Returns whether a request may pass.
    fn lets_through(&self, method: &Method, path: &str) -> bool {
        if !path.starts_with("/v2/") || path.contains("..") || path.contains('%') {
            return false;
        }
        if method == Method::GET || method == Method::HEAD {
            return true;
        }
        let Self::Push { repository } = self else {
            return false;
        };
        let Some(rest) =
            path.strip_prefix("/v2/").and_then(|rest| rest.strip_prefix(repository.as_str()))
        else {
            return false;
        };
        let uploads = rest.starts_with("/blobs/uploads/");
        match *method {
            Method::POST | Method::PATCH | Method::DELETE => uploads,
            Method::PUT => uploads || rest.starts_with("/manifests/"),
            _ => false,
        }
    }
}

/// The registry and who asks it.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) endpoint: String,
    pub(crate) token: Secret,
}

impl Registry {
    fn authorization(&self) -> HeaderValue {
        let pair = format!("perch:{}", self.token.expose());
        let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        let mut value = HeaderValue::from_str(&text)
            .unwrap_or_else(|_invalid| HeaderValue::from_static("Basic"));
        value.set_sensitive(true);
        value
    }

    /// Sends a request with the credentials.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
        let stream = TcpStream::connect(&self.endpoint).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Ends with the answer's body; its error is the answer's too.
        tokio::spawn(connection);
        let headers = request.headers_mut();
        headers.remove(CONNECTION);
        headers.insert(AUTHORIZATION, self.authorization());
        if let Ok(host) = HeaderValue::from_str(&self.endpoint) {
            headers.insert(HOST, host);
        }
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, sender.send_request(request)).await;
        answer.map_err(|elapsed| elapsed.to_string())?.map_err(|error| error.to_string())
    }

    /// Asks for a manifest and returns the sum of the sizes of its layers; `None` if there is none.
    pub(crate) async fn layers_bytes(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<u64>, Error> {
        let what = format!("the manifest `{repository}:{reference}`");
        let fault = |detail: String| Error::Registry { what: what.clone(), detail };
        let request = Request::get(format!("/v2/{repository}/manifests/{reference}"))
            .header(http::header::ACCEPT, MANIFEST_TYPES)
            .body(Empty::new().map_err(never).boxed())
            .map_err(|error| fault(error.to_string()))?;
        let response = self.send(request).await.map_err(fault)?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if response.status() != StatusCode::OK {
            return Err(fault(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MANIFEST_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| fault(error.to_string()))?.to_bytes();
        let manifest: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
        let layers = manifest["layers"].as_array();
        let sizes = layers.into_iter().flatten().filter_map(|layer| layer["size"].as_u64());
        Ok(Some(sizes.sum()))
    }
}

/// Reads the digest that the build tool wrote after a push.
pub(crate) fn digest_in(line: &str) -> Option<Digest> {
    line.strip_prefix("perch-digest ")?.trim().parse().ok()
}

/// Opens the window in the network namespace of process `pid` until the returned task is aborted.
pub(crate) async fn open(
    pid: u32,
    registry: Registry,
    window: Window,
) -> Result<tokio::task::JoinHandle<()>, Error> {
    let gateway = |source| Error::Gateway { source };
    let listener = tokio::task::spawn_blocking(move || listen_in(pid))
        .await
        .map_err(|error| gateway(io::Error::other(error)))?
        .map_err(gateway)?;
    let listener = TcpListener::from_std(listener).map_err(gateway)?;
    Ok(tokio::spawn(serve(listener, Arc::new(registry), Arc::new(window))))
}

/// Binds a listener inside another network namespace, from a thread that ends in there: a socket
/// belongs to the namespace it was made in, whoever holds it.
fn listen_in(pid: u32) -> io::Result<std::net::TcpListener> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let thread = std::thread::spawn(move || {
        use std::os::fd::AsFd as _;
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    thread.join().map_err(|_panic| io::Error::other("the thread in the namespace panicked"))?
}

async fn serve(listener: TcpListener, registry: Arc<Registry>, window: Arc<Window>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let Ok((stream, _peer)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (registry, window) = (Arc::clone(&registry), Arc::clone(&window));
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                pass(request, Arc::clone(&registry), Arc::clone(&window))
            });
            // A connection that breaks is the build tool's to report.
            let _ended = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(slot);
        });
    }
}

async fn pass(
    request: Request<Incoming>,
    registry: Arc<Registry>,
    window: Arc<Window>,
) -> Result<Response<Body>, Infallible> {
    if !window.lets_through(request.method(), request.uri().path()) {
        return Ok(refusal(StatusCode::FORBIDDEN, "DENIED", "not through this window"));
    }
    let path = request.uri().path_and_query().cloned();
    let (mut parts, body) = request.into_parts();
    parts.uri = path.map_or_else(Uri::default, Uri::from);
    let answer = registry.send(Request::from_parts(parts, body.boxed())).await;
    Ok(match answer {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            shorten_location(&mut parts.headers, &registry.endpoint);
            Response::from_parts(parts, body.boxed())
        }
        Err(detail) => refusal(StatusCode::BAD_GATEWAY, "UNKNOWN", &detail),
    })
}

/// A place named with the registry's own address is not reachable from inside: the path is.
fn shorten_location(headers: &mut http::HeaderMap, endpoint: &str) {
    let prefix = format!("http://{endpoint}");
    let short = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix(&prefix))
        .and_then(|path| HeaderValue::from_str(path).ok());
    if let Some(short) = short {
        headers.insert(LOCATION, short);
    }
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let mut response = Response::new(Full::from(body).map_err(never).boxed());
    *response.status_mut() = status;
    response
}

fn never(never: Infallible) -> hyper::Error {
    match never {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_reads_and_a_push_writes_to_its_own_repository_only() {
        let push = Window::Push { repository: "web".to_owned() };
        for (method, path, pull, pushed) in [
            ("GET", "/v2/", true, true),
            ("HEAD", "/v2/base/library/python/manifests/3", true, true),
            ("GET", "/metrics", false, false),
            ("POST", "/v2/web/blobs/uploads/", false, true),
            ("PATCH", "/v2/web/blobs/uploads/1", false, true),
            ("PUT", "/v2/web/blobs/uploads/1", false, true),
            ("PUT", "/v2/web/manifests/latest", false, true),
            ("DELETE", "/v2/web/blobs/uploads/1", false, true),
            ("DELETE", "/v2/web/manifests/latest", false, false),
            ("POST", "/v2/web2/blobs/uploads/", false, false),
            ("POST", "/v2/other/blobs/uploads/", false, false),
            ("PUT", "/v2/web/../other/manifests/latest", false, false),
            ("PUT", "/v2/web/%2e%2e/other/manifests/latest", false, false),
            ("CONNECT", "/v2/web/", false, false),
        ] {
            let method: Method = method.parse().unwrap();
            assert_eq!(Window::Pull.lets_through(&method, path), pull, "{method} {path}");
            assert_eq!(push.lets_through(&method, path), pushed, "{method} {path}");
        }
    }

    #[test]
    fn a_location_at_the_registry_becomes_a_path() {
        let mut headers = http::HeaderMap::new();
        headers.insert(
            LOCATION,
            HeaderValue::from_static("http://127.0.0.1:4280/v2/web/blobs/uploads/1"),
        );
        shorten_location(&mut headers, "127.0.0.1:4280");
        assert_eq!(headers[LOCATION], "/v2/web/blobs/uploads/1");
    }
}
