//! The server itself: time limits, TLS with a pinned authority, its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_api::serve::{Listener, ServeLimits, serve};
use perch_client::{Address, Error, Fingerprint, PINNED_SERVER_NAME};
use perch_types::Secret;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

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

/// Serves the API under a certificate for `names`, with `shown` as the authority in the chain.
async fn tls(cloud: &Cloud, authority: &Authority, shown: &Authority, names: &[&str]) -> u16 {
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = Listener::Tls(listener, tokio_rustls::TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(serve(
        listener,
        cloud.api.router(),
        ServeLimits::default(),
        std::future::pending(),
    ));
    port
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
