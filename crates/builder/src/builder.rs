//! The builder: its disk, its rules, its slots.
//!
//! Never outlives its resources: what [`Builder::open`] sets up, [`Builder::close`] takes away,
//! and the next `open` clears what a killed builder left.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use perch_types::Secret;
use perch_types::build::BuildEvent;

use crate::build::{self, Events};
use crate::cage;
use crate::config::{BUILDS_AT_ONCE_MAX, Config};
use crate::disk::{Disk, StoreUsage};
use crate::error::Error;
use crate::gateway::Registry;
use crate::network;
use crate::queue::{Queue, Slot};
use crate::tools;

/// Longest name of an instance: with a slot it is the name of an interface.
const INSTANCE_BYTES_MAX: usize = 10;

/// The builder of one server.
#[derive(Debug)]
pub struct Builder {
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    queue: Arc<Queue>,
    /// One bootstrap at a time.
    pub(crate) bootstrap: tokio::sync::Mutex<()>,
}

impl Builder {
    /// Checks the programs, mounts the disk, loads the rules and lays down what is left of an
    /// earlier builder. Needs to be root of the host.
    ///
    /// # Errors
    /// A program is missing, the configuration cannot work, or one of these steps did not.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        check(&config)?;
        tools::check(tools::FOR_BUILDS)?;
        let folder = &config.data_dir;
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        // Contexts and layers are nobody else's business; cages get at them by their binds.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
            .map_err(Error::file("set the mode of", folder))?;
        cage::prepare(&config).await?;
        network::open(&config).await?;
        let disk = Disk::open(&config).await?;
        let queue =
            Arc::new(Queue::new(config.limits.builds_max, config.limits.builds_waiting_max));
        Ok(Arc::new(Self { config, disk, queue, bootstrap: tokio::sync::Mutex::default() }))
    }

    /// Takes away what [`open`](Self::open) set up; the disk keeps its content. No build may run.
    ///
    /// # Errors
    /// The disk is busy, or the rules cannot be removed.
    pub async fn close(&self) -> Result<(), Error> {
        let unmounted = self.disk.close().await;
        let removed = network::close(&self.config).await;
        cage::dismantle(&self.config)?;
        unmounted.and(removed)
    }

    /// Measures the stores, the one used longest ago first.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn usage(&self) -> Result<Vec<StoreUsage>, Error> {
        self.disk.usage()
    }

    /// Removes every store that no build uses; the next build of its app runs every step anew.
    /// Returns their names.
    ///
    /// # Errors
    /// The disk cannot be read or a store not be removed.
    pub fn prune(&self) -> Result<Vec<String>, Error> {
        self.disk.prune(0, 0)
    }

    /// Removes what is above the limits.
    pub(crate) async fn trim(self: &Arc<Self>) {
        let builder = Arc::clone(self);
        let bytes = self.config.limits.store_bytes_max;
        let removed = tokio::task::spawn_blocking(move || builder.disk.trim(bytes)).await;
        match removed {
            Ok(Ok(removed)) if removed.is_empty() => {}
            Ok(Ok(removed)) => tracing::info!(?removed, "build stores removed"),
            Ok(Err(error)) => tracing::warn!(%error, "build stores not trimmed"),
            Err(error) => tracing::warn!(%error, "build stores not trimmed"),
        }
    }

    /// Waits for a slot and tells the client so.
    pub(crate) async fn slot(&self, events: &Events) -> Result<Slot, Error> {
        let ticket = self.queue.ticket()?;
        if ticket.before > 0 {
            let text = match ticket.before {
                1 => "waiting for 1 build".to_owned(),
                before => format!("waiting for {before} builds"),
            };
            let event = BuildEvent::Progress { text };
            events.send(event).await.map_err(|_gone| Error::Abandoned)?;
        }
        tokio::select! {
            slot = ticket.slot() => slot,
            () = events.closed() => Err(Error::Abandoned),
        }
    }

    pub(crate) fn registry(&self, token: &Secret) -> Registry {
        Registry { endpoint: self.config.registry.clone(), token: token.clone() }
    }

    /// Runs a job in a task of its own: it is the one who must lay down its cages, also when the
    /// client's connection is gone.
    pub(crate) fn start(self: &Arc<Self>, job: build::Job, events: Events) {
        tokio::spawn(build::run(Arc::clone(self), job, events));
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let name = &config.instance;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let refuse = |key, rule| Err(Error::Configuration { key, rule });
    if name.is_empty() || name.len() > INSTANCE_BYTES_MAX || !name.bytes().all(plain) {
        return refuse("instance", "1 to 10 of a-z, 0-9 and _");
    }
    if config.addresses.octets()[3] != 0 {
        return refuse("addresses", "the first address of a /24");
    }
    let builds = config.limits.builds_max;
    if builds == 0 || builds > BUILDS_AT_ONCE_MAX {
        return refuse("limits.builds_max", "1 to 32");
    }
    if config
        .open_networks
        .iter()
        .any(|network| !network.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'/'))
    {
        return refuse("open_networks", "IPv4 prefixes such as 10.1.0.0/16");
    }
    Ok(())
}
