//! TLS in front of a raw port: ended here, with a certificate of the app that has the port.
//!
//! Never with another app's: a name that leads elsewhere gets none. And never resumed: a session
//! would go on at whichever app has the port by then.

use std::io;
use std::sync::Arc;

use perch_types::service::{Port, TlsOptions, TlsVersions};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Entry, Opening, Raw, pg_tls};
use crate::Shared;
use crate::live::AppKey;
use crate::route;
use crate::tls::Certificates;

/// Shakes hands with a client. The caller limits the time.
pub(super) async fn accept(
    raw: &Raw,
    entry: &Entry,
    (port, opening): (&Port, Opening),
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let config = config(raw, entry, port, opening)?;
    TlsAcceptor::from(Arc::new(config)).accept(stream).await
}

fn config(raw: &Raw, entry: &Entry, port: &Port, opening: Opening) -> io::Result<ServerConfig> {
    let certificates = raw.certificates.clone().ok_or(io::ErrorKind::Unsupported)?;
    // What the API took is fine; what an older one took is as if it were not there.
    let options = TlsOptions::of(port).unwrap_or_default();
    let versions: Vec<&'static SupportedProtocolVersion> = match options.versions {
        TlsVersions::Both => vec![&version::TLS13, &version::TLS12],
        TlsVersions::Only12 => vec![&version::TLS12],
        TlsVersions::Only13 => vec![&version::TLS13],
    };
    let shared = Arc::clone(&raw.shared);
    let resolver = OfApp { certificates, shared, app: entry.app.clone() };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&raw.provider))
        .with_protocol_versions(&versions)
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = match opening {
        Opening::PgTls => vec![pg_tls::ALPN.to_vec()],
        // Whatever the client offers is between it and the app, unless the app says.
        Opening::Tls | Opening::Plain => options.alpn.into_iter().map(String::into_bytes).collect(),
    };
    Ok(config)
}

/// The certificates of one app.
#[derive(Debug)]
struct OfApp {
    certificates: Arc<dyn Certificates>,
    shared: Arc<Shared>,
    app: AppKey,
}

impl ResolvesServerCert for OfApp {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let domain = &self.shared.domain;
        let name = match hello.server_name() {
            Some(name) => name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase(),
            // The port says whom the client wants.
            None => format!("{}.{domain}", self.app.name),
        };
        let leads_to = route::app_of(&name, domain, &self.shared.view.load());
        if leads_to.as_ref() != Some(&self.app) {
            return None;
        }
        self.certificates.resolve(&name).or_else(|| {
            let (_, above) = name.split_once('.')?;
            self.certificates.resolve(&format!("*.{above}"))
        })
    }
}
