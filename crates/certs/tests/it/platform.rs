//! Certificates for names under the platform's own domain: each its own, until there is one for all.

use std::sync::Arc;
use std::time::Duration;

use perch_certs::{Issuer, PlatformNames, PlatformNamesConfig};
use perch_store::{Expected, ViewFollower, ViewHandle, delete_doc, get_doc, put_doc};
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, ChallengeMethod, OrderStep, platform_key,
};
use perch_types::directory::{AppDoc, Document as _, MachineRecord};
use perch_types::pulse::Watchdog;
use perch_types::{AppName, MachineId, OrgSlug, Timestamp};

use crate::fake::FakeIssuer;
use crate::world::{PATIENCE, World};

const DOMAIN: &str = "perch.example";

/// Makes an app; one that serves something has a machine with a service.
async fn app(world: &World, number: u64, name: &str, serves: bool) {
    let (org, app): (OrgSlug, AppName) = (OrgSlug::personal(), name.parse().unwrap());
    let document = AppDoc {
        id: format!("app_{name}"),
        number,
        name: app.clone(),
        org: org.clone(),
        network: "default".to_owned(),
        network_id: 1,
        role: None,
        created_at: Timestamp::UNIX_EPOCH,
    };
    let key = (org.clone(), app.clone());
    put_doc(world.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
    let id = MachineId::from_bits(number);
    let services = match serves {
        true => serde_json::json!([{"internal_port": 8080, "ports": []}]),
        false => serde_json::json!([]),
    };
    let record = serde_json::json!({
        "id": id, "org": org, "app": app, "name": "m", "host": "000000000001", "region": "ams",
        "instance": "00000000010000000000000001", "generation": {"incarnation": 1, "counter": 1},
        "state": "started", "ready": true, "private_ip": format!("fdaa::{number}"),
        "private_ipv4": format!("10.0.0.{number}"),
        "services": services, "image": "web:1", "cpus": 1, "memory_mb": 256,
        "created_at": Timestamp::UNIX_EPOCH, "updated_at": Timestamp::UNIX_EPOCH,
    });
    let path = MachineRecord::key(&(org, app, id));
    let value = serde_json::to_vec(&record).unwrap();
    world.store.put(&path, value.into(), Expected::Any).await.unwrap();
}

fn names(world: &World, apps: &ViewHandle) -> PlatformNames {
    PlatformNames::start(PlatformNamesConfig {
        store: Arc::clone(&world.store),
        apps: apps.clone(),
        clock: world.clock.clone(),
        domain: DOMAIN.to_owned(),
        pause: Duration::from_millis(10),
    })
}

async fn document(world: &World, app: &str) -> Option<CertificateDoc> {
    let key = (OrgSlug::personal(), app.parse().unwrap(), format!("{app}.{DOMAIN}"));
    let found = get_doc::<CertificateDoc>(world.store.as_ref(), &key).await.unwrap();
    found.map(|found| found.document)
}

/// Waits until what is wanted for an app's name is so.
async fn until(world: &World, app: &str, is_wanted: bool) {
    let mut changed = world.view.changed();
    let waiting = async {
        while document(world, app).await.is_some() != is_wanted {
            // A document alone is no news of the view: it is looked all the same.
            tokio::time::timeout(Duration::from_millis(20), changed.changed()).await.ok();
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn each_name_has_its_own_until_there_is_one_for_all() {
    let world = World::start();
    let apps = ViewFollower::start(Arc::clone(&world.store), world.folder.path().join("view"));
    let methods = [ChallengeMethod::Http, ChallengeMethod::Dns];
    let fake = Arc::new(FakeIssuer::new(&methods));
    let issuer: Arc<dyn Issuer> = fake.clone();
    app(&world, 1, "web", true).await;
    app(&world, 2, "idle", false).await;
    let keeper = names(&world, &apps);
    let worker = world.worker(&issuer, &world.store);
    world.until_served("web.perch.example").await;
    let wanted = document(&world, "web").await.unwrap();
    assert_eq!((wanted.app_id.as_str(), wanted.of_platform), ("app_web", true));
    assert!(document(&world, "idle").await.is_none());
    assert!(world.view.resolve("idle.perch.example").is_none());

    // The one for all waits for its record.
    let mut changed = world.view.changed();
    let waits = async {
        while order_for_all(&world).await.errors.is_empty() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    let waiting = order_for_all(&world).await;
    assert_eq!(
        (waiting.step, waiting.errors[0].code.as_str()),
        (OrderStep::Telling, "dns_record_missing")
    );
    world.zone.set("_acme-challenge.perch.example", "digest");
    world.clock.turn(Duration::from_secs(6));
    worker.wake();
    world.until_served("idle.perch.example").await;

    // Now it is enough; what another life of the process wrote down is known to the next.
    app(&world, 3, "late", true).await;
    drop(keeper);
    let keeper = names(&world, &apps);
    until(&world, "web", false).await;
    assert!(world.view.resolve("web.perch.example").is_some());
    assert!(document(&world, "late").await.is_none());
    assert_eq!(fake.seen().placed, 2);

    // It comes to its end without a new one: each name has its own again.
    drop((keeper, worker));
    world.clock.turn(Duration::from_secs(60 * 365 * 24 * 3_600));
    let _keeper = names(&world, &apps);
    until(&world, "web", true).await;
    until(&world, "late", true).await;
}

#[tokio::test]
async fn what_is_of_another_domain_or_of_an_app_that_is_gone_is_not_kept() {
    let world = World::start();
    let apps = ViewFollower::start(Arc::clone(&world.store), world.folder.path().join("view"));
    app(&world, 1, "web", true).await;
    // It was written down for an app of the same name, and when the domain was another.
    let mut document_before = CertificateDoc::new("app_before".to_owned(), Timestamp::UNIX_EPOCH);
    (document_before.acme_requested, document_before.of_platform) = (true, true);
    let key = |hostname: &str| {
        (OrgSlug::personal(), "web".parse::<AppName>().unwrap(), hostname.to_owned())
    };
    for hostname in ["web.perch.example", "web.older.example"] {
        let key = key(hostname);
        put_doc(world.store.as_ref(), &key, &document_before, Expected::Any).await.unwrap();
    }
    let _keeper = names(&world, &apps);
    let is_new = |found: Option<CertificateDoc>| found.is_some_and(|it| it.app_id == "app_web");
    let mut changed = world.view.changed();
    let renewed = async {
        while !is_new(document(&world, "web").await) {
            tokio::time::timeout(Duration::from_millis(20), changed.changed()).await.ok();
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    let older = get_doc::<CertificateDoc>(world.store.as_ref(), &key("web.older.example")).await;
    assert!(older.unwrap().is_none());
}

#[tokio::test]
async fn an_app_that_is_gone_leaves_no_certificate_and_no_order_behind() {
    let world = World::start();
    let apps = ViewFollower::start(Arc::clone(&world.store), world.folder.path().join("view"));
    app(&world, 1, "web", true).await;
    app(&world, 2, "stays", true).await;
    let _keeper = names(&world, &apps);
    until(&world, "web", true).await;
    until(&world, "stays", true).await;
    let key = (OrgSlug::personal(), "web".parse::<AppName>().unwrap());
    delete_doc::<AppDoc>(world.store.as_ref(), &key, Expected::Any).await.unwrap();
    until(&world, "web", false).await;
    let order = (key.0, key.1, "web.perch.example".to_owned());
    let order = get_doc::<CertificateOrder>(world.store.as_ref(), &order).await.unwrap();
    assert!(order.is_none());
    assert!(document(&world, "stays").await.is_some());
}

#[tokio::test]
async fn whoever_keeps_the_names_shows_that_it_turns() {
    let world = World::start();
    let apps = ViewFollower::start(Arc::clone(&world.store), world.folder.path().join("view"));
    let keeper = names(&world, &apps);
    let watchdog = Watchdog::new(1);
    watchdog.watch("names", keeper.pulse(), 0);
    // It does so again and again.
    for now_ms in [10, 20, 30] {
        let turns = async {
            while !watchdog.wedged(now_ms).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, turns).await.unwrap();
    }
}

async fn order_for_all(world: &World) -> CertificateOrder {
    let key = platform_key(DOMAIN).unwrap();
    let found = get_doc::<CertificateOrder>(world.store.as_ref(), &key).await.unwrap();
    found.unwrap().document
}
