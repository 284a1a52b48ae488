//! A wall clock that is set forward and back under a certificate that is served: it is renewed once
//! for each time that it seems to be due, and when it is due.

use std::sync::Arc;
use std::time::Duration;

use perch_certs::order::is_ahead;
use perch_certs::{Issuer, Worker};
use perch_types::certificate_docs::{CertificateOrder, ChallengeMethod};
use perch_types::clock::Clock as _;

use crate::fake::FakeIssuer;
use crate::world::World;

const NAME: &str = "shop.example";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates of these tests are renewed in decades.
const LONG_S: i64 = 30 * 365 * 24 * 60 * 60;
/// How far renewals are spread, and a little more.
const SPREAD_DAYS: u32 = 3 * 365;
/// The pause before what a clock that was ahead wrote down is looked at, a second each.
const PAUSES: usize = 6;

fn left_s(world: &World, order: &CertificateOrder) -> i64 {
    order.due.unix_s() - world.clock.now().unix_s()
}

/// Waits until the order is written down by the clock as it is now.
async fn reckoned(world: &World, worker: &Worker) -> CertificateOrder {
    let mut changed = world.view.changed();
    worker.wake();
    for _ in 0..PAUSES {
        let news = tokio::time::timeout(Duration::from_millis(50), changed.changed());
        if news.await.is_err() {
            world.clock.turn(Duration::from_secs(1));
            worker.wake();
        }
    }
    world.until_order(NAME, |order| !is_ahead(order, world.clock.now())).await
}

#[tokio::test]
async fn a_clock_that_jumps_under_a_served_certificate_neither_storms_nor_forgets_its_renewal() {
    let world = World::start();
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    let worker = world.worker(&issuer, &world.store);
    world.want(NAME).await;
    world.until_served(NAME).await;
    let first = world.until_order(NAME, |order| order.ask_again.is_none()).await;
    let left = left_s(&world, &first);
    assert!(left > LONG_S, "{left}");
    let ahead = Duration::from_secs(left.unsigned_abs()) + DAY * SPREAD_DAYS;
    let is_served = || world.view.resolve(NAME).is_some();

    // Forward: by that clock it is due, and is renewed; once, however long that clock goes on.
    world.clock.set_ahead(ahead);
    worker.wake();
    let is_renewed =
        |order: &CertificateOrder| order.issued.len() == 2 && order.ask_again.is_none();
    let renewed = world.until_order(NAME, is_renewed).await;
    assert!(is_served() && left_s(&world, &renewed) > 0, "{renewed:?}");
    world.want("forward.example").await;
    worker.wake();
    world.until_served("forward.example").await;
    assert_eq!(fake.seen().placed, 3);

    // Right again: what that clock reckoned is reckoned anew.
    world.clock.set_ahead(Duration::ZERO);
    let right = reckoned(&world, &worker).await;
    assert!(is_served() && left_s(&world, &right) > LONG_S, "{right:?}");
    assert_eq!(right.rate_limited_until, None);

    // Back, before the certificate was ordered, and right once more.
    world.clock.set_back(90 * DAY);
    let back = reckoned(&world, &worker).await;
    assert!(is_served() && left_s(&world, &back) > LONG_S, "{back:?}");
    world.clock.set_ahead(Duration::ZERO);
    world.want("right.example").await;
    worker.wake();
    world.until_served("right.example").await;
    assert_eq!(fake.seen().placed, 4, "nothing but the one that is new was ordered");
    let order = world.order(NAME).await;
    assert!(is_served() && left_s(&world, &order) > LONG_S, "{order:?}");
    assert_eq!(order.issued.len(), 2, "{order:?}");

    // The time really comes.
    world.clock.turn(ahead + DAY);
    worker.wake();
    world.until_order(NAME, |order| order.issued.len() == 3).await;
    assert!(is_served());
}
