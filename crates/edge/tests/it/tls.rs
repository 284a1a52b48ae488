//! E1, E5, E9, E10 and E11 under TLS: names, versions, sessions, and limits.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_edge::{Certificates, Limits};
use perch_types::MachineState;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{DEADLINE, Origin, World, machine, status};

/// The names that there is a certificate for.
const NAMES: [&str; 3] = ["*.perch.localhost", "shop.example", "*.wild.example"];
const TOKEN: &str = "t0ken";

/// One certificate for all names, from nobody.
#[derive(Debug)]
pub(crate) struct Certs(Mutex<Arc<CertifiedKey>>);

impl Certs {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Self::made()))
    }

    fn made() -> Arc<CertifiedKey> {
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = aws_lc_rs::default_provider();
        let chain = vec![made.cert.der().clone()];
        Arc::new(CertifiedKey::from_der(chain, key, &provider).unwrap())
    }

    /// Puts another in its place.
    pub(crate) fn renew(&self) {
        *self.0.lock().unwrap() = Self::made();
    }

    fn now(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.lock().unwrap())
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.now().cert[0].clone()).unwrap();
        roots
    }
}

impl Certificates for Certs {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        NAMES.contains(&name).then(|| self.now())
    }

    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        (name == "shop.example").then(|| self.now())
    }

    fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        (host == "shop.example" && token == TOKEN).then(|| format!("{token}.proof"))
    }
}

/// A client that trusts the world's certificates.
pub(crate) fn client(
    world: &World,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    trusting(Arc::clone(&world.roots), versions, alpn)
}

/// A client that trusts the certificates of these roots.
pub(crate) fn trusting(
    roots: impl Into<Arc<RootCertStore>>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Connects to the world's HTTPS under a name.
pub(crate) async fn dial(
    world: &World,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    dial_at(world.https, config, name).await
}

/// Connects to an edge's HTTPS under a name.
pub(crate) async fn dial_at(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let dialled = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    tokio::time::timeout(DEADLINE, dialled).await.unwrap()
}

fn both(world: &World) -> Arc<ClientConfig> {
    Arc::new(client(world, &[&TLS12, &TLS13], &["http/1.1"]))
}

#[test]
fn what_costs_least_is_spoken_unless_the_client_has_no_aes() {
    let world = World::new(Vec::new());
    for version in [&TLS12, &TLS13] {
        for (first, want) in [
            ("AES_256", "AES_128_GCM_SHA256"),
            ("AES_128", "AES_128_GCM_SHA256"),
            ("CHACHA20", "CHACHA20_POLY1305_SHA256"),
        ] {
            let mut provider = aws_lc_rs::default_provider();
            let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
            provider.cipher_suites.sort_by_key(|suite| !name(suite).contains(first));
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(Arc::clone(&world.roots))
                .with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            let stream = world
                .runtime
                .block_on(dial(&world, &Arc::new(config), "web.perch.localhost"))
                .unwrap();
            let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap();
            assert!(name(&suite).ends_with(want), "{first} {suite:?}");
        }
    }
}

/// Sends a request's head under a name and returns all that comes back, and how hands were shaken.
fn ask(
    world: &World,
    config: &Arc<ClientConfig>,
    name: &str,
    head: &str,
) -> (String, HandshakeKind) {
    world.runtime.block_on(async {
        let mut stream = dial(world, config, name).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // However it ends, the answer is what counts.
        let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind().unwrap();
        (String::from_utf8(answer).unwrap(), kind)
    })
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// A world whose app has options of its HTTPS port.
fn with_options(origin: &Origin, options: &serde_json::Value) -> World {
    let mut machine = machine(1, "web", MachineState::Started, origin.port);
    machine.services = serde_json::from_value(serde_json::json!([{
        "internal_port": origin.port,
        "ports": [
            {"port": 80, "handlers": ["http"]},
            {"port": 443, "handlers": ["http", "tls"], "tls_options": options},
        ],
    }]))
    .unwrap();
    World::new(vec![machine])
}

#[test]
fn e2_https_reaches_the_app_which_is_told_how_it_came() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let forged = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nX-Forwarded-Proto: http\r\n\
                  X-Forwarded-SSL: off\r\nConnection: close\r\n\r\n";
    let (answer, _) = ask(&world, &both(&world), "web.perch.localhost", forged);
    assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    let seen = origin.last.lock().unwrap().to_ascii_lowercase();
    for field in [
        "x-forwarded-proto: https\r\n".to_owned(),
        "x-forwarded-ssl: on\r\n".to_owned(),
        format!("fly-forwarded-port: {}\r\n", world.https.port()),
    ] {
        assert_eq!(seen.matches(&field).count(), 1, "{field} in {seen}");
    }
    assert!(!seen.contains(": off") && !seen.contains("proto: http\r\n"), "{seen}");
}

#[test]
fn e1_doubt_is_refused_under_tls_as_without() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let head = "POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nContent-Length: 5\r\n\
                Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let (answer, _) = ask(&world, &both(&world), "web.perch.localhost", head);
    assert!(status(&answer) == "400" && answer.contains("PE03"), "{answer}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn e1_the_host_of_another_tenant_is_a_421_and_says_nothing_of_it() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let config = both(&world);
    // One that there is, one that nobody has, one of the platform, one elsewhere.
    for host in ["empty", "nothing", "oidc"].map(|app| format!("{app}.perch.localhost")) {
        let (answer, _) = ask(&world, &config, "web.perch.localhost", &get(&host));
        assert!(status(&answer) == "421" && answer.contains("PT01"), "{host}: {answer}");
    }
    let (answer, _) = ask(&world, &config, "empty.perch.localhost", &get("web.perch.localhost"));
    assert!(status(&answer) == "421" && answer.contains("PT01"), "{answer}");
    assert_eq!(origin.count(), 0);
    // Another name of the same app is its own.
    world.claim("shop.example", "web");
    let (answer, _) = ask(&world, &config, "web.perch.localhost", &get("shop.example"));
    assert_eq!(status(&answer), "200");
}

#[test]
fn e11_a_name_of_nobody_gets_the_platforms_certificate_and_the_usual_page() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let config = both(&world);
    let (answer, _) =
        ask(&world, &config, "nothing.perch.localhost", &get("nothing.perch.localhost"));
    assert!(status(&answer) == "404" && answer.contains("PE01"), "{answer}");
    // A name that there is no certificate for ends with an alert, whoever has it.
    for name in ["foreign.example", "a.b.perch.localhost"] {
        let error = world.runtime.block_on(dial(&world, &config, name)).unwrap_err().to_string();
        assert!(error.contains("AccessDenied"), "{name}: {error}");
    }
    let (answer, _) = ask(&world, &config, "a.wild.example", &get("a.wild.example"));
    assert_eq!(status(&answer), "404");
}

#[test]
fn e9_nothing_older_than_tls_1_2_is_spoken() {
    let world = World::new(vec![]);
    for versions in [[&TLS12], [&TLS13]] {
        let config = Arc::new(client(&world, &versions, &[]));
        let (answer, _) = ask(&world, &config, "web.perch.localhost", &get("web.perch.localhost"));
        assert_eq!(status(&answer), "503", "{versions:?}");
    }
    // A hello of TLS 1.1 with one suite that any server of that time had.
    let mut hello = vec![1, 0, 0, 41, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut record = vec![22, 3, 1, 0, 45];
    record.extend(hello);
    let mut stream = connect(&world);
    stream.write_all(&record).unwrap();
    let mut answer = Vec::new();
    let _end = stream.read_to_end(&mut answer);
    assert!(answer.first() == Some(&21) || answer.is_empty(), "an alert, not {answer:?}");
}

fn connect(world: &World) -> StdTcpStream {
    let stream = StdTcpStream::connect(world.https).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn the_options_of_an_apps_port_are_done() {
    let origin = Origin::fine();
    let options = serde_json::json!({"versions": ["TLSv1.3"], "alpn": ["http/1.1"]});
    let world = with_options(&origin, &options);
    let dialled = |versions: &[&'static SupportedProtocolVersion], name: &str| {
        let config = Arc::new(client(&world, versions, &["h2", "http/1.1"]));
        world.runtime.block_on(dial(&world, &config, name))
    };
    dialled(&[&TLS12], "web.perch.localhost").unwrap_err();
    let stream = dialled(&[&TLS13], "web.perch.localhost").unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    // They are this app's alone.
    let stream = dialled(&[&TLS12], "empty.perch.localhost").unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
}

#[test]
fn an_app_may_have_a_certificate_of_nobody_for_its_names_without_one() {
    let origin = Origin::fine();
    let world = with_options(&origin, &serde_json::json!({"default_self_signed": true}));
    world.claim("bare.example", "web");
    world.claim("other.example", "empty");
    let fails = |name: &str| {
        world.runtime.block_on(dial(&world, &both(&world), name)).unwrap_err().to_string()
    };
    // The client got one and does not trust it.
    assert!(fails("bare.example").contains("invalid peer certificate"));
    assert!(fails("other.example").contains("AccessDenied"));
}

/// Keeps sessions under one name, whatever it is: a client that tries what it may not.
#[derive(Debug)]
struct Mixed(ClientSessionMemoryCache);

fn one_name() -> ServerName<'static> {
    ServerName::try_from("one.example").unwrap()
}

impl ClientSessionStore for Mixed {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(one_name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&one_name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(one_name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&one_name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one_name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one_name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one_name())
    }
}

#[test]
fn e9_a_session_goes_on_at_its_own_tenant_and_never_at_another() {
    for version in [&TLS12, &TLS13] {
        let world = World::new(vec![]);
        world.claim("shop.example", "web");
        let mut config = client(&world, &[version], &["http/1.1"]);
        let mixed = Mixed(ClientSessionMemoryCache::new(8));
        config.resumption = Resumption::store(Arc::new(mixed));
        let config = Arc::new(config);
        let kind = |name: &str| ask(&world, &config, name, &get(name)).1;
        let (full, resumed) = (HandshakeKind::Full, HandshakeKind::Resumed);
        assert_eq!(kind("shop.example"), full, "{version:?}");
        assert_eq!(kind("shop.example"), resumed, "{version:?}");
        // The same app, another name: the client was shown no certificate for it.
        assert_eq!(kind("web.perch.localhost"), full, "{version:?}");
        assert_eq!(kind("empty.perch.localhost"), full, "{version:?}");
        assert_eq!(kind("empty.perch.localhost"), resumed, "{version:?}");
        assert_eq!(kind("shop.example"), full, "{version:?}");
        world.claim("shop.example", "empty");
        // The same name, another app: once the edge knows, what the client has is worth nothing.
        crate::world::until("the name has changed hands", || kind("shop.example") == full);
        assert_eq!(kind("shop.example"), resumed, "{version:?}");
    }
}

#[test]
fn challenges_are_answered_and_nothing_else_comes_of_them() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let config = Arc::new(client(&world, &[&TLS13], &["acme-tls/1"]));
    world.runtime.block_on(async {
        let mut stream = dial(&world, &config, "shop.example").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"acme-tls/1".as_slice()));
        let mut rest = Vec::new();
        stream.write_all(get("shop.example").as_bytes()).await.ok();
        let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
        dial(&world, &config, "web.perch.localhost").await.unwrap_err();
    });
    let asked = |host: &str, token: &str| {
        let head = format!(
            "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\n\
             Connection: close\r\n\r\n"
        );
        world.raw(head.as_bytes())
    };
    let answer = asked("shop.example", TOKEN);
    assert!(status(&answer) == "200" && answer.ends_with("\r\n\r\nt0ken.proof"), "{answer}");
    assert_eq!(status(&asked("shop.example", "other")), "404");
    // What the platform did not ask for is the app's.
    assert_eq!(origin.count(), 0);
    assert!(asked("web.perch.localhost", TOKEN).ends_with("ok"));
    assert_eq!(origin.count(), 1);
}

#[test]
fn challenges_over_plain_http_are_answered_where_there_is_no_https() {
    let world = World::without_https(vec![]);
    let asked = |token: &str| {
        let path = format!("/.well-known/acme-challenge/{token}");
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n");
        world.raw(head.as_bytes())
    };
    let answer = asked(TOKEN);
    assert!(status(&answer) == "200" && answer.ends_with("t0ken.proof"), "{answer}");
    assert_eq!(status(&asked("other")), "404");
}

#[test]
fn e5_a_handshake_that_does_not_go_on_is_cut_off_and_so_many_wait_at_once() {
    let limits =
        Limits { handshake: Duration::from_millis(300), handshakes_max: 1, ..Limits::default() };
    let world = World::with(vec![], limits);
    let config = both(&world);
    let mut slow = connect(&world);
    slow.write_all(&[22, 3, 1]).unwrap();
    // The first is cut off, or keeps others out until it is; then there is room.
    let mut rest = Vec::new();
    let _end = slow.read_to_end(&mut rest);
    crate::world::until("there is room again", || {
        world.runtime.block_on(dial(&world, &config, "web.perch.localhost")).is_ok()
    });
}

#[test]
fn e5_handshakes_under_way_keep_others_out() {
    let limits = Limits { handshakes_max: 0, ..Limits::default() };
    let world = World::with(vec![], limits);
    world.runtime.block_on(dial(&world, &both(&world), "web.perch.localhost")).unwrap_err();
}

#[test]
fn who_says_nothing_takes_no_place_of_a_handshake_and_only_so_many_may_for_long() {
    let limits = Limits {
        handshakes_max: 1,
        hello: Duration::from_millis(20),
        silent_max: 1,
        handshake: 30 * DEADLINE,
        ..Limits::default()
    };
    let world = World::with(vec![], limits);
    let config = both(&world);
    let mut silent = connect(&world);
    silent.write_all(&[22, 3, 1]).unwrap();
    world.runtime.block_on(dial(&world, &config, "web.perch.localhost")).unwrap();
    // Which of the two is ended depends on who was seen first.
    let ends = [silent, connect(&world)].map(|mut stream| {
        std::thread::spawn(move || {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let read = stream.read(&mut [0]);
            !read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        })
    });
    crate::world::until("one is ended", || ends.iter().any(|end| end.is_finished()));
    let first = ends.into_iter().find(|end| end.is_finished()).unwrap();
    assert!(first.join().unwrap(), "it waits");
}

#[test]
fn one_address_has_so_many_connections_of_http2() {
    let world = World::with(vec![], Limits { address_h2_max: 0, ..Limits::default() });
    let config = Arc::new(client(&world, &[&TLS13], &["h2"]));
    world.runtime.block_on(async {
        let mut stream = dial(&world, &config, "web.perch.localhost").await.unwrap();
        // The server would speak first, with its settings.
        let mut first = [0];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut first)).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    });
    let answer = ask(&world, &both(&world), "web.perch.localhost", &get("web.perch.localhost")).0;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

#[test]
fn e5_one_address_and_one_app_have_so_many_connections() {
    let limits = Limits { address_connections_max: 3, app_connections_max: 1, ..Limits::default() };
    let origin = Origin::fine();
    let machines = vec![machine(1, "web", MachineState::Started, origin.port)];
    let world = World::with(machines, limits);
    let config = both(&world);
    // The handshake goes well before it is known that there is no room: what counts is an answer.
    let answered = |name: &str| {
        world.runtime.block_on(async {
            let Ok(mut stream) = dial(&world, &config, name).await else { return false };
            let asked = stream.write_all(get(name).as_bytes()).await;
            let mut answer = Vec::new();
            let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
            asked.is_ok() && !answer.is_empty()
        })
    };
    let hold = || world.runtime.block_on(dial(&world, &config, "web.perch.localhost")).unwrap();
    crate::world::until("earlier connections have ended", || answered("web.perch.localhost"));
    let held = hold();
    crate::world::until("the app is full", || !answered("web.perch.localhost"));
    crate::world::until("another has room", || answered("empty.perch.localhost"));
    let others = [connect(&world), connect(&world)];
    crate::world::until("the address is full", || !answered("empty.perch.localhost"));
    drop((held, others));
    crate::world::until("there is room again", || answered("web.perch.localhost"));
}

#[test]
fn e10_a_request_under_tls_ends_well_when_the_edge_stops() {
    let (origin, gate) = gated();
    let world = World::web(&origin);
    let config = both(&world);
    std::thread::scope(|scope| {
        let request = scope
            .spawn(|| ask(&world, &config, "web.perch.localhost", &get("web.perch.localhost")).0);
        crate::world::until("it is at the app", || origin.count() == 1);
        world.stop();
        gate.store(true, Ordering::SeqCst);
        let answer = request.join().unwrap();
        assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    });
}

/// An app that answers once it may.
pub(crate) fn gated() -> (Origin, Arc<AtomicBool>) {
    let gate = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&gate);
    let origin = Origin::new(move |_| {
        crate::world::until("the answer may go", || is_open.load(Ordering::SeqCst));
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
    });
    (origin, gate)
}

/// A world whose app lists the public ports that it is given.
fn listed(origin: &Origin, ports: &serde_json::Value) -> World {
    let mut machine = machine(1, "web", MachineState::Started, origin.port);
    let service = serde_json::json!([{"internal_port": origin.port, "ports": ports}]);
    machine.services = serde_json::from_value(service).unwrap();
    World::new(vec![machine])
}

#[test]
fn e9_an_app_is_served_at_the_ports_that_it_lists_and_at_no_other() {
    let origin = Origin::fine();
    let https = serde_json::json!([{"port": 443, "handlers": ["tls", "http"]}]);
    let world = listed(&origin, &https);
    let answer = world.get("web", "/a?b");
    assert_eq!(status(&answer), "301", "{answer}");
    let there = format!("https://web.perch.localhost:{}/a?b", world.https.port());
    assert!(answer.contains(&format!("location: {there}\r\n")), "{answer}");
    assert_eq!(origin.count(), 0, "nothing goes there in the clear");
    let host = "web.perch.localhost";
    let (answer, _) = ask(&world, &both(&world), host, &get(host));
    assert_eq!((status(&answer), origin.count()), ("200", 1), "{answer}");
    for port in [80, 8080] {
        let other = serde_json::json!([{"port": port, "handlers": ["http"]}]);
        let world = listed(&origin, &other);
        let (answer, _) = ask(&world, &both(&world), host, &get(host));
        assert!(status(&answer) == "503" && answer.contains("PR01"), "{port}: {answer}");
        let want = if port == 80 { "200" } else { "503" };
        assert_eq!(status(&world.get("web", "/")), want, "{port}");
    }
    assert_eq!(origin.count(), 2);
}

#[test]
fn e5_a_slow_head_under_tls_is_cut_off_when_its_port_says() {
    let origin = Origin::fine();
    let options = serde_json::json!({"headers_read_timeout": 1});
    let ports = serde_json::json!([
        {"port": 443, "handlers": ["tls", "http"], "http_options": options}]);
    let world = listed(&origin, &ports);
    let host = "web.perch.localhost";
    // All that ever comes: the edge does not wait for more.
    let (answer, _) = ask(&world, &both(&world), host, "GET / HTTP/1.1\r\nHos");
    assert!(status(&answer) == "408" && answer.contains("PE02"), "{answer}");
    let (answer, _) = ask(&world, &both(&world), host, &get(host));
    assert_eq!((status(&answer), origin.count()), ("200", 1), "a quick one passes: {answer}");
}
