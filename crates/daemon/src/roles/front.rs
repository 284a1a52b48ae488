//! The front process: api, registry, edge, resolver and directory, under a user of its own.
//!
//! Never root, and never in possession of the CA's key or the administrator's token: it is given
//! sockets, a certificate and a hash.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use perch_api::serve::{Listener, ServeLimits};
use perch_api::{Api, Inside, PushTokens};
use perch_client::HostClient;
use perch_edge::{Documents, Edge, Issuer};
use perch_registry::Registry;
use perch_store::{SqliteStore, Store, ViewFollower, ViewHandle};
use perch_types::api::{Platform, RegionInfo};
use perch_types::clock::Clock;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::clock::SystemClock;
use crate::config::Config;
use crate::peer;
use crate::roles::images::{Catalog, Gatekeeper, collect};
use crate::roles::{Beats, End, Role};
use crate::setup::{HANDED_OVER, Purpose, Setup, Sockets};
use crate::sockets::{BUILDER_SOCKET, HOST_SOCKET, KEYS_SOCKET};
use crate::{identity, inside, roles};

/// How long requests under way may go on when the process ends; the supervisor's patience is a
/// little longer.
const EDGE_END_MAX: Duration = Duration::from_secs(8);
/// How long they, and tunnels, may go on when another process has taken the place of this one.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(600);
pub(crate) const DIRECTORY_FILE: &str = "directory.db";
const VIEW_FILE: &str = "view.json";
pub(crate) const REGISTRY_DIR: &str = "registry";

/// Runs until the supervisor ends it, or until another process has its place and nothing of its own
/// is under way any more.
pub(crate) fn process(setup: Setup, sockets: Sockets, channel: OwnedFd) -> Result<()> {
    let told = channel.try_clone().context("keep the supervision channel")?;
    let main = roles::runtime(Role::Front)?;
    // Outlives the other: what the edge needs to end its requests is on it.
    let edges = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
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
    let host = HostClient::new(setup.config.run_dir.join(HOST_SOCKET));

    let mut tasks = JoinSet::new();
    // First of all: the host process waits for it.
    serve_directory(&setup, &mut sockets, &store, &mut tasks)?;
    let registry_root = folder.join(REGISTRY_DIR);
    let (gatekeeper, fill_gatekeeper) = Gatekeeper::new(&setup.host_token, view.clone());
    let registry = Registry::open(perch_registry::Config {
        root: registry_root,
        limits: perch_registry::Limits::default(),
        authorize: Arc::new(gatekeeper),
        clock: Arc::clone(&clock),
    })
    .await
    .context("open the registry")?;
    let api = Api::start(perch_api::Config {
        store,
        hosts: vec![perch_api::Host {
            id: setup.host_id.clone(),
            region: setup.config.region.clone(),
            client: host,
        }],
        view: view.clone(),
        platform: platform(&setup.config),
        public_ips: setup.config.public_ips(),
        regions: vec![region(&setup.config)],
        builder_socket: Some(setup.config.run_dir.join(BUILDER_SOCKET)),
        keys_socket: Some(setup.config.run_dir.join(KEYS_SOCKET)),
        images: Arc::new(Catalog::new(registry.clone())),
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
    let addresses = roles::host::resolver_addresses(&setup.config)?;
    serve_names(&addresses, &mut sockets, &view, &mut tasks)?;
    let api = Arc::new(api);
    let issuer =
        Issuer { host: api.identity_host(), documents: Arc::new(Identities(Arc::downgrade(&api))) };
    let mut edge = {
        let _on = edges.enter();
        start_edge(&setup, &mut sockets, issuer, view, clock)?
    };
    let outcome = tokio::select! {
        ended = beats.until_end(|| edge.is_alive()) => ended.map(Some),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a task of the front process ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("run a task of the front process"),
        },
    };
    edge.stop();
    if matches!(outcome, Ok(Some(End::Asked))) {
        // Requests under way end; what takes longer is cut off.
        tokio::time::timeout(EDGE_END_MAX, edge.ended()).await.ok();
    }
    outcome.map(|end| matches!(end, Some(End::Replaced)).then_some(edge))
}

/// Starts the edge on the runtime that is entered.
fn start_edge(
    setup: &Setup,
    sockets: &mut Sockets,
    issuer: Issuer,
    view: ViewHandle,
    clock: Arc<dyn Clock>,
) -> Result<Edge> {
    Edge::start(perch_edge::Config {
        listeners: sockets.take(Purpose::Http),
        domain: setup.config.domain.clone(),
        issuer: Some(issuer),
        region: setup.config.region.clone(),
        host_id: setup.host_id.clone(),
        // One of its own: a connection belongs to the runtime that made it.
        host: HostClient::new(setup.config.run_dir.join(HOST_SOCKET)),
        view,
        clock,
        limits: perch_edge::Limits::default(),
    })
    .context("start the edge")
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
    let mut udp = Vec::new();
    for socket in sockets.take::<std::net::UdpSocket>(Purpose::DnsUdp) {
        socket.set_nonblocking(true).context("prepare the resolver")?;
        udp.push(tokio::net::UdpSocket::from_std(socket).context("prepare the resolver")?);
    }
    let mut listeners = Vec::new();
    for listener in sockets.take::<std::net::TcpListener>(Purpose::DnsTcp) {
        listeners.push(roles::tcp(listener)?);
    }
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

fn platform(config: &Config) -> Platform {
    Platform {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: config.domain.clone(),
        http_port: config.http.port(),
        https_port: None,
        registry: config.api.to_string(),
        region: config.region.clone(),
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
