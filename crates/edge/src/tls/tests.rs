//! Certificates by name, whose connection it is, and what TLS is spoken.

use futures_util::FutureExt as _;
use perch_types::OrgSlug;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::*;

/// More than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// Begins TLS over a connection as a client that trusts the certificate of nobody's names.
async fn connect(
    tls: &Tls,
    stream: DuplexStream,
    version: &'static SupportedProtocolVersion,
) -> io::Result<client::TlsStream<DuplexStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(tls.self_signed.cert[0].clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("perch.invalid").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Makes both sides of a connection under TLS out of those of one that is there.
pub(crate) async fn pair<S>(
    client: DuplexStream,
    server: S,
    version: &'static SupportedProtocolVersion,
) -> (client::TlsStream<DuplexStream>, Secured<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let tls = Tls::new(Arc::new(FirstOf::default())).unwrap();
    let secure = Secure { name: "perch.invalid".to_owned(), tenant: None };
    let (key, said) = (&tls.self_signed, &Said::default());
    let offer = Offer { key, said, secure: &secure, prefers_chacha: false };
    let config = tls.config(&offer, Vec::new());
    let both = async {
        tokio::join!(connect(&tls, client, version), async {
            shake(hello(server).await.unwrap(), config).await.unwrap()
        })
    };
    let (client, server) = tokio::time::timeout(LONG, Box::pin(both)).await.expect("it ends");
    (client.unwrap(), server)
}

#[tokio::test]
async fn the_ticket_waits_for_the_answer_and_what_the_client_waits_for_does_not() {
    for version in [&TLS12, &TLS13] {
        let (near, far) = duplex(1 << 16);
        // Before 1.3 the client only gets here once all has come.
        let (mut client, mut server) = pair(near, far, version).await;
        let (socket, _) = client.get_mut();
        assert!(socket.read(&mut [0]).now_or_never().is_none(), "{version:?}");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "answer");
        let tickets = u32::from(version.version == ProtocolVersion::TLSv1_3);
        assert_eq!(client.get_ref().1.tls13_tickets_received(), tickets);
    }
}

#[tokio::test]
async fn a_client_is_told_that_it_is_refused() {
    let tls = Tls::new(Arc::new(FirstOf::default())).unwrap();
    let (near, far) = duplex(1 << 16);
    let both = async {
        tokio::join!(connect(&tls, near, &TLS13), async {
            shake(hello(far).await.unwrap(), Arc::clone(&tls.refusing)).await.is_err()
        })
    };
    let (client, is_refused) = tokio::time::timeout(LONG, Box::pin(both)).await.expect("it ends");
    assert!(is_refused);
    let error = client.unwrap_err();
    let told = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    assert!(matches!(told, Some(rustls::Error::AlertReceived(_))), "{error:?}");
}

#[test]
fn e9_what_was_made_for_one_tenant_is_taken_again_for_that_one_alone() {
    let key = || Arc::new(self_signed(&aws_lc_rs::default_provider()).unwrap());
    let (own, renewed) = (key(), key());
    let tls = Tls::new(Arc::new(FirstOf::default())).unwrap();
    let made = |key: &Arc<CertifiedKey>, said: &Said, secure: &Secure, prefers_chacha| {
        let offer = Offer { key, said, secure, prefers_chacha };
        tls.kept.or_make(&offer, || tls.config(&offer, said.alpn()))
    };
    let of = |tenant: Option<&str>| Secure { name: "web.d".to_owned(), tenant: tenant.map(app) };
    let (usual, raw) = (Said::default(), Said { is_raw: true, ..Said::default() });
    let (web, other, nobody) = (of(Some("web")), of(Some("other")), of(None));
    for (key, said, secure, prefers_chacha) in [
        (&renewed, &usual, &web, false),
        (&own, &raw, &web, false),
        (&own, &usual, &other, false),
        (&own, &usual, &web, true),
        (&own, &usual, &nobody, false),
    ] {
        let first = made(&own, &usual, &web, false);
        assert!(Arc::ptr_eq(&first, &made(&own, &usual, &web, false)));
        let differs = made(key, said, secure, prefers_chacha);
        assert!(!Arc::ptr_eq(&first, &differs), "{said:?} {secure:?} {prefers_chacha}");
    }
    let nobodys = made(&own, &usual, &nobody, false);
    assert!(!Arc::ptr_eq(&nobodys, &made(&own, &usual, &nobody, false)));
}

fn app(name: &str) -> AppKey {
    AppKey { org: OrgSlug::personal(), name: name.parse().unwrap() }
}

#[test]
fn e1_a_host_is_asked_for_only_over_a_connection_to_its_tenant() {
    let web = Secure { name: "web.d".to_owned(), tenant: Some(app("web")) };
    let nobody = Secure { name: "free.d".to_owned(), tenant: None };
    for (secure, host, asked, want) in [
        (&web, "web.d", Some(app("web")), true),
        // Another name of the same app.
        (&web, "shop.example", Some(app("web")), true),
        (&web, "other.d", Some(app("other")), false),
        // The name has changed hands since the handshake.
        (&web, "web.d", Some(app("other")), false),
        // The app has been destroyed since.
        (&web, "web.d", None, true),
        (&web, "free.d", None, false),
        (&nobody, "free.d", None, true),
        (&nobody, "free.d", Some(app("web")), true),
        (&nobody, "web.d", Some(app("web")), false),
        (&nobody, "other.d", None, false),
    ] {
        assert_eq!(secure.admits(host, asked.as_ref()), want, "{secure:?} {host} {asked:?}");
    }
}

#[test]
fn e9_no_two_tenants_share_a_scope_of_sessions() {
    let scope = |tenant, name: &str| Secure { name: name.to_owned(), tenant }.session_scope();
    let mut all = [
        scope(Some(app("web")), "web.d"),
        scope(Some(app("personal")), "web.d"),
        scope(None, "web.d"),
        scope(None, "personal.d"),
    ];
    all.sort_unstable();
    assert!(all.windows(2).all(|two| two[0] != two[1]), "{all:?}");
    assert_eq!(scope(Some(app("web")), "web.d"), scope(Some(app("web")), "shop.example"));
}

/// Contract 4.1.
#[test]
fn e9_the_suites_are_the_contracts_and_nothing_else() {
    use CipherSuite as S;
    let mut have: Vec<CipherSuite> =
        provider().cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
    let mut want = vec![
        S::TLS13_AES_128_GCM_SHA256,
        S::TLS13_AES_256_GCM_SHA384,
        S::TLS13_CHACHA20_POLY1305_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    have.sort_by_key(|suite| format!("{suite:?}"));
    want.sort_by_key(|suite| format!("{suite:?}"));
    assert_eq!(have, want);
}

#[derive(Debug)]
struct Named(&'static str, Arc<CertifiedKey>);

impl Certificates for Named {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        (name == self.0).then(|| Arc::clone(&self.1))
    }

    fn challenge(&self, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        (host == self.0).then(|| format!("{token}.{host}"))
    }
}

#[test]
fn a_names_own_certificate_comes_before_the_wildcard_and_the_first_holder_before_others() {
    let key = || Arc::new(self_signed(&aws_lc_rs::default_provider()).unwrap());
    let (own, wild, later) = (key(), key(), key());
    let all: Vec<Arc<dyn Certificates>> = vec![
        Arc::new(Named("web.d", Arc::clone(&own))),
        Arc::new(Named("*.d", Arc::clone(&wild))),
        Arc::new(Named("*.d", later)),
    ];
    let first = FirstOf(all);
    assert_eq!(first.http_challenge("web.d", "t").as_deref(), Some("t.web.d"));
    let tls = Tls::new(Arc::new(first)).unwrap();
    let is = |name: &str, want: Option<&Arc<CertifiedKey>>| {
        let found = tls.certificate(name);
        assert!(found.as_ref().map(Arc::as_ptr) == want.map(Arc::as_ptr), "{name}");
    };
    is("web.d", Some(&own));
    is("other.d", Some(&wild));
    // A wildcard is for one label.
    is("a.other.d", None);
    is("d", None);
}
