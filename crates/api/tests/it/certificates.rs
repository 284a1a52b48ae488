//! Certificates: wanted, uploaded, looked at, taken away; whose a host name is.

use std::time::Duration;

use perch_certs::EdgeKey;
use perch_store::{Expected, get_doc, put_doc};
use perch_types::api::CreateApp;
use perch_types::certificate_docs::{
    self, CertificateDoc, CertificateOrder, ChallengeAnswer, ChallengeMethod, OrderStep,
    ServedCertificate,
};
use perch_types::certificates::{CertificateSource, CreateCustomCertificate, RecordType};
use perch_types::directory::HostnameClaim;
use perch_types::{AppName, OrgSlug, Secret};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, STRANGER, web};

const CERTIFICATES: &str = "/v1/apps/web/certificates";

/// Returns a certificate for a host name that ends in some month of the clock's year after next.
pub(crate) fn own(hostname: &str, month: u8) -> CreateCustomCertificate {
    let mut params = CertificateParams::new(vec![hostname.to_owned()]).unwrap();
    params.not_after = date_time_ymd(2025, month, 1);
    let key = KeyPair::generate().unwrap();
    CreateCustomCertificate {
        hostname: hostname.to_owned(),
        fullchain: params.self_signed(&key).unwrap().pem(),
        private_key: Secret::new(key.serialize_pem()),
    }
}

async fn ask_as(
    cloud: &Cloud,
    token: &str,
    (method, path): (&str, &str),
    body: Value,
) -> (u16, Value) {
    let (status, _, body) = cloud.raw((method, path), Some(token), body.to_string()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn ask(cloud: &Cloud, method: &str, path: &str, body: Value) -> (u16, Value) {
    ask_as(cloud, ADMIN, (method, &format!("{CERTIFICATES}{path}")), body).await
}

async fn order(cloud: &Cloud, hostname: &str) -> Option<CertificateOrder> {
    let key = (OrgSlug::personal(), web(), hostname.to_owned());
    let found = get_doc::<CertificateOrder>(cloud.store.as_ref(), &key).await.unwrap();
    found.map(|found| found.document)
}

async fn claim(cloud: &Cloud, hostname: &str) -> Option<AppName> {
    let found = get_doc::<HostnameClaim>(cloud.store.as_ref(), &(hostname.to_owned(),)).await;
    found.unwrap().map(|found| found.document.app)
}

#[tokio::test]
async fn a_certificate_is_wanted_looked_at_and_removed() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = json!({"hostname": "Shop.Example."}).to_string();
    let path = format!("{CERTIFICATES}/acme");
    let (status, _, body) = cloud.raw(("POST", &path), Some(ADMIN), body).await;
    assert_eq!(status, 201);
    let mut detail: Value = serde_json::from_slice(&body).unwrap();
    let value = detail["dns_requirements"]["ownership"]["app_value"].take();
    assert!(value.as_str().unwrap().starts_with("app-"), "{value}");
    assert!(detail["certificates"][0]["created_at"].take().is_string());
    let wanted = json!({
        "hostname": "shop.example",
        "configured": false,
        "acme_requested": true,
        "status": "pending_validation",
        "dns_provider": "",
        "certificates": [{
            "source": "fly", "status": "pending_validation", "created_at": null, "issuer": "",
            "issued": [],
        }],
        "validation": {
            "dns_configured": false, "alpn_configured": false, "http_configured": false,
            "ownership_txt_configured": false,
        },
        "dns_requirements": {
            "a": ["192.0.2.1"],
            "aaaa": ["2001:db8::1"],
            "cname": "web.perch.test",
            "acme_challenge": {"name": "_acme-challenge.shop.example", "target": "", "txt": ""},
            "ownership": {
                "name": "_fly-ownership.shop.example", "app_value": null,
                "org_value": "org-personal",
            },
        },
        "validation_errors": [],
    });
    assert_eq!(detail, wanted);
    assert_eq!(order(&cloud, "shop.example").await.unwrap().step, OrderStep::Due);
    assert_eq!(claim(&cloud, "shop.example").await, Some(web()));
    // Once more it is the same one.
    let (status, again) = ask(&cloud, "POST", "/acme", json!({"hostname": "shop.example"})).await;
    assert_eq!((status, &again["hostname"]), (201, &json!("shop.example")));
    assert_eq!(ask(&cloud, "GET", "/shop.example", json!({})).await, (200, again));
    assert_eq!(ask(&cloud, "DELETE", "/shop.example", json!({})).await.0, 204);
    assert_eq!(ask(&cloud, "DELETE", "/shop.example", json!({})).await.0, 404);
    cloud.until_empty(&["certificates/", "names/hosts/"]).await;
}

#[tokio::test]
async fn e9_an_uploaded_certificate_is_kept_sealed_for_edges() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = own("*.shop.example", 9);
    let detail = cloud.admin.import_certificate(&web(), &body).await.unwrap();
    let text = serde_json::to_value(&detail).unwrap();
    assert_eq!(text["status"], "active");
    assert_eq!(text["certificates"][0]["source"], "custom");
    assert_eq!(text["certificates"][0]["issued"][0]["type"], "ecdsa");
    assert_eq!(text["certificates"][0]["expires_at"], "2025-09-01T00:00:00.000Z");
    assert_eq!(claim(&cloud, "*.shop.example").await, Some(web()));
    let name = "*.shop.example".to_owned();
    let key = (OrgSlug::personal(), web(), name.clone(), CertificateSource::Custom);
    let found = get_doc::<ServedCertificate>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    let line = body.private_key.expose().lines().nth(1).unwrap();
    let entries = cloud.store.list("").await.unwrap().entries;
    assert!(entries.iter().all(|it| !String::from_utf8_lossy(&it.value).contains(line)));
    // Whoever has the edges' key opens it, for that host name.
    let edge = EdgeKey::open(cloud.folder.path()).unwrap();
    assert!(!edge.public().to_base64().is_empty());
    assert!(found.document.sealed_key.len() > 100);
    let removed = cloud.admin.remove_imported_certificate(&web(), &name).await.unwrap();
    assert!(
        removed.warning.contains("perch certs add") && removed.certificate.certificates.is_empty()
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_by_its_field() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let good = own("shop.example", 9);
    let with = |field: &str, value: &str| {
        let mut body = serde_json::to_value(&good).unwrap();
        body[field] = json!(value);
        body
    };
    let ended = own("shop.example", 1);
    let mut ended = serde_json::to_value(&ended).unwrap();
    let mut params = CertificateParams::new(vec!["shop.example".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2023, 1, 1);
    let past = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    ended["fullchain"] = json!(past.pem());
    for (path, body, want) in [
        ("/acme", json!({}), "400 invalid_request .: missing field `hostname`"),
        ("/acme", json!({"hostname": "web"}), "422 invalid_value hostname: `web` is not a full"),
        (
            "/acme",
            json!({"hostname": "192.0.2.1"}),
            "422 invalid_value hostname: `192.0.2.1` is an",
        ),
        (
            "/acme",
            json!({"hostname": "a_b.c"}),
            "422 invalid_value hostname: `a_b.c` is not labels",
        ),
        (
            "/acme",
            json!({"hostname": "web.perch.test"}),
            "422 invalid_value hostname: `web.perch.test` is the platform's own",
        ),
        (
            "/acme",
            json!({"hostname": "*.perch.test"}),
            "422 invalid_value hostname: `*.perch.test` is the platform's own",
        ),
        (
            "/acme",
            json!({"hostname": "api.perch.example"}),
            "422 invalid_value hostname: `api.perch.example` is the platform's own",
        ),
        (
            "/acme",
            json!({"hostname": "*.api.perch.example"}),
            "422 invalid_value hostname: `*.api.perch.example` is the platform's own",
        ),
        ("/custom", with("hostname", "other.example"), "422 invalid_value fullchain: is for shop"),
        (
            "/custom",
            with("fullchain", "nonsense"),
            "422 invalid_value fullchain: has no certificate",
        ),
        ("/custom", with("private_key", "nonsense"), "422 invalid_value private_key: is not a"),
        (
            "/custom",
            with("private_key", own("a.b", 9).private_key.expose()),
            "422 invalid_value private_key: is not the key of the first",
        ),
        ("/custom", ended, "422 invalid_value fullchain: ended at 2023-01-01"),
        ("/nothing.example/check", json!({}), "404 not_found hostname: the app has no"),
    ] {
        let path = format!("{CERTIFICATES}{path}");
        let (status, error) = cloud.error(("POST", &path), Some(ADMIN), body.to_string()).await;
        let text = format!("{status} {} {}", error.code, error.error);
        assert!(text.starts_with(want), "{want}: {text}");
    }
    for query in ["limit=0", "limit=501", "limit=x"] {
        let path = format!("{CERTIFICATES}?{query}");
        let (status, error) = cloud.error(("GET", &path), Some(ADMIN), "").await;
        assert_eq!(status, 400, "{error}");
        assert!(error.error.starts_with("limit: "), "{error}");
    }
    assert!(cloud.keys("certificates/").await.is_empty());
    assert!(cloud.keys("names/hosts/").await.is_empty());
}

#[tokio::test]
async fn certificates_are_listed_page_by_page() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    for name in ["c.example", "a.example", "b.example", "b.other"] {
        ask(&cloud, "POST", "/acme", json!({"hostname": name})).await;
    }
    let names = |page: &Value| -> Vec<String> {
        let all = page["certificates"].as_array().unwrap().iter();
        all.map(|it| it["hostname"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = ask(&cloud, "GET", "?limit=2&filter=EXAMPLE", json!({})).await;
    assert_eq!(names(&first), ["a.example", "b.example"]);
    assert_eq!((&first["total_count"], &first["next_cursor"]), (&json!(3), &json!("b.example")));
    let (_, last) = ask(&cloud, "GET", "?limit=2&filter=example&cursor=b.example", json!({})).await;
    assert_eq!(names(&last), ["c.example"]);
    assert_eq!(last.get("next_cursor"), None);
    // They end with their app, and so do the claims.
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["certificates/", "names/"]).await;
}

#[tokio::test]
async fn a_check_shows_what_is_seen_and_has_a_waiting_order_go_on() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    ask(&cloud, "POST", "/acme", json!({"hostname": "shop.example"})).await;
    let key = (OrgSlug::personal(), web(), "shop.example".to_owned());
    let mut waits = order(&cloud, "shop.example").await.unwrap();
    let later = cloud.clock_plus(3_600_000);
    (waits.due, waits.step) = (later, OrderStep::Telling);
    waits.answer = Some(ChallengeAnswer {
        method: ChallengeMethod::Dns,
        token: "token".to_owned(),
        key_authorization: "token.thumb".to_owned(),
        txt: "digest".to_owned(),
    });
    put_doc(cloud.store.as_ref(), &key, &waits, Expected::Any).await.unwrap();
    cloud.dns.set("shop.example", RecordType::A, &["192.0.2.1"]);
    cloud.dns.set("shop.example", RecordType::Soa, &["ns1.dns.example."]);
    let (status, checked) = ask(&cloud, "POST", "/shop.example/check", json!({})).await;
    assert_eq!(status, 200, "{checked}");
    assert_eq!(checked["dns_records"]["a"], json!(["192.0.2.1"]));
    assert_eq!(checked["dns_records"]["resolved_addresses"], json!(["192.0.2.1"]));
    assert_eq!(
        (&checked["configured"], &checked["dns_provider"]),
        (&json!(true), &json!("dns.example"))
    );
    assert_eq!(checked["validation"]["http_configured"], true);
    let challenge = &checked["dns_requirements"]["acme_challenge"];
    assert_eq!((&challenge["txt"], &challenge["target"]), (&json!("digest"), &json!("")));
    assert!(challenge["note"].as_str().unwrap().contains("TXT"), "{challenge}");
    // A record that leads to somebody else, or says something else, is none of those to set.
    let record = "_acme-challenge.shop.example";
    cloud.dns.set(record, RecordType::Cname, &["x.acme.example"]);
    cloud.dns.set(record, RecordType::Txt, &["older"]);
    let (_, checked) = ask(&cloud, "POST", "/shop.example/check", json!({})).await;
    assert_eq!(checked["validation"]["dns_configured"], false);
    assert_eq!(checked["dns_records"]["acme_challenge_txt"], json!(["older"]));
    cloud.dns.set(record, RecordType::Txt, &["older", "digest"]);
    let (_, checked) = ask(&cloud, "POST", "/shop.example/check", json!({})).await;
    assert_eq!(checked["validation"]["dns_configured"], true);
    assert!(order(&cloud, "shop.example").await.unwrap().due < later);
    // What was seen stays.
    assert_eq!(ask(&cloud, "GET", "/shop.example", json!({})).await.1["configured"], true);
    ask(&cloud, "POST", "/acme", json!({"hostname": "silent.example"})).await;
    let path = format!("{CERTIFICATES}/silent.example/check");
    let (status, error) = cloud.error(("POST", &path), Some(ADMIN), "").await;
    assert_eq!(status, 503, "{error}");
    // Without an order there is nothing to go on with, and the rest stays.
    let (status, left) = ask(&cloud, "DELETE", "/shop.example/acme", json!({})).await;
    assert_eq!((status, &left["acme_requested"]), (200, &json!(false)));
    assert!(order(&cloud, "shop.example").await.is_none());
    assert_eq!(ask(&cloud, "POST", "/shop.example/check", json!({})).await.0, 200);
}

#[tokio::test]
async fn with_a_zone_each_host_name_of_an_app_is_told_where_its_challenge_may_lead() {
    let cloud = Cloud::start_zoned("acme.perch.example").await;
    cloud.app().await;
    let (_, app) = ask_as(&cloud, ADMIN, ("GET", "/v1/apps/web"), json!({})).await;
    let target = |hostname: &str| {
        let id = app["id"].as_str().unwrap();
        perch_certs::dns::challenge_target(Some("acme.perch.example"), id, hostname)
    };
    for (hostname, noted) in [("shop.example", false), ("*.shop.example", true)] {
        let (_, detail) = ask(&cloud, "POST", "/acme", json!({"hostname": hostname})).await;
        let challenge = &detail["dns_requirements"]["acme_challenge"];
        assert_eq!(challenge["name"], "_acme-challenge.shop.example", "{challenge}");
        assert_eq!(challenge["target"], json!(target("shop.example")), "{challenge}");
        let note = challenge["note"].as_str().unwrap_or_default();
        assert_eq!((note.contains("CNAME"), note.contains("TXT")), (noted, false), "{challenge}");
    }
    // Only one that leads to the name of this app is the right one.
    let right = target("shop.example");
    for (leads, want) in [("x.acme.perch.example", false), (right.as_str(), true)] {
        cloud.dns.set("_acme-challenge.shop.example", RecordType::Cname, &[leads]);
        let path = "/*.shop.example/check";
        let (status, checked) = ask(&cloud, "POST", path, json!({})).await;
        assert_eq!((status, &checked["validation"]["dns_configured"]), (200, &json!(want)));
        assert_eq!(checked["dns_records"]["acme_challenge_cname"], json!(leads));
    }
}

#[tokio::test]
async fn the_certificate_of_the_platforms_domain_is_told_with_its_record_and_is_no_apps() {
    let cloud = Cloud::start().await;
    let platform = ("GET", "/v1/platform");
    let (_, told) = ask_as(&cloud, ADMIN, platform, json!({})).await;
    assert_eq!((&told["domain"], told.get("certificate")), (&json!("perch.test"), None));
    let key = certificate_docs::platform_key("perch.test").unwrap();
    let mut waits = CertificateOrder::new("platform".to_owned(), cloud.clock_plus(0));
    waits.step = OrderStep::Telling;
    waits.answer = Some(ChallengeAnswer {
        method: ChallengeMethod::Dns,
        token: "token".to_owned(),
        key_authorization: "token.thumb".to_owned(),
        txt: "digest".to_owned(),
    });
    put_doc(cloud.store.as_ref(), &key, &waits, Expected::Any).await.unwrap();
    let (_, mut told) = ask_as(&cloud, ADMIN, platform, json!({})).await;
    let told = told["certificate"].take();
    assert_eq!((&told["hostname"], told.get("expires_at")), (&json!("*.perch.test"), None));
    let challenge = &told["acme_challenge"];
    assert_eq!(challenge["name"], "_acme-challenge.perch.test");
    assert_eq!(challenge["txt"], "digest");
    // Nobody can have an app that it would be kept for.
    let body = json!({"app_name": certificate_docs::PLATFORM_APP, "org_slug": "personal"});
    let (status, error) = ask_as(&cloud, ADMIN, ("POST", "/v1/apps"), body).await;
    assert_eq!((status, &error["code"]), (422, &json!("invalid_value")), "{error}");
    // What the platform wants for an app's name is not the app's to see, and ends with it.
    cloud.app().await;
    let (_, app) = ask_as(&cloud, ADMIN, ("GET", "/v1/apps/web"), json!({})).await;
    let id = app["id"].as_str().unwrap().to_owned();
    let mut document = CertificateDoc::new(id, cloud.clock_plus(0));
    (document.acme_requested, document.of_platform) = (true, true);
    let key = (OrgSlug::personal(), web(), "web.perch.test".to_owned());
    put_doc(cloud.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
    assert_eq!(ask(&cloud, "GET", "", json!({})).await.1["total_count"], 0);
    for (method, path) in [("GET", "/web.perch.test"), ("DELETE", "/web.perch.test")] {
        assert_eq!(ask(&cloud, method, path, json!({})).await.0, 404, "{method}");
    }
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["certificates/personal/web/"]).await;
}

/// Whether the strangers' app has an order.
async fn ordered(cloud: &Cloud, name: &str) -> bool {
    let key = ("strangers".parse().unwrap(), "other".parse().unwrap(), name.to_owned());
    get_doc::<CertificateOrder>(cloud.store.as_ref(), &key).await.unwrap().is_some()
}

/// Starts a cloud with an app of ours and one of strangers.
async fn two_apps() -> Cloud {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let other = CreateApp {
        name: Some("other".to_owned()),
        org_slug: Some("strangers".to_owned()),
        ..CreateApp::default()
    };
    let (status, _) =
        ask_as(&cloud, STRANGER, ("POST", "/v1/apps"), serde_json::to_value(&other).unwrap()).await;
    assert_eq!(status, 201);
    cloud
}

fn wants(name: &str) -> Value {
    json!({"hostname": name})
}

#[tokio::test]
async fn all_names_below_one_that_is_anothers_wait_for_its_record() {
    let cloud = two_apps().await;
    let theirs = "/v1/apps/other/certificates";
    let acme = format!("{theirs}/acme");
    for name in ["shop.example", "a.b.deep.example"] {
        ask(&cloud, "POST", "/acme", wants(name)).await;
    }
    for (name, want) in [
        ("*.shop.example", "pending_ownership"),
        ("*.deep.example", "pending_ownership"),
        ("*.b.deep.example", "pending_ownership"),
        ("*.hop.example", "pending_validation"),
    ] {
        let (status, waits) = ask_as(&cloud, STRANGER, ("POST", &acme), wants(name)).await;
        assert_eq!((status, &waits["status"]), (201, &json!(want)), "{name}: {waits}");
        assert_eq!(claim(&cloud, name).await.is_some(), want == "pending_validation", "{name}");
    }
    // Whoever has them below has them all without a record.
    let (_, ours) = ask(&cloud, "POST", "/acme", wants("*.b.deep.example")).await;
    assert_eq!(ours["status"], "pending_validation", "{ours}");
    let path = format!("{theirs}/*.shop.example");
    let (_, waits) = ask_as(&cloud, STRANGER, ("GET", &path), json!({})).await;
    let value = waits["dns_requirements"]["ownership"]["app_value"].as_str().unwrap();
    cloud.dns.set("_fly-ownership.shop.example", RecordType::Txt, &[value]);
    let check = format!("{path}/check");
    let (_, taken) = ask_as(&cloud, STRANGER, ("POST", &check), json!({})).await;
    assert_eq!(taken["status"], "pending_validation", "{taken}");
    assert_eq!(claim(&cloud, "*.shop.example").await.unwrap().as_str(), "other");
    assert_eq!(claim(&cloud, "shop.example").await, Some(web()));
}

#[tokio::test]
async fn nobody_waits_while_dns_is_asked_for_another() {
    let cloud = two_apps().await;
    ask(&cloud, "POST", "/acme", wants("hanging.example")).await;
    let call = ("POST", "/v1/apps/other/certificates/acme");
    let theirs = ask_as(&cloud, STRANGER, call, wants("hanging.example"));
    let ours = async {
        cloud.dns.hangs.notified().await;
        ask(&cloud, "POST", "/acme", wants("free.example")).await.0
    };
    let status = async {
        tokio::select! {
            early = theirs => panic!("DNS has not answered: {early:?}"),
            status = ours => status,
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), status).await.unwrap(), 201);
    assert_eq!(claim(&cloud, "hanging.example").await, Some(web()));
}

#[tokio::test]
async fn a_host_name_has_one_owner_and_goes_to_whom_dns_names() {
    let cloud = two_apps().await;
    let theirs = "/v1/apps/other/certificates/acme";
    ask(&cloud, "POST", "/acme", wants("shop.example")).await;
    ask(&cloud, "POST", "/acme", wants("*.wide.example")).await;
    // A certificate of one's own is not taken for a host name that is another's.
    let upload = serde_json::to_value(own("shop.example", 9)).unwrap();
    let custom = ("POST", "/v1/apps/other/certificates/custom");
    let (status, error) = ask_as(&cloud, STRANGER, custom, upload).await;
    assert_eq!((status, &error["code"]), (422, &json!("name_taken")), "{error}");
    for name in ["shop.example", "one.wide.example", "*.wide.example"] {
        let before = claim(&cloud, name).await;
        // Asked once or twice, it waits, and nothing is ordered.
        for _ in 0..2 {
            let (status, waits) = ask_as(&cloud, STRANGER, ("POST", theirs), wants(name)).await;
            assert_eq!((status, &waits["status"]), (201, &json!("pending_ownership")), "{waits}");
            assert_eq!(waits["certificates"][0]["status"], "pending_ownership");
            assert!(!waits.to_string().contains("`web`"), "{waits}");
        }
        assert_eq!(
            (claim(&cloud, name).await, ordered(&cloud, name).await),
            (before.clone(), false)
        );
        let check = format!("/v1/apps/other/certificates/{name}/check");
        let (status, waits) = ask_as(&cloud, STRANGER, ("POST", &check), json!({})).await;
        assert_eq!((status, &waits["status"]), (200, &json!("pending_ownership")), "{waits}");
        assert_eq!(claim(&cloud, name).await, before);
        // It says which record would show it.
        let error = &waits["validation_errors"][0];
        assert_eq!(error["code"], "ownership_required");
        let hint = error["remediation"].as_str().unwrap();
        let mut words = hint.split('`').skip(1).step_by(2);
        let (record, value) = (words.next().unwrap(), words.next().unwrap());
        assert!(record.starts_with("_fly-ownership."), "{hint}");
        cloud.dns.set(record, RecordType::Txt, &["something else", value]);
        let (status, taken) = ask_as(&cloud, STRANGER, ("POST", &check), json!({})).await;
        assert_eq!((status, &taken["status"]), (200, &json!("pending_validation")), "{taken}");
        assert_eq!(taken["validation"]["ownership_txt_configured"], true);
        assert_eq!(taken["dns_records"]["ownership_txt"], value);
        assert_eq!(claim(&cloud, name).await.unwrap().as_str(), "other");
        assert!(ordered(&cloud, name).await);
    }
    // A wish that is taken back is not made again by a check; one that waits goes with an upload.
    ask(&cloud, "POST", "/acme", wants("late.example")).await;
    ask_as(&cloud, STRANGER, ("POST", theirs), wants("late.example")).await;
    let at = |path: &str| format!("/v1/apps/other/certificates/late.example{path}");
    let (_, waits) = ask_as(&cloud, STRANGER, ("GET", &at("")), json!({})).await;
    let value = waits["dns_requirements"]["ownership"]["app_value"].as_str().unwrap().to_owned();
    ask_as(&cloud, STRANGER, ("DELETE", &at("/acme")), json!({})).await;
    cloud.dns.set("_fly-ownership.late.example", RecordType::Txt, &[&value]);
    ask_as(&cloud, STRANGER, ("POST", &at("/check")), json!({})).await;
    assert_eq!(claim(&cloud, "late.example").await, Some(web()));
    cloud.dns.set("_fly-ownership.late.example", RecordType::Txt, &[]);
    ask_as(&cloud, STRANGER, ("POST", theirs), wants("late.example")).await;
    assert!(!ordered(&cloud, "late.example").await);
    cloud.dns.set("_fly-ownership.late.example", RecordType::Txt, &[&value]);
    let upload = serde_json::to_value(own("late.example", 9)).unwrap();
    let (status, taken) = ask_as(&cloud, STRANGER, custom, upload).await;
    assert_eq!((status, &taken["status"]), (201, &json!("active")), "{taken}");
    assert!(ordered(&cloud, "late.example").await);
    // Nothing of it is left where it was.
    assert_eq!(ask(&cloud, "GET", "/shop.example", json!({})).await.0, 404);
    let keys = cloud.keys("certificates/personal/").await;
    assert!(keys.is_empty(), "{keys:?}");
    // Their end gives nothing of others back.
    ask(&cloud, "POST", "/acme", wants("mine.example")).await;
    ask_as(&cloud, STRANGER, ("DELETE", "/v1/apps/other"), json!({})).await;
    cloud.until_empty(&["certificates/strangers/", "names/hosts/shop.example"]).await;
    assert_eq!(claim(&cloud, "mine.example").await, Some(web()));
}
