use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use perch_seal::{PrivateKey, PublicKey, Purpose};
use perch_store::{
    Compare, Entry, Error as StoreError, Expected, LeaseId, Listing, Op, Revision, SqliteStore,
    Store, Txn, Watch, get_doc, put_doc,
};
use perch_types::clock::Clock;
use perch_types::directory::PlacementDoc;
use perch_types::keys::{
    AppRef, DIGESTS, DIGESTS_MAX, DigestsRequest, FOR_HOST, HostKeyRequest, MAKE, PREFIX, ROTATE,
};
use perch_types::secrets::SecretsHead;
use perch_types::{AppName, Code, HostId, InstanceId, MachineId, OrgSlug, Region, Timestamp};
use serde_json::json;
use tower::ServiceExt as _;

use super::*;

#[derive(Debug, Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A directory that takes so many more changes, and then none: where a kill would come.
#[derive(Debug)]
struct Counted {
    store: SqliteStore,
    changes_left: AtomicUsize,
}

#[async_trait]
impl Store for Counted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn txn_for(
        &self,
        purpose: perch_store::Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, StoreError> {
        let left = self.changes_left.load(Ordering::Acquire);
        if left == 0 {
            return Err(StoreError::Unavailable { operation: "txn", reason: "away".to_owned() });
        }
        self.changes_left.store(left - 1, Ordering::Release);
        let written = self.store.txn_for(purpose, compares, ops).await;
        between_steps();
        written
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl_s).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// After how many steps the process ends itself.
static STEPS_LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Called after everything that stays when the process is killed.
pub(crate) fn between_steps() {
    if STEPS_LEFT.fetch_sub(1, Ordering::AcqRel) == 1 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
    }
}

struct World {
    folder: Folder,
    store: Arc<Counted>,
    clock: Arc<HandClock>,
    host: HostId,
}

/// A folder of this test's, or one that another process made.
enum Folder {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Own(folder) => folder.path(),
            Self::Given(path) => path,
        }
    }
}

impl World {
    fn new() -> Self {
        Self::at(Folder::Own(tempfile::tempdir().unwrap()))
    }

    fn at(folder: Folder) -> Self {
        let clock = Arc::new(HandClock::default());
        let file = folder.path().join("directory.db");
        let store = SqliteStore::open(file, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let store = Arc::new(Counted { store, changes_left: AtomicUsize::new(usize::MAX) });
        Self { folder, store, clock, host: HostId::from_bits(1) }
    }

    /// Makes sure that the key of every app opens.
    async fn all_open(&self, keys: &Keys, names: &[&str]) {
        for name in names {
            let (of, head) = (of(name), self.head(&of(name)).await);
            let sha256_hex = vec!["ab".repeat(32)];
            keys.digests(&DigestsRequest { of, key: head.key, sha256_hex }).unwrap();
        }
    }

    fn open(&self) -> Keys {
        Keys::open(Config {
            folder: self.folder.path().to_owned(),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        })
        .unwrap()
    }

    /// Gives an app a key, as the api does.
    async fn app(&self, keys: &Keys, name: &str) -> AppRef {
        let of = of(name);
        let key = keys.make(&of).unwrap();
        let head = SecretsHead { app_id: of.app_id.clone(), version: 1, key };
        let at = (of.org.clone(), of.app.clone());
        put_doc(self.store.as_ref(), &at, &head, Expected::Any).await.unwrap();
        of
    }

    async fn head(&self, of: &AppRef) -> SecretsHead {
        let at = (of.org.clone(), of.app.clone());
        get_doc::<SecretsHead>(self.store.as_ref(), &at).await.unwrap().unwrap().document
    }

    async fn place(&self, org: &OrgSlug, app: &AppName, host: &HostId, number: u64) {
        let placement = PlacementDoc {
            app: app.clone(),
            host: host.clone(),
            epoch: 1,
            instance: InstanceId::from_parts(1, 1),
            config_digest: String::new(),
            name: String::new(),
            region: "fra".parse::<Region>().unwrap(),
            created_at: Timestamp::from_unix_ms(0),
        };
        let at = (org.clone(), MachineId::from_bits(number));
        put_doc(self.store.as_ref(), &at, &placement, Expected::Any).await.unwrap();
    }
}

fn of(name: &str) -> AppRef {
    let app: AppName = name.parse().unwrap();
    AppRef { org: OrgSlug::personal(), app_id: format!("app_{app}"), app }
}

fn asks(of: &AppRef, public: &PublicKey) -> HostKeyRequest {
    HostKeyRequest { org: of.org.clone(), app: of.app.clone(), host_public: public.to_base64() }
}

#[tokio::test]
async fn t5_a_host_gets_the_keys_of_apps_placed_on_it_and_no_others() {
    let world = World::new();
    let keys = world.open();
    let web = world.app(&keys, "web").await;
    let (public, private) = perch_seal::generate().unwrap();
    let code = |result: Result<_, perch_types::ApiError>| result.map(|_| ()).unwrap_err().code;
    let (host, other_host) = (world.host.clone(), HostId::from_bits(2));
    assert_eq!(code(keys.for_host(&host, &asks(&web, &public)).await), Code::Forbidden);
    // Another app's machine here, this app's machine there, another organization's app here.
    world.place(&web.org, &"api".parse().unwrap(), &host, 1).await;
    world.place(&web.org, &web.app, &other_host, 2).await;
    world.place(&"acme".parse().unwrap(), &web.app, &host, 3).await;
    assert_eq!(code(keys.for_host(&host, &asks(&web, &public)).await), Code::Forbidden);

    world.place(&web.org, &web.app, &host, 4).await;
    let given = keys.for_host(&host, &asks(&web, &public)).await.unwrap();
    let head = world.head(&web).await;
    assert_eq!((&given.public, &given.app_id), (&head.key.public, &web.app_id));
    let purpose = Purpose::KeyForHost { org: &web.org, app: &web.app, app_id: &web.app_id };
    let app_private =
        PrivateKey::from_bytes(&private.open(purpose, &given.sealed).unwrap()).unwrap();
    let secret = Purpose::AppSecret { org: &web.org, app: &web.app, name: "A", version: 1 };
    let sealed = PublicKey::from_base64(&given.public).unwrap().seal(secret, b"x").unwrap();
    assert_eq!(app_private.open_text(secret, &sealed).unwrap().expose(), "x");
    // It is of use to the host that asked only.
    let (_, another) = perch_seal::generate().unwrap();
    another.open(purpose, &given.sealed).unwrap_err();
    // An app without secrets has no key; a public key that is none is told.
    assert_eq!(code(keys.for_host(&host, &asks(&of("api"), &public)).await), Code::NotFound);
    let bad = HostKeyRequest { host_public: "x".to_owned(), ..asks(&web, &public) };
    assert_eq!(code(keys.for_host(&host, &bad).await), Code::InvalidRequest);
}

#[tokio::test]
async fn t5_the_apis_socket_serves_nothing_that_is_a_hosts() {
    let world = World::new();
    let keys = world.open();
    let call = |router: axum::Router, path: &'static str, body: &'static str| async move {
        let request = Request::post(format!("{PREFIX}{path}"))
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    for path in [FOR_HOST, ROTATE] {
        assert_eq!(call(for_api(keys.clone()), path, "{}").await.0, 404, "{path}");
    }
    for path in [MAKE, DIGESTS] {
        let router = for_host(keys.clone(), world.host.clone());
        assert_eq!(call(router, path, "{}").await.0, 404, "{path}");
    }
    for body in ["", "{", "[]", "{}", r#"{"org":1}"#] {
        let (status, text) = call(for_api(keys.clone()), MAKE, body).await;
        assert!(status == 400 && text.contains("invalid_request"), "{body}: {status} {text}");
    }
}

#[tokio::test]
async fn digests_have_a_shape_a_limit_and_the_right_key() {
    let world = World::new();
    let keys = world.open();
    let web = world.app(&keys, "web").await;
    let key = world.head(&web).await.key;
    let request = |count: usize| DigestsRequest {
        of: web.clone(),
        key: key.clone(),
        sha256_hex: vec!["ab".repeat(32); count],
    };
    assert_eq!(keys.digests(&request(2)).unwrap().digests.len(), 2);
    let too_many = keys.digests(&request(DIGESTS_MAX + 1)).unwrap_err();
    assert_eq!(too_many.code, Code::InvalidRequest);
    for bad in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
        let request = DigestsRequest { sha256_hex: vec![bad.to_owned()], ..request(0) };
        let error = keys.digests(&request).unwrap_err();
        assert!(error.error.starts_with("sha256_hex[0]"), "{bad}: {error}");
    }
    let of_other = DigestsRequest { of: of("api"), ..request(1) };
    assert_eq!(keys.digests(&of_other).unwrap_err().code, Code::Internal);
    // Whoever has the api's place cannot try out values without end.
    let tries = (0..1_000).find(|_| keys.digests(&request(DIGESTS_MAX)).is_err());
    assert!(tries.is_some_and(|tries| tries < 30), "{tries:?}");
    world.clock.0.store(60_000, Ordering::Release);
    keys.digests(&request(DIGESTS_MAX)).unwrap();
}

#[tokio::test]
async fn t13_a_rotation_wraps_every_apps_key_and_digests_and_secrets_stay_good() {
    let world = World::new();
    let keys = world.open();
    let apps = ["a", "b", "c"].map(|name| (name, of(name)));
    for (name, _) in &apps {
        world.app(&keys, name).await;
    }
    let digest = |keys: &Keys, of: &AppRef, head: SecretsHead| {
        let request =
            DigestsRequest { of: of.clone(), key: head.key, sha256_hex: vec!["ab".repeat(32)] };
        keys.digests(&request).unwrap().digests
    };
    let before = digest(&keys, &apps[0].1, world.head(&apps[0].1).await);
    for round in 2..=4 {
        let rotated = keys.rotate().await.unwrap();
        assert_eq!((rotated.master, rotated.apps), (round, 3));
        for (_, of) in &apps {
            assert_eq!(world.head(of).await.key.master, round);
        }
        assert_eq!(digest(&keys, &apps[0].1, world.head(&apps[0].1).await), before);
    }
    // Another process finds the same.
    assert_eq!(digest(&world.open(), &apps[0].1, world.head(&apps[0].1).await), before);
}

#[tokio::test]
async fn t13_a_rotation_that_is_killed_anywhere_loses_no_key_and_can_be_run_again() {
    // Two rotations of three apps are six changes; each is where the kill comes once.
    for kill_at in 0..6 {
        let world = World::new();
        let keys = world.open();
        for name in APPS {
            world.app(&keys, name).await;
        }
        world.store.changes_left.store(kill_at, Ordering::Release);
        let mut failed = false;
        for _ in 0..2 {
            failed |= keys.rotate().await.is_err();
        }
        assert!(failed, "{kill_at}");
        drop(keys);
        let again = world.open();
        world.all_open(&again, &APPS).await;
        world.store.changes_left.store(usize::MAX, Ordering::Release);
        again.rotate().await.unwrap();
        world.all_open(&again, &APPS).await;
    }
}

const APPS: [&str; 3] = ["a", "b", "c"];
/// Set for a child of the test below: what it does, in which folder, and after how many steps it
/// ends itself.
const CHILD: &str = "PERCH_TEST_KILLED_KEYS";
/// More steps than a rotation has.
const STEPS_MAX: usize = 40;

/// Not a test of its own: what the processes of the test below do.
#[tokio::test]
async fn keys_of_another_process() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let [act, folder, steps] = words.as_slice() else { unreachable!() };
    let folder = PathBuf::from(folder);
    let world = World::at(Folder::Given(folder.clone()));
    STEPS_LEFT.store(steps.parse().unwrap(), Ordering::Release);
    let keys = world.open();
    match *act {
        "make" => {
            for name in APPS {
                world.app(&keys, name).await;
            }
        }
        "rotate" => drop(keys.rotate().await.unwrap()),
        _ => {
            world.all_open(&keys, &APPS).await;
            let names = std::fs::read_dir(&folder).unwrap().flatten().map(|file| file.file_name());
            let keys: Vec<_> =
                names.filter(|name| !name.to_string_lossy().starts_with("directory")).collect();
            assert_eq!(keys, [MASTER_FILE], "nothing of a key is left half-way");
        }
    }
}

/// Runs a process that does something; returns whether it ended itself with SIGKILL.
fn is_killed(act: &str, folder: &Path, steps: usize) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::keys_of_another_process", "--nocapture"])
        .env(CHILD, format!("{act} {} {steps}", folder.display()))
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{act} {steps}: {output:?}");
    killed
}

#[test]
fn t13_keys_that_is_killed_at_every_step_of_a_rotation_loses_no_secret_and_leaves_no_file() {
    let mut steps = 0;
    loop {
        steps += 1;
        assert!(steps < STEPS_MAX, "a rotation has no end");
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_killed("make", folder.path(), usize::MAX));
        let first = is_killed("rotate", folder.path(), steps);
        assert!(!is_killed("look", folder.path(), usize::MAX));
        // What was half done is gone on with, and killed again.
        let second = is_killed("rotate", folder.path(), steps);
        assert!(!is_killed("look", folder.path(), usize::MAX));
        assert!(!is_killed("rotate", folder.path(), usize::MAX));
        assert!(!is_killed("look", folder.path(), usize::MAX));
        if !first && !second {
            break;
        }
    }
    assert!(steps > 6, "the file and every app's key are steps of it: {steps}");
}

#[tokio::test]
async fn t4_nothing_of_a_key_is_shown() {
    let world = World::new();
    let keys = world.open();
    let master = std::fs::read_to_string(world.folder.path().join(MASTER_FILE)).unwrap();
    let master: serde_json::Value = serde_json::from_str(&master).unwrap();
    let key = master["keys"][0]["key"].as_str().unwrap().get(..8).unwrap().to_owned();
    assert_eq!(master["format"], json!(1));
    assert!(!format!("{keys:?}").contains(&key));
    let made = keys.make(&of("web")).unwrap();
    assert!(!serde_json::to_string(&made).unwrap().contains(&key));
}
