//! Orders whose worker ends at every write, before and after it; and what limits do to real ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use perch_certs::Issuer;
use perch_certs::order::{Fault, Limits};
use perch_store::{
    Compare, Entry, Error, Expected, LeaseId, Listing, Op, Purpose, Revision, Store, Txn, Watch,
    delete_doc, get_doc,
};
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, ChallengeMethod, OrderStep, OrderWorker, ServedCertificate,
};
use perch_types::certificates::CertificateSource;

use crate::fake::FakeIssuer;
use crate::world::{PATIENCE, World, names};

/// A directory that is gone from one write on: with it, or just after it happened.
#[derive(Debug)]
struct Dying {
    store: Arc<dyn Store>,
    left: AtomicUsize,
    happens: bool,
    is_dead: AtomicBool,
    /// How often it cannot be followed at first.
    unfollowed: AtomicUsize,
    granted: AtomicUsize,
}

impl Dying {
    fn new(store: &Arc<dyn Store>, writes: usize, happens: bool) -> Self {
        Self {
            store: Arc::clone(store),
            left: AtomicUsize::new(writes),
            happens,
            is_dead: AtomicBool::new(false),
            unfollowed: AtomicUsize::new(0),
            granted: AtomicUsize::new(0),
        }
    }

    fn alive(&self) -> Result<(), Error> {
        if self.is_dead.load(Ordering::SeqCst) {
            let reason = "the process has ended".to_owned();
            return Err(Error::Unavailable { operation: "ask", reason });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Dying {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.alive()?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.alive()?;
        self.store.list(prefix).await
    }

    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error> {
        self.alive()?;
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 1 {
            return self.store.txn_for(purpose, compares, ops).await;
        }
        self.is_dead.store(true, Ordering::SeqCst);
        if self.happens {
            self.store.txn_for(purpose, compares, ops).await?;
        }
        Err(self.alive().unwrap_err())
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.alive()?;
        let left = self.unfollowed.load(Ordering::SeqCst);
        if left > 0 {
            self.unfollowed.store(left - 1, Ordering::SeqCst);
            let reason = "it cannot be followed now".to_owned();
            return Err(Error::Unavailable { operation: "watch", reason });
        }
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, Error> {
        self.alive()?;
        self.granted.fetch_add(1, Ordering::SeqCst);
        self.store.grant(ttl_s).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.alive()?;
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.alive()?;
        self.store.revoke(lease).await
    }
}

/// Writes of one order that goes without a fault: lease, its seven steps, release.
const WRITES_MAX: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_ends_well_whichever_write_its_worker_ended_at() {
    // All at once: each waits for a second in its middle.
    let mut tasks = tokio::task::JoinSet::new();
    for happens in [false, true] {
        for writes in 1..=WRITES_MAX {
            tasks.spawn(one_that_ends_at(writes, happens));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

async fn one_that_ends_at(writes: usize, happens: bool) {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    world.want("shop.example").await;
    let dying = Arc::new(Dying::new(&world.store, writes, happens));
    let store: Arc<dyn Store> = dying.clone();
    let worker = world.worker(&issuer, &store);
    let mut changed = world.view.changed();
    let ended = async {
        while !dying.is_dead.load(Ordering::SeqCst) && world.view.resolve("shop.example").is_none()
        {
            // A write that did not happen changes nothing: it is looked all the same.
            tokio::time::timeout(Duration::from_millis(20), changed.changed()).await.ok();
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    drop(worker);
    let _worker = world.worker(&issuer, &world.store);
    world.until_served("shop.example").await;
    let order = world.until_order("shop.example", |order| order.step == OrderStep::Due).await;
    let seen = fake.seen();
    assert!((1..=2).contains(&seen.placed), "{writes} {happens}: {seen:?}");
    assert!((1..=2).contains(&seen.finalized), "{writes} {happens}: {seen:?}");
    assert_eq!((order.failures, order.issued.len()), (0, 1), "{writes} {happens}: {order:?}");
    // What is served opened with the key that was written down before the request was sent.
    let (org, app) = names();
    let key = (org, app, "shop.example".to_owned(), CertificateSource::Fly);
    let served = get_doc::<ServedCertificate>(world.store.as_ref(), &key).await.unwrap();
    assert!(served.unwrap().document.leaf.renewal_id.is_some());
}

#[tokio::test]
async fn another_servers_order_is_left_alone_until_its_lease_ends() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    let (org, app) = names();
    let key = (org, app, "shop.example".to_owned());
    let lease = world.store.grant(3_600).await.unwrap();
    let value = serde_json::to_vec(&OrderWorker { host: "host-2".to_owned() }).unwrap();
    let path = <OrderWorker as perch_types::directory::Document>::key(&key);
    let put = Op::Put { key: path, value: value.into(), lease: Some(lease) };
    world.store.txn(Vec::new(), vec![put]).await.unwrap();
    world.want("shop.example").await;
    world.want("free.example").await;
    let worker = world.worker(&issuer, &world.store);
    world.until_served("free.example").await;
    assert!(world.view.resolve("shop.example").is_none());
    assert_eq!(world.order("shop.example").await.step, OrderStep::Due);
    world.store.revoke(lease).await.unwrap();
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    world.until_served("shop.example").await;
    assert_eq!(fake.seen().placed, 2);
}

#[tokio::test]
async fn a_worker_that_follows_anew_keeps_the_lease_that_it_has() {
    let world = World::start();
    let issuer: Arc<dyn Issuer> = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    world.want("shop.example").await;
    let dying = Arc::new(Dying::new(&world.store, usize::MAX, false));
    dying.unfollowed.store(1, Ordering::SeqCst);
    let store: Arc<dyn Store> = dying.clone();
    let _worker = world.worker(&issuer, &store);
    world.until_served("shop.example").await;
    assert_eq!(dying.granted.load(Ordering::SeqCst), 1);
}

/// Takes away that a certificate is wanted, but not its order.
async fn unwant(world: &World, hostname: &str) {
    let (org, app) = names();
    let key = (org, app, hostname.to_owned());
    delete_doc::<CertificateDoc>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
}

async fn until_no_order(world: &World, hostname: &str) {
    let (org, app) = names();
    let key = (org, app, hostname.to_owned());
    let mut changed = world.view.changed();
    let gone = async {
        while get_doc::<CertificateOrder>(world.store.as_ref(), &key).await.unwrap().is_some() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn an_order_whose_certificate_nobody_wants_ends_and_nothing_is_issued() {
    let world = World::start();
    let methods = [ChallengeMethod::Http, ChallengeMethod::Dns];
    let fake = Arc::new(FakeIssuer::new(&methods));
    let issuer: Arc<dyn Issuer> = fake.clone();
    // One that is not begun, and one that is under way.
    world.want("gone.example").await;
    unwant(&world, "gone.example").await;
    world.want("*.shop.example").await;
    let worker = world.worker(&issuer, &world.store);
    world.until_order("*.shop.example", |order| !order.errors.is_empty()).await;
    until_no_order(&world, "gone.example").await;
    unwant(&world, "*.shop.example").await;
    world.zone.set("_acme-challenge.shop.example", "digest");
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    until_no_order(&world, "*.shop.example").await;
    assert_eq!((fake.seen().placed, fake.seen().finalized), (1, 0));
}

#[tokio::test]
async fn names_of_one_registered_domain_have_a_limit_together() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    let limits = Limits { domain_issued_max: 1, server_at_once_max: 1, ..Limits::default() };
    world.want("a.shop.example").await;
    let _worker = world.worker_with(&issuer, &world.store, limits, false);
    world.until_served("a.shop.example").await;
    world.want("b.shop.example").await;
    world.want("a.other.example").await;
    world.until_served("a.other.example").await;
    let held = world.until_order("b.shop.example", |order| !order.errors.is_empty()).await;
    assert_eq!((held.errors[0].code.as_str(), held.failures), ("domain_issued", 0));
    assert_eq!(fake.seen().placed, 2);
}

#[tokio::test]
async fn limits_hold_orders_back_and_faults_are_told() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    let limits = Limits { server_orders_max: 2, server_at_once_max: 1, ..Limits::default() };
    world.want("nowhere.example").await;
    let worker = world.worker_with(&issuer, &world.store, limits, false);
    let nameless = world.until_order("nowhere.example", |order| !order.errors.is_empty()).await;
    assert_eq!(nameless.errors[0].code, "dns_not_configured");
    for name in ["a.example", "b.example", "c.example"] {
        world.want(name).await;
    }
    world.until_served("a.example").await;
    world.until_served("b.example").await;
    let held = world.until_order("c.example", |order| order.rate_limited_until.is_some()).await;
    assert_eq!(held.errors[0].code, "server_orders");
    let asked =
        ["nowhere.example", "b.example", "c.example"].map(|name| world.zone.was_asked(name));
    assert_eq!(asked, [true, true, false], "DNS is not asked for what is held");
    assert_eq!(fake.seen().placed, 2);
    fake.refuse(Fault::Refused("rejectedIdentifier".to_owned(), "not this one".to_owned()));
    // It goes on within a minute after it may.
    world.clock.turn(Duration::from_secs(125));
    worker.wake();
    let refused = world.until_order("c.example", |order| order.failures == 1).await;
    assert_eq!(refused.errors[0].code, "rejectedIdentifier");
    assert_eq!(fake.seen().placed, 3);
    world.clock.turn(Duration::from_secs(62));
    worker.wake();
    world.until_served("c.example").await;
    assert!(world.order("c.example").await.errors.is_empty());
}

#[tokio::test]
async fn an_issuer_that_never_answers_holds_up_no_order_for_ever() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    fake.hang(true);
    let limits = Limits { step_max: Duration::from_secs(1), ..Limits::default() };
    world.want("shop.example").await;
    let worker = world.worker_with(&issuer, &world.store, limits, false);
    let hung = world.until_order("shop.example", |order| !order.errors.is_empty()).await;
    assert_eq!((hung.errors[0].code.as_str(), hung.failures), ("issuer_unavailable", 0));
    fake.hang(false);
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    world.until_served("shop.example").await;
}

#[tokio::test]
async fn an_order_of_a_clock_that_was_ahead_goes_on_when_it_is_set_back() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    world.clock.set_ahead(Duration::from_secs(90 * 24 * 3_600));
    fake.refuse(Fault::Refused("rejectedIdentifier".to_owned(), "not now".to_owned()));
    world.want("shop.example").await;
    let worker = world.worker(&issuer, &world.store);
    world.until_order("shop.example", |order| order.failures == 1).await;
    world.clock.set_ahead(Duration::ZERO);
    worker.wake();
    world.until_served("shop.example").await;
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_says_what_it_replaces() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    world.want("shop.example").await;
    let worker = world.worker(&issuer, &world.store);
    world.until_served("shop.example").await;
    let first = world.until_order("shop.example", |order| order.ask_again.is_none()).await;
    // Two thirds of seventy years, and up to a thirtieth less.
    let left = first.due.unix_s() - perch_types::clock::Clock::now(world.clock.as_ref()).unix_s();
    assert!(left > 30 * 365 * 24 * 3_600, "{left}");
    let before = world.view.resolve("shop.example").unwrap();
    world.clock.turn(Duration::from_secs(left.unsigned_abs() + 10));
    worker.wake();
    // While it is renewed the one before is served, and then the new one.
    let mut changed = world.view.changed();
    let renewed = async {
        while Arc::ptr_eq(&before, &world.view.resolve("shop.example").unwrap()) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    let after = world.view.resolve("shop.example").unwrap();
    assert_ne!(before.cert, after.cert);
    world.until_order("shop.example", |order| order.issued.len() == 2).await;
    let seen = fake.seen();
    assert_eq!((seen.placed, seen.finalized, seen.replaced.len()), (2, 2, 1));
}

#[tokio::test]
async fn a_wildcard_waits_for_its_record() {
    let world = World::start();
    let methods = [ChallengeMethod::Http, ChallengeMethod::Dns];
    let issuer: Arc<dyn Issuer> = Arc::new(FakeIssuer::new(&methods));
    world.want("*.shop.example").await;
    let worker = world.worker(&issuer, &world.store);
    let waits = world.until_order("*.shop.example", |order| !order.errors.is_empty()).await;
    assert_eq!(
        (waits.step, waits.errors[0].code.as_str()),
        (OrderStep::Telling, "dns_record_missing")
    );
    assert_eq!(waits.answer.unwrap().txt, "digest");
    world.zone.set("_acme-challenge.shop.example", "digest");
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    world.until_served("any.shop.example").await;
}
