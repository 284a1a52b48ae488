//! `perch version`.
//!
//! Never fails when the platform does not answer: the CLI's own version is known.

use serde::Serialize;

use crate::error::Result;
use crate::invocation::Invocation;

#[derive(Debug, Serialize)]
struct Versions {
    perch: &'static str,
    platform: Option<String>,
}

pub(crate) async fn run(invocation: &Invocation) -> Result {
    let platform = match invocation.api() {
        Ok(api) => api.platform().await.ok().map(|it| it.version),
        Err(_) => None,
    };
    let versions = Versions { perch: env!("CARGO_PKG_VERSION"), platform };
    if invocation.ui.is_json() {
        invocation.ui.json(&versions);
        return Ok(());
    }
    invocation.ui.data(format!("perch {}", versions.perch));
    let platform = versions.platform.as_deref().unwrap_or("not reached");
    invocation.ui.data(format!("platform {platform}"));
    Ok(())
}
