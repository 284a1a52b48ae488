//! TLS in front of raw ports, with and without Postgres' way to ask for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use perch_edge::{Certificates, Limits, RawLimits};
use perch_types::MachineState;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::raw::{PORT, Program, ask, connect, serving};
use crate::tls::{client, trusting};
use crate::world::{Origin, World, until};

pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// One certificate for all names of the platform's domain.
#[derive(Debug)]
struct OneWildcard {
    key: Arc<CertifiedKey>,
    root: CertificateDer<'static>,
}

impl OneWildcard {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["*.perch.localhost".to_owned()]);
        let made = made.unwrap();
        let root = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(vec![root.clone()], key, &provider).unwrap();
        Self { key: Arc::new(key), root }
    }

    fn client(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        trusting(roots, &[&TLS12, &TLS13], alpn)
    }
}

impl Certificates for OneWildcard {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        (name == "*.perch.localhost").then(|| Arc::clone(&self.key))
    }

    fn challenge(&self, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn http_challenge(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

struct Scene {
    world: World,
    certificates: Arc<OneWildcard>,
    program: Program,
}

fn scene(port: &Value) -> Scene {
    scene_of(port, Program::capitals())
}

fn scene_of(port: &Value, program: Program) -> Scene {
    let certificates = Arc::new(OneWildcard::new());
    let machine = serving(1, MachineState::Started, program.port, &json!([port]));
    let resolver = Arc::clone(&certificates) as Arc<dyn Certificates>;
    let world =
        World::with_raw(vec![machine], Limits::default(), RawLimits::default(), Some(resolver));
    Scene { world, certificates, program }
}

impl Scene {
    fn shake(
        &self,
        stream: TcpStream,
        name: &str,
        alpn: &[&str],
    ) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        shake(self.certificates.client(alpn), stream, name)
    }
}

pub(crate) fn shake(
    config: ClientConfig,
    stream: TcpStream,
    name: &str,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = name.to_owned().try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

#[test]
fn e9_tls_ends_at_the_edge_with_the_apps_own_certificate_and_no_others() {
    let scene = scene(&json!({"port": PORT.1, "handlers": ["tls"],
        "tls_options": {"alpn": ["mqtt"]}}));
    let address = scene.world.claim_port("web", PORT);
    let mut stream = scene.shake(connect(address), "web.perch.localhost", &["mqtt"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"mqtt"[..]));
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the program's end comes as TLS' own");
    for (name, alpn) in [
        ("empty.perch.localhost", "mqtt"),
        ("nobody.perch.localhost", "mqtt"),
        ("web.perch.localhost", "h2"),
    ] {
        assert!(scene.shake(connect(address), name, &[alpn]).is_err(), "{name} {alpn}");
    }
    assert_eq!(scene.program.count(), 1, "nobody else came to a machine");
}

#[test]
fn a_postgres_client_asks_for_tls_and_one_that_does_not_is_refused() {
    let scene = scene(&json!({"port": PORT.1, "handlers": ["pg_tls"]}));
    let address = scene.world.claim_port("web", PORT);
    let mut stream = connect(address);
    stream.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    let mut stream = scene.shake(stream, "web.perch.localhost", &["postgresql"]).unwrap();
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    // Newer ones begin at once.
    let direct = scene.shake(connect(address), "web.perch.localhost", &["postgresql"]);
    assert_eq!(ask(&mut direct.unwrap(), "again"), "AGAIN");
    assert_eq!(scene.program.count(), 2);
    // What comes before the answer to the request is not taken for what follows the handshake.
    let mut eager = connect(address);
    eager.write_all(&[&SSL_REQUEST[..], b"\0\0\0\x08\0\x03\0\0"].concat()).unwrap();
    let mut rest = Vec::new();
    drop(eager.read_to_end(&mut rest));
    assert_eq!(rest.first(), Some(&b'S'));
    let mut open = connect(address);
    open.write_all(b"\0\0\0\x08\0\x03\0\0").unwrap();
    let mut refusal = Vec::new();
    open.read_to_end(&mut refusal).unwrap();
    assert!(refusal.starts_with(b"E") && refusal.ends_with(b"sslmode=require\0\0"));
    assert_eq!(scene.program.count(), 2, "nobody else came to a machine");
}

/// A program that answers with the line it was told of its client in front, and ends.
pub(crate) fn told_in_front() -> Program {
    Program::new(|mut stream| {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&line).unwrap();
    })
}

pub(crate) fn line_of(mut stream: StreamOwned<ClientConnection, TcpStream>) -> (u16, String) {
    let client = stream.sock.local_addr().unwrap().port();
    stream.write_all(b"x").unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    (client, line)
}

#[test]
fn behind_tls_the_program_is_told_of_its_client_in_front_too() {
    let port = json!({"port": PORT.1, "handlers": ["tls", "proxy_proto"]});
    let scene = scene_of(&port, told_in_front());
    let address = scene.world.claim_port("web", PORT);
    let stream = scene.shake(connect(address), "web.perch.localhost", &[]).unwrap();
    let (client, line) = line_of(stream);
    assert_eq!(line, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {client} {}\r\n", PORT.1));
}

#[test]
fn e9_tls_without_http_at_443_leads_by_name_to_an_app_and_passes_as_it_is() {
    let (raw, web) = (told_in_front(), Origin::fine());
    let mut mail = serving(
        2,
        MachineState::Stopped,
        raw.port,
        &json!([
        {"port": 443, "handlers": ["tls", "proxy_proto"], "tls_options": {"alpn": ["imap"]}}]),
    );
    mail.app = "other".parse().unwrap();
    let http = json!([{"port": 443, "handlers": ["tls", "http"]}]);
    let world = World::new(vec![serving(1, MachineState::Started, web.port, &http), mail]);
    let config = |alpn: &[&str]| client(&world, &[&TLS12, &TLS13], alpn);
    let mail = shake(config(&["imap"]), connect(world.https), "other.perch.localhost").unwrap();
    assert_eq!(mail.conn.alpn_protocol(), Some(&b"imap"[..]));
    let (from, line) = line_of(mail);
    assert_eq!(line, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} 443\r\n"));
    // Nobody else's connections are taken for that, and it speaks nothing else.
    let refused = shake(config(&["h2"]), connect(world.https), "other.perch.localhost");
    assert!(refused.is_err(), "HTTP is not what the app speaks");
    let web = shake(config(&["http/1.1"]), connect(world.https), "web.perch.localhost");
    let mut web = web.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _end = web.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(raw.count(), 1);
}

#[test]
fn e9_apps_share_a_port_by_the_name_that_clients_say() {
    let (one, two) = (Program::capitals(), Origin::fine());
    let certificates = Arc::new(OneWildcard::new());
    let first = serving(
        1,
        MachineState::Started,
        one.port,
        &json!([
        {"port": PORT.1, "handlers": ["tls"]}]),
    );
    let mut second = serving(
        2,
        MachineState::Started,
        two.port,
        &json!([
        {"port": PORT.1, "handlers": ["tls", "http"]}]),
    );
    second.app = "other".parse().unwrap();
    let resolver = Arc::clone(&certificates) as Arc<dyn Certificates>;
    let machines = vec![first, second];
    let world = World::with_raw(machines, Limits::default(), RawLimits::default(), Some(resolver));
    let address = world.claim_port("web", PORT);
    let shaken = |name: &str| shake(certificates.client(&[]), connect(address), name);
    let mut stream = shaken("web.perch.localhost").unwrap();
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    assert!(shaken("other.perch.localhost").is_err(), "it has no part in the port yet");
    let opened = world.doors.opened.load(Ordering::SeqCst);
    world.share_port(&["web", "other"], PORT);
    let mut other = None;
    until("the other app has a part in the port", || {
        other = shaken("other.perch.localhost").ok();
        other.is_some()
    });
    let mut other = other.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\nHost: other.perch.localhost\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(ask(&mut shaken("web.perch.localhost").unwrap(), "again"), "AGAIN");
    shaken("empty.perch.localhost").unwrap_err();
    assert_eq!(world.doors.opened.load(Ordering::SeqCst), opened, "the port stayed open");
    assert_eq!(ask(&mut stream, "still"), "STILL");
}
