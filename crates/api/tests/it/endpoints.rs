//! Every entry of the endpoint table: served, called by the client, closed to strangers.

use std::time::Duration;

use perch_client::{ListFilter, Page, ProcessOrder, WaitFor, body_of};
use perch_types::api::{ExecRequest, LeaseRequest, StopRequest, UpdateMetadata};
use perch_types::build::BuildRequest;
use perch_types::certificates::CreateAcmeCertificate;
use perch_types::endpoint::{self, Action, Endpoint};
use perch_types::exec::ExecSpec;
use perch_types::host::LogsQuery;
use perch_types::ips::{AssignIp, IpType};
use perch_types::machine_config::Signal;
use perch_types::secret_keys::{Decrypt, Encrypt, SecretKeyType, SetSecretKey, Sign, Verify};
use perch_types::secrets::{SetSecret, UpdateSecrets};
use perch_types::{AppName, Code, Octets, OrgSlug, Secret};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, STRANGER, request};

const ID: &str = "00000000000001";
/// Endpoints that answer nothing without a body of their own.
const ABOUT_TOKENS: [Endpoint; 4] = [
    endpoint::TOKEN_OIDC,
    endpoint::TOKENS_AUTHENTICATE,
    endpoint::TOKENS_AUTHORIZE,
    endpoint::TOKEN_KMS,
];

/// T1: no token, no answer.
#[tokio::test]
async fn t1_every_endpoint_is_closed_without_a_token() {
    let cloud = Cloud::start().await;
    for endpoint in endpoint::ALL.iter().filter(|it| it.action != Action::Public) {
        let path = endpoint.path_of(&["web", ID, "key"]);
        // Each with another text, because failures of one are counted.
        for token in [None, Some(endpoint.path)] {
            let (status, error) = cloud.error((endpoint.method, &path), token, "").await;
            assert_eq!(status, 401, "{endpoint:?}");
            assert_eq!(error.code, Code::Unauthenticated);
            assert!(error.request.is_some());
        }
    }
}

/// T2: what counts is whose the object is, not that the token is a good one.
#[tokio::test]
async fn t2_every_endpoint_of_an_object_is_closed_to_another_organization() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    for endpoint in endpoint::ALL.iter().filter(|it| it.action != Action::Public) {
        let path = match endpoint.path.contains("{org}") {
            true => endpoint.path_of(&["personal"]),
            false => endpoint.path_of(&["web", machine.id.as_str(), "key"]),
        };
        let (status, _, body) = cloud
            .raw(
                (endpoint.method, &path),
                Some(STRANGER),
                r#"{"name":"other","org_slug":"personal"}"#,
            )
            .await;
        let text = String::from_utf8(body).unwrap();
        if *endpoint == endpoint::APP_GET || endpoint.action == Action::Operate {
            assert_eq!(status, 403, "{endpoint:?} {text}");
        } else if endpoint.path.contains("{app}") {
            assert_eq!(status, 404, "{endpoint:?} {text}");
            assert!(text.contains("Could not find App"), "{text}");
        } else if endpoint.path.contains("{org}") {
            assert_eq!(status, 404, "{endpoint:?} {text}");
            assert!(text.contains("org_slug"), "{text}");
        } else if [endpoint::APPS_CREATE, endpoint::PLACEMENTS].contains(endpoint) {
            // The organization is not theirs.
            assert_eq!(status, 403, "{endpoint:?} {text}");
        } else if ABOUT_TOKENS.contains(endpoint) {
            // They are about nothing but what the body has.
            assert!((400..500).contains(&status), "{endpoint:?} {text}");
        } else {
            assert_eq!(status, 200, "{endpoint:?} {text}");
            assert!(!text.contains("\"web\""), "{endpoint:?} {text}");
        }
    }
    // A machine is reached through its own app only.
    let other = perch_types::api::CreateApp {
        name: Some("other".to_owned()),
        ..perch_types::api::CreateApp::default()
    };
    cloud.admin.create_app(&other).await.unwrap();
    let other = "other".parse().unwrap();
    let error = cloud.admin.machine(&other, &machine.id).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::MachineNotFound));
    assert!(cloud.host.commands.lock().unwrap().is_empty());
}

#[tokio::test]
async fn every_endpoint_is_served_and_has_a_call_of_the_client() {
    let cloud = Cloud::start().await;
    let (api, app) = (&cloud.admin, cloud.app().await);
    api.apps(None).await.unwrap();
    api.app(&app).await.unwrap();
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let id = &machine.id;
    let all = api.machines(&app, &ListFilter::default()).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(api.machine(&app, id).await.unwrap().name, machine.name);
    api.update_machine(&app, id, &request(json!({"image": "web:2"}))).await.unwrap();
    let lease = LeaseRequest { ttl: Some(60), description: Some("a test".to_owned()) };
    let lease = api.acquire_lease(&app, id, &lease, None).await.unwrap();
    assert_eq!(api.lease(&app, id).await.unwrap(), lease);
    api.cordon(&app, id).await.unwrap_err();
    api.holding(&lease.nonce).unwrap().cordon(&app, id).await.unwrap();
    api.release_lease(&app, id, &lease.nonce).await.unwrap();
    api.cordon(&app, id).await.unwrap();
    assert!(api.machine(&app, id).await.unwrap().cordoned);
    api.uncordon(&app, id).await.unwrap();
    let labels = |of: &[(&str, &str)]| -> UpdateMetadata {
        let of = of.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
        UpdateMetadata { metadata: of.collect(), ..UpdateMetadata::default() }
    };
    api.replace_metadata(&app, id, &labels(&[("a", "1")])).await.unwrap();
    api.merge_metadata(&app, id, &labels(&[("b", "2")])).await.unwrap();
    api.set_metadata(&app, id, ("c/d e", "3")).await.unwrap();
    assert_eq!(api.metadata_value(&app, id, "c/d e").await.unwrap(), "3");
    api.delete_metadata(&app, id, "b").await.unwrap();
    let keys: Vec<_> = api.metadata(&app, id).await.unwrap().into_keys().collect();
    assert_eq!(keys, ["a", "c/d e"]);
    assert_eq!(api.versions(&app, id).await.unwrap().len(), 2);
    let (org, all, first) = (OrgSlug::personal(), ListFilter::default(), Page::default());
    let of_org = api.org_machines(&org, &all, &first).await.unwrap();
    assert_eq!(of_org.machines[0].id, *id);
    api.signal(&app, id, Signal::SigHup).await.unwrap();
    api.restart(&app, id, true, None).await.unwrap();
    api.suspend(&app, id).await.unwrap();
    assert_eq!(api.machine(&app, id).await.unwrap().state.as_str(), "suspended");
    let stop = StopRequest { signal: Some(Signal::SigTerm), timeout: None };
    api.stop(&app, id, &stop).await.unwrap();
    let started = api.start(&app, id).await.unwrap();
    assert_eq!(started.previous_state.as_str(), "stopped");
    let wait = WaitFor { timeout: Duration::from_secs(5), ..WaitFor::default() };
    assert_eq!(api.wait(&app, id, &wait).await.unwrap().state.as_str(), "started");
    let exec = ExecRequest { cmd: Some("echo 'a b'".to_owned()), ..ExecRequest::default() };
    assert_eq!(api.exec(&app, id, &exec).await.unwrap().stdout, "echo|a b");
    let exec = ExecRequest { container: Some("db".to_owned()), ..exec };
    assert_eq!(api.exec(&app, id, &exec).await.unwrap().stdout, "db: echo|a b");
    let spec = ExecSpec { command: vec!["sh".to_owned()], ..ExecSpec::default() };
    drop(api.attach(&app, id, &spec).await.unwrap());
    let order = ProcessOrder { sort_by: Some("rss".to_owned()), descending: true };
    let found = api.processes(&app, id, &order).await.unwrap();
    assert_eq!(found.iter().map(|process| process.pid).collect::<Vec<_>>(), [7, 1]);
    assert_eq!(api.memory(&app, id).await.unwrap().limit_mb, 256);
    assert_eq!(api.set_memory(&app, id, 128).await.unwrap().limit_mb, 128);
    assert_eq!(api.reclaim_memory(&app, id, 10).await.unwrap().actual_mb, 9);
    assert!(!api.events(&app, id, Some(1)).await.unwrap().is_empty());
    let mut logs = api.logs(&app, id, &LogsQuery::default()).await.unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap().seq, 0);
    assert_eq!(api.app_logs(&app, None).await.unwrap().data.len(), 10);
    let set = SetSecret { value: Secret::new("x") };
    assert_eq!(api.set_secret(&app, "A", &set).await.unwrap().version, 1);
    assert_eq!(api.secret(&app, "A").await.unwrap().name, "A");
    assert_eq!(api.secrets(&app).await.unwrap().secrets.len(), 1);
    let values = [("A".to_owned(), Some(Secret::new("y")))].into();
    assert_eq!(api.update_secrets(&app, &UpdateSecrets { values }).await.unwrap().version, 2);
    assert_eq!(api.delete_secret(&app, "A").await.unwrap().version, 3);
    keys_and_addresses(api, &app).await;
    let build = BuildRequest { tag: "v1".to_owned(), ..BuildRequest::default() };
    let built = api.build(&app, &build, body_of("tar")).await;
    assert_eq!(built.unwrap_err().code(), Some(Code::Unavailable));
    assert_eq!(api.bootstrap_images(false).await.unwrap_err().code(), Some(Code::Unavailable));
    assert_eq!(api.regions().await.unwrap().nearest.as_str(), "fra");
    assert_eq!(api.platform().await.unwrap().domain, "perch.test");
    let images: Vec<_> =
        api.images().await.unwrap().images.into_iter().map(|image| image.repository).collect();
    assert_eq!(images, ["base/library/debian", "web"]);
    assert_eq!(api.current_tokens().await.unwrap().tokens[0].name, "admin");
    api.delete_machine(&app, id, true).await.unwrap();
    api.delete_app(&app).await.unwrap();
}

async fn keys_and_addresses(api: &perch_client::Api, app: &AppName) {
    let of = |kind| SetSecretKey { kind, value: None };
    let sealing = api.set_secret_key(app, "box", &of(SecretKeyType::NaclBox)).await.unwrap();
    assert_eq!((sealing.version, sealing.key.public_key.unwrap().len()), (4, 32));
    let signing = SetSecretKey { kind: SecretKeyType::Hs256, value: Some(vec![7; 32].into()) };
    assert_eq!(api.set_secret_key(app, "sig", &signing).await.unwrap().version, 5);
    assert_eq!(api.secret_keys(app).await.unwrap().secret_keys.len(), 2);
    assert_eq!(api.secret_key(app, "sig").await.unwrap().kind, SecretKeyType::Hs256);
    let plaintext = Octets::from(b"text".to_vec());
    let encrypt = Encrypt { plaintext: plaintext.clone(), ..Encrypt::default() };
    let ciphertext = api.encrypt(app, "box", &encrypt).await.unwrap().ciphertext;
    let decrypt = Decrypt { ciphertext, ..Decrypt::default() };
    assert_eq!(api.decrypt(app, "box", &decrypt).await.unwrap().plaintext, plaintext);
    let sign = Sign { plaintext: plaintext.clone() };
    let signature = api.sign(app, "sig", &sign).await.unwrap().signature;
    api.verify(app, "sig", &Verify { plaintext, signature }).await.unwrap();
    assert_eq!(api.delete_secret_key(app, "sig").await.unwrap().version, 6);
    let wanted = AssignIp { kind: IpType::V6, ..AssignIp::default() };
    let ip = api.assign_ip(app, &wanted).await.unwrap().ip;
    assert_eq!(api.ips(app).await.unwrap().ips[0].ip, ip);
    api.release_ip(app, ip).await.unwrap();
    certificates(api, app).await;
}

async fn certificates(api: &perch_client::Api, app: &AppName) {
    let name = "shop.example";
    let wanted = CreateAcmeCertificate { hostname: name.to_owned() };
    assert!(api.order_certificate(app, &wanted).await.unwrap().acme_requested);
    let own = crate::certificates::own(name, 9);
    api.import_certificate(app, &own).await.unwrap();
    assert_eq!(api.certificates(app, None, 5).await.unwrap().total_count, 1);
    assert_eq!(api.certificate(app, name).await.unwrap().certificates.len(), 2);
    api.check_certificate(app, name).await.unwrap();
    api.remove_ordered_certificate(app, name).await.unwrap();
    let removed = api.remove_imported_certificate(app, name).await.unwrap();
    assert!(removed.warning.contains(name), "{}", removed.warning);
    api.remove_certificate(app, name).await.unwrap();
}

/// The calls above are those of the table: none is missing, none is served beside it.
#[tokio::test]
async fn every_entry_of_the_table_answers_something_else_than_an_unknown_path() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let last = [endpoint::MACHINE_DELETE, endpoint::APP_DELETE];
    let first = endpoint::ALL.iter().filter(|it| !last.contains(it));
    for endpoint in first.chain(&last) {
        let path = endpoint.path_of(&["web", machine.id.as_str(), "key"]);
        let (status, headers, body) = cloud.raw((endpoint.method, &path), Some(ADMIN), "{}").await;
        let text = String::from_utf8_lossy(&body);
        assert!(!text.contains("no such path"), "{endpoint:?} {text}");
        assert_ne!(status, 405, "{endpoint:?} {text}");
        assert_eq!(headers["fly-request-id"].len(), 26, "{endpoint:?}");
    }
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let cloud = Cloud::start().await;
    let (status, error) = cloud.error(("GET", "/v1/nothing"), None, "").await;
    assert_eq!((status, error.code), (404, Code::NotFound));
    let (status, error) = cloud.error(("PUT", "/v1/apps"), Some(ADMIN), "").await;
    assert_eq!((status, error.code), (405, Code::MethodNotAllowed));
}

#[tokio::test]
async fn t3_tokens_end_and_several_in_a_header_are_as_good_as_the_best() {
    let cloud = Cloud::start().await;
    let soon = cloud.clock_plus(5_000);
    cloud.token("perch_short", "personal", Some(soon)).await;
    let current = ("GET", "/v1/tokens/current");
    assert_eq!(cloud.raw(current, Some("perch_short"), "").await.0, 200);
    cloud.turn(6_000);
    assert_eq!(cloud.raw(current, Some("perch_short"), "").await.0, 401);
    assert_eq!(cloud.raw(current, Some(&format!("wrong,{ADMIN}")), "").await.0, 200);
    // Another administrator's token ends the first.
    cloud.api.ensure_admin_token(&crate::cloud::hash("perch_new")).await.unwrap();
    assert_eq!(cloud.raw(current, Some("perch_new"), "").await.0, 200);
    assert_eq!(cloud.raw(current, Some(ADMIN), "").await.0, 401);
    cloud.api.ensure_admin_token("zz").await.unwrap_err();
    let principal = cloud.api.identity().authenticate("perch_new").await.unwrap().unwrap();
    assert!(principal.operator && principal.org.as_str() == "personal");
    assert!(cloud.keys("tokens/").await.iter().all(|key| !key.contains("perch_")));
}

#[tokio::test]
async fn t7_a_token_that_fails_again_and_again_is_told_to_wait() {
    let cloud = Cloud::start().await;
    let mut statuses = Vec::new();
    for _ in 0..25 {
        statuses.push(cloud.raw(("GET", "/v1/apps"), Some("guess"), "").await.0);
    }
    assert_eq!(statuses[19..22], [401, 429, 429]);
    assert_eq!(cloud.raw(("GET", "/v1/apps"), Some(ADMIN), "").await.0, 200);
    cloud.turn(61_000);
    assert_eq!(cloud.raw(("GET", "/v1/apps"), Some("guess"), "").await.0, 401);
}
