//! TLS in front of raw ports, with and without Postgres' way to ask for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use perch_edge::{Certificates, Limits, RawLimits};
use perch_types::MachineState;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::raw::{PORT, Program, ask, connect, serving};
use crate::world::World;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

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
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
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
    let (program, certificates) = (Program::capitals(), Arc::new(OneWildcard::new()));
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
        let config = Arc::new(self.certificates.client(alpn));
        let name = name.to_owned().try_into().unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
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
