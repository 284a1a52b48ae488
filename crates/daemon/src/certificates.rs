//! Wires certificates: the edges' key, the view, DNS as everybody sees it, the issuer, the worker
//! and the zone of challenges.
//!
//! Never decides anything about one.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use perch_certs::dns::{self, Dns, Fault};
use perch_certs::order::Limits;
use perch_certs::{
    Acme, AcmeConfig, CertificateView, EdgeKey, PlatformNames, PlatformNamesConfig, Worker,
    WorkerConfig,
};
use perch_dns::{Lookups, Responder, TextSource, Zone};
use perch_store::{Store, ViewHandle};
use perch_types::certificates::RecordType;
use perch_types::clock::Clock;
use perch_types::pulse::Watchdog;
use rustls::sign::CertifiedKey;

use crate::config::Config;

/// What the front process has of certificates; orders go on until it is dropped.
#[derive(Debug)]
pub(crate) struct Certificates {
    key: Arc<EdgeKey>,
    dns: Arc<dyn Dns>,
    view: CertificateView,
    worker: Option<Worker>,
    /// Which names under the platform's own domain are to have one of a public issuer.
    names: Option<PlatformNames>,
    zone: Option<String>,
}

/// The shortest pause between two looks at which apps there are.
const NAMES_PAUSE: Duration = Duration::from_secs(2);

/// What certificates are made with.
pub(crate) struct Parts<'a> {
    /// The folder of the process.
    pub(crate) folder: &'a Path,
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) view: &'a ViewHandle,
    pub(crate) clock: &'a Arc<dyn Clock>,
    /// This server's name.
    pub(crate) host: String,
    /// Whether the edge answers with TLS.
    pub(crate) tls: bool,
    /// Addresses at which this server itself answers as a resolver.
    pub(crate) resolver: &'a [SocketAddr],
}

impl Certificates {
    /// Opens the key, follows the directory, and carries orders out if an issuer is named.
    pub(crate) fn start(config: &Config, parts: &Parts<'_>) -> Result<Self> {
        let Parts { folder, store, view: apps, clock, host, tls, resolver } = parts;
        let key = Arc::new(EdgeKey::open(folder).context("open the key of certificates")?);
        let view = CertificateView::start(Arc::clone(store), Arc::clone(&key), Arc::clone(clock));
        let dns: Arc<dyn Dns> = Arc::new(PublicDns(lookups(config, resolver)));
        let worker = match &config.acme.directory {
            Some(directory) => {
                let acme = acme_config(config, directory)?;
                let issuer =
                    Acme::new(acme, Arc::clone(store), Arc::clone(&key), Arc::clone(clock));
                Some(Worker::start(WorkerConfig {
                    store: Arc::clone(store),
                    issuer: Arc::new(issuer.context("prepare the issuer of certificates")?),
                    view: view.clone(),
                    key: Arc::clone(&key),
                    dns: Arc::clone(&dns),
                    clock: Arc::clone(clock),
                    tls: *tls,
                    zone: config.acme.zone.clone(),
                    limits: Limits::default(),
                    host: host.clone(),
                }))
            }
            None => None,
        };
        let is_public = worker.is_some() && perch_certs::is_public(&config.domain);
        let names = is_public.then(|| {
            PlatformNames::start(PlatformNamesConfig {
                store: Arc::clone(store),
                apps: ViewHandle::clone(apps),
                clock: Arc::clone(clock),
                domain: config.domain.clone(),
                pause: NAMES_PAUSE,
            })
        });
        Ok(Self { key, dns, view, worker, names, zone: config.acme.zone.clone() })
    }

    /// Returns what serves the zone of challenges, where there is one.
    pub(crate) fn responder(&self, config: &Config) -> Result<Option<Responder>> {
        let Some(name) = &config.acme.zone else { return Ok(None) };
        let zone = Zone::new(name, &config.acme.name_servers).context("understand `acme.zone`")?;
        let view = self.view.clone();
        // A name that nothing is wanted of now is there all the same: records lead to it.
        let texts =
            TextSource::new(move |label| dns::is_challenge_label(label).then(|| view.texts(label)));
        Ok(Some(Responder::new(zone, texts)))
    }

    /// Returns what the API needs.
    pub(crate) fn for_api(&self) -> perch_api::Certificates {
        perch_api::Certificates {
            key: self.key.public().clone(),
            dns: Arc::clone(&self.dns),
            orders: self.worker.is_some(),
            zone: self.zone.clone(),
        }
    }

    /// Has the tasks that follow certificates and carry orders out watched.
    pub(crate) fn watch(&self, watchdog: &Watchdog, now_ms: u64) {
        watchdog.watch("certificates", self.view.pulse(), now_ms);
        if let Some(worker) = &self.worker {
            watchdog.watch("certificate orders", worker.pulse(), now_ms);
        }
        if let Some(names) = &self.names {
            watchdog.watch("certificates of the domain", names.pulse(), now_ms);
        }
    }

    /// Returns what the edge serves.
    pub(crate) fn served(&self) -> Arc<dyn perch_edge::Certificates> {
        Arc::new(Served(self.view.clone()))
    }
}

fn acme_config(config: &Config, directory: &str) -> Result<AcmeConfig> {
    let roots = match &config.acme.ca_file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("read `{}` (acme.ca_file)", path.display()))?,
        ),
        None => None,
    };
    Ok(AcmeConfig { directory: directory.to_owned(), email: config.acme.email.clone(), roots })
}

fn lookups(config: &Config, resolver: &[SocketAddr]) -> Lookups {
    if !config.acme.resolvers.is_empty() {
        return Lookups::new(config.acme.resolvers.clone());
    }
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let own: Vec<IpAddr> = resolver.iter().map(SocketAddr::ip).collect();
    Lookups::new(perch_dns::upstreams(&conf, &own))
}

/// The view, as the edge asks it.
#[derive(Debug)]
struct Served(CertificateView);

impl perch_edge::Certificates for Served {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.resolve(name)
    }

    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.challenge(name)
    }

    fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        self.0.http_challenge(host, token)
    }
}

/// DNS, asked by way of the server's resolvers.
#[derive(Debug)]
struct PublicDns(Lookups);

#[async_trait]
impl Dns for PublicDns {
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<String>, Fault> {
        self.0.records(name, kind).await.map_err(|error| Fault {
            name: name.to_owned(),
            reason: format!("{:#}", anyhow::Error::new(error)),
        })
    }
}
