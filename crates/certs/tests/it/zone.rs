//! Orders whose challenge the platform answers in a zone of its own: nobody sets a record but once.

use std::sync::Arc;
use std::time::Duration;

use perch_certs::{Issuer, dns};
use perch_types::certificate_docs::{ChallengeMethod, OrderStep};
use perch_types::clock::Clock as _;

use crate::fake::FakeIssuer;
use crate::world::{PATIENCE, World, ZONE};

/// Long enough for an order to look again for what it waits for.
const A_LITTLE: Duration = Duration::from_secs(6);

fn lead(world: &World, hostname: &str) {
    let target = dns::challenge_target(Some(ZONE), "app_1", hostname);
    world.zone.lead(&dns::challenge_name(hostname), &target);
}

#[tokio::test]
async fn a_wildcard_is_got_and_renewed_by_a_record_that_was_set_once() {
    let world = World::start();
    world.zone.serve(&world.view);
    let fake = Arc::new(FakeIssuer::new(&[ChallengeMethod::Http, ChallengeMethod::Dns]));
    let issuer: Arc<dyn Issuer> = fake.clone();
    world.want("*.shop.example").await;
    let worker = world.worker(&issuer, &world.store);
    let waits = world.until_order("*.shop.example", |order| !order.errors.is_empty()).await;
    assert_eq!(waits.errors[0].code, "dns_record_missing");
    assert!(waits.errors[0].remediation.contains("CNAME"), "{waits:?}");
    // What would be told is there already, for who looks.
    let label = dns::challenge_label("app_1", "*.shop.example");
    assert_eq!(world.view.texts(&label), ["digest"]);
    lead(&world, "*.shop.example");
    world.clock.turn(A_LITTLE);
    worker.wake();
    world.until_served("any.shop.example").await;
    let order = world.until_order("*.shop.example", |it| it.step == OrderStep::Due).await;
    let mut changed = world.view.changed();
    let ended = async {
        while !world.view.texts(&label).is_empty() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    // A worker that begins anew, as after a kill, finds all of it in the directory.
    drop(worker);
    let left = order.due.unix_s() - world.clock.now().unix_s();
    world.clock.turn(Duration::from_secs(left.unsigned_abs()) + A_LITTLE);
    let _worker = world.worker(&issuer, &world.store);
    let renewed = world.until_order("*.shop.example", |order| order.issued.len() == 2).await;
    assert!(renewed.errors.is_empty() && renewed.failures == 0, "{renewed:?}");
    assert_eq!(fake.seen().finalized, 2);
}

#[tokio::test]
async fn a_name_that_leads_to_the_zone_needs_no_address_and_else_one() {
    let world = World::start();
    world.zone.serve(&world.view);
    let issuer: Arc<dyn Issuer> =
        Arc::new(FakeIssuer::new(&[ChallengeMethod::Http, ChallengeMethod::Dns]));
    for hostname in ["nowhere.a.example", "nowhere.b.example"] {
        world.want(hostname).await;
    }
    lead(&world, "nowhere.a.example");
    // One of another app shows nothing of this one.
    let others = dns::challenge_target(Some(ZONE), "app_2", "nowhere.b.example");
    world.zone.lead("_acme-challenge.nowhere.b.example", &others);
    let _worker = world.worker(&issuer, &world.store);
    world.until_served("nowhere.a.example").await;
    let waits = world.until_order("nowhere.b.example", |order| !order.errors.is_empty()).await;
    assert_eq!(waits.errors[0].code, "dns_not_configured");
}
