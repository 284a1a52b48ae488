//! The host process: root, one server's machines.
//!
//! Never faces the network: it is reached over a Unix socket by the processes of this server.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use perch_host::network::{INTERFACE_GROUP, NetworkConfig, Pool, Prefix, RESOLVER_V6};
use perch_host::{Deps, Host, MachineApi, PlatformRegistry};
use perch_oci::Privilege;
use perch_store::{RemoteStore, SqliteStore};
use perch_types::Secret;
use perch_types::clock::Clock;
use tokio::task::JoinSet;

use crate::clock::SystemClock;
use crate::config::Config;
use crate::roles::Beats;
use crate::roles::front::{DIRECTORY_FILE, REGISTRY_DIR};
use crate::setup::{Purpose, Setup, Sockets};
use crate::sockets::{DIRECTORY_SOCKET, INSIDE_SOCKET, MONITORS_SOCKET};
use crate::{addresses, identity, peer, roles, supervisor};

/// A loop of the host that has not turned for this long is wedged.
const WEDGED_MS: u64 = 60_000;
/// The port of names.
const DNS_PORT: u16 = 53;
/// How the registry knows the host; only the password counts.
const REGISTRY_USER: &str = "host";

/// Returns the addresses at which machines find the resolver.
pub(crate) fn resolver_addresses(config: &Config) -> Result<Vec<SocketAddr>> {
    let pool = pool(config)?;
    Ok([IpAddr::V6(RESOLVER_V6), IpAddr::V4(pool.resolver())]
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .to_vec())
}

/// Runs until the supervisor ends it; machines run on.
pub(crate) async fn run(setup: Setup, mut sockets: Sockets, beats: Beats) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = RemoteStore::new(setup.config.run_dir.join(DIRECTORY_SOCKET));
    let config = host_config(&setup)?;
    let keys = roles::keys::for_host(&setup.config);
    let deps = Deps { clock: Arc::clone(&clock), store: Arc::new(store), keys: Arc::new(keys) };
    let host = Host::start(config, deps).await.context("start the host")?;
    for finding in &host.info().findings {
        tracing::info!(finding, "host");
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(peer::serve(
        sockets.take_one(Purpose::Host)?,
        perch_host::rpc::router(host.clone()),
        vec![0, setup.front_uid],
    ));
    let monitors = sockets.take_one(Purpose::Monitors)?;
    let api = setup.config.run_dir.join(INSIDE_SOCKET);
    let passing = perch_host::inside::serve(host.clone(), monitors, api);
    tasks.spawn(async move { passing.await.context("pass connections of machines on") });
    let alive = || {
        let now = clock.boot_ms();
        let turning = |beat: &perch_host::Beat| now.saturating_sub(beat.boot_ms) < WEDGED_MS;
        !host.is_broken() && host.heartbeats().iter().all(turning)
    };
    let outcome = tokio::select! {
        ended = beats.until_end(alive) => ended.map(drop),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("the host's interface ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("serve the host's interface"),
        },
    };
    host.shutdown().await;
    outcome
}

fn pool(config: &Config) -> Result<Pool> {
    let block = config.machines_ipv4;
    Prefix::new(IpAddr::V4(block.network), block.prefix)
        .and_then(Pool::new)
        .with_context(|| format!("use `machines_ipv4` {}", String::from(block)))
}

fn network(config: &Config) -> Result<NetworkConfig> {
    // Another installation on this server must not match its rules on our interfaces.
    let group = config
        .instance
        .bytes()
        .fold(INTERFACE_GROUP, |group, byte| group.wrapping_mul(31).wrapping_add(byte.into()))
        & 0x7fff_ffff;
    Ok(NetworkConfig {
        instance: config.instance.clone(),
        interface_group: group,
        pool: pool(config)?,
        public_ports: vec![config.http.port()],
        ..NetworkConfig::default()
    })
}

fn host_config(setup: &Setup) -> Result<perch_host::Config> {
    let config = &setup.config;
    Ok(perch_host::Config {
        id: setup.host_id.clone(),
        data_dir: config.data_dir.join(identity::HOST_DIR),
        run_dir: config.run_dir.join(identity::HOST_DIR),
        region: config.region.clone(),
        cgroup: config.instance.clone(),
        network: network(config)?,
        uid_base: config.machines_uid_base,
        monitor: setup.guest_dir.join("perch-monitor"),
        init: setup.guest_dir.join("perch-init"),
        registry: Some(PlatformRegistry {
            endpoint: format!("http://{}", config.api),
            user: REGISTRY_USER.to_owned(),
            password: setup.host_token.clone(),
        }),
        machine_api: Some(MachineApi {
            monitors: config.run_dir.join(MONITORS_SOCKET),
            api: config.run_dir.join(INSIDE_SOCKET),
        }),
        unpack: Privilege::Child {
            program: supervisor::THIS_PROGRAM.into(),
            args: vec!["unpack-layers".to_owned()],
            host_id_base: perch_oci::unpack::HOST_ID_BASE,
        },
        others: vec![
            ("registry".to_owned(), config.data_dir.join(identity::FRONT_DIR).join(REGISTRY_DIR)),
            ("builds".to_owned(), config.data_dir.join(identity::BUILD_DIR)),
        ],
        pool: perch_host::PoolConfig {
            dir: config.volumes.dir.clone(),
            size_bytes: config.volumes.size_gb.saturating_mul(1 << 30),
            reserve_bytes: perch_host::config::DISK_RESERVE_BYTES,
            ..perch_host::PoolConfig::default()
        },
        limits: perch_host::Limits {
            cache: perch_host::CachePolicy {
                bytes_max: config.image_cache.size_mb.saturating_mul(1 << 20),
                kept_ms: config.image_cache.kept_s.saturating_mul(1000),
            },
            memory_overcommit: config.memory_overcommit,
            autostop_idle: Duration::from_secs(config.autostop.idle_s),
            ..perch_host::Limits::default()
        },
    })
}

/// Destroys all machines and takes away everything that the server made on this host.
pub(crate) fn remove(config: &Config, yes: bool) -> Result<()> {
    let config = &Config { machines_ipv4: addresses::in_use(config)?, ..config.clone() };
    let data = &config.data_dir;
    if !data.is_dir() {
        bail!("there is no server in `{}`", data.display());
    }
    let _lock = identity::lock(data)?;
    if !yes && !confirmed(data)? {
        bail!("nothing was removed");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let setup = Setup {
            config: config.clone(),
            sockets: Vec::new(),
            host_id: identity::host_id(data)?,
            front_uid: 0,
            keys_uid: 0,
            host_token: Secret::default(),
            admin_token_hash: String::new(),
            api_certificate: None,
            edge_certificate: None,
            guest_dir: supervisor::guest_dir(config.guest_dir.as_deref())?,
        };
        // Nobody serves the directory now: its file is written directly.
        let clock = Arc::new(SystemClock);
        let folder = data.join(identity::FRONT_DIR);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("create folder `{}`", folder.display()))?;
        let store = SqliteStore::open(folder.join(DIRECTORY_FILE), clock.clone())
            .context("open the directory")?;
        let keys = roles::keys::for_host(config);
        let deps = Deps { clock, store: Arc::new(store), keys: Arc::new(keys) };
        let host = Host::start(host_config(&setup)?, deps).await.context("start the host")?;
        host.remove_everything().await.context("take machines away")?;
        roles::builder::remove(config).await
    })?;
    for folder in [&config.run_dir, data] {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("remove folder `{}`", folder.display()))?;
    }
    Ok(())
}

fn confirmed(data: &Path) -> Result<bool> {
    let mut stderr = std::io::stderr();
    write!(stderr, "Destroy all machines and everything in `{}`? Type yes: ", data.display())
        .context("ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(answer.trim() == "yes")
}
