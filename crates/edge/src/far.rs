//! Requests for machines of other hosts, and connections at raw ports: passed on to the edge there,
//! and taken from edges there.
//!
//! Never connects to another host's machine: only the edge of its own host does, counts what is in
//! flight, holds and wakes. And never passes on what was passed on: one hop, then an answer.
//!
//! Between edges it is HTTP/2 under TLS, where both show that they are the edge of a host that the
//! platform's authority knows; a switch of protocols has an HTTP/1.1 connection of its own. What is
//! said beside the request is one field each way ([`hop`]). A connection at a raw port is a stream
//! that CONNECT opens, among a few others of its app: what fills a connection for days is not among
//! requests.

mod arrive;
mod carried;
mod carriers;
mod carry;
mod hop;
mod known;
mod leave;
mod links;
mod seats;

use std::net::TcpListener;
use std::sync::Arc;
use std::{fmt, iter};

use http::{HeaderMap, HeaderValue};
use perch_types::HostId;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio::time::Instant;

use crate::Limits;
use crate::headers;
use crate::listen::Listeners;
use crate::live::AppKey;
use crate::metrics::AppMetrics;
use crate::tls::TlsError;

pub(crate) use self::arrive::serve;
use self::carriers::Carriers;
pub(crate) use self::carry::Carried;
use self::hop::Verdict;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::hop::fuzz;
use self::known::Known;
pub(crate) use self::leave::Asked;
use self::links::Links;
use self::seats::Seats;

/// HTTP/2.
const H2: &[u8] = b"h2";
/// HTTP/1.1.
const HTTP_11: &[u8] = b"http/1.1";

/// Requests, or connections that are carried, at once that an edge takes over one of another edge;
/// edges send fewer.
const STREAMS_MAX: u32 = 128;
/// How much of one request, answer or direction of what is carried, and of all over a connection,
/// may be on its way unread. Those that share a connection and are not read must leave room to the
/// others.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// What an edge needs to pass requests on to edges of other hosts, and to take theirs. Where these
/// are, the directory says.
pub struct FarConfig {
    /// Bound sockets, all at the same port; at most one a core.
    pub listeners: Vec<TcpListener>,
    /// The certificate of this host's edge, for [`peer_name`], and what is above it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Who vouches for edges.
    pub roots: RootCertStore,
}

impl fmt::Debug for FarConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarConfig").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// Returns the name in the certificate of a host's edge.
#[must_use]
pub fn peer_name(host: &HostId) -> String {
    format!("{host}.edge.perch.internal")
}

/// What the loops share to speak with other edges.
#[derive(Debug)]
pub(crate) struct Far {
    host: HostId,
    server: Arc<ServerConfig>,
    /// For many requests.
    h2: Arc<ClientConfig>,
    /// For one switch of protocols.
    http1: Arc<ClientConfig>,
    /// The edge there has all the time that this one would have: its own limits come first.
    limits: Limits,
    seats: Seats,
}

impl Far {
    pub(crate) fn new(
        config: FarConfig,
        host: HostId,
        limits: &Limits,
    ) -> Result<(Self, Vec<TcpListener>), TlsError> {
        let FarConfig { listeners, chain, key, roots } = config;
        let (provider, roots) = (Arc::new(aws_lc_rs::default_provider()), Arc::new(roots));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::Library(rustls::Error::General(error.to_string())))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Library)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Library)?;
        server.alpn_protocols = vec![H2.to_vec(), HTTP_11.to_vec()];
        // Each connection shows the certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut h2 = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Library)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(TlsError::Library)?;
        let mut http1 = h2.clone();
        h2.alpn_protocols = vec![H2.to_vec()];
        http1.alpn_protocols = vec![HTTP_11.to_vec()];
        let held = limits.hold + limits.queue;
        let far = Self {
            host,
            server: Arc::new(server),
            h2: Arc::new(h2),
            http1: Arc::new(http1),
            limits: Limits { answer: limits.answer + held, ..limits.clone() },
            seats: Seats::default(),
        };
        Ok((far, listeners))
    }

    /// Returns what connections of clients are counted in to an app that has no machine here.
    pub(crate) fn seats_of(&self, app: &AppKey) -> Arc<AppMetrics> {
        self.seats.of(app)
    }
}

/// Returns whether a certificate, whose issuer was checked, is that of a host's edge.
fn is_of(certificate: &CertificateDer<'_>, host: &HostId) -> bool {
    let Ok(name) = ServerName::try_from(peer_name(host)) else {
        return false;
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, &name).is_ok())
}

/// Gives loops their sockets for other edges; what is left over has a loop of its own.
pub(crate) fn deal(loops: &mut Vec<Listeners>, sockets: Vec<TcpListener>) {
    let missing = sockets.len().saturating_sub(loops.len());
    loops.extend(iter::repeat_with(Listeners::default).take(missing));
    for (one, socket) in loops.iter_mut().zip(sockets) {
        one.far = Some(socket);
    }
}

/// Takes out of an answer what edges say to each other; a file of an image is told to the client as
/// one of this host's is.
pub(crate) fn settle(headers: &mut HeaderMap) {
    if let Some(said) = headers.remove(headers::HOP)
        && Verdict::of(&said) == Some(Verdict::Static)
    {
        headers.insert(headers::CACHE_STATUS, HeaderValue::from_static("HIT"));
    }
}

/// What one loop knows of other hosts.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    links: Links,
    /// The same for connections that are carried.
    carriers: Carriers,
    known: Known,
}

impl Reach {
    /// Ends connections to other edges that nobody uses any more.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.links.sweep(now);
        self.carriers.sweep(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_the_edges_that_it_names_and_no_others() {
        let (one, two) = (HostId::from_bits(1), HostId::from_bits(2));
        for (name, want) in [
            (peer_name(&one), [true, false]),
            ("perch.example".to_owned(), [false, false]),
            ("edge.perch.internal".to_owned(), [false, false]),
        ] {
            let made = rcgen::generate_simple_self_signed(vec![name.clone()]).unwrap();
            assert_eq!([&one, &two].map(|host| is_of(made.cert.der(), host)), want, "{name}");
        }
        assert!(!is_of(&CertificateDer::from(vec![1, 2, 3]), &one));
    }

    #[test]
    fn the_client_hears_of_a_file_and_of_nothing_else_between_edges() {
        for (said, want) in [
            (Verdict::Static.value(), Some("HIT")),
            (HeaderValue::from_static("machine=00000000000001"), None),
            (HeaderValue::from_static("nonsense"), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(headers::HOP, said.clone());
            settle(&mut headers);
            let told = headers.get(headers::CACHE_STATUS).map(|value| value.to_str().unwrap());
            assert_eq!((headers.get(headers::HOP), told), (None, want), "{said:?}");
        }
    }
}
