//! Apps' network policies on this host: read when a machine starts.
//!
//! Never makes a rule: [`crate::network`] does, and never takes it that there is none because nobody
//! could be asked. What the directory said last is kept in a file an app, also that there is nothing,
//! so that a machine that starts while the directory is down is not more open than it should be.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use perch_store::Store;
use perch_types::clock::Clock;
use perch_types::error::chain;
use perch_types::network_policy::{NetworkPolicy, POLICIES_MAX, prefix};
use perch_types::{AppName, Code, OrgSlug};
use tokio::time::timeout;

use crate::effects::Fault;
use crate::error::Error;
use crate::secrets::{IsNamedApp, write_private};

/// How long the directory may take before what was kept answers for it: a boot waits.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a directory that did not answer is not asked again.
const AWAY_MS: u64 = 5_000;
/// How the files of apps end.
const ENDING: &str = ".policies";
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Apps' network policies.
#[async_trait]
pub trait Policies: Send + Sync + fmt::Debug {
    /// Returns the policies of an app.
    async fn of_app(&self, org: &OrgSlug, app: &AppName) -> Result<Vec<NetworkPolicy>, Fault>;

    /// Forgets what was kept of apps that no machine names.
    async fn forget_unused(&self, is_named: IsNamedApp<'_>) -> Result<(), Fault>;
}

/// Apps without policies, on a host without a directory.
#[derive(Debug, Clone, Copy)]
pub struct NoPolicies;

#[async_trait]
impl Policies for NoPolicies {
    async fn of_app(&self, _org: &OrgSlug, _app: &AppName) -> Result<Vec<NetworkPolicy>, Fault> {
        Ok(Vec::new())
    }

    async fn forget_unused(&self, _is_named: IsNamedApp<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Policies as the directory has them.
#[derive(Debug)]
pub struct KeptPolicies {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    /// Held while a file is written: machines of one app start at once.
    writing: Arc<Mutex<()>>,
    /// Until when the directory is not asked.
    away_until_ms: AtomicU64,
}

impl KeptPolicies {
    /// Opens the folder of what is kept.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(
        folder: PathBuf,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        match DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            Ok(()) => {
                let (writing, away_until_ms) = (Arc::default(), AtomicU64::new(0));
                Ok(Self { store, clock, folder, writing, away_until_ms })
            }
            Err(source) => Err(Error::Folder { path: folder, source }),
        }
    }

    /// Neither part of the name has a dot or a slash.
    fn path(&self, org: &OrgSlug, app: &AppName) -> PathBuf {
        self.folder.join(format!("{org}.{app}{ENDING}"))
    }

    async fn ask(&self, org: &OrgSlug, app: &AppName) -> Result<Vec<NetworkPolicy>, Fault> {
        let away = |text: String| Fault::transient(Code::Unavailable, text);
        let prefix = prefix(org, app);
        let listing = match timeout(DIRECTORY_TIMEOUT, self.store.list(&prefix)).await {
            Ok(Ok(listing)) => listing,
            Ok(Err(error)) => return Err(away(chain(&error))),
            Err(_) => return Err(away("the directory does not answer".to_owned())),
        };
        let policies = listing.entries.iter().take(POLICIES_MAX).map(|entry| {
            serde_json::from_slice(&entry.value).map_err(|error| {
                let text = format!("read `{}` of the directory: {error}", entry.key);
                Fault::permanent(Code::Internal, text)
            })
        });
        policies.collect()
    }

    /// Returns what the directory said last; nothing when it never was asked.
    async fn kept(
        &self,
        org: &OrgSlug,
        app: &AppName,
    ) -> Result<Option<Vec<NetworkPolicy>>, Fault> {
        let path = self.path(org, app);
        let fault = |error: io::Error| {
            Fault::permanent(Code::Internal, format!("read kept network policies: {error}"))
        };
        match tokio::fs::metadata(&path).await {
            Ok(data) if data.len() <= FILE_BYTES_MAX => {}
            Ok(_) => return Err(fault(io::Error::other("the file is too large"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error)),
        }
        let bytes = tokio::fs::read(&path).await.map_err(fault)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| fault(error.into()))
    }

    /// Keeps what the directory said. A boot fails when it cannot: the next one might be more open
    /// than it should.
    async fn keep(
        &self,
        org: &OrgSlug,
        app: &AppName,
        policies: &[NetworkPolicy],
    ) -> Result<(), Fault> {
        let path = self.path(org, app);
        let bytes = serde_json::to_vec(policies).map_err(io::Error::from);
        let writing = Arc::clone(&self.writing);
        let kept = tokio::task::spawn_blocking(move || keep(&path, &bytes?, &writing)).await;
        let kept = kept.unwrap_or_else(|error| Err(io::Error::other(error)));
        kept.map_err(|error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let code = if full { Code::NoSpace } else { Code::Internal };
            Fault::permanent(code, format!("keep network policies: {error}"))
        })
    }
}

/// Writes a file unless it is so already.
fn keep(path: &Path, bytes: &[u8], writing: &Mutex<()>) -> io::Result<()> {
    if is_kept(path, bytes)? {
        return Ok(());
    }
    let _turn = writing.lock().unwrap_or_else(PoisonError::into_inner);
    if is_kept(path, bytes)? { Ok(()) } else { write_private(path, bytes) }
}

fn is_kept(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    match fs::read(path) {
        Ok(before) => Ok(before == bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Policies for KeptPolicies {
    async fn of_app(&self, org: &OrgSlug, app: &AppName) -> Result<Vec<NetworkPolicy>, Fault> {
        let now_ms = self.clock.boot_ms();
        if now_ms < self.away_until_ms.load(Ordering::Acquire)
            && let Some(kept) = self.kept(org, app).await?
        {
            return Ok(kept);
        }
        match self.ask(org, app).await {
            Ok(policies) => {
                self.keep(org, app, &policies).await?;
                Ok(policies)
            }
            Err(fault) if fault.transient => {
                self.away_until_ms.store(now_ms.saturating_add(AWAY_MS), Ordering::Release);
                let Some(kept) = self.kept(org, app).await? else {
                    return Err(fault);
                };
                tracing::warn!(%app, error = %fault, "boot with the network policies that were kept");
                Ok(kept)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn forget_unused(&self, is_named: IsNamedApp<'_>) -> Result<(), Fault> {
        let fault = |error: io::Error| {
            Fault::permanent(Code::Internal, format!("forget kept network policies: {error}"))
        };
        for entry in fs::read_dir(&self.folder).map_err(fault)? {
            let entry = entry.map_err(fault)?;
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.split_once('.'));
            if let Some((org, app)) = parts
                && let (Ok(org), Ok(app)) = (org.parse(), app.parse())
                && !is_named(&org, &app)
            {
                fs::remove_file(entry.path()).map_err(fault)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use perch_store::{Expected, SqliteStore, put_doc};
    use perch_types::Timestamp;
    use perch_types::network_policy::{PolicyPort, PolicyRule, PolicySelector};

    use super::*;

    #[derive(Debug)]
    struct StandingClock;

    impl Clock for StandingClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(0)
        }

        fn boot_ms(&self) -> u64 {
            0
        }
    }

    fn policy(port: u16) -> NetworkPolicy {
        let ports = vec![PolicyPort { port, ..PolicyPort::default() }];
        NetworkPolicy {
            id: "np_1".to_owned(),
            name: "a".to_owned(),
            selector: PolicySelector { all: Some(true), ..PolicySelector::default() },
            rules: vec![PolicyRule { ports, ..PolicyRule::default() }],
            created_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        }
    }

    #[tokio::test]
    async fn what_the_directory_said_last_holds_while_it_is_down() {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(StandingClock);
        let file = folder.path().join("directory.db");
        let store = Arc::new(SqliteStore::open(file, Arc::clone(&clock)).unwrap());
        let (org, app): (OrgSlug, AppName) = (OrgSlug::personal(), "web".parse().unwrap());
        let kept = folder.path().join("policies");
        let open = |store: Arc<dyn Store>| {
            KeptPolicies::open(kept.clone(), store, Arc::clone(&clock)).unwrap()
        };
        let policies = open(Arc::clone(&store) as Arc<dyn Store>);
        assert_eq!(policies.of_app(&org, &app).await.unwrap(), []);
        let key = (org.clone(), app.clone(), "np_1".to_owned());
        put_doc(store.as_ref(), &key, &policy(80), Expected::Absent).await.unwrap();
        assert_eq!(policies.of_app(&org, &app).await.unwrap(), [policy(80)]);

        // Nobody listens there.
        let away = open(Arc::new(perch_store::RemoteStore::new(folder.path().join("none"))));
        assert_eq!(away.of_app(&org, &app).await.unwrap(), [policy(80)]);
        away.forget_unused(&|_, name| name == &app).await.unwrap();
        assert_eq!(away.of_app(&org, &app).await.unwrap(), [policy(80)]);
        away.forget_unused(&|_, _| false).await.unwrap();
        assert!(away.of_app(&org, &app).await.unwrap_err().transient);

        // Only of an app whose policies were asked for is it known that there are none.
        let other: AppName = "other".parse().unwrap();
        assert!(away.of_app(&org, &other).await.unwrap_err().transient);
        let at_once = || policies.of_app(&org, &other);
        let both = tokio::join!(at_once(), at_once());
        assert_eq!((both.0.unwrap(), both.1.unwrap()), (Vec::new(), Vec::new()));
        assert_eq!(away.of_app(&org, &other).await.unwrap(), []);
    }

    #[tokio::test]
    async fn as_many_and_as_large_ones_as_there_can_be_are_read_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(StandingClock);
        let file = folder.path().join("directory.db");
        let store = Arc::new(SqliteStore::open(file, Arc::clone(&clock)).unwrap());
        let (org, app): (OrgSlug, AppName) = (OrgSlug::personal(), "web".parse().unwrap());
        let mut all = Vec::new();
        for number in 10..10 + POLICIES_MAX {
            let id = format!("np_{number}");
            let labels = (0..60).map(|label| (format!("label-{label:02}"), "\u{e4}".repeat(500)));
            let selector =
                PolicySelector { metadata: Some(labels.collect()), ..PolicySelector::default() };
            let policy = NetworkPolicy { id: id.clone(), selector, ..policy(80) };
            let bytes = serde_json::to_vec(&policy).unwrap().len();
            assert!((60_000..=perch_store::VALUE_BYTES_MAX).contains(&bytes), "{bytes}");
            let key = (org.clone(), app.clone(), id);
            put_doc(store.as_ref(), &key, &policy, Expected::Absent).await.unwrap();
            all.push(policy);
        }
        let kept = folder.path().join("policies");
        let policies = KeptPolicies::open(kept.clone(), store, Arc::clone(&clock)).unwrap();
        assert_eq!(policies.of_app(&org, &app).await.unwrap(), all);
        let nobody = Arc::new(perch_store::RemoteStore::new(folder.path().join("none")));
        let away = KeptPolicies::open(kept, nobody, clock).unwrap();
        assert_eq!(away.of_app(&org, &app).await.unwrap(), all);
    }
}
