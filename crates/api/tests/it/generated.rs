//! Generated requests: valid, half valid and nonsense, many at once. None ends in a fault of the
//! platform, none answers what the document does not say, and nothing stays behind.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use perch_api::{Limits, Rates};
use perch_types::host::HostMachine;
use perch_types::ips::{AssignIp, IpType};
use perch_types::secret_keys::SetSecretKey;
use perch_types::secrets::SetSecret;
use perch_types::volume::CreateVolumeRequest;
use perch_types::{MachineId, MachineState, Secret};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, STRANGER, web};
use crate::every_field::send;
use crate::shapes::{Operation, Shapes};

/// Requests in an ordinary run, and in a long one.
const REQUESTS: u64 = 4_000;
const REQUESTS_LONG: u64 = 100_000;
/// Requests at once.
const AT_ONCE: u64 = 32;
/// Machines above which they are cleared away: the test is about requests.
const MACHINES_MAX: usize = 24;
/// How much more memory the process may have at the end, in pages of 4 KiB.
const PAGES_MAX: u64 = 64 * 256;
/// What needs a builder or a disk, which this cloud has not.
const UNAVAILABLE: [&str; 4] = ["app_build", "images_bootstrap", "system_usage", "system_prune"];

/// A generator of numbers: the same seed gives the same requests.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        let index = usize::try_from(self.roll(things.len() as u64)).unwrap();
        &things[index]
    }

    /// Returns a value of no particular shape.
    fn json(&mut self, depth: u32) -> Value {
        match self.roll(if depth == 0 { 7 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.roll(2) == 0),
            2 => json!(self.roll(70_000)),
            3 => json!(-(i64::try_from(self.roll(1 << 40)).unwrap())),
            4 => json!(u64::MAX),
            5 => json!("x".repeat(usize::try_from(self.roll(300)).unwrap())),
            6 => json!(*self.one_of(&["", "web", "\0", "🦀", "fra", "15s", "../..", "a b"])),
            7 => (0..self.roll(4)).map(|_| self.json(depth - 1)).collect(),
            _ => {
                let names = ["config", "image", "name", "env", "guest", "services", "k"];
                let fields = self.roll(4);
                (0..fields)
                    .map(|_| ((*self.one_of(&names)).to_owned(), self.json(depth - 1)))
                    .collect()
            }
        }
    }
}

struct Request {
    operation: Operation,
    path: String,
    token: Option<&'static str>,
    body: Vec<u8>,
}

/// What a parameter of paths can name that is there.
type Known = (&'static str, Vec<String>);

fn request(dice: &mut Dice, shapes: &Shapes, known: &[Known]) -> Request {
    let operation = dice.one_of(&shapes.operations).clone();
    let app = *dice.one_of(&["web", "web", "web", "web", "second", "none", "%2e%2e", "WEB"]);
    let mut values = vec![("app", app), ("org", "personal")];
    for (name, there) in known {
        let none = ["00000000000000", "%00", ".."];
        let value = match dice.roll(5) {
            0 => *dice.one_of(&none),
            _ => dice.one_of(there).as_str(),
        };
        values.push((*name, value));
    }
    let mut path = operation.path_with(&values);
    let mut separator = '?';
    for (name, _) in &operation.query {
        if dice.roll(3) == 0 {
            let texts = ["", "true", "1", "started", "%ff", "a%26b", "99999999999999999999", "fra"];
            let value = if name == "timeout" { "1" } else { dice.one_of(&texts) };
            write!(path, "{separator}{name}={value}").unwrap();
            separator = '&';
        }
    }
    if operation.id == "machine_wait" && !path.contains("timeout=") {
        write!(path, "{separator}timeout=1").unwrap();
    }
    let tokens = [Some(ADMIN), Some(ADMIN), Some(ADMIN), Some(STRANGER), Some("guess"), None];
    let token = *dice.one_of(&tokens);
    let mut body = body(dice, shapes, &operation);
    if operation.id == "apps_create" && dice.roll(2) == 0 {
        // A few names only, so that apps do not become more and more.
        body = br#"{"name":"second","org_slug":"personal"}"#.to_vec();
    }
    Request { operation, path, token, body }
}

fn body(dice: &mut Dice, shapes: &Shapes, operation: &Operation) -> Vec<u8> {
    let Some(schema) = &operation.body else {
        return if dice.roll(4) == 0 { b"{\"a\":1}".to_vec() } else { Vec::new() };
    };
    let mut bytes = match dice.roll(6) {
        0 => dice.json(4).to_string().into_bytes(),
        1 => {
            let wrong = shapes.wrong_bodies(schema);
            dice.one_of(&wrong).body.to_string().into_bytes()
        }
        2 => Vec::new(),
        _ => {
            let mut value = shapes.sample(schema);
            if let Some(config) = value.get_mut("config") {
                config["image"] = json!("web:1");
            }
            value.to_string().into_bytes()
        }
    };
    if dice.roll(12) == 0 && !bytes.is_empty() {
        let at = usize::try_from(dice.roll(bytes.len() as u64)).unwrap();
        match dice.roll(2) {
            0 => bytes.truncate(at),
            _ => bytes[at] = u8::try_from(dice.roll(256)).unwrap(),
        }
    }
    bytes
}

/// Fails when an answer is a fault of the platform, or none that the document knows.
fn judge(operation: &Operation, status: u16, answer: &[u8], said: &str) {
    let said = format!("{said} {}", String::from_utf8_lossy(answer));
    let unavailable = status == 503 && UNAVAILABLE.contains(&operation.id.as_str());
    assert!(status < 500 || unavailable, "{said}");
    assert!(operation.statuses.contains(&status), "not in the document: {said}");
    if status >= 400 {
        let error: Value = serde_json::from_slice(answer).expect(&said);
        assert!(error["error"].as_str().is_some_and(|it| !it.is_empty()), "{said}");
        assert!(error["request"].is_string() && error["code"].is_string(), "{said}");
    }
}

fn pages() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse().unwrap()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Has the host forget machines and volumes that are gone, as a real one does after a while.
async fn forget_destroyed(cloud: &Cloud) {
    let destroyed = |machine: &HostMachine| machine.state == MachineState::Destroyed;
    cloud.host.machines.lock().unwrap().retain(|_, machine| !destroyed(machine));
    cloud.host.volumes.forget_destroyed().await;
}

/// Waits until every promise is kept. A machine may still be on its way to be destroyed, by an
/// answer that was dropped or by the reconciler: the host forgets it whenever it gets there.
async fn until_kept(cloud: &Cloud) {
    let kept = async {
        loop {
            forget_destroyed(cloud).await;
            cloud.wake_reconciler().await;
            cloud.until_empty(&["tombstones/"]).await;
            if cloud.keys("promises/").await.is_empty() {
                return;
            }
        }
    };
    let kept = tokio::time::timeout(Duration::from_secs(60), kept).await;
    assert!(kept.is_ok(), "{:?} are left", cloud.keys("promises/").await);
}

/// Makes the app anew when a request deleted it, clears machines away, and makes one of everything
/// that paths can name; returns what there is.
async fn tidy(cloud: &Cloud) -> Vec<Known> {
    forget_destroyed(cloud).await;
    if cloud.admin.app(&web()).await.is_err() {
        cloud.app().await;
    }
    let machines = cloud.admin.machines(&web(), &Default::default()).await.unwrap();
    let (keep, rest) = machines.split_at(machines.len().min(MACHINES_MAX));
    for machine in rest {
        cloud.admin.delete_machine(&web(), &machine.id, true).await.ok();
    }
    let mut ids: Vec<MachineId> = keep.iter().map(|machine| machine.id.clone()).collect();
    while ids.len() < 3 {
        ids.push(cloud.machine(json!({"image": "web:1"})).await.id);
    }
    for id in ids.iter().take(3) {
        // It may be on its way to be destroyed.
        cloud.admin.set_metadata(&web(), id, ("label", "blue")).await.ok();
    }
    let names = |name: &str| vec![name.to_owned()];
    vec![
        ("machine", ids.iter().map(ToString::to_string).collect()),
        ("key", names("label")),
        ("volume", volumes(cloud).await),
        ("secret_name", names(secrets(cloud).await)),
        ("policy", names(&policy(cloud).await)),
        ("ip", names(&address(cloud).await)),
        ("token", names(&token(cloud).await)),
    ]
}

async fn volumes(cloud: &Cloud) -> Vec<String> {
    let (api, app) = (&cloud.admin, web());
    let all = api.volumes(&app).await.unwrap();
    let usable = all.into_iter().filter(|volume| volume.state.is_usable());
    let mut ids: Vec<String> = usable.map(|volume| volume.id.to_string()).collect();
    if ids.is_empty() {
        let wanted = CreateVolumeRequest { name: "data".to_owned(), ..Default::default() };
        ids.push(api.create_volume(&app, &wanted).await.unwrap().id.to_string());
    }
    ids
}

/// Returns the name that a secret and a secret key have.
async fn secrets(cloud: &Cloud) -> &'static str {
    let (api, app, name) = (&cloud.admin, web(), "SECRET");
    if api.secret(&app, name).await.is_err() {
        let set = SetSecret { value: Secret::new("blue") };
        api.set_secret(&app, name, &set).await.unwrap();
    }
    if api.secret_key(&app, name).await.is_err() {
        api.set_secret_key(&app, name, &SetSecretKey::default()).await.unwrap();
    }
    name
}

async fn policy(cloud: &Cloud) -> String {
    let path = "/v1/apps/web/network_policies";
    let (_, _, list) = cloud.raw(("GET", path), Some(ADMIN), "").await;
    let list: Value = serde_json::from_slice(&list).unwrap();
    if let Some(id) = list[0]["id"].as_str() {
        return id.to_owned();
    }
    let body = json!({"name": "any", "selector": {"all": true}, "rules": [{"action": "allow",
        "direction": "ingress", "ports": [{"protocol": "tcp", "port": 80}]}]});
    let (_, _, made) = cloud.raw(("POST", path), Some(ADMIN), body.to_string()).await;
    let made: Value = serde_json::from_slice(&made).unwrap();
    made["id"].as_str().unwrap().to_owned()
}

async fn address(cloud: &Cloud) -> String {
    // No other app can have it for itself.
    let wanted = AssignIp { kind: IpType::V6, ..AssignIp::default() };
    cloud.admin.assign_ip(&web(), &wanted).await.unwrap().ip.to_string()
}

async fn token(cloud: &Cloud) -> String {
    let (api, app) = (&cloud.admin, web());
    match api.app_tokens(&app).await.unwrap().tokens.into_iter().next() {
        Some(token) => token.token_id,
        None => api.create_deploy_token(&app, &Default::default()).await.unwrap().token_id,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_requests_leave_no_fault_and_no_leak() {
    let is_long = std::env::var_os("PERCH_TEST_LONG").is_some();
    let requests = if is_long { REQUESTS_LONG } else { REQUESTS };
    let limits = Limits { rates: Rates::unlimited(), ..Limits::default() };
    let cloud = Cloud::start_limited(limits).await;
    cloud.app().await;
    let (router, shapes) = (cloud.api.router(), Shapes::read());
    let mut dice = Dice(0x5eed_c0de);
    let mut before = None;
    let mut done = 0;
    while done < requests {
        let known = tidy(&cloud).await;
        if done * 4 >= requests && before.is_none() {
            // Caches and pools are warm by now.
            before = Some((pages(), tasks()));
        }
        let mut sent = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let Request { operation, path, token, body } = request(&mut dice, &shapes, &known);
            let router = router.clone();
            sent.spawn(async move {
                let shown = String::from_utf8_lossy(&body).into_owned();
                let call = (operation.method.as_str(), path.as_str());
                let (status, answer) = send(&router, call, token, Body::from(body)).await;
                judge(&operation, status, &answer, &format!("{call:?} {shown}\n{status}"));
            });
        }
        while let Some(one) = sent.join_next().await {
            one.unwrap();
        }
        done += AT_ONCE;
    }
    tidy(&cloud).await;
    until_kept(&cloud).await;
    let (pages_before, tasks_before) = before.unwrap();
    let settled = async {
        // What a dropped answer leaves ends a moment later.
        while tasks() > tasks_before + 16 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
    assert!(settled.is_ok(), "{} tasks, {tasks_before} before", tasks());
    let grown = pages().saturating_sub(pages_before);
    assert!(grown < PAGES_MAX, "{} MiB more than before", grown / 256);
    let apps = cloud.keys("apps/").await.len();
    let left = cloud.keys("placements/").await.len();
    assert!(left <= MACHINES_MAX * 2 && apps <= 3, "{left} machines of {apps} apps");
    assert!(cloud.keys("tokens/").await.len() <= 3 + Limits::default().tokens_of_app_max * apps);
}
