//! Ends TLS: which certificate a name gets, and what may be spoken over the connection.
//!
//! Never asks anybody while a client waits: certificates and options are what is known at that
//! moment. And never lets a session that began at one app go on at another.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use perch_types::service::{Handler, Port, TlsOptions, TlsVersions};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ProtocolVersion, ServerConfig, SupportedProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::Shared;
use crate::gate::{self, Gate};
use crate::live::AppKey;
use crate::raw::pg_tls;
use crate::route;

mod held;
mod kept;
mod tickets;

use self::held::Held;
use self::kept::Kept;
use self::tickets::BoundTickets;

/// The protocol of a TLS-ALPN-01 challenge (RFC 8737, section 6.2).
const ACME: &[u8] = b"acme-tls/1";
/// HTTP/2.
const H2: &[u8] = b"h2";
/// HTTP/1.1.
const HTTP_11: &[u8] = b"http/1.1";
/// How long a client waits for the host's first word, after which ports say what they are.
const KNOWN_MAX: Duration = Duration::from_secs(2);
/// How many tickets a client gets with a session: one for the next connection, which gives one again.
const TICKETS: usize = 1;

/// Certificates by name, and answers to those who want proof that a name leads here.
///
/// It is asked on the loops that serve requests: whatever it knows, it knows already.
pub trait Certificates: Send + Sync + fmt::Debug {
    /// Returns the certificate of a name, in lower case; `*.example.com` asks for that wildcard.
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>>;

    /// Returns what answers a TLS-ALPN-01 challenge for a name.
    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>>;

    /// Returns what answers an HTTP-01 challenge at a host.
    fn http_challenge(&self, host: &str, token: &str) -> Option<String>;
}

/// Several holders of certificates; the first that has one gives it.
#[derive(Debug, Clone, Default)]
pub struct FirstOf(pub Vec<Arc<dyn Certificates>>);

impl Certificates for FirstOf {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find_map(|one| one.resolve(name))
    }

    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find_map(|one| one.challenge(name))
    }

    fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        self.0.iter().find_map(|one| one.http_challenge(host, token))
    }
}

/// Why an edge cannot end TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The library.
    #[error("prepare TLS")]
    Library(#[source] rustls::Error),
    /// The certificate for names that have none.
    #[error("make a self-signed certificate")]
    SelfSigned(#[source] rcgen::Error),
}

/// What the loops share to end TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    certificates: Arc<dyn Certificates>,
    tickets: Arc<dyn ProducesTickets>,
    self_signed: Arc<CertifiedKey>,
    both: ServerConfig,
    only_12: ServerConfig,
    only_13: ServerConfig,
    /// Has no certificate: the library tells the client so.
    refusing: Arc<ServerConfig>,
    kept: Kept,
}

/// A client's connection under TLS; large, and moved often.
pub(crate) type Secured<S> = Box<TlsStream<Held<S>>>;

/// The name that a connection under TLS was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secure {
    pub(crate) name: String,
    /// Whose name it was then.
    pub(crate) tenant: Option<AppKey>,
}

impl Secure {
    /// Returns whether a host, and so the app that it leads to, may be asked for here: the client
    /// knows only that it speaks to whoever has the connection's name.
    pub(crate) fn admits(&self, host: &str, app: Option<&AppKey>) -> bool {
        match (&self.tenant, app) {
            (Some(tenant), Some(app)) => tenant == app,
            (None, _) | (_, None) => self.name == host,
        }
    }

    /// Returns the text that sessions of the tenant are bound to; no two tenants share one.
    fn session_scope(&self) -> String {
        match &self.tenant {
            Some(app) => format!("app {} {}", app.org, app.name),
            None => format!("name {}", self.name),
        }
    }
}

/// A handshake that went well.
#[derive(Debug)]
pub(crate) struct Session<S> {
    pub(crate) stream: Secured<S>,
    pub(crate) secure: Secure,
    /// Whether the client chose HTTP/2.
    pub(crate) is_h2: bool,
    /// Whether what follows is no HTTP: it passes as it is.
    pub(crate) is_raw: bool,
    /// Whether it only was to see a certificate: nothing follows.
    pub(crate) is_challenge: bool,
}

/// Waits for what a client wants: its first words. The caller limits the time.
pub(crate) fn hello<S>(stream: S) -> LazyConfigAcceptor<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream)
}

/// What a client hello leads to.
struct Terms {
    config: Arc<ServerConfig>,
    secure: Secure,
    is_raw: bool,
    is_challenge: bool,
}

/// What an app says of the port that a client came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Said {
    options: TlsOptions,
    is_raw: bool,
    is_postgres: bool,
}

impl Said {
    fn of(port: &Port) -> Self {
        Self {
            // What the API took is fine; what an older one took is as if it were not there.
            options: TlsOptions::of(port).unwrap_or_default(),
            is_raw: port.is_raw(),
            is_postgres: port.handlers.contains(&Handler::PgTls),
        }
    }

    /// Returns the protocols that are offered; with none, what is spoken is between the client and
    /// the app.
    fn alpn(&self) -> Vec<Vec<u8>> {
        let named = &self.options.alpn;
        if self.is_postgres {
            vec![pg_tls::ALPN.to_vec()]
        } else if named.is_empty() && !self.is_raw {
            vec![H2.to_vec(), HTTP_11.to_vec()]
        } else {
            named.iter().map(|name| name.clone().into_bytes()).collect()
        }
    }
}

/// What a connection may speak.
struct Offer<'a> {
    key: &'a Arc<CertifiedKey>,
    said: &'a Said,
    secure: &'a Secure,
    /// Whether the client is likely to have no AES of its own: then its order counts.
    prefers_chacha: bool,
}

impl Tls {
    pub(crate) fn new(certificates: Arc<dyn Certificates>) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let self_signed = Arc::new(self_signed(&provider)?);
        let both = base(&provider, &self_signed, &[&version::TLS13, &version::TLS12])?;
        let mut refusing = both.clone();
        refusing.cert_resolver = Arc::new(Nothing);
        Ok(Self {
            certificates,
            tickets: aws_lc_rs::Ticketer::new().map_err(TlsError::Library)?,
            both,
            only_12: base(&provider, &self_signed, &[&version::TLS12])?,
            only_13: base(&provider, &self_signed, &[&version::TLS13])?,
            self_signed,
            refusing: Arc::new(refusing),
            kept: Kept::default(),
        })
    }

    /// Shakes hands with a client that has said what it wants. The caller limits the time.
    pub(crate) async fn accept<S>(
        &self,
        shared: &Shared,
        gate: &Gate,
        start: StartHandshake<S>,
    ) -> io::Result<Option<Session<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        gate::known(shared, KNOWN_MAX).await;
        let terms = self.terms(shared, gate, &start.client_hello());
        let Some(Terms { config, secure, is_raw, is_challenge }) = terms else {
            drop(shake(start, Arc::clone(&self.refusing)).await);
            return Ok(None);
        };
        let stream = shake(start, config).await?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok(Some(Session { stream, secure, is_h2, is_raw, is_challenge }))
    }

    /// Decides what a client gets; nothing for a name that has no certificate here.
    fn terms(&self, shared: &Shared, gate: &Gate, hello: &ClientHello<'_>) -> Option<Terms> {
        let name = match hello.server_name() {
            Some(name) => name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase(),
            // The port says whom the client wants.
            None => format!("{}.{}", gate.only()?.name, shared.domain),
        };
        let prefers_chacha = hello.cipher_suites().first().copied().is_some_and(is_chacha);
        let asked = hello.alpn().into_iter().flatten();
        if asked.eq([ACME]) && gate.is_everybodys() {
            let key = self.certificates.challenge(&name)?;
            let (secure, said) = (Secure { name, tenant: None }, Said::default());
            let offer = Offer { key: &key, said: &said, secure: &secure, prefers_chacha };
            let config = self.config(&offer, vec![ACME.to_vec()]);
            return Some(Terms { config, secure, is_raw: false, is_challenge: true });
        }
        let tenant = route::app_of(&name, &shared.domain, &shared.view.load());
        if !gate.admits(tenant.as_ref()) {
            return None;
        }
        let said = tenant.as_ref().and_then(|app| gate.said(shared, app, Said::of));
        let (secure, said) = (Secure { name, tenant }, said.unwrap_or_default());
        let key = self
            .certificate(&secure.name)
            .or_else(|| said.options.default_self_signed.then(|| Arc::clone(&self.self_signed)))?;
        let offer = Offer { key: &key, said: &said, secure: &secure, prefers_chacha };
        let config = self.kept.or_make(&offer, || self.config(&offer, said.alpn()));
        Some(Terms { config, secure, is_raw: said.is_raw, is_challenge: false })
    }

    /// Returns the certificate of a name: its own, or the wildcard's one level above.
    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.certificates.resolve(name).or_else(|| {
            let (_, above) = name.split_once('.')?;
            self.certificates.resolve(&format!("*.{above}"))
        })
    }

    /// Makes what the library needs to know.
    fn config(&self, offer: &Offer<'_>, alpn: Vec<Vec<u8>>) -> Arc<ServerConfig> {
        let base = match offer.said.options.versions {
            TlsVersions::Both => &self.both,
            TlsVersions::Only12 => &self.only_12,
            TlsVersions::Only13 => &self.only_13,
        };
        let mut config = base.clone();
        config.ignore_client_order = !offer.prefers_chacha;
        config.alpn_protocols = alpn;
        config.cert_resolver = Arc::new(Just(Arc::clone(offer.key)));
        let scope = offer.secure.session_scope();
        config.ticketer = Arc::new(BoundTickets::new(Arc::clone(&self.tickets), &scope));
        Arc::new(config)
    }
}

/// Shakes hands. What this writes last is not sent yet where no client waits for it.
fn shake<S>(
    start: StartHandshake<S>,
    config: Arc<ServerConfig>,
) -> impl Future<Output = io::Result<Secured<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let start = StartHandshake::from_parts(start.accepted, Held::new(start.io));
    let mut shaking = start.into_stream(config).into_fallible();
    // Waited for where it is: what is moved into a wait is there twice, and this is large.
    async move {
        let stream = match (&mut shaking).await {
            Ok(stream) => stream,
            Err((error, mut stream)) => {
                // The client is told why.
                stream.pass();
                stream.flush().await.ok();
                return Err(error);
            }
        };
        let mut stream = Box::new(stream);
        let (held, session) = stream.get_mut();
        held.pass();
        // Before 1.3 the server has the last word, and the client says nothing without it.
        if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            stream.flush().await?;
        }
        Ok(stream)
    }
}

fn base(
    provider: &Arc<CryptoProvider>,
    self_signed: &Arc<CertifiedKey>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::Library)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Just(Arc::clone(self_signed))));
    // Sessions are the client's to keep: nothing here grows with the number of clients.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // Nothing may be sent before the handshake ends: it could be replayed.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = TICKETS;
    Ok(config)
}

/// Returns the library's algorithms, AES-128 first: it is beyond attack, and faster for both sides
/// than AES-256 with its SHA-384.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    provider
}

const fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

const fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

fn self_signed(provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let made = rcgen::generate_simple_self_signed(vec!["perch.invalid".to_owned()])
        .map_err(TlsError::SelfSigned)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, provider).map_err(TlsError::Library)
}

/// One certificate, whatever is asked for.
#[derive(Debug)]
struct Just(Arc<CertifiedKey>);

impl ResolvesServerCert for Just {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// No certificate.
#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests;
