//! The builder process.
//!
//! Never.

use anyhow::Result;

use crate::roles::Beats;
use crate::setup::{Setup, Sockets};

pub(crate) async fn run(_setup: Setup, _sockets: Sockets, beats: Beats) -> Result<()> {
    beats.until_end(|| true).await
}
