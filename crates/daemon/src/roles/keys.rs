//! The process of the keys: a user of its own, no network, the master key.
//!
//! Never asked by anybody but the front process and the host of this server, each over a socket
//! of its own, and itself reads only a part of the directory.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use perch_client::KeysClient;
use perch_host::secrets::AppKeys;
use perch_keys::{Keys, for_api};
use perch_store::{RemoteStore, ScopedStore, Store};
use perch_types::ApiError;
use perch_types::keys::{HostKey, HostKeyRequest};
use tokio::task::JoinSet;

use crate::clock::SystemClock;
use crate::config::Config;
use crate::roles::Beats;
use crate::setup::{Purpose, Setup, Sockets};
use crate::sockets::{DIRECTORY_KEYS_SOCKET, KEYS_HOST_SOCKET};
use crate::{identity, peer};

/// What the keys read of the directory: where machines are placed, and apps' wrapped keys.
const READS: &[&str] = &["secrets/", "placements/"];

/// Runs until the supervisor ends it.
pub(crate) async fn run(setup: Setup, mut sockets: Sockets, beats: Beats) -> Result<()> {
    let keys = Keys::open(perch_keys::Config {
        folder: setup.config.data_dir.join(identity::KEYS_DIR),
        store: Arc::new(RemoteStore::new(setup.config.run_dir.join(DIRECTORY_KEYS_SOCKET))),
        clock: Arc::new(SystemClock),
    })
    .context("start the keys")?;
    let mut tasks = JoinSet::new();
    tasks.spawn(peer::serve(
        sockets.take_one(Purpose::Keys)?,
        for_api(keys.clone()),
        vec![setup.front_uid],
    ));
    tasks.spawn(peer::serve(
        sockets.take_one(Purpose::KeysHost)?,
        perch_keys::for_host(keys, setup.host_id.clone()),
        vec![0],
    ));
    tokio::select! {
        ended = beats.until_end(|| true) => ended.map(drop),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("an interface of the keys ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("serve an interface of the keys"),
        },
    }
}

/// Returns the part of the directory that the keys may use.
pub(crate) fn directory(store: Arc<dyn Store>) -> ScopedStore {
    ScopedStore::new(store, READS, |key| key.starts_with("secrets/") && key.ends_with("/head"))
}

/// The keys, as the host asks them.
#[derive(Debug)]
pub(crate) struct ForHost(KeysClient);

/// Returns how the host of this server asks the keys.
pub(crate) fn for_host(config: &Config) -> ForHost {
    ForHost(KeysClient::new(config.run_dir.join(KEYS_HOST_SOCKET)))
}

#[async_trait]
impl AppKeys for ForHost {
    async fn for_host(&self, request: &HostKeyRequest) -> Result<HostKey, ApiError> {
        self.0.for_host(request).await.map_err(|error| error.to_api_error())
    }
}

/// Makes a new version of the master key on a server that runs, and says so.
pub(crate) async fn rotate(config: &Config) -> Result<String> {
    let client = KeysClient::new(config.run_dir.join(KEYS_HOST_SOCKET));
    let rotated = client.rotate().await.context(
        "make a new version of the master key; only root of a server that runs may, \
         and after a fault it can be run again",
    )?;
    Ok(format!(
        "the master key has version {}; the keys of {} apps are wrapped with it\n",
        rotated.master, rotated.apps
    ))
}
