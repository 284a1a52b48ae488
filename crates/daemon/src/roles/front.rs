//! The front process: api, registry, edge, resolver, zone of challenges and directory, under a user
//! of its own.
//!
//! Never root, and never in possession of the server's CA's key or the administrator's token: it is
//! given sockets, a certificate and a hash. The key of the authority for apps' names is its own.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use perch_api::serve::{Listener, ServeLimits};
use perch_api::{Api, Inside, PushTokens, Wakes};
use perch_client::HostClient;
use perch_dns::Responder;
use perch_edge::{
    Certificates, Documents, Edge, FirstOf, Https, Issuer, RawConfig, RawLimits, Readings,
};
use perch_registry::Registry;
use perch_store::{SqliteStore, Store, ViewFollower, ViewHandle};
use perch_types::api::{Answers, Platform, RegionInfo, WakeTimes};
use perch_types::clock::Clock;
use perch_types::pulse::Watchdog;
use perch_types::{AppName, MachineId, OrgSlug};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::authority::{LocalAuthority, OfNames};
use crate::certificates;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::peer;
use crate::ports::{self, ClaimedPorts};
use crate::roles::images::{Catalog, Gatekeeper, collect};
use crate::roles::{Beats, End, Role};
use crate::setup::{HANDED_OVER, Purpose, Setup, Sockets};
use crate::sockets::{BUILDER_SOCKET, HOST_SOCKET, KEYS_SOCKET, PORTS_SOCKET};
use crate::{edges, identity, inside, roles};

/// How long requests under way may go on when the process ends; the supervisor's patience is a
/// little longer.
const EDGE_END_MAX: Duration = Duration::from_secs(8);
/// A task of this process that has not turned for so long is wedged.
const WEDGED_MS: u64 = 20_000;
/// How long they, and tunnels, may go on when another process has taken the place of this one.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(600);
/// How long the host may take to say what its machines use.
const CONSUMED_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const DIRECTORY_FILE: &str = "directory.db";
const VIEW_FILE: &str = "view.json";
pub(crate) const REGISTRY_DIR: &str = "registry";

/// Runs until the supervisor ends it, or until another process has its place and nothing of its own
/// is under way any more.
pub(crate) fn process(setup: Setup, sockets: Sockets, channel: OwnedFd) -> Result<()> {
    let told = channel.try_clone().context("keep the supervision channel")?;
    let main = roles::runtime(Role::Front)?;
    // Outlives the other: what the edge needs to end its requests is on it, and datagrams.
    let edges = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("edge")
        .build()
        .context("start the runtime of the edge")?;
    let outcome = main.block_on(run(setup, sockets, Beats(channel), edges.handle()));
    main.shutdown_timeout(roles::BLOCKING_END_MAX);
    let replaced = outcome?;
    if let Some(edge) = replaced {
        // The directory and the registry are closed: the next process may open them.
        rustix::io::write(&told, &[HANDED_OVER]).context("tell the supervisor")?;
        drop(told);
        edges.block_on(drain(edge))?;
    }
    edges.shutdown_timeout(roles::BLOCKING_END_MAX);
    Ok(())
}

/// Ends what is under way, within a limit or until the server stops.
async fn drain(mut edge: Edge) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("listen for SIGTERM")?;
    tokio::select! {
        () = edge.ended() => {}
        () = tokio::time::sleep(DRAIN_MAX) => tracing::warn!("requests cut off after a replacement"),
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Runs until the supervisor ends it; returns the edge, which accepts nothing more, if another
/// process is to take its place.
async fn run(
    setup: Setup,
    mut sockets: Sockets,
    beats: Beats,
    edges: &Handle,
) -> Result<Option<Edge>> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("choose the TLS library"))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let folder = setup.config.data_dir.join(identity::FRONT_DIR);
    let store: Arc<dyn Store> = Arc::new(
        SqliteStore::open(folder.join(DIRECTORY_FILE), Arc::clone(&clock))
            .context("open the directory")?,
    );
    let view = ViewFollower::start(Arc::clone(&store), folder.join(VIEW_FILE));
    let authority = authority(&setup.config, &folder, &clock)?;
    let host = HostClient::new(setup.config.run_dir.join(HOST_SOCKET));

    let mut tasks = JoinSet::new();
    // First of all: the host process waits for it.
    serve_directory(&setup, &mut sockets, &store, &mut tasks)?;
    let (gatekeeper, fill_gatekeeper) = Gatekeeper::new(&setup.host_token, view.clone());
    let registry = open_registry(folder.join(REGISTRY_DIR), gatekeeper, &clock).await?;
    let addresses = roles::host::resolver_addresses(&setup.config)?;
    let certificates = start_certificates(&setup, &folder, (&store, &view), &clock, &addresses)?;
    // The api is there before the edge that it asks.
    let readings: Arc<OnceLock<Readings>> = Arc::default();
    let api = Api::start(perch_api::Config {
        store: Arc::clone(&store),
        hosts: vec![perch_api::Host {
            id: setup.host_id.clone(),
            region: setup.config.region.clone(),
            client: host.clone(),
        }],
        view: view.clone(),
        platform: platform(&setup.config, authority.as_deref()),
        own_names: own_names(&setup.config),
        public_ips: setup.config.public_ips(),
        port_rules: ports::rules(&setup.config),
        regions: vec![region(&setup.config)],
        builder_socket: Some(setup.config.run_dir.join(BUILDER_SOCKET)),
        keys_socket: Some(setup.config.run_dir.join(KEYS_SOCKET)),
        images: Arc::new(Catalog::new(registry.clone())),
        certificates: certificates.for_api(),
        wakes: Some(Arc::new(EdgeWakes(Arc::clone(&readings)))),
        clock: Arc::clone(&clock),
        limits: perch_api::Limits { rates: setup.config.rates, ..perch_api::Limits::default() },
    });
    tasks.spawn(inside::serve(sockets.take_one(Purpose::Inside)?, Inside::new(&api)));
    let push_tokens: PushTokens = api.push_tokens().clone();
    fill_gatekeeper(api.identity().clone(), push_tokens);
    api.ensure_admin_token(&setup.admin_token_hash).await.context("know the administrator")?;
    let router = by_path(registry.router(), api.router());
    tasks.spawn(collect(registry, view.clone()));
    serve_api(&setup, &mut sockets, &router, &mut tasks)?;
    serve_names(&addresses, &mut sockets, &view, &mut tasks)?;
    serve_zone(certificates.responder(&setup.config)?, &mut sockets, &mut tasks)?;
    let api = Arc::new(api);
    let follower = view.clone();
    let issuer =
        Issuer { host: api.identity_host(), documents: Arc::new(Identities(Arc::downgrade(&api))) };
    let authority = authority.map(|it| of_names(it, view.clone(), api.identity_host()));
    let served = served(certificates.served(), authority);
    let mut edge = {
        let _on = edges.enter();
        start_edge(&setup, &mut sockets, issuer, served, view)?
    };
    let address = edges::address(&setup.config);
    tasks.spawn(edges::keep(Arc::clone(&store), setup.host_id.clone(), address));
    let readings = readings.get_or_init(|| edge.readings()).clone();
    serve_metrics((readings, host), &mut sockets, &mut tasks)?;
    let watchdog = watched(&follower, &certificates, clock.as_ref());
    let is_alive = || all_turn(&edge, &watchdog, clock.as_ref());
    let outcome = until_end(beats, is_alive, &mut tasks).await;
    edge.stop();
    if matches!(outcome, Ok(Some(End::Asked))) {
        // Requests under way end; what takes longer is cut off.
        tokio::time::timeout(EDGE_END_MAX, edge.ended()).await.ok();
    }
    outcome.map(|end| matches!(end, Some(End::Replaced)).then_some(edge))
}

/// Waits until the process is to end, or one of its tasks has ended by itself.
async fn until_end(
    beats: Beats,
    is_alive: impl Fn() -> bool,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<Option<End>> {
    tokio::select! {
        ended = beats.until_end(is_alive) => ended.map(Some),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a task of the front process ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("run a task of the front process"),
        },
    }
}

/// Watches what must go on beside the edge: without it what is served grows old.
fn watched(
    view: &ViewHandle,
    certificates: &certificates::Certificates,
    clock: &dyn Clock,
) -> Watchdog {
    let (watchdog, now_ms) = (Watchdog::new(WEDGED_MS), clock.boot_ms());
    watchdog.watch("view", view.pulse(), now_ms);
    certificates.watch(&watchdog, now_ms);
    watchdog
}

/// Returns whether everything turns; what does not is a reason to restart.
fn all_turn(edge: &Edge, watchdog: &Watchdog, clock: &dyn Clock) -> bool {
    let mut wedged = edge.wedged();
    wedged.extend(watchdog.wedged(clock.boot_ms()));
    for task in &wedged {
        tracing::error!(task, "task does not turn");
    }
    wedged.is_empty()
}

/// Opens certificates, and carries orders of them out.
fn start_certificates(
    setup: &Setup,
    folder: &Path,
    (store, view): (&Arc<dyn Store>, &ViewHandle),
    clock: &Arc<dyn Clock>,
    resolver: &[SocketAddr],
) -> Result<certificates::Certificates> {
    let host = setup.host_id.to_string();
    let tls = setup.config.https.address().is_some();
    let parts = certificates::Parts { folder, store, view, clock, host, tls, resolver };
    certificates::Certificates::start(&setup.config, &parts)
}

/// Starts the edge on the runtime that is entered.
fn start_edge(
    setup: &Setup,
    sockets: &mut Sockets,
    issuer: Issuer,
    certificates: Arc<dyn Certificates>,
    view: ViewHandle,
) -> Result<Edge> {
    Edge::start(perch_edge::Config {
        listeners: sockets.take(Purpose::Http),
        https: https(&setup.config, sockets, &certificates),
        domain: setup.config.domain.clone(),
        issuer: Some(issuer),
        region: setup.config.region.clone(),
        host_id: setup.host_id.clone(),
        // One of its own: a connection belongs to the runtime that made it.
        host: HostClient::new(setup.config.run_dir.join(HOST_SOCKET)),
        view,
        clock: Arc::new(SystemClock),
        limits: perch_edge::Limits::default(),
        raw: Some(raw_ports(&setup.config, certificates)),
        far: edges::config(setup, sockets)?,
    })
    .context("start the edge")
}

/// The authority behind apps' names, where HTTPS is served.
fn authority(
    config: &Config,
    folder: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Arc<LocalAuthority>>> {
    if config.https.address().is_none() {
        return Ok(None);
    }
    let opened = LocalAuthority::open(folder, &config.domain, Arc::clone(clock));
    Ok(Some(Arc::new(opened.context("open the local authority")?)))
}

/// The authority for the names of apps, and the one of the identity's documents.
fn of_names(authority: Arc<LocalAuthority>, apps: ViewHandle, identity: String) -> OfNames {
    OfNames::new(authority, move |label, name| {
        let app = label.parse::<AppName>().ok();
        name == identity || app.is_some_and(|app| apps.load().app(&app).is_some())
    })
}

/// The certificates that the edge serves: a name's own comes before the authority's.
fn served(own: Arc<dyn Certificates>, authority: Option<OfNames>) -> Arc<dyn Certificates> {
    let authority = authority.map(|authority| Arc::new(authority) as Arc<dyn Certificates>);
    Arc::new(FirstOf(std::iter::once(own).chain(authority).collect()))
}

/// What the edge needs to serve HTTPS, where it does.
fn https(
    config: &Config,
    sockets: &mut Sockets,
    certificates: &Arc<dyn Certificates>,
) -> Option<Https> {
    config.https.address()?;
    let listeners = sockets.take(Purpose::Https);
    Some(Https { listeners, certificates: Arc::clone(certificates) })
}

async fn open_registry(
    root: PathBuf,
    gatekeeper: Gatekeeper,
    clock: &Arc<dyn Clock>,
) -> Result<Registry> {
    let opening = Registry::open(perch_registry::Config {
        root,
        limits: perch_registry::Limits::default(),
        authorize: Arc::new(gatekeeper),
        clock: Arc::clone(clock),
    });
    opening.await.context("open the registry")
}

/// How long apps take to wake and how machines answer, as the edge of this process says.
#[derive(Debug)]
struct EdgeWakes(Arc<OnceLock<Readings>>);

impl Wakes for EdgeWakes {
    fn times(&self, org: &OrgSlug, app: &AppName) -> Option<WakeTimes> {
        self.0.get()?.wake_times(org, app)
    }

    fn answers(&self, org: &OrgSlug, app: &AppName, machine: &MachineId) -> Option<Answers> {
        self.0.get()?.answers(org, app, machine)
    }
}

/// Serves what the edge counts, and what machines use.
fn serve_metrics(
    (readings, host): (Readings, HostClient),
    sockets: &mut Sockets,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let read = move || {
        let (readings, host) = (readings.clone(), host.clone());
        async move {
            let asked = tokio::time::timeout(CONSUMED_TIMEOUT, host.consumed()).await;
            // What the edge counts is told without the host too.
            let consumed = asked.ok().and_then(Result::ok).unwrap_or_default();
            let text = readings.text_with(&consumed);
            ([(axum::http::header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
        }
    };
    let router = Router::new().route("/metrics", axum::routing::get(read));
    for listener in sockets.take::<std::net::TcpListener>(Purpose::Metrics) {
        let (listener, router) = (Listener::Tcp(roles::tcp(listener)?), router.clone());
        tasks.spawn(async move {
            let never = std::future::pending();
            perch_api::serve::serve(listener, router, ServeLimits::default(), never).await;
            Ok(())
        });
    }
    Ok(())
}

/// The documents with which identity tokens are checked, as the edge serves them.
///
/// Holds nothing open: an edge that drains outlives the directory behind them.
#[derive(Debug)]
struct Identities(Weak<Api>);

#[async_trait]
impl Documents for Identities {
    async fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.upgrade()?.identity_document(path).await
    }
}

/// Serves the directory to the host, and a part of it to the keys.
fn serve_directory(
    setup: &Setup,
    sockets: &mut Sockets,
    store: &Arc<dyn Store>,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    tasks.spawn(peer::serve(
        sockets.take_one(Purpose::Directory)?,
        perch_store::rpc::router(Arc::clone(store)),
        vec![0],
    ));
    tasks.spawn(peer::serve(
        sockets.take_one(Purpose::DirectoryKeys)?,
        perch_store::rpc::router(Arc::new(roles::keys::directory(Arc::clone(store)))),
        vec![setup.keys_uid],
    ));
    Ok(())
}

/// Sends what is under `/v2` to the registry and everything else to the API. Both have a fallback
/// of their own, which `Router::merge` does not allow.
fn by_path(registry: Router, api: Router) -> Router {
    Router::new().fallback(move |request: Request| {
        let path = request.uri().path();
        let is_registrys = path == "/v2" || path.starts_with("/v2/");
        if is_registrys { registry.clone() } else { api.clone() }.oneshot(request)
    })
}

fn serve_api(
    setup: &Setup,
    sockets: &mut Sockets,
    router: &Router,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let mut listeners = Vec::new();
    for plain in sockets.take::<std::net::TcpListener>(Purpose::Api) {
        listeners.push(Listener::Tcp(roles::tcp(plain)?));
    }
    for unix in sockets.take::<std::os::unix::net::UnixListener>(Purpose::ApiUnix) {
        unix.set_nonblocking(true).context("prepare the API's Unix socket")?;
        let unix = tokio::net::UnixListener::from_std(unix);
        listeners.push(Listener::Unix(unix.context("prepare the API's Unix socket")?));
    }
    if let Some((chain, key)) = &setup.api_certificate {
        let acceptor = acceptor(chain, key.expose())?;
        for tls in sockets.take::<std::net::TcpListener>(Purpose::ApiTls) {
            listeners.push(Listener::Tls(roles::tcp(tls)?, acceptor.clone()));
        }
    }
    for listener in listeners {
        let router = router.clone();
        tasks.spawn(async move {
            let never = std::future::pending();
            perch_api::serve::serve(listener, router, ServeLimits::default(), never).await;
            Ok(())
        });
    }
    Ok(())
}

fn acceptor(chain: &str, key: &str) -> Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .context("read the API's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("read the API's key")?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the API's certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn serve_names(
    addresses: &[SocketAddr],
    sockets: &mut Sockets,
    view: &ViewHandle,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let (udp, listeners) = both(sockets, Purpose::DnsUdp, Purpose::DnsTcp)?;
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let view = view.clone();
    let source = perch_dns::ViewSource::new(move || view.load());
    let own: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
    let resolver = perch_dns::Resolver::new(source, perch_dns::upstreams(&conf, &own));
    tasks.spawn(async move {
        resolver.serve(udp, listeners).await;
        Ok(())
    });
    Ok(())
}

/// Serves the zone of challenges to everybody, where there is one.
fn serve_zone(
    responder: Option<Responder>,
    sockets: &mut Sockets,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let Some(responder) = responder else { return Ok(()) };
    let (udp, listeners) = both(sockets, Purpose::ZoneUdp, Purpose::ZoneTcp)?;
    tasks.spawn(async move {
        responder.serve(udp, listeners).await;
        Ok(())
    });
    Ok(())
}

/// Takes the sockets at which names are asked for.
fn both(
    sockets: &mut Sockets,
    for_udp: Purpose,
    for_tcp: Purpose,
) -> Result<(Vec<tokio::net::UdpSocket>, Vec<tokio::net::TcpListener>)> {
    let udp = sockets.take::<std::net::UdpSocket>(for_udp).into_iter().map(|socket| {
        socket.set_nonblocking(true).context("prepare a socket for names")?;
        tokio::net::UdpSocket::from_std(socket).context("prepare a socket for names")
    });
    let udp = udp.collect::<Result<_>>()?;
    let tcp = sockets.take::<std::net::TcpListener>(for_tcp).into_iter().map(roles::tcp);
    Ok((udp, tcp.collect::<Result<_>>()?))
}

/// Names that no app can have, beside the domain: those of the API, and the zone of challenges.
fn own_names(config: &Config) -> Vec<String> {
    config.api_names.iter().chain(&config.acme.zone).cloned().collect()
}

fn platform(config: &Config, authority: Option<&LocalAuthority>) -> Platform {
    Platform {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: config.domain.clone(),
        http_port: config.http.port(),
        https_port: config.https.address().map(|address| address.port()),
        https_ca: authority.map(|authority| authority.certificate_pem().to_owned()),
        certificate: None,
        registry: config.api.to_string(),
        region: config.region.clone(),
    }
}

/// Returns what the edge needs to serve claimed ports: they are where it is bound.
fn raw_ports(config: &Config, certificates: Arc<dyn Certificates>) -> RawConfig {
    RawConfig {
        binder: Arc::new(ClaimedPorts(config.run_dir.join(PORTS_SOCKET))),
        certificates: Some(certificates),
        limits: RawLimits::default(),
    }
}

fn region(config: &Config) -> RegionInfo {
    RegionInfo {
        code: config.region.clone(),
        name: format!("this server ({})", config.region),
        latitude: 0.0,
        longitude: 0.0,
        gateway_available: false,
        requires_paid_plan: false,
        deprecated: false,
        geo_region: "europe".to_owned(),
    }
}
