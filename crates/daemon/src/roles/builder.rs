//! The builder process: Dockerfiles and base images.
//!
//! Never touches a machine; what a build runs, it runs in a cage of its own.

use anyhow::{Context as _, Result};
use perch_builder::{Builder, Limits};

use crate::config::Config;
use crate::roles::Beats;
use crate::setup::{Purpose, Setup, Sockets};
use crate::{identity, peer};

/// Runs until the supervisor ends it.
pub(crate) async fn run(setup: Setup, mut sockets: Sockets, beats: Beats) -> Result<()> {
    let builder =
        Builder::open(builder_config(&setup.config)).await.context("start the builder")?;
    let serving = peer::serve(
        sockets.take_one(Purpose::Builder)?,
        perch_builder::router(builder.clone()),
        vec![0, setup.front_uid],
    );
    let outcome = tokio::select! {
        ended = beats.until_end(|| true) => ended.map(drop),
        ended = serving => ended,
    };
    builder.close().await.context("stop the builder")?;
    outcome
}

fn builder_config(config: &Config) -> perch_builder::Config {
    let build = &config.build;
    let mut builder = perch_builder::Config::new(
        config.data_dir.join(identity::BUILD_DIR),
        config.api.to_string(),
    );
    builder.run_dir = config.run_dir.join(identity::BUILD_DIR);
    builder.instance = format!("{}_b", config.instance);
    builder.limits = Limits {
        cpu_millicores: build.cpus.saturating_mul(1000),
        memory_bytes: build.memory_mb.saturating_mul(1 << 20),
        time_s_max: build.time_s,
        ..builder.limits
    };
    builder
}

/// Takes away what the builder made on this host; its files go with the server's folder.
pub(crate) async fn remove(config: &Config) -> Result<()> {
    let builder = Builder::open(builder_config(config)).await.context("open the builder")?;
    builder.close().await.context("take the builder away")
}
