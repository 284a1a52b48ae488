//! A clock turned by hand, and the two backends as subjects of the suite.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use perch_store::{Expected, RemoteStore, SqliteStore, Store, rpc, testing::Subject};
use perch_types::{Timestamp, clock::Clock};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};

pub(crate) const HISTORY: u64 = 300;
/// How long anything that has to happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub(crate) struct HandClock(AtomicU64);

impl HandClock {
    pub(crate) fn advance(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Opens the file once whoever had it open is gone.
pub(crate) async fn open(path: &std::path::Path, clock: &Arc<HandClock>) -> Arc<dyn Store> {
    let clock: Arc<dyn Clock> = Arc::clone(clock) as Arc<dyn Clock>;
    let opened = tokio::time::timeout(PATIENCE, async {
        loop {
            match SqliteStore::open_with(path, Arc::clone(&clock), HISTORY) {
                Ok(store) => return store,
                Err(perch_store::Error::File { source: perch_durable::Error::InUse { .. } }) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    Arc::new(opened.await.expect("the file stays locked"))
}

async fn churn(store: &dyn Store) {
    for n in 0..HISTORY * 2 {
        store.put("compact/a", n.to_string().into(), Expected::Any).await.unwrap();
    }
}

pub(crate) struct Sqlite {
    folder: TempDir,
    pub(crate) clock: Arc<HandClock>,
    store: Option<Arc<dyn Store>>,
}

impl Sqlite {
    pub(crate) async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let clock = Arc::new(HandClock::default());
        let store = open(&folder.path().join("store.db"), &clock).await;
        Self { folder, clock, store: Some(store) }
    }
}

impl Subject for Sqlite {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    async fn restart(&mut self) {
        self.store = None;
        self.store = Some(open(&self.folder.path().join("store.db"), &self.clock).await);
    }

    async fn advance(&mut self, time: Duration) {
        self.clock.advance(time);
    }

    async fn compact(&mut self) {
        churn(self.store().as_ref()).await;
    }
}

/// A store of SQLite behind a socket.
pub(crate) struct Remote {
    pub(crate) folder: TempDir,
    pub(crate) clock: Arc<HandClock>,
    server: Option<JoinHandle<()>>,
}

impl Remote {
    pub(crate) async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut remote = Self { folder, clock: Arc::default(), server: None };
        remote.start().await;
        remote
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("store.sock")
    }

    pub(crate) async fn start(&mut self) {
        let store = open(&self.folder.path().join("store.db"), &self.clock).await;
        let listener = UnixListener::bind(self.socket()).unwrap();
        self.server = Some(tokio::spawn(serve(listener, rpc::router(store))));
    }

    /// Ends the server as a crash does: every connection breaks off.
    pub(crate) async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        std::fs::remove_file(self.socket()).unwrap();
    }
}

/// Connections are tasks of this one's set, so that they end with it.
pub(crate) async fn serve(listener: UnixListener, router: axum::Router) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let io = hyper_util::rt::TokioIo::new(socket);
        connections.spawn(async move {
            drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Subject for Remote {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(RemoteStore::new(self.socket()))
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    async fn advance(&mut self, time: Duration) {
        self.clock.advance(time);
    }

    async fn compact(&mut self) {
        churn(self.store().as_ref()).await;
    }
}
