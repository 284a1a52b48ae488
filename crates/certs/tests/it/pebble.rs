//! Pebble, a real ACME server, with half of all nonces refused; its challenges are answered by the
//! view, as an edge does it. Debian has it in the package `pebble`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perch_certs::{Acme, AcmeConfig, CertificateView, Issuer};
use perch_store::get_doc;
use perch_testkit::pebble::{CERTIFICATE_FILE, KEY_FILE, Pebble, Ports, Running, free_port};
use perch_types::certificate_docs::{AcmeAccount, OrderStep, ServedCertificate};
use perch_types::certificates::CertificateSource;
use perch_types::clock::Clock as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::{PATIENCE, World, names};

fn port() -> u16 {
    free_port().unwrap()
}

/// Pebble, while a test runs.
struct Served {
    _running: Running,
    directory: String,
    roots: String,
    /// Where records of its zones are set.
    names: SocketAddr,
}

/// Starts pebble; its validators look at these ports, and every name is at 127.0.0.1.
fn start(test: &str, folder: &Path, http: u16, tls: u16) -> Option<Served> {
    let pebble = Pebble::find(test)?;
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let roots = params.self_signed(&key).unwrap().pem();
    std::fs::write(folder.join(CERTIFICATE_FILE), &roots).unwrap();
    std::fs::write(folder.join(KEY_FILE), key.serialize_pem()).unwrap();
    let ports = Ports { listen: port(), dns: port(), zones: port(), http, tls };
    let running = pebble.start(folder, ports, &[("PEBBLE_WFE_NONCEREJECT", "50")]).unwrap();
    Some(Served {
        _running: running,
        directory: format!("https://localhost:{}/dir", ports.listen),
        roots,
        names: SocketAddr::from((Ipv4Addr::LOCALHOST, ports.zones)),
    })
}

/// Answers HTTP-01 as an edge does.
async fn serve_http(listener: TcpListener, view: CertificateView) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let view = view.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && head.len() < 8_192 {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let target = head.split(' ').nth(1).unwrap_or_default();
            let token = target.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default();
            let host = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("host").then(|| value.trim())
            });
            let host = host.and_then(|host| host.split(':').next()).unwrap_or_default();
            let answer = view.http_challenge(host, token).unwrap_or_default();
            let status = if answer.is_empty() { "404 Not Found" } else { "200 OK" };
            let length = answer.len();
            let text = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
            );
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            Ok::<_, std::io::Error>(())
        });
    }
}

/// Gives the view's proofs to whoever connects for one.
#[derive(Debug)]
struct Proofs(CertificateView);

impl ResolvesServerCert for Proofs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.challenge(hello.server_name()?)
    }
}

/// Answers TLS-ALPN-01 as an edge does.
async fn serve_tls(listener: TcpListener, view: CertificateView) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Proofs(view)));
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let acceptor = acceptor.clone();
        // Whoever looks ends the connection.
        tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
    }
}

fn issuer(world: &World, pebble: &Served) -> Arc<dyn Issuer> {
    let config = AcmeConfig {
        directory: pebble.directory.clone(),
        email: Some("ops@perch.example".to_owned()),
        roots: Some(pebble.roots.clone()),
    };
    let (store, key) = (Arc::clone(&world.store), Arc::clone(&world.key));
    Arc::new(Acme::new(config, store, key, world.clock.clone()).unwrap())
}

async fn account(world: &World, issuer: &Arc<dyn Issuer>) -> AcmeAccount {
    let key = (issuer.account().0,);
    let found = get_doc::<AcmeAccount>(world.store.as_ref(), &key).await.unwrap();
    found.unwrap().document
}

async fn bind() -> (TcpListener, u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn a_certificate_is_got_by_http_although_nonces_are_refused_and_the_worker_ends() {
    let test = "a_certificate_is_got_by_http_although_nonces_are_refused_and_the_worker_ends";
    let world = World::start();
    let (listener, http) = bind().await;
    let Some(pebble) = start(test, world.folder.path(), http, port()) else { return };
    tokio::spawn(serve_http(listener, world.view.clone()));
    world.want("shop.example").await;
    // Each life ends at another step; each has a session of its own.
    for step in [OrderStep::Placed, OrderStep::Validating] {
        let worker = world.worker(&issuer(&world, &pebble), &world.store);
        world
            .until_order("shop.example", |order| order.step == step || !order.issued.is_empty())
            .await;
        drop(worker);
    }
    let last = issuer(&world, &pebble);
    let _worker = world.worker(&last, &world.store);
    world.until_served("shop.example").await;
    let order = world.order("shop.example").await;
    assert_eq!((order.failures, order.issued.len()), (0, 1), "{order:?}");
    // Younger ones say by when to renew; then it is asked again, else never.
    let (org, app) = names();
    let served = (org, app, "shop.example".to_owned(), CertificateSource::Fly);
    let served = get_doc::<ServedCertificate>(world.store.as_ref(), &served).await.unwrap();
    let id = served.unwrap().document.leaf.renewal_id.unwrap();
    let told = last.renewal(&id).await.unwrap();
    let asked = world
        .until_order("shop.example", |order| match &told {
            Some(_) => order.ask_again.is_some_and(|again| again > world.clock.now()),
            None => order.ask_again.is_none(),
        })
        .await;
    if let Some(told) = told {
        assert!((told.start..=told.end).contains(&asked.due), "{told:?} {asked:?}");
    }
    let account = account(&world, &last).await;
    assert!(account.id.is_some_and(|id| id.starts_with("https://")));
    assert_eq!(account.email.as_deref(), Some("ops@perch.example"));
    assert!(!account.ordered.is_empty(), "each place is counted");
    assert!(account.ordered_by.contains_key(&names().0), "and whose it is");
}

#[tokio::test]
async fn another_way_is_gone_after_a_failure() {
    let test = "another_way_is_gone_after_a_failure";
    let world = World::start();
    let (listener, tls) = bind().await;
    // Nobody answers HTTP.
    let Some(pebble) = start(test, world.folder.path(), port(), tls) else { return };
    tokio::spawn(serve_tls(listener, world.view.clone()));
    world.want("shop.example").await;
    let issuer = issuer(&world, &pebble);
    let limits = perch_certs::order::Limits::default();
    let worker = world.worker_with(&issuer, &world.store, limits, true);
    let failed = world.until_order("shop.example", |order| order.failures == 1).await;
    assert!(!failed.errors[0].message.is_empty(), "{failed:?}");
    world.clock.turn(Duration::from_secs(62));
    worker.wake();
    world.until_served("shop.example").await;
    assert!(world.order("shop.example").await.errors.is_empty());
}

#[tokio::test]
async fn a_wildcard_is_got_by_a_record_that_somebody_sets() {
    let test = "a_wildcard_is_got_by_a_record_that_somebody_sets";
    let world = World::start();
    let Some(pebble) = start(test, world.folder.path(), port(), port()) else { return };
    world.want("*.shop.example").await;
    let issuer = issuer(&world, &pebble);
    let worker = world.worker(&issuer, &world.store);
    let waits = world
        .until_order("*.shop.example", |order| {
            order.errors.iter().any(|error| error.code == "dns_record_missing")
        })
        .await;
    let txt = waits.answer.unwrap().txt;
    pebble.set_txt("_acme-challenge.shop.example", &txt).await;
    world.zone.set("_acme-challenge.shop.example", &txt);
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    world.until_served("any.shop.example").await;
}

impl Served {
    /// Sets a record in the zones that pebble looks at.
    async fn set_txt(&self, name: &str, value: &str) {
        let body = serde_json::json!({"host": format!("{name}."), "value": value}).to_string();
        let mut stream = tokio::net::TcpStream::connect(self.names).await.unwrap();
        let head = format!(
            "POST /set-txt HTTP/1.1\r\nHost: names\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
