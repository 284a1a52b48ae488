//! What is read ahead counts once, and not for long.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use perch_durable::Db;
use perch_types::{AppName, OrgSlug};

use super::*;
use crate::fake::FakeServer;
use crate::machine::plan::Intent;
use crate::machine::record::tests::record;
use crate::machine::run::Input;
use crate::machine::run::tests::shared_of;
use crate::policies::Policies;
use crate::secrets::{IsNamedApp, Secrets};

/// Counts how often it is asked; secrets have that as their version.
#[derive(Debug, Default)]
struct Directory {
    policies: AtomicU64,
    secrets: AtomicU64,
}

impl Directory {
    fn asked(&self) -> (u64, u64) {
        (self.policies.load(Ordering::SeqCst), self.secrets.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl Policies for Directory {
    async fn of_app(&self, _: &OrgSlug, _: &AppName) -> Result<Vec<NetworkPolicy>, Fault> {
        self.policies.fetch_add(1, Ordering::SeqCst);
        Ok(Vec::new())
    }

    async fn forget_unused(&self, _: IsNamedApp<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

#[async_trait]
impl Secrets for Directory {
    async fn of_app(&self, _: &OrgSlug, _: &AppName, _: Option<u64>) -> Result<OpenSecrets, Fault> {
        let version = self.secrets.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(OpenSecrets { version, ..OpenSecrets::default() })
    }

    async fn forget_unused(&self, _: IsNamedApp<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn work(directory: &Arc<Directory>, db: &Db) -> Work {
    let mut shared = shared_of(&FakeServer::new(), db);
    let effects = &mut Arc::get_mut(&mut shared).unwrap().effects;
    effects.policies = Arc::clone(directory) as Arc<dyn Policies>;
    effects.secrets = Arc::clone(directory) as Arc<dyn Secrets>;
    Work {
        shared,
        record: record(),
        input: Input::new(Intent::Start),
        instance: None,
        image: None,
        others: Vec::new(),
        layer: None,
        ahead: None,
        secrets_version: None,
        fault: None,
        gate: None,
        is_to_end: Arc::default(),
    }
}

#[tokio::test]
async fn what_was_read_ahead_is_used_once_and_while_it_is_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path().join("db"), &[]).unwrap();
    let directory = Arc::new(Directory::default());
    let mut work = work(&directory, &db);
    let wanted = SecretsWanted::default();
    let begin = |work: &Work| Some(Ahead::begin(&work.shared.effects, &work.record, wanted));
    let until_asked = async |count: u64| {
        while directory.asked() != (count, count) {
            tokio::task::yield_now().await;
        }
    };
    let version = async |work: &mut Work| {
        assert!(allowed(work).await.unwrap().is_everything());
        secrets(work, wanted).await.unwrap().unwrap().version
    };

    work.ahead = begin(&work);
    until_asked(1).await;
    assert_eq!((version(&mut work).await, directory.asked()), (1, (1, 1)));
    assert_eq!((version(&mut work).await, directory.asked()), (2, (2, 2)), "a second attempt");

    work.ahead = begin(&work);
    until_asked(3).await;
    let old = Instant::now().checked_sub(FRESH_FOR * 2).unwrap();
    let ahead = work.ahead.as_mut().unwrap();
    ahead.policies.as_mut().unwrap().began = old;
    ahead.secrets.as_mut().unwrap().began = old;
    assert_eq!((version(&mut work).await, directory.asked()), (4, (4, 4)));
}

#[tokio::test]
async fn a_boot_without_secrets_asks_for_none_and_one_that_needs_later_ones_waits() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path().join("db"), &[]).unwrap();
    let directory = Arc::new(Directory::default());
    let mut work = work(&directory, &db);
    let none = SecretsWanted { skip: true, min_version: 0 };
    work.ahead = Some(Ahead::begin(&work.shared.effects, &work.record, none));
    assert_eq!(secrets(&mut work, none).await.unwrap(), None);
    assert_eq!(directory.asked().1, 0);

    let later = SecretsWanted { skip: false, min_version: 2 };
    work.ahead = Some(Ahead::begin(&work.shared.effects, &work.record, later));
    assert!(secrets(&mut work, later).await.unwrap_err().transient);
    assert_eq!(secrets(&mut work, later).await.unwrap().unwrap().version, 2);
}
