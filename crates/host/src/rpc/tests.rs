use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use perch_types::clock::Clock;
use perch_types::directory::MachineRecord;
use perch_types::host::WatchEvent;
use perch_types::{HostId, InstanceId, MachineState, OrgSlug, Timestamp};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::config::{Config, Limits};
use crate::fake::FakeServer;
use crate::network::NetworkConfig;

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000)
    }

    fn boot_ms(&self) -> u64 {
        1_000
    }
}

/// A host on a server that is none.
pub(crate) struct Rig {
    pub(crate) host: Host,
    pub(crate) server: FakeServer,
    folder: tempfile::TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::of(FakeServer::new(), tempfile::tempdir().unwrap()).await
    }

    /// Returns the agent after its restart; the server is the same.
    pub(crate) async fn again(self) -> Self {
        self.host.shutdown().await;
        let Self { host, server, folder } = self;
        drop(host);
        Self::of(server, folder).await
    }

    async fn of(server: FakeServer, folder: tempfile::TempDir) -> Self {
        let config = Config {
            id: HostId::from_bits(1),
            data_dir: folder.path().join("data"),
            run_dir: folder.path().join("run"),
            region: "ams".parse().unwrap(),
            cgroup: "perch".to_owned(),
            network: NetworkConfig::default(),
            uid_base: crate::config::UID_BASE_DEFAULT,
            monitor: std::path::PathBuf::new(),
            init: std::path::PathBuf::new(),
            registry: None,
            machine_api: None,
            unpack: perch_oci::Privilege::InProcess,
            others: Vec::new(),
            pool: Default::default(),
            limits: Limits { disk_reserve_bytes: 0, ..Limits::default() },
        };
        let effects = server.effects(Arc::new(Still));
        let host = Host::start_with(config, effects, None, Vec::new()).await.unwrap();
        Self { host, server, folder }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .unwrap();
        let answer = router(self.host.clone()).oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }
}

pub(crate) fn request() -> CreateMachine {
    CreateMachine {
        id: MachineId::from_bits(0xabc),
        instance: InstanceId::from_parts(1, 1),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        network_id: 1,
        name: "web-1".to_owned(),
        epoch: 1,
        config: serde_json::from_value(json!({"image": "web:1"})).unwrap(),
        config_digest: "aa".to_owned(),
        skip_launch: false,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    }
}

const ONE: &str = "/machines/00000000000abc";

#[tokio::test]
async fn a_machine_is_made_once_and_another_of_its_id_is_refused() {
    let rig = Rig::new().await;
    let body = serde_json::to_value(request()).unwrap();
    let (status, made) = rig.ask(Method::POST, "/machines", Some(body.clone())).await;
    assert_eq!((status, &made["state"]), (StatusCode::OK, &json!("created")));
    let wait = format!("{ONE}/wait?states=started&timeout_ms=5000");
    assert_eq!(rig.ask(Method::GET, &wait, None).await.0, StatusCode::OK);
    let (status, again) = rig.ask(Method::POST, "/machines", Some(body)).await;
    assert_eq!((status, &again["state"]), (StatusCode::OK, &json!("started")));
    assert_eq!(again["private_ip"], made["private_ip"]);
    let app = made["app"].as_str().unwrap();
    for (query, want) in [("", 1), (&*format!("?app={app}"), 1), ("?app=another", 0)] {
        let (status, listed) = rig.ask(Method::GET, &format!("/machines{query}"), None).await;
        assert_eq!((status, listed.as_array().unwrap().len()), (StatusCode::OK, want), "{query}");
    }

    let other = CreateMachine { config_digest: "bb".to_owned(), ..request() };
    let other = serde_json::to_value(other).unwrap();
    let (status, refused) = rig.ask(Method::POST, "/machines", Some(other)).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("conflict")));
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let rig = Rig::new().await;
    rig.server.forget_image("web:1");
    let body = serde_json::to_value(request()).unwrap();
    for (method, path, body, want) in [
        (Method::GET, ONE, None, Code::MachineNotFound),
        (Method::GET, "/machines/nonsense", None, Code::MachineNotFound),
        (Method::GET, "/nowhere", None, Code::NotFound),
        (Method::DELETE, "/info", None, Code::MethodNotAllowed),
        (Method::POST, "/machines", Some(json!({"id": 7})), Code::InvalidRequest),
        (Method::POST, "/machines", Some(body), Code::ImageUnknown),
        (Method::GET, ONE, None, Code::MachineNotFound),
    ] {
        let (status, refused) = rig.ask(method, path, body).await;
        assert_eq!(refused["code"], json!(want), "{path}: {refused}");
        assert_eq!(status.as_u16(), want.status(), "{path}");
    }
}

#[tokio::test]
async fn a_line_of_the_edge_is_in_the_log_whether_the_machine_runs_or_not() {
    let limit = std::time::Duration::from_secs(20);
    let rig = Rig::new().await;
    let at_rest = CreateMachine { skip_launch: true, ..request() };
    rig.host.create(at_rest).await.unwrap();
    let settled = format!("{ONE}/wait?states=settled&timeout_ms=20000");
    assert_eq!(rig.ask(Method::GET, &settled, None).await.0, StatusCode::OK);
    let note = format!("{ONE}/note");
    let mut following = rig.host.log(request().id).unwrap().follow(1).unwrap();
    let said = |code: &str| Some(json!({"code": code, "left_out": 2}));
    assert_eq!(rig.ask(Method::POST, &note, said("PM08")).await.0, StatusCode::OK);
    let lines = tokio::time::timeout(limit, following.next()).await.unwrap().unwrap();
    assert!(lines[0].message.starts_with("[PM08] No machine of the app runs"), "{lines:?}");
    assert_eq!(lines[0].stream, perch_types::api::LogStream::System);

    // While it runs its monitor has the log.
    let start = Some(json!({"command": "start"}));
    assert_eq!(rig.ask(Method::POST, &format!("{ONE}/command"), start).await.0, StatusCode::OK);
    let started = format!("{ONE}/wait?states=started&timeout_ms=20000");
    assert_eq!(rig.ask(Method::GET, &started, None).await.0, StatusCode::OK);
    assert_eq!(rig.ask(Method::POST, &note, said("PC01")).await.0, StatusCode::OK);
    let told = async {
        while !rig.server.runtime.notes().iter().any(|line| line.starts_with("[PC01] ")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limit, told).await.unwrap();

    for (path, code, want) in [
        (&*note, "PX01", Code::InvalidRequest),
        ("/machines/00000000000def/note", "PC01", Code::MachineNotFound),
    ] {
        let (status, refused) = rig.ask(Method::POST, path, said(code)).await;
        assert_eq!((status.as_u16(), &refused["code"]), (want.status(), &json!(want)), "{path}");
    }
}

#[tokio::test]
async fn a_wait_that_is_not_met_ends_in_time() {
    let rig = Rig::new().await;
    rig.host.create(request()).await.unwrap();
    let path = format!("{ONE}/wait?states=stopped,failed&timeout_ms=20");
    let (status, refused) = rig.ask(Method::GET, &path, None).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{refused}");
    let path = format!("{ONE}/wait?states=asleep&timeout_ms=20");
    assert_eq!(rig.ask(Method::GET, &path, None).await.0, StatusCode::BAD_REQUEST);
    let path = format!("{ONE}/wait?states=settled,ready&timeout_ms=5000");
    assert_eq!(rig.ask(Method::GET, &path, None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_watch_begins_with_everything_and_tells_of_changes() {
    let rig = Rig::new().await;
    let request = Request::builder().uri(format!("{PREFIX}/watch")).body(Body::empty()).unwrap();
    let answer = router(rig.host.clone()).oneshot(request).await.unwrap();
    let mut body = answer.into_body();
    let first: WatchEvent = next(&mut body).await;
    assert_eq!(first, WatchEvent::Snapshot { machines: Vec::new() });
    rig.host.create(self::request()).await.unwrap();
    let mut generations = Vec::new();
    loop {
        let WatchEvent::Changed { machine } = next(&mut body).await else { panic!("no change") };
        let MachineRecord { generation, state, ready, .. } = *machine;
        generations.push(generation);
        if state == MachineState::Started && ready {
            break;
        }
    }
    assert!(generations.is_sorted());
}

async fn next(body: &mut Body) -> WatchEvent {
    let frame = body.frame().await.unwrap().unwrap();
    serde_json::from_slice(&frame.into_data().unwrap()).unwrap()
}
