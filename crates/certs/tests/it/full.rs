//! A disk that is full from some write of an order on: the order goes on when there is room, and is
//! placed once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use perch_certs::Issuer;
use perch_store::{
    Compare, Entry, Error, LeaseId, Listing, Op, Purpose, Revision, Store, Txn, Watch,
};
use perch_testkit::SmallDisk;
use perch_types::Code;
use perch_types::certificate_docs::{CertificateOrder, ChallengeMethod, OrderStep};

use crate::fake::FakeIssuer;
use crate::world::{PATIENCE, World};

/// Writes of one order that goes without a fault: lease, its steps, release, and the lease again.
const WRITES_MAX: usize = 10;
/// A little more than an order rests whose task broke off.
const REST: Duration = Duration::from_millis(5_100);

/// A directory whose disk gets full right before a write.
#[derive(Debug)]
struct Filling {
    store: Arc<dyn Store>,
    disk: SmallDisk,
    left: AtomicUsize,
    /// What has all the room.
    filler: Mutex<Option<PathBuf>>,
    /// Writes that the disk had no room for.
    refused: AtomicUsize,
}

impl Filling {
    fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    fn make_room(&self) {
        let filler = self.filler.lock().unwrap().take();
        std::fs::remove_file(filler.expect("the disk was filled")).unwrap();
    }
}

#[async_trait]
impl Store for Filling {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.store.list(prefix).await
    }

    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            *self.filler.lock().unwrap() = Some(self.disk.fill().unwrap());
        }
        let done = self.store.txn_for(purpose, compares, ops).await;
        if done.as_ref().is_err_and(|error| error.code() == Code::NoSpace) {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
        done
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, Error> {
        self.store.grant(ttl_s).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.revoke(lease).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_neither_lost_nor_doubled_whichever_write_the_disk_is_full_at() {
    let test = "an_order_is_neither_lost_nor_doubled_whichever_write_the_disk_is_full_at";
    // All at once: each waits for a second in its middle.
    let mut tasks = tokio::task::JoinSet::new();
    for writes in 1..=WRITES_MAX {
        let Some(disk) = SmallDisk::mount(test).unwrap() else { return };
        tasks.spawn(one_that_is_full_at(writes, disk));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

async fn one_that_is_full_at(writes: usize, disk: SmallDisk) {
    let world = World::start_in(tempfile::tempdir_in(disk.path()).unwrap());
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    let filling = Arc::new(Filling {
        store: Arc::clone(&world.store),
        disk,
        left: AtomicUsize::new(usize::MAX),
        filler: Mutex::default(),
        refused: AtomicUsize::new(0),
    });
    let store: Arc<dyn Store> = filling.clone();
    let worker = world.worker(&issuer, &store);
    world.want("kept.example").await;
    world.until_served("kept.example").await;
    world.until_order("kept.example", |order| order.ask_again.is_none()).await;
    filling.left.store(writes, Ordering::SeqCst);
    world.want("shop.example").await;
    let is_served = || world.view.resolve("shop.example").is_some();
    until(|| filling.refused() > 0 || (is_served() && has_filler(&filling))).await;
    for _ in 0..2 {
        assert!(world.view.resolve("kept.example").is_some(), "{writes}");
        // The write that is missing may be the order's last: then nothing is to be done any more.
        if is_served() {
            break;
        }
        // It is tried again, and the issuer hears nothing of that.
        let (before, refused) = (fake.seen(), filling.refused());
        world.clock.turn(REST);
        worker.wake();
        until(|| filling.refused() > refused).await;
        assert_eq!(fake.seen(), before, "{writes}");
    }
    filling.make_room();
    world.clock.turn(REST);
    worker.wake();
    world.until_served("shop.example").await;
    let is_done =
        |order: &CertificateOrder| order.step == OrderStep::Due && order.ask_again.is_none();
    let order = world.until_order("shop.example", is_done).await;
    assert_eq!((order.failures, order.issued.len()), (0, 1), "{writes}: {order:?}");
    let seen = fake.seen();
    assert_eq!((seen.placed, seen.finalized), (2, 2), "{writes}: {seen:?}");
    assert!(world.view.resolve("kept.example").is_some());
}

fn has_filler(filling: &Filling) -> bool {
    filling.filler.lock().unwrap().is_some()
}

/// Waits until something holds of which no view tells.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}
