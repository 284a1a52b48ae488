//! What a boot needs of the directory, read while its cage is made.
//!
//! Never used twice and never when it has become old: a step that is repeated, and one that comes
//! late, reads anew.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_types::Code;
use perch_types::host::SecretsWanted;
use perch_types::network_policy::{Allowed, NetworkPolicy};
use tokio_util::task::AbortOnDropHandle;

use super::record::Record;
use super::run::Work;
use crate::effects::{Effects, Fault};
use crate::secrets::OpenSecrets;

/// How long what was read may wait for its use: the making of a cage takes a tenth of it.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// What is being read for one boot.
#[derive(Debug)]
pub struct Ahead {
    policies: Option<Reading<Vec<NetworkPolicy>>>,
    secrets: Option<Reading<OpenSecrets>>,
}

/// One answer, asked for by a task that ends with its owner.
#[derive(Debug)]
struct Reading<T> {
    began: Instant,
    task: AbortOnDropHandle<Result<T, Fault>>,
}

impl Ahead {
    /// Begins to read what the boot of a machine needs.
    #[must_use]
    pub fn begin(effects: &Effects, record: &Record, wanted: SecretsWanted) -> Self {
        let (org, app) = (record.org.clone(), record.app.clone());
        let policies = Arc::clone(&effects.policies);
        let policies = Reading::begin(async move { policies.of_app(&org, &app).await });
        let secrets = (!wanted.skip).then(|| {
            let (org, app, seen) = (record.org.clone(), record.app.clone(), record.secrets_version);
            let secrets = Arc::clone(&effects.secrets);
            Reading::begin(async move { secrets.of_app(&org, &app, seen).await })
        });
        Self { policies: Some(policies), secrets }
    }
}

impl<T: Send + 'static> Reading<T> {
    fn begin(reading: impl Future<Output = Result<T, Fault>> + Send + 'static) -> Self {
        let task = AbortOnDropHandle::new(tokio::spawn(reading));
        Self { began: Instant::now(), task }
    }
}

/// Returns what was read, if it was and is still as good as read now.
async fn taken<T>(reading: Option<Reading<T>>) -> Option<Result<T, Fault>> {
    let Reading { began, task } = reading?;
    if began.elapsed() > FRESH_FOR { None } else { task.await.ok() }
}

/// Returns what may pass to and from the machine that starts now.
///
/// # Errors
/// When the app's policies cannot be had.
pub(super) async fn allowed(work: &mut Work) -> Result<Allowed, Fault> {
    let read = work.ahead.as_mut().and_then(|ahead| ahead.policies.take());
    let policies = match taken(read).await {
        Some(read) => read?,
        None => work.shared.effects.policies.of_app(&work.record.org, &work.record.app).await?,
    };
    let labels = &work.record.incoming().config.metadata;
    Ok(Allowed::of(&policies, &work.record.id, labels))
}

/// Returns the secrets that the boot of a version is to see, open; nothing for a version that runs
/// without.
///
/// # Errors
/// When they cannot be had or opened, or are older than the version needs.
pub(super) async fn secrets(
    work: &mut Work,
    wanted: SecretsWanted,
) -> Result<Option<OpenSecrets>, Fault> {
    if wanted.skip {
        return Ok(None);
    }
    let read = work.ahead.as_mut().and_then(|ahead| ahead.secrets.take());
    let secrets = match taken(read).await {
        Some(read) => read?,
        None => {
            let Record { org, app, secrets_version, .. } = &work.record;
            work.shared.effects.secrets.of_app(org, app, *secrets_version).await?
        }
    };
    if secrets.version < wanted.min_version {
        let (version, min) = (secrets.version, wanted.min_version);
        let text = format!("the app's secrets are known in version {version}, not yet in {min}");
        return Err(Fault::transient(Code::Unavailable, text));
    }
    Ok(Some(secrets))
}

#[cfg(test)]
mod tests;
