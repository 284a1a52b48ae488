//! What the API is given, and the value that holds it all.
//!
//! Never reads a file or the environment: the daemon does.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use perch_certs::dns::Dns;
use perch_client::{BoxError, HostClient, KeysClient};
use perch_seal::PublicKey;
use perch_store::{Store, ViewHandle};
use perch_types::api::{Answers, ImageInfo, Platform, RegionInfo, WakeTimes};
use perch_types::clock::Clock;
use perch_types::{AppName, HostId, MachineId, OrgSlug, Region};
use tokio::sync::{Mutex, Semaphore};

use crate::auth::Identity;
use crate::error::Error;
use crate::oidc::Lately;
use crate::ports::PortRules;
use crate::push_tokens::PushTokens;
use crate::rate::{Meter, Rates};
use crate::reconcile::{self, Reconciler};
use crate::volumes::mounts::Picks;

/// What the API needs to run.
#[derive(Debug)]
pub struct Config {
    /// The directory.
    pub store: Arc<dyn Store>,
    /// The hosts that it may place machines on.
    pub hosts: Vec<Host>,
    /// The public state, followed by the daemon.
    pub view: ViewHandle,
    /// What this platform is: domain, ports, version, region.
    pub platform: Platform,
    /// Host names beside the platform's domain that are its own, such as those of the API.
    pub own_names: Vec<String>,
    /// The public addresses of its server.
    pub public_ips: Vec<IpAddr>,
    /// Which ports apps can have for themselves.
    pub port_rules: PortRules,
    /// The regions; the first is the nearest unless the platform's own is among them.
    pub regions: Vec<RegionInfo>,
    /// The builder's socket, when one runs.
    pub builder_socket: Option<PathBuf>,
    /// The socket of the role `keys`, when one runs: without it no secret can be set.
    pub keys_socket: Option<PathBuf>,
    /// The platform's registry.
    pub images: Arc<dyn ImageCatalog>,
    /// What certificates need.
    pub certificates: Certificates,
    /// How long apps take to wake and how machines answer, when an edge says it.
    pub wakes: Option<Arc<dyn Wakes>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Limits.
    pub limits: Limits,
}

/// What the API needs for certificates.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The half of the edges' key that seals: private keys of certificates are for edges alone.
    pub key: PublicKey,
    /// Asks DNS as everybody sees it.
    pub dns: Arc<dyn Dns>,
    /// Whether this platform orders certificates.
    pub orders: bool,
    /// Its zone of challenges, where it has one.
    pub zone: Option<String>,
}

/// A host that machines can be placed on.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Where it stands.
    pub region: Region,
    /// How to ask it.
    pub client: HostClient,
}

/// Whoever knows how long apps take to wake, and how their machines answer.
pub trait Wakes: Send + Sync + fmt::Debug {
    /// Returns how long requests of an app waited for a machine; nothing while none did.
    fn times(&self, org: &OrgSlug, app: &AppName) -> Option<WakeTimes>;

    /// Returns how the version that a machine runs has answered requests.
    fn answers(&self, org: &OrgSlug, app: &AppName, machine: &MachineId) -> Option<Answers>;
}

/// The images in the platform's registry.
#[async_trait]
pub trait ImageCatalog: Send + Sync + fmt::Debug {
    /// Returns all images, by repository.
    async fn images(&self) -> Result<Vec<ImageInfo>, BoxError>;

    /// Removes the images of an app that is gone, before its name is another's to take: whoever
    /// takes it may read what lies under it.
    async fn forget(&self, app: &AppName) -> Result<(), BoxError>;
}

/// Builds at once: the builder's slots and its waiting line, and a few that still come up.
const BUILDS_MAX: usize = 20;
/// Builds of one organization at once.
const BUILDS_OF_ORG_MAX: usize = 4;

/// Limits of the API; each has its default here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Builds at once, those that wait for their turn at the builder included.
    pub builds_max: usize,
    /// Of those, builds of one organization.
    pub builds_of_org_max: usize,
    /// Exec sessions at once.
    pub sessions_max: usize,
    /// Tokens for one app.
    pub tokens_of_app_max: usize,
    /// How often something may be done to one thing.
    pub rates: Rates,
    /// How long a body of JSON may take.
    pub body_timeout: Duration,
    /// How long a change waits for the view to hold it.
    pub view_timeout: Duration,
    /// How long the deletion of an app waits for its machines to be gone before it answers.
    pub delete_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            builds_max: BUILDS_MAX,
            builds_of_org_max: BUILDS_OF_ORG_MAX,
            sessions_max: 256,
            tokens_of_app_max: 64,
            rates: Rates::default(),
            body_timeout: Duration::from_secs(30),
            view_timeout: Duration::from_secs(5),
            delete_timeout: Duration::from_secs(15),
        }
    }
}

/// The running API. Cheap to clone. The reconciler ends with the last clone.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) shared: Arc<Shared>,
}

/// What every handler reads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) view: ViewHandle,
    pub(crate) platform: Platform,
    pub(crate) own_names: Vec<String>,
    pub(crate) public_ips: Vec<IpAddr>,
    pub(crate) port_rules: PortRules,
    pub(crate) regions: Vec<RegionInfo>,
    pub(crate) builder_socket: Option<PathBuf>,
    pub(crate) keys: Option<KeysClient>,
    pub(crate) images: Arc<dyn ImageCatalog>,
    pub(crate) certificates: Certificates,
    pub(crate) wakes: Option<Arc<dyn Wakes>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) identity: Identity,
    pub(crate) identity_keys: Lately,
    pub(crate) push_tokens: PushTokens,
    pub(crate) reconciler: Reconciler,
    pub(crate) sessions: Arc<Semaphore>,
    pub(crate) picks: Picks,
    // Creations of apps take turns here; against another api the directory's compares decide.
    pub(crate) creating_app: Mutex<()>,
    // So do changes of one app's secrets.
    pub(crate) secret_turns: Turns,
    // So do creations of tokens.
    pub(crate) granting: Mutex<()>,
    // And assignments of addresses.
    pub(crate) assigning: Mutex<()>,
    // And claims of ports.
    pub(crate) claiming: Mutex<()>,
    pub(crate) meter: Meter,
}

/// Turns for what is done to an app: apps share them, so that there are not more with every app.
#[derive(Debug, Default)]
pub(crate) struct Turns([Mutex<()>; TURNS]);

/// See [`Turns`].
const TURNS: usize = 16;

impl Turns {
    /// Returns the turn of an app.
    pub(crate) fn of(&self, app: &AppName) -> &Mutex<()> {
        let sum = app.as_str().bytes().map(usize::from).sum::<usize>();
        &self.0[sum % TURNS]
    }
}

impl Api {
    /// Starts the API: its reconciler runs, its router can be served. Must be called inside a
    /// tokio runtime.
    #[must_use]
    pub fn start(config: Config) -> Self {
        let identity = Identity::new(Arc::clone(&config.store), Arc::clone(&config.clock));
        let push_tokens = PushTokens::new(
            Arc::clone(&config.clock),
            config.limits.builds_max,
            config.limits.builds_of_org_max,
        );
        let shared = Arc::new(Shared {
            store: config.store,
            hosts: config.hosts.into_iter().map(|host| (host.id.clone(), host)).collect(),
            view: config.view,
            platform: config.platform,
            own_names: config.own_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            public_ips: config.public_ips,
            port_rules: config.port_rules,
            regions: config.regions,
            builder_socket: config.builder_socket,
            keys: config.keys_socket.map(KeysClient::new),
            images: config.images,
            certificates: config.certificates,
            wakes: config.wakes,
            clock: config.clock,
            limits: config.limits,
            identity,
            identity_keys: Lately::default(),
            push_tokens,
            reconciler: Reconciler::default(),
            sessions: Arc::new(Semaphore::new(config.limits.sessions_max)),
            picks: Picks::default(),
            creating_app: Mutex::new(()),
            secret_turns: Turns::default(),
            granting: Mutex::new(()),
            assigning: Mutex::new(()),
            claiming: Mutex::new(()),
            meter: Meter::new(config.limits.rates),
        });
        reconcile::spawn(&shared);
        Self { shared }
    }

    /// Returns the routes of `types::endpoint`, each behind its action.
    pub fn router(&self) -> axum::Router {
        crate::routes::router(&self.shared)
    }

    /// Returns who checks tokens, for other roles of the process such as the registry.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Returns the tokens with which builds push, for the registry.
    #[must_use]
    pub fn push_tokens(&self) -> &PushTokens {
        &self.shared.push_tokens
    }

    /// Makes sure that the administrator's token, known by the SHA-256 of its text in
    /// hexadecimal, is the one that the directory has.
    ///
    /// # Errors
    /// When the hash is not one or the directory does not answer.
    pub async fn ensure_admin_token(&self, sha256_hex: &str) -> Result<(), Error> {
        self.shared.identity.ensure_admin_token(sha256_hex).await
    }
}
