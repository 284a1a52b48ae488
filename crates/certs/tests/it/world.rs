//! What every test needs: a directory on a disk, the edges' key, a view, DNS and a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use perch_certs::dns::{Dns, Fault};
use perch_certs::order::Limits;
use perch_certs::{CertificateView, EdgeKey, Issuer, Worker, WorkerConfig};
use perch_store::{Expected, SqliteStore, Store, get_doc, put_doc};
use perch_types::certificate_docs::{CertificateDoc, CertificateOrder};
use perch_types::certificates::RecordType;
use perch_types::clock::Clock;
use perch_types::{AppName, OrgSlug, Timestamp};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The platform's zone of challenges.
pub(crate) const ZONE: &str = "acme.example";

/// The wall clock of the test's beginning, which goes on, and can be turned.
#[derive(Debug)]
pub(crate) struct TestClock {
    began: Instant,
    begin_ms: i64,
    offset_ms: AtomicI64,
    ahead_ms: AtomicI64,
}

impl TestClock {
    #[expect(clippy::disallowed_methods, reason = "certificates are made for the real time")]
    fn new() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let begin_ms = i64::try_from(since.as_millis()).unwrap();
        let began = Instant::now();
        Self { began, begin_ms, offset_ms: AtomicI64::new(0), ahead_ms: AtomicI64::new(0) }
    }

    pub(crate) fn turn(&self, time: Duration) {
        self.offset_ms.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Sets the wall clock alone, so far ahead of the right time.
    pub(crate) fn set_ahead(&self, time: Duration) {
        self.ahead_ms.store(i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Sets the wall clock alone, so far behind the right time.
    pub(crate) fn set_back(&self, time: Duration) {
        self.ahead_ms.store(-i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn ms(&self) -> i64 {
        let gone = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        gone + self.offset_ms.load(Ordering::Relaxed)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let ahead_ms = self.ahead_ms.load(Ordering::Relaxed);
        Timestamp::from_unix_ms(self.begin_ms + self.ms() + ahead_ms)
    }

    fn boot_ms(&self) -> u64 {
        1_000_000 + self.ms().unsigned_abs()
    }
}

/// Zones that a test makes; every name has an address.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    texts: Mutex<BTreeMap<String, String>>,
    /// Where CNAME records lead.
    leads: Mutex<BTreeMap<String, String>>,
    /// What is told in [`ZONE`], once it is served.
    served: OnceLock<CertificateView>,
    /// Names whose address was asked for.
    asked: Mutex<BTreeSet<String>>,
}

impl Zone {
    pub(crate) fn set(&self, name: &str, txt: &str) {
        self.texts.lock().unwrap().insert(name.to_owned(), txt.to_owned());
    }

    /// Sets a CNAME record.
    pub(crate) fn lead(&self, name: &str, to: &str) {
        self.leads.lock().unwrap().insert(name.to_owned(), to.to_owned());
    }

    /// Has [`ZONE`] served from a view.
    pub(crate) fn serve(&self, view: &CertificateView) {
        self.served.set(view.clone()).unwrap();
    }

    /// Returns the texts of a name, CNAME records followed.
    fn texts_of(&self, name: &str) -> Vec<String> {
        let leads = self.leads.lock().unwrap().get(name).cloned();
        let label = leads.as_deref().and_then(|to| to.strip_suffix(ZONE)?.strip_suffix('.'));
        if let Some((label, view)) = label.zip(self.served.get()) {
            return view.texts(label);
        }
        self.texts.lock().unwrap().get(name).cloned().into_iter().collect()
    }

    pub(crate) fn was_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap().contains(name)
    }
}

#[async_trait]
impl Dns for Zone {
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<String>, Fault> {
        if kind == RecordType::A {
            self.asked.lock().unwrap().insert(name.to_owned());
        }
        Ok(match kind {
            RecordType::A if name.starts_with("nowhere.") => Vec::new(),
            RecordType::A => vec!["127.0.0.1".to_owned()],
            RecordType::Txt => self.texts_of(name),
            RecordType::Cname => self
                .leads
                .lock()
                .unwrap()
                .get(name)
                .map(|to| format!("{to}."))
                .into_iter()
                .collect(),
            RecordType::Aaaa | RecordType::Soa => Vec::new(),
        })
    }
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) key: Arc<EdgeKey>,
    pub(crate) view: CertificateView,
    pub(crate) zone: Arc<Zone>,
}

pub(crate) fn names() -> (OrgSlug, AppName) {
    (OrgSlug::personal(), "web".parse().unwrap())
}

fn open(folder: &Path, clock: &Arc<TestClock>) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(folder.join("directory.db"), clock.clone()).unwrap())
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start_in(folder: tempfile::TempDir) -> Self {
        let clock = Arc::new(TestClock::new());
        let store = open(folder.path(), &clock);
        let key = Arc::new(EdgeKey::open(folder.path()).unwrap());
        let view = CertificateView::start(Arc::clone(&store), Arc::clone(&key), clock.clone());
        Self { folder, clock, store, key, view, zone: Arc::default() }
    }

    /// Starts a worker over some store, which is this one's unless a test ends it early.
    pub(crate) fn worker(&self, issuer: &Arc<dyn Issuer>, store: &Arc<dyn Store>) -> Worker {
        self.worker_with(issuer, store, Limits::default(), false)
    }

    pub(crate) fn worker_with(
        &self,
        issuer: &Arc<dyn Issuer>,
        store: &Arc<dyn Store>,
        limits: Limits,
        tls: bool,
    ) -> Worker {
        Worker::start(WorkerConfig {
            store: Arc::clone(store),
            issuer: Arc::clone(issuer),
            view: self.view.clone(),
            key: Arc::clone(&self.key),
            dns: self.zone.clone(),
            clock: self.clock.clone(),
            tls,
            zone: self.zone.served.get().is_some().then(|| ZONE.to_owned()),
            limits,
            host: "host-1".to_owned(),
        })
    }

    /// Has a certificate wanted for a host name, as the api does.
    pub(crate) async fn want(&self, hostname: &str) {
        let ((org, app), now) = (names(), self.clock.now());
        let key = (org, app, hostname.to_owned());
        let mut document = CertificateDoc::new("app_1".to_owned(), now);
        document.acme_requested = true;
        put_doc(self.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
        let order = CertificateOrder::new("app_1".to_owned(), now);
        put_doc(self.store.as_ref(), &key, &order, Expected::Any).await.unwrap();
    }

    pub(crate) async fn order(&self, hostname: &str) -> CertificateOrder {
        let (org, app) = names();
        let key = (org, app, hostname.to_owned());
        let found = get_doc::<CertificateOrder>(self.store.as_ref(), &key).await.unwrap();
        found.unwrap().document
    }

    /// Waits until the edge serves a certificate for a host name.
    pub(crate) async fn until_served(&self, hostname: &str) {
        let mut changed = self.view.changed();
        let waiting = async {
            while self.view.resolve(hostname).is_none() {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{hostname} is not served: {:?}", self.order(hostname).await);
        }
    }

    /// Waits until an order is as a test wants it.
    pub(crate) async fn until_order(
        &self,
        hostname: &str,
        holds: impl Fn(&CertificateOrder) -> bool,
    ) -> CertificateOrder {
        let mut changed = self.view.changed();
        let waiting = async {
            loop {
                let order = self.order(hostname).await;
                if holds(&order) {
                    return order;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(order) => order,
            Err(_) => panic!("{hostname} waits: {:?}", self.order(hostname).await),
        }
    }
}
