use std::sync::atomic::{AtomicI64, Ordering};

use perch_store::{Expected, SqliteStore, delete_doc, put_doc};
use perch_types::certificates::KeyKind;
use rcgen::date_time_ymd;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::*;

#[derive(Debug)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }

    fn boot_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed).unsigned_abs()
    }
}

struct World {
    _folder: tempfile::TempDir,
    clock: Arc<TestClock>,
    store: Arc<dyn Store>,
    key: Arc<EdgeKey>,
    view: CertificateView,
}

fn names() -> (OrgSlug, AppName) {
    (OrgSlug::personal(), "web".parse().unwrap())
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(now.unix_ms())));
        let file = folder.path().join("directory.db");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(file, clock.clone()).unwrap());
        let key = Arc::new(EdgeKey::open(folder.path()).unwrap());
        let view = CertificateView::start(Arc::clone(&store), Arc::clone(&key), clock.clone());
        Self { _folder: folder, clock, store, key, view }
    }

    /// Has a certificate served; `sealed_as` is the host name that its key is sealed for.
    async fn serve(&self, hostname: &str, sealed_as: &str, source: CertificateSource, month: u8) {
        let (org, app) = names();
        let mut params = CertificateParams::new(vec![hostname.to_owned()]).unwrap();
        params.not_after = date_time_ymd(2026, month, 1);
        let key = KeyPair::generate().unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let purpose =
            Purpose::CertificateKey { org: &org, app: &app, app_id: "app_1", hostname: sealed_as };
        let sealed_key = self.key.public().seal(purpose, key.serialize_pem().as_bytes()).unwrap();
        let leaf = crate::inspect::issued(&chain).unwrap();
        assert_eq!(leaf.kind, KeyKind::Ecdsa);
        let now = self.clock.now();
        let app_id = "app_1".to_owned();
        let document = ServedCertificate { app_id, chain, sealed_key, leaf, created_at: now };
        let key = (org, app, hostname.to_owned(), source);
        put_doc(self.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
    }

    async fn answer(&self, hostname: &str, method: ChallengeMethod) -> ChallengeAnswer {
        self.answer_of("web", hostname, (method, "token")).await
    }

    async fn answer_of(
        &self,
        app: &str,
        hostname: &str,
        (method, token): (ChallengeMethod, &str),
    ) -> ChallengeAnswer {
        let (org, app) = (OrgSlug::personal(), app.parse::<AppName>().unwrap());
        let answer = ChallengeAnswer {
            method,
            token: token.to_owned(),
            key_authorization: "token.thumb".to_owned(),
            txt: "digest".to_owned(),
        };
        let mut order = CertificateOrder::new("app_1".to_owned(), self.clock.now());
        order.answer = Some(answer.clone());
        let key = (org, app, hostname.to_owned());
        put_doc(self.store.as_ref(), &key, &order, Expected::Any).await.unwrap();
        answer
    }

    async fn until(&self, holds: impl Fn(&CertificateView) -> bool) {
        let mut changed = self.view.changed();
        let waiting = async {
            while !holds(&self.view) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    }
}

fn months(key: &CertifiedKey) -> i64 {
    let (_, certificate) = X509Certificate::from_der(key.cert[0].as_ref()).unwrap();
    certificate.validity().not_after.timestamp()
}

#[tokio::test]
async fn a_certificate_is_served_by_its_name_and_gone_when_it_is_removed() {
    let world = World::start();
    world.serve("shop.example", "shop.example", CertificateSource::Fly, 8).await;
    world.serve("*.shop.example", "*.shop.example", CertificateSource::Fly, 9).await;
    world.until(|view| view.resolve("a.shop.example").is_some()).await;
    for (name, want) in [
        ("shop.example", true),
        ("a.shop.example", true),
        ("*.shop.example", true),
        ("a.a.shop.example", false),
        ("example", false),
        ("other.example", false),
        ("", false),
    ] {
        assert_eq!(world.view.resolve(name).is_some(), want, "{name}");
    }
    let (first, again) = (world.view.resolve("shop.example"), world.view.resolve("shop.example"));
    assert!(Arc::ptr_eq(&first.unwrap(), &again.unwrap()), "it is opened once");
    let (org, app) = names();
    let key = (org, app, "shop.example".to_owned(), CertificateSource::Fly);
    delete_doc::<ServedCertificate>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
    world.until(|view| view.resolve("shop.example").is_none()).await;
    assert!(world.view.resolve("a.shop.example").is_some());
}

#[tokio::test]
async fn an_uploaded_certificate_comes_first_until_it_ends() {
    let world = World::start();
    world.serve("shop.example", "shop.example", CertificateSource::Fly, 12).await;
    world.serve("shop.example", "shop.example", CertificateSource::Custom, 8).await;
    let end = date_time_ymd(2026, 8, 1).unix_timestamp();
    world.until(|view| view.resolve("shop.example").is_some_and(|key| months(&key) == end)).await;
    world.clock.0.store(end * 1_000, Ordering::Relaxed);
    let now = world.view.resolve("shop.example").unwrap();
    assert_eq!(months(&now), date_time_ymd(2026, 12, 1).unix_timestamp());
    world.clock.0.store(date_time_ymd(2027, 1, 1).unix_timestamp() * 1_000, Ordering::Relaxed);
    let ended = world.view.resolve("shop.example").unwrap();
    assert_eq!(months(&ended), end, "an ended one is better than none");
}

#[tokio::test]
async fn e9_a_key_that_is_sealed_for_another_name_is_not_served_and_hides_no_other() {
    let world = World::start();
    world.serve("shop.example", "other.example", CertificateSource::Custom, 8).await;
    world.serve("shop.example", "shop.example", CertificateSource::Fly, 8).await;
    world.serve("bad.example", "other.example", CertificateSource::Fly, 8).await;
    world.serve("last.example", "last.example", CertificateSource::Fly, 8).await;
    world.until(|view| view.resolve("last.example").is_some()).await;
    assert!(world.view.resolve("bad.example").is_none());
    assert!(world.view.resolve("shop.example").is_some());
    world
        .store
        .put("certificates/personal/web/x.y/order", "?".into(), Expected::Any)
        .await
        .unwrap();
    world.serve("next.example", "next.example", CertificateSource::Fly, 8).await;
    world.until(|view| view.resolve("next.example").is_some()).await;
}

#[tokio::test]
async fn challenges_are_answered_in_their_own_way_only() {
    let world = World::start();
    let http = world.answer("http.example", ChallengeMethod::Http).await;
    world.answer("tls.example", ChallengeMethod::TlsAlpn).await;
    let dns = world.answer("dns.example", ChallengeMethod::Dns).await;
    let last = world.answer("last.example", ChallengeMethod::Http).await;
    world.until(|view| view.answers("last.example", &last)).await;
    assert!(!world.view.answers("dns.example", &dns), "no edge gives it");
    let view = &world.view;
    let label = |hostname: &str| dns::challenge_label("app_1", hostname);
    assert_eq!(view.texts(&label("dns.example")), ["digest"]);
    assert!(view.texts(&label("http.example")).is_empty());
    assert_eq!(view.http_challenge("http.example", "token").unwrap(), "token.thumb");
    for (host, token) in
        [("http.example", "toke"), ("tls.example", "token"), ("dns.example", "token"), ("x.y", "")]
    {
        assert_eq!(view.http_challenge(host, token), None, "{host} {token}");
    }
    for name in ["http.example", "dns.example", "other.example"] {
        assert!(view.challenge(name).is_none(), "{name}");
    }
    let proof = view.challenge("tls.example").unwrap();
    let (_, certificate) = X509Certificate::from_der(proof.cert[0].as_ref()).unwrap();
    let extension = certificate
        .iter_extensions()
        .find(|it| it.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
        .unwrap();
    assert!(extension.critical);
    let digest = Sha256::digest(b"token.thumb");
    assert_eq!(extension.value.get(2..), Some(digest.as_slice()));
    assert!(view.answers("http.example", &http));
    let (org, app) = names();
    let key = (org, app, "http.example".to_owned());
    delete_doc::<CertificateOrder>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
    world.until(|view| view.http_challenge("http.example", "token").is_none()).await;
    // A way that is not gone any more is told no longer.
    world.answer("dns.example", ChallengeMethod::Http).await;
    world.until(|view| view.http_challenge("dns.example", "token").is_some()).await;
    assert!(world.view.texts(&label("dns.example")).is_empty());
}

#[tokio::test]
async fn an_answer_is_its_own_orders_and_no_other_order_takes_it_away() {
    let world = World::start();
    let answered = |view: &CertificateView| view.http_challenge("shop.example", "mine").is_some();
    let mine = (ChallengeMethod::Http, "mine");
    world.answer_of("web", "shop.example", mine).await;
    world.until(answered).await;
    // The order for all names below it is another one, and so is an order of another app.
    world.answer_of("other", "*.shop.example", (ChallengeMethod::Dns, "wide")).await;
    world.answer_of("other", "shop.example", (ChallengeMethod::Dns, "theirs")).await;
    let ends = |app: &str, hostname: &str| {
        (OrgSlug::personal(), app.parse::<AppName>().unwrap(), hostname.to_owned())
    };
    for hostname in ["*.shop.example", "shop.example"] {
        let key = ends("other", hostname);
        delete_doc::<CertificateOrder>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
    }
    let last = world.answer("last.example", ChallengeMethod::Http).await;
    world.until(|view| view.answers("last.example", &last)).await;
    assert!(answered(&world.view));
    let key = ends("web", "shop.example");
    delete_doc::<CertificateOrder>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
    world.until(|view| !answered(view)).await;
}
