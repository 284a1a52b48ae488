use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, PoisonError};

use perch_store::{
    Compare, Entry, Error as StoreError, Expected, LeaseId, Listing, Op, Purpose, Revision,
    SqliteStore, Txn, Watch, put_doc,
};
use perch_types::Timestamp;
use perch_types::secrets::AppKey;

use super::*;

const VALUE: &str = "hunter2-correct-horse";

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

/// A directory that can be away.
#[derive(Debug)]
struct Switched {
    store: SqliteStore,
    is_away: AtomicBool,
    lists: AtomicUsize,
}

#[async_trait]
impl Store for Switched {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.lists.fetch_add(1, Ordering::AcqRel);
        if self.is_away.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable { operation: "list", reason: "away".to_owned() });
        }
        self.store.list(prefix).await
    }

    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, StoreError> {
        self.store.txn_for(purpose, compares, ops).await
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

/// The role `keys` with the key of one app.
#[derive(Debug)]
struct OneKey {
    app: Mutex<(String, PublicKey, Vec<u8>)>,
    answers: Mutex<Option<Code>>,
    asked: AtomicUsize,
}

impl OneKey {
    fn refuse(&self, code: Option<Code>) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = code;
    }
}

#[async_trait]
impl AppKeys for OneKey {
    async fn for_host(&self, request: &HostKeyRequest) -> Result<HostKey, ApiError> {
        self.asked.fetch_add(1, Ordering::AcqRel);
        if let Some(code) = *self.answers.lock().unwrap() {
            return Err(ApiError::new(code, "no"));
        }
        let (app_id, public, private) = self.app.lock().unwrap().clone();
        let purpose = perch_seal::Purpose::KeyForHost {
            org: &request.org,
            app: &request.app,
            app_id: &app_id,
        };
        let host = PublicKey::from_base64(&request.host_public).unwrap();
        let sealed = host.seal(purpose, &private).unwrap();
        Ok(HostKey { app_id, public: public.to_base64(), sealed })
    }
}

struct World {
    folder: tempfile::TempDir,
    store: Arc<Switched>,
    keys: Arc<OneKey>,
    clock: Arc<HandClock>,
    org: OrgSlug,
    app: AppName,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock::default());
        let file = folder.path().join("directory.db");
        let store = SqliteStore::open(file, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let (is_away, lists) = (AtomicBool::new(false), AtomicUsize::new(0));
        let store = Arc::new(Switched { store, is_away, lists });
        let keys = Arc::new(OneKey {
            app: Mutex::new(new_key("app_1")),
            answers: Mutex::new(None),
            asked: AtomicUsize::new(0),
        });
        let (org, app) = (OrgSlug::personal(), "web".parse().unwrap());
        Self { folder, store, keys, clock, org, app }
    }

    /// Opens what an agent opens at its start.
    fn open(&self) -> SealedSecrets {
        SealedSecrets::open(
            self.folder.path().join("secrets"),
            Arc::clone(&self.store) as Arc<dyn Store>,
            Arc::clone(&self.keys) as Arc<dyn AppKeys>,
            Arc::clone(&self.clock) as Arc<dyn Clock>,
        )
        .unwrap()
    }

    async fn set(&self, version: u64, pairs: &[(&str, &str)]) {
        let (app_id, public, _) = self.keys.app.lock().unwrap().clone();
        let key = AppKey { public: public.to_base64(), wrapped: String::new(), master: 1 };
        let head = SecretsHead { app_id, version, key };
        let of = (self.org.clone(), self.app.clone());
        put_doc(self.store.as_ref(), &of, &head, Expected::Any).await.unwrap();
        for (name, value) in pairs {
            let (org, app) = (&self.org, &self.app);
            let purpose = perch_seal::Purpose::AppSecret { org, app, name, version };
            let secret = SecretDoc {
                sealed: public.seal(purpose, value.as_bytes()).unwrap(),
                version,
                digest: String::new(),
                bytes: value.len(),
                created_at: self.clock.now(),
                updated_at: self.clock.now(),
            };
            let key = (org.clone(), app.clone(), (*name).to_owned());
            put_doc(self.store.as_ref(), &key, &secret, Expected::Any).await.unwrap();
        }
    }

    fn away(&self, is_away: bool) {
        self.store.is_away.store(is_away, Ordering::Release);
    }

    async fn of_app(
        &self,
        secrets: &SealedSecrets,
        seen: Option<u64>,
    ) -> Result<OpenSecrets, Fault> {
        secrets.of_app(&self.org, &self.app, seen).await
    }

    fn kept_file(&self) -> PathBuf {
        self.folder.path().join("secrets/personal.web.sealed")
    }
}

fn new_key(app_id: &str) -> (String, PublicKey, Vec<u8>) {
    let (public, private) = perch_seal::generate().unwrap();
    (app_id.to_owned(), public, private.expose().to_vec())
}

fn value<'a>(secrets: &'a OpenSecrets, name: &str) -> Option<&'a str> {
    secrets.values.get(name).map(Secret::expose)
}

#[tokio::test]
async fn each_boot_sees_the_newest_and_the_key_is_asked_for_once() {
    let world = World::new();
    let secrets = world.open();
    assert_eq!(world.of_app(&secrets, None).await.unwrap(), OpenSecrets::default());
    world.set(1, &[("A", "one")]).await;
    let first = world.of_app(&secrets, None).await.unwrap();
    assert_eq!((first.version, value(&first, "A")), (1, Some("one")));
    world.set(2, &[("A", "two"), ("B", "more")]).await;
    let second = world.of_app(&secrets, Some(1)).await.unwrap();
    assert_eq!(
        (second.version, value(&second, "A"), value(&second, "B")),
        (2, Some("two"), Some("more"))
    );
    let again = world.open();
    assert_eq!(world.of_app(&again, Some(2)).await.unwrap(), second);
    assert_eq!(world.keys.asked.load(Ordering::Acquire), 1);
}

#[tokio::test]
async fn machines_boot_with_what_was_kept_while_the_directory_and_the_keys_are_away() {
    let world = World::new();
    world.set(3, &[("A", VALUE)]).await;
    world.of_app(&world.open(), None).await.unwrap();
    world.away(true);
    world.keys.refuse(Some(Code::Unavailable));
    // The agent was restarted meanwhile.
    let secrets = world.open();
    let kept = world.of_app(&secrets, Some(2)).await.unwrap();
    assert_eq!((kept.version, value(&kept, "A")), (3, Some(VALUE)));
    // The next boot does not wait for the directory again, until a while is over.
    let lists = world.store.lists.load(Ordering::Acquire);
    world.of_app(&secrets, Some(3)).await.unwrap();
    assert_eq!(world.store.lists.load(Ordering::Acquire), lists);
    world.away(false);
    world.set(4, &[("A", "new")]).await;
    world.clock.0.store(AWAY_MS, Ordering::Release);
    assert_eq!(world.of_app(&secrets, Some(3)).await.unwrap().version, 4);
}

#[tokio::test]
async fn a_machine_that_never_saw_its_apps_secrets_waits_for_the_directory() {
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    let secrets = world.open();
    world.of_app(&secrets, None).await.unwrap();
    world.away(true);
    // An app before it may have had the name.
    let fault = world.of_app(&secrets, None).await.unwrap_err();
    assert!(fault.transient && fault.error.code == Code::Unavailable, "{fault:?}");
    // One that saw secrets does not run without them either.
    std::fs::remove_file(world.kept_file()).unwrap();
    assert!(world.of_app(&secrets, Some(1)).await.unwrap_err().transient);
    // One that had none does.
    assert_eq!(world.of_app(&secrets, Some(0)).await.unwrap(), OpenSecrets::default());
}

#[tokio::test]
async fn t4_what_a_host_keeps_shows_no_value_and_no_key_and_only_root_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    world.of_app(&world.open(), None).await.unwrap();
    let private = world.keys.app.lock().unwrap().2.clone();
    let kept = std::fs::read(world.kept_file()).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &private);
    for needle in [VALUE.as_bytes(), &private, base64.as_bytes()] {
        assert!(!kept.windows(needle.len()).any(|window| window == needle));
    }
    for file in ["personal.web.sealed", "host.key"] {
        let path = world.folder.path().join("secrets").join(file);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let folder = std::fs::metadata(world.folder.path().join("secrets")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    let open = world.of_app(&world.open(), Some(1)).await.unwrap();
    assert!(!format!("{open:?}").contains(VALUE));
}

#[tokio::test]
async fn t5_what_another_host_kept_is_of_no_use() {
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    world.of_app(&world.open(), None).await.unwrap();
    std::fs::remove_file(world.folder.path().join("secrets/host.key")).unwrap();
    let other = world.open();
    world.away(true);
    let fault = world.of_app(&other, Some(1)).await.unwrap_err();
    assert!(!fault.transient && !fault.to_string().contains(VALUE), "{fault:?}");
    // With the role `keys` there, a host that lost its own key is given the app's anew.
    world.away(false);
    world.clock.0.store(AWAY_MS, Ordering::Release);
    assert_eq!(value(&world.of_app(&other, Some(1)).await.unwrap(), "A"), Some(VALUE));
    assert_eq!(world.keys.asked.load(Ordering::Acquire), 2);
}

#[tokio::test]
async fn t5_a_host_that_is_refused_the_key_does_not_try_for_ever() {
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    for (code, transient) in [(Code::Forbidden, false), (Code::Unavailable, true)] {
        world.keys.refuse(Some(code));
        let fault = world.of_app(&world.open(), None).await.unwrap_err();
        assert_eq!((fault.error.code, fault.transient), (code, transient));
    }
}

#[tokio::test]
async fn a_later_app_of_the_name_gets_its_own_key_and_none_of_the_olds_secrets() {
    let world = World::new();
    world.set(1, &[("A", "old")]).await;
    let secrets = world.open();
    world.of_app(&secrets, None).await.unwrap();
    for entry in world.store.list("secrets/").await.unwrap().entries {
        world.store.delete(&entry.key, Expected::Any).await.unwrap();
    }
    assert_eq!(world.of_app(&secrets, None).await.unwrap(), OpenSecrets::default());
    assert!(!world.kept_file().exists(), "what was kept of the old one is gone");
    *world.keys.app.lock().unwrap() = new_key("app_2");
    world.set(1, &[("B", "new")]).await;
    let new = world.of_app(&secrets, None).await.unwrap();
    assert_eq!((value(&new, "A"), value(&new, "B")), (None, Some("new")));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_write_or_a_broken_file_costs_one_question() {
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    world.of_app(&world.open(), None).await.unwrap();
    let mut half = world.kept_file().into_os_string();
    half.push(".new");
    std::fs::write(&half, "{").unwrap();
    world.set(2, &[("A", "two")]).await;
    assert_eq!(value(&world.of_app(&world.open(), Some(1)).await.unwrap(), "A"), Some("two"));
    for broken in ["", "{", "[]", "\0"] {
        std::fs::write(world.kept_file(), broken).unwrap();
        let open = world.of_app(&world.open(), Some(2)).await.unwrap();
        assert_eq!(value(&open, "A"), Some("two"), "{broken}");
    }
}

#[tokio::test]
async fn what_was_kept_ends_with_the_last_machine_of_its_app() {
    let world = World::new();
    world.set(1, &[("A", VALUE)]).await;
    let secrets = world.open();
    world.of_app(&secrets, None).await.unwrap();
    secrets.forget_unused(&|_, app| app.as_str() == "web").await.unwrap();
    assert!(world.kept_file().exists());
    secrets.forget_unused(&|_, _| false).await.unwrap();
    assert!(!world.kept_file().exists());
    assert!(world.folder.path().join("secrets/host.key").exists());
}
