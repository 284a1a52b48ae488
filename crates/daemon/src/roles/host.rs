//! The host process: root, one server's machines.
//!
//! Never faces the network: it is reached over a Unix socket by the processes of this server.

use std::net::SocketAddr;

use anyhow::Result;

use crate::config::Config;
use crate::roles::Beats;
use crate::setup::{Setup, Sockets};

/// Returns the addresses at which machines find the resolver.
pub(crate) fn resolver_addresses(_config: &Config) -> Vec<SocketAddr> {
    Vec::new()
}

pub(crate) async fn run(_setup: Setup, _sockets: Sockets, beats: Beats) -> Result<()> {
    beats.until_end(|| true).await
}

pub(crate) fn remove(_config: Config, _yes: bool) -> Result<()> {
    Ok(())
}

pub(crate) fn unpack_layers() -> Result<()> {
    Ok(())
}
