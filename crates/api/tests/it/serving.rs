//! The server itself: limits of time and number, TLS with a pinned authority, its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use futures_util::StreamExt as _;
use http::Uri;
use perch_api::serve::{Listener, ServeLimits, serve};
use perch_client::{Address, Error, Fingerprint, PINNED_SERVER_NAME};
use perch_types::Secret;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::cloud::{ADMIN, Cloud};

#[tokio::test]
async fn a_request_whose_head_does_not_come_is_cut() {
    let cloud = Cloud::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits =
        ServeLimits { header_read_timeout: Duration::from_millis(200), ..ServeLimits::default() };
    tokio::spawn(serve(
        Listener::Tcp(listener),
        cloud.api.router(),
        limits,
        std::future::pending(),
    ));
    let begun = Instant::now();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /v1/apps HTTP/1.1\r\nHost: a\r\nX-").await.unwrap();
    let mut answer = Vec::new();
    let cut = slow.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), cut).await.expect("it is cut").ok();
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_that_ends() {
    let cloud = Cloud::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = ServeLimits { connections_max: 1, ..ServeLimits::default() };
    tokio::spawn(serve(
        Listener::Tcp(listener),
        cloud.api.router(),
        limits,
        std::future::pending(),
    ));
    let ask = b"GET /v1/apps HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(ask).await.unwrap();
    let mut answer = Vec::new();
    let early = tokio::time::timeout(Duration::from_millis(200), second.read_buf(&mut answer));
    assert!(early.await.is_err(), "it waits");
    drop(first);
    second.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 401"));
}

#[tokio::test]
async fn at_the_end_requests_under_way_are_finished_and_no_new_one_is_taken() {
    let cloud = Cloud::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let shutdown = async { ended.await.unwrap_or_default() };
    let serving = tokio::spawn(serve(
        Listener::Tcp(listener),
        cloud.api.router(),
        ServeLimits::default(),
        shutdown,
    ));
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /v1/apps HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    end.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("it ends").unwrap();
    TcpStream::connect(address).await.unwrap_err();
}

/// A limit that is over soon, and a time that is over for none of these tests.
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(60);
/// More than the buffers on the way hold.
const LARGE_BYTES: usize = 32 * 1024 * 1024;
const PAGE_BYTES: usize = 64 * 1024;
const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const ASK_LARGE: &str = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
const ASK_PAGE: &str = "GET /page HTTP/1.1\r\nHost: a\r\n\r\n";

/// Answers with much or little, at once or late.
async fn answer(uri: Uri) -> Body {
    match uri.path() {
        "/large" => Body::from(vec![b'x'; LARGE_BYTES]),
        "/page" => Body::from(vec![b'x'; PAGE_BYTES]),
        "/wait" => {
            tokio::time::sleep(3 * SHORT).await;
            Body::from("last")
        }
        "/follow" => {
            let lines = [(Duration::ZERO, "first"), (3 * SHORT, "last")];
            Body::from_stream(futures_util::stream::iter(lines).then(|(pause, line)| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(line)
            }))
        }
        _ => Body::from("ok"),
    }
}

async fn serving(limits: ServeLimits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer);
    tokio::spawn(serve(Listener::Tcp(listener), router, limits, std::future::pending()));
    address
}

async fn is_answered(mut stream: TcpStream) -> bool {
    let mut answer = Vec::new();
    stream.write_all(ASK.as_bytes()).await.is_ok()
        && stream.read_to_end(&mut answer).await.is_ok()
        && answer.starts_with(b"HTTP/1.1 200")
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_hung_up_and_its_place_is_anothers() {
    // One answer that is large, and many that are asked for ahead.
    for asked in [ASK_LARGE.to_owned(), ASK_PAGE.repeat(LARGE_BYTES / PAGE_BYTES)] {
        let limits =
            ServeLimits { connections_max: 1, stall_timeout: SHORT, ..ServeLimits::default() };
        let address = serving(limits).await;
        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(asked.as_bytes()).await.unwrap();
        let next = TcpStream::connect(address).await.unwrap();
        let answered = tokio::time::timeout(LONG, is_answered(next)).await;
        assert!(answered.expect("the place is given back"));
        let mut rest = Vec::new();
        tokio::time::timeout(LONG, deaf.read_to_end(&mut rest)).await.expect("it ends").ok();
        assert!(rest.len() < LARGE_BYTES);
    }
}

#[tokio::test]
async fn a_client_that_is_sent_nothing_for_long_is_not_hung_up() {
    let address = serving(ServeLimits { stall_timeout: SHORT, ..ServeLimits::default() }).await;
    for path in ["/wait", "/follow"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("last"), "{answer}");
    }
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_another_has_its_own() {
    let limits = ServeLimits { connections_of_address_max: 2, ..ServeLimits::default() };
    let address = serving(limits).await;
    let held =
        [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    assert!(!is_answered(TcpStream::connect(address).await.unwrap()).await);
    let other = TcpSocket::new_v4().unwrap();
    other.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    assert!(is_answered(other.connect(address).await.unwrap()).await);
    drop(held);
    let again = async { while !is_answered(TcpStream::connect(address).await.unwrap()).await {} };
    tokio::time::timeout(LONG, again).await.expect("the places are given back");
}

struct Authority {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Authority { der, issuer: Issuer::new(params, key) }
}

/// Makes what speaks TLS with a certificate for `names`, with `shown` as the authority in the chain.
fn acceptor(authority: &Authority, shown: &Authority, names: &[&str]) -> TlsAcceptor {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &authority.issuer).unwrap();
    let chain = vec![leaf.der().clone(), shown.der.clone().into()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            chain,
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Serves the API under a certificate for `names`, with `shown` as the authority in the chain.
async fn tls(cloud: &Cloud, authority: &Authority, shown: &Authority, names: &[&str]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = Listener::Tls(listener, acceptor(authority, shown, names));
    tokio::spawn(serve(
        listener,
        cloud.api.router(),
        ServeLimits::default(),
        std::future::pending(),
    ));
    port
}

async fn connect_tls(
    address: SocketAddr,
    authority: &Authority,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der.clone().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_client_that_never_reads_is_hung_up_below_tls_too() {
    let authority = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::Tls(listener, acceptor(&authority, &authority, &["127.0.0.1"]));
    let limits = ServeLimits { connections_max: 1, stall_timeout: SHORT, ..ServeLimits::default() };
    let router = Router::new().fallback(answer);
    tokio::spawn(serve(listener, router, limits, std::future::pending()));
    let mut deaf = connect_tls(address, &authority).await;
    deaf.write_all(ASK_LARGE.as_bytes()).await.unwrap();
    deaf.flush().await.unwrap();
    let next = tokio::time::timeout(LONG, connect_tls(address, &authority)).await;
    let mut next = next.expect("the place is given back");
    next.write_all(ASK.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    next.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
}

async fn call(port: u16, pin: &Authority) -> Result<(), Error> {
    let fingerprint = Fingerprint::of(&pin.der);
    let address: Address = format!("https://127.0.0.1:{port}#{fingerprint}").parse().unwrap();
    perch_client::Api::new(&address, &Secret::new(ADMIN))?.apps(None).await.map(drop)
}

/// T12 for the public door: only the pinned authority, and only for the API's own name.
#[tokio::test]
async fn t12_a_server_is_believed_only_under_the_pinned_authority() {
    let cloud = Cloud::start().await;
    let (ours, theirs) = (authority(), authority());
    for names in [&["127.0.0.1"][..], &[PINNED_SERVER_NAME], &["other", PINNED_SERVER_NAME]] {
        call(tls(&cloud, &ours, &ours, names).await, &ours).await.unwrap();
    }
    for (signed_by, shown, names) in [
        // Another authority.
        (&theirs, &theirs, "127.0.0.1"),
        // Another authority that shows the pinned certificate along.
        (&theirs, &ours, "127.0.0.1"),
        // The pinned authority, but a certificate that it gave to somebody else.
        (&ours, &ours, "host-7.perch.internal"),
    ] {
        let error = call(tls(&cloud, signed_by, shown, &[names]).await, &ours).await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("fingerprint"));
    }
}
