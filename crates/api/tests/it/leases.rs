//! Leases: shapes, words, and that every endpoint which changes a machine asks for them.

use perch_store::get_doc;
use perch_types::api::{Lease, LeaseRequest};
use perch_types::directory::PlacementDoc;
use perch_types::endpoint::{self, LEASE_HEADER};
use perch_types::{ApiError, Code, MachineId, OrgSlug};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, request, shown, web};

async fn leased() -> (Cloud, MachineId, Lease) {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let id = cloud.machine(json!({"image": "web:1"})).await.id;
    let lease = cloud.admin.acquire_lease(&web(), &id, &ttl(60), None).await.unwrap();
    (cloud, id, lease)
}

fn ttl(seconds: u64) -> LeaseRequest {
    LeaseRequest { ttl: Some(seconds), description: None }
}

fn path(id: &MachineId) -> String {
    format!("/v1/apps/web/machines/{id}/lease")
}

fn code<T: std::fmt::Debug>(result: Result<T, perch_client::Error>) -> Option<Code> {
    result.unwrap_err().code()
}

#[tokio::test]
async fn a_lease_is_answered_in_its_envelope_and_beside_it() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let id = cloud.machine(json!({"image": "web:1"})).await.id;
    let body = r#"{"ttl":30,"description":"deploy"}"#;
    let (status, _, body) = cloud.raw(("POST", &path(&id)), Some(ADMIN), body).await;
    assert_eq!(status, 201);
    let value: Value = serde_json::from_slice(&body).unwrap();
    for (key, inner) in value["data"].as_object().unwrap() {
        assert_eq!(value[key], *inner, "{key}");
    }
    let ends = value["expires_at"].as_i64().unwrap() - cloud.clock.now_s();
    assert!((29..=30).contains(&ends), "{ends}");
    insta::assert_snapshot!(shown(&body, &["nonce", "expires_at", "version", "data"]), @r#"
    {
      "data": "[data]",
      "description": "deploy",
      "expires_at": "[expires_at]",
      "nonce": "[nonce]",
      "owner": "admin",
      "status": "success",
      "version": "[version]"
    }
    "#);
    let (status, _, read) = cloud.raw(("GET", &path(&id)), Some(ADMIN), "").await;
    assert_eq!((status, read), (200, body));
    // Other clients send the time in the query and no body.
    let other = cloud.machine(json!({"image": "web:1"})).await.id;
    let call = format!("{}?ttl=13", path(&other));
    assert_eq!(cloud.raw(("POST", &call), Some(ADMIN), "").await.0, 201);
    let ends = cloud.admin.lease(&web(), &other).await.unwrap().expires_at - cloud.clock.now_s();
    assert!((12..=13).contains(&ends), "{ends}");
}

#[tokio::test]
async fn a_lease_is_refreshed_with_its_nonce_and_released_with_it_alone() {
    let (cloud, id, lease) = leased().await;
    let longer = LeaseRequest { ttl: Some(600), description: None };
    let nonce = Some(lease.nonce.as_str());
    let refreshed = cloud.admin.acquire_lease(&web(), &id, &longer, nonce).await.unwrap();
    assert_eq!(refreshed.nonce, lease.nonce);
    assert!(refreshed.expires_at > lease.expires_at + 500);
    // To everybody else it is taken, in the words that clients look for.
    let (status, _, body) = cloud.raw(("POST", &path(&id)), Some(ADMIN), "").await;
    assert_eq!(status, 409);
    let value: Value = serde_json::from_slice(&body).unwrap();
    let text = value["error"].as_str().unwrap();
    assert!(text.contains("lease currently held by admin, expires at 20"), "{text}");
    assert_eq!((&value["message"], value["status"].as_str()), (&value["error"], Some("error")));
    let api = &cloud.admin;
    assert_eq!(
        code(api.acquire_lease(&web(), &id, &longer, Some("x")).await),
        Some(Code::LeaseHeld)
    );
    assert_eq!(code(api.release_lease(&web(), &id, "x").await), Some(Code::LeaseHeld));
    assert_eq!(cloud.raw(("DELETE", &path(&id)), Some(ADMIN), "").await.0, 409);
    api.release_lease(&web(), &id, &lease.nonce).await.unwrap();
    assert_eq!(code(api.lease(&web(), &id).await), Some(Code::LeaseNotFound));
    let (status, error) = cloud.error(("DELETE", &path(&id)), Some(ADMIN), "").await;
    assert_eq!(status, 404);
    assert!(error.error.contains("lease not found"), "{}", error.error);
}

#[tokio::test]
async fn a_lease_ends_by_itself_and_its_nonce_is_worth_nothing_then() {
    let (cloud, id, lease) = leased().await;
    cloud.turn(61_000);
    assert_eq!(code(cloud.admin.lease(&web(), &id).await), Some(Code::LeaseNotFound));
    let late = cloud.admin.holding(&lease.nonce).unwrap();
    assert_eq!(code(late.cordon(&web(), &id).await), Some(Code::LeaseLost));
    let again = cloud.admin.acquire_lease(&web(), &id, &ttl(9), Some(&lease.nonce)).await;
    assert_eq!(code(again), Some(Code::LeaseLost));
    cloud.admin.cordon(&web(), &id).await.unwrap();
    let other = cloud.admin.acquire_lease(&web(), &id, &ttl(9), None).await.unwrap();
    assert_ne!(other.nonce, lease.nonce);
    assert_eq!(code(late.cordon(&web(), &id).await), Some(Code::LeaseHeld));
    // One that nobody asks for again is collected.
    cloud.turn(10_000);
    cloud.until_empty_woken(&["leases/"]).await;
}

/// The table decides, so that a new endpoint cannot forget it.
#[tokio::test]
async fn every_endpoint_that_changes_a_machine_is_closed_while_somebody_holds_its_lease() {
    let (cloud, id, lease) = leased().await;
    let key = (OrgSlug::personal(), id.clone());
    let before = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    let mut closed = 0;
    for endpoint in endpoint::ALL.iter().filter(|it| it.path.contains("{machine}")) {
        let path = endpoint.path_of(&["web", id.as_str(), "key"]);
        let call = (endpoint.method, path.as_str());
        if !endpoint.needs_lease() {
            if endpoint.method == "GET" {
                let (status, _, body) = cloud.raw(call, Some(ADMIN), "").await;
                assert_ne!(status, 409, "{endpoint:?} {}", String::from_utf8_lossy(&body));
            }
            continue;
        }
        closed += 1;
        for nonce in [None, Some("wrong")] {
            let (status, body) = with_nonce(&cloud, call, nonce).await;
            let error: ApiError = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, error.code), (409, Code::LeaseHeld), "{endpoint:?}");
            assert!(error.error.contains("lease currently held by admin, expires at"));
        }
    }
    assert!(closed >= 8, "{closed}");
    assert!(cloud.host.commands.lock().unwrap().is_empty());
    let after = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!(before, after);
    let holder = cloud.admin.holding(&lease.nonce).unwrap();
    holder.cordon(&web(), &id).await.unwrap();
    holder.update_machine(&web(), &id, &request(json!({"image": "web:2"}))).await.unwrap();
    holder.stop(&web(), &id, &Default::default()).await.unwrap();
    holder.delete_machine(&web(), &id, true).await.unwrap();
}

async fn with_nonce(cloud: &Cloud, call: (&str, &str), nonce: Option<&str>) -> (u16, Vec<u8>) {
    let headers: &[(&str, &str)] = match nonce {
        Some(nonce) => &[(LEASE_HEADER, nonce)],
        None => &[],
    };
    let (status, _, body) = cloud.raw_with(call, Some(ADMIN), headers, "{}").await;
    (status, body)
}

#[tokio::test]
async fn a_creation_and_an_update_lease_the_machine_at_once() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let mut leased = request(json!({"image": "web:1"}));
    leased.lease_ttl = Some(40);
    let machine = cloud.admin.create_machine(&web(), &leased).await.unwrap();
    let nonce = machine.nonce.unwrap();
    assert_eq!(cloud.admin.lease(&web(), &machine.id).await.unwrap().nonce, nonce);
    assert_eq!(code(cloud.admin.start(&web(), &machine.id).await), Some(Code::LeaseHeld));
    // The same lease for longer, through an update.
    leased.lease_ttl = Some(4000);
    let holder = cloud.admin.holding(&nonce).unwrap();
    let updated = holder.update_machine(&web(), &machine.id, &leased).await.unwrap();
    assert_eq!(updated.nonce.as_deref(), Some(nonce.as_str()));
    let lease = cloud.admin.lease(&web(), &machine.id).await.unwrap();
    assert!(lease.expires_at > cloud.clock.now_s() + 3900);
    assert_eq!(lease.version, updated.instance_id);
    // A new one, through an update of a machine that nobody leased; none when it is refused.
    cloud.admin.release_lease(&web(), &machine.id, &nonce).await.unwrap();
    cloud.host.refuses_updates.store(true, std::sync::atomic::Ordering::Relaxed);
    cloud.admin.update_machine(&web(), &machine.id, &leased).await.unwrap_err();
    assert_eq!(code(cloud.admin.lease(&web(), &machine.id).await), Some(Code::LeaseNotFound));
    cloud.host.refuses_updates.store(false, std::sync::atomic::Ordering::Relaxed);
    let updated = cloud.admin.update_machine(&web(), &machine.id, &leased).await.unwrap();
    assert_ne!(updated.nonce.unwrap(), nonce);
}

#[tokio::test]
async fn a_lease_goes_with_its_machine() {
    let (cloud, id, lease) = leased().await;
    let holder = cloud.admin.holding(&lease.nonce).unwrap();
    holder.delete_machine(&web(), &id, true).await.unwrap();
    cloud.host.machines.lock().unwrap().clear();
    cloud.until_empty_woken(&["placements/", "leases/"]).await;
}

/// Leases and updates at once: one lease, and every update that was answered is one epoch.
#[tokio::test]
async fn of_fifty_leases_and_updates_none_is_lost() {
    let (cloud, id, lease) = leased().await;
    cloud.admin.release_lease(&web(), &id, &lease.nonce).await.unwrap();
    let (winners, refused) = race(&cloud, &id, |index| index % 2 == 0).await;
    let leases = winners.iter().filter(|won| won.len() == lease.nonce.len()).count();
    assert_eq!(leases, 1, "{winners:?}");
    let told = |code: &Code| matches!(code, Code::LeaseHeld | Code::Conflict);
    assert!(refused.iter().all(told), "{refused:?}");
    let key = (OrgSlug::personal(), id.clone());
    let placed = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    let written = u64::try_from(winners.len()).unwrap();
    assert_eq!(placed.document.epoch, written, "the first version, then the updates");
}

/// 50 clients at once: one gets the lease.
#[tokio::test]
async fn of_fifty_at_once_one_gets_the_lease() {
    let (cloud, id, lease) = leased().await;
    cloud.admin.release_lease(&web(), &id, &lease.nonce).await.unwrap();
    let (winners, refused) = race(&cloud, &id, |_| true).await;
    assert_eq!(winners.len(), 1);
    assert!(refused.iter().all(|code| *code == Code::LeaseHeld), "{refused:?}");
    assert_eq!(cloud.admin.lease(&web(), &id).await.unwrap().nonce, winners[0]);
}

/// Has 50 clients acquire the lease or update the machine; returns what the winners got and why
/// the others were refused.
async fn race(
    cloud: &Cloud,
    id: &MachineId,
    leases: impl Fn(usize) -> bool,
) -> (Vec<String>, Vec<Code>) {
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..50 {
        let (api, id, leases) = (cloud.admin.clone(), id.clone(), leases(index));
        tasks.spawn(async move {
            if leases {
                api.acquire_lease(&web(), &id, &ttl(60), None).await.map(|lease| lease.nonce)
            } else {
                let update = request(json!({"image": format!("web:{index}")}));
                let updated = api.update_machine(&web(), &id, &update).await;
                updated.map(|machine| machine.instance_id.to_string())
            }
        });
    }
    let (mut winners, mut refused) = (Vec::new(), Vec::new());
    while let Some(result) = tasks.join_next().await {
        match result.unwrap() {
            Ok(won) => winners.push(won),
            Err(error) => refused.push(error.code().unwrap()),
        }
    }
    (winners, refused)
}

/// 50 clients that have read the same version at once: one update is written, the others are told.
#[tokio::test]
async fn of_fifty_updates_of_one_version_one_is_written() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let mut expected = machine.instance_id.clone();
    for round in 0..2 {
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..50 {
            let (api, id) = (cloud.admin.clone(), machine.id.clone());
            let mut update = request(json!({"image": format!("web:{round}-{index}")}));
            update.current_version = Some(expected.to_string());
            tasks.spawn(async move { api.update_machine(&web(), &id, &update).await });
        }
        let mut won = Vec::new();
        while let Some(result) = tasks.join_next().await {
            match result.unwrap() {
                Ok(updated) => won.push(updated),
                Err(error) => assert_eq!(error.code(), Some(Code::PreconditionFailed), "{error}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        expected = won[0].instance_id.clone();
        let read = cloud.admin.machine(&web(), &machine.id).await.unwrap();
        assert_eq!((&read.instance_id, &read.config), (&expected, &won[0].config));
    }
    let key = (OrgSlug::personal(), machine.id.clone());
    let placed = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!((placed.document.epoch, placed.document.instance), (3, expected));
}

/// Whatever people do to the clock, a lease is its holder's or nobody's and ends by itself, and no
/// change that was answered is lost.
#[tokio::test]
async fn a_clock_set_back_and_forward_neither_prolongs_a_lease_nor_loses_an_update() {
    let (cloud, id, mut lease) = leased().await;
    let stranger = &cloud.admin;
    // A clock that is corrected takes nobody's lease away.
    cloud.set_wall(-2_000);
    cloud.admin.holding(&lease.nonce).unwrap().cordon(&web(), &id).await.unwrap();
    assert_eq!(code(stranger.cordon(&web(), &id).await), Some(Code::LeaseHeld));
    let hour_ms = 3_600_000;
    let steps = [-12, 12, 12, -12, -24 * 365, 2 * 24 * 365, -24 * 365];
    for step in steps {
        cloud.set_wall(step * hour_ms);
        let late = cloud.admin.holding(&lease.nonce).unwrap();
        assert_eq!(code(late.cordon(&web(), &id).await), Some(Code::LeaseLost), "{step}");
        stranger.cordon(&web(), &id).await.unwrap();
        let next = stranger.acquire_lease(&web(), &id, &ttl(60), None).await.unwrap();
        assert_ne!(next.nonce, lease.nonce, "{step}");
        let ends = next.expires_at - cloud.clock.now_s();
        assert!(ends <= 60, "{step}: {ends}");
        let update = request(json!({"image": format!("web:{step}").replace('-', "m")}));
        assert_eq!(code(late.update_machine(&web(), &id, &update).await), Some(Code::LeaseHeld));
        let holder = cloud.admin.holding(&next.nonce).unwrap();
        holder.update_machine(&web(), &id, &update).await.unwrap();
        lease = next;
    }
    let key = (OrgSlug::personal(), id.clone());
    let placed = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!(placed.document.epoch, 1 + u64::try_from(steps.len()).unwrap());
    // One that is left to itself after the clock was set back is collected.
    cloud.set_wall(-12 * hour_ms);
    cloud.until_empty_woken(&["leases/"]).await;
}
