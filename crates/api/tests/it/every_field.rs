//! Every field of every body, every parameter of every query, every method of every path of the
//! document: what is not as it should be is refused by name, and where only some words may stand,
//! the refusal lists them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use perch_api::Limits;
use perch_types::{ApiError, Code};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::cloud::{ADMIN, Cloud};
use crate::shapes::{Operation, Shapes};
use crate::volumes::volume;

/// Fields of which the document cannot say all that is read: operation, path, why.
const LENIENT: [(&str, &str, &str); 0] = [];
/// What a path can name beside an app and a machine, with names of which nothing has one: some are
/// none at all, some are of the right shape.
const NAMED: [(&str, &[&str]); 8] = [
    ("org", &["nothing", "-"]),
    ("volume", &["nothing", "vol_0123456789abcdef"]),
    ("secret_name", &["nothing", "1"]),
    ("policy", &["nothing", "np_0123456789abcdef"]),
    ("ip", &["nothing", "192.0.2.77", "fdaa::77"]),
    ("token", &["nothing", "0123456789abcdef"]),
    ("key", &["nothing"]),
    ("hostname", &["nothing", "none.example"]),
];
/// Operations that make what they name, or are done when it is not there (contract 1.3).
const MAKERS: [&str; 5] = [
    "secret_set",
    "secret_key_set",
    "secret_key_generate",
    "machine_metadata_key_set",
    "machine_metadata_key_delete",
];

/// Sends a request to the router itself, without a socket between.
pub(crate) async fn send(
    router: &axum::Router,
    (method, path): (&str, &str),
    token: Option<&str>,
    body: Body,
) -> (u16, Vec<u8>) {
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    // An answer that stays open is none that can be read to its end.
    let body = tokio::time::timeout(Duration::from_millis(200), answer.into_body().collect()).await;
    (status, body.ok().and_then(Result::ok).map(|it| it.to_bytes().to_vec()).unwrap_or_default())
}

async fn refused(
    router: &axum::Router,
    call: (&str, &str),
    body: impl Into<Body>,
) -> (u16, ApiError) {
    let (status, answer) = send(router, call, Some(ADMIN), body.into()).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let error = serde_json::from_slice(&answer);
    (status, error.unwrap_or_else(|_| ApiError::new(Code::Internal, format!("no error: {text}"))))
}

struct World {
    cloud: Cloud,
    router: axum::Router,
    shapes: Shapes,
    machine: String,
    volume: String,
}

impl World {
    async fn start() -> Self {
        let cloud = Cloud::start_limited(Limits {
            rates: perch_api::Rates::unlimited(),
            body_timeout: Duration::from_millis(50),
            ..Limits::default()
        })
        .await;
        cloud.app().await;
        let machine = cloud.machine(json!({"image": "web:1"})).await.id.to_string();
        let volume = volume(&cloud, "data").await.id.to_string();
        let router = cloud.api.router();
        Self { cloud, router, shapes: Shapes::read(), machine, volume }
    }

    fn path(&self, operation: &Operation) -> String {
        let (machine, volume) = (self.machine.as_str(), self.volume.as_str());
        let known = [("app", "web"), ("machine", machine), ("org", "personal"), ("volume", volume)];
        operation.path_with(&known)
    }

    fn with_bodies(&self) -> impl Iterator<Item = (&Operation, &Value)> {
        let all = self.shapes.operations.iter();
        all.filter_map(|operation| Some((operation, operation.body.as_ref()?)))
    }
}

#[tokio::test]
async fn every_field_of_every_body_is_refused_by_its_path() {
    let world = World::start().await;
    let mut faults = Vec::new();
    let mut count = 0;
    for (operation, schema) in world.with_bodies() {
        let path = world.path(operation);
        for wrong in world.shapes.wrong_bodies(schema) {
            if LENIENT.iter().any(|(id, path, _)| *id == operation.id && *path == wrong.path) {
                continue;
            }
            count += 1;
            let body = wrong.body.to_string();
            let call = (operation.method.as_str(), path.as_str());
            let (status, error) = refused(&world.router, call, body.clone()).await;
            let names_it = error.error.contains(&wrong.path);
            let lists_it = wrong.allowed.iter().all(|word| error.error.contains(word));
            if !matches!(status, 400 | 422) || !names_it || !lists_it {
                let (id, why) = (&operation.id, wrong.why);
                faults.push(format!("{id} {} {why}: {status} {} {body}", wrong.path, error.error));
            }
        }
    }
    assert!(faults.is_empty(), "{} of {count}:\n{}", faults.len(), faults.join("\n"));
    assert!(count > 300, "{count} fields were looked at");
    assert!(world.cloud.host.commands.lock().unwrap().is_empty(), "nothing was done");
}

#[tokio::test]
async fn every_parameter_of_every_query_is_refused_by_its_name() {
    let world = World::start().await;
    let mut faults = Vec::new();
    for operation in &world.shapes.operations {
        for (name, schema) in &operation.query {
            let value = match schema["type"].as_str() {
                Some("integer" | "number" | "boolean") => "nonsense",
                _ if schema.get("$ref").is_some() => "no%20such%20word",
                // Any text is one.
                _ => continue,
            };
            let path = format!("{}?{name}={value}", world.path(operation));
            let body = operation.body.as_ref().map(|it| world.shapes.sample(it).to_string());
            let call = (operation.method.as_str(), path.as_str());
            let (status, error) = refused(&world.router, call, body.unwrap_or_default()).await;
            let lists_it = world.shapes.words(schema).iter().all(|it| error.error.contains(it));
            let names_it = error.error.contains(name.as_str());
            if !matches!(status, 400 | 422) || !names_it || !lists_it {
                faults.push(format!("{} {name}: {status} {}", operation.id, error.error));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn what_is_named_and_is_not_there_is_404_in_the_contracts_words() {
    let world = World::start().await;
    for operation in &world.shapes.operations {
        let body = operation.body.as_ref().map(|it| world.shapes.sample(it).to_string());
        let body = body.unwrap_or_default();
        let ask = async |values: &[(&str, &str)]| {
            let path = operation.path_with(values);
            refused(&world.router, (&operation.method, &path), body.clone()).await
        };
        if operation.path.contains("{app}") {
            let (status, error) = ask(&[("app", "none"), ("machine", &world.machine)]).await;
            assert_eq!(status, 404, "{} {error}", operation.id);
            assert!(error.error.contains("Could not find App"), "{} {error}", operation.id);
        }
        if operation.path.contains("{machine}") {
            for machine in ["00000000000000", "nothing"] {
                let (status, error) = ask(&[("app", "web"), ("machine", machine)]).await;
                assert_eq!(status, 404, "{} {error}", operation.id);
                assert!(error.error.contains("machine not found"), "{} {error}", operation.id);
            }
        }
    }
}

#[tokio::test]
async fn what_a_path_names_beside_an_app_and_a_machine_is_404_by_its_name() {
    let world = World::start().await;
    let mut asked = std::collections::BTreeSet::new();
    for operation in &world.shapes.operations {
        for parameter in operation.parameters() {
            if ["app", "machine"].contains(&parameter) || MAKERS.contains(&operation.id.as_str()) {
                continue;
            }
            let named = NAMED.iter().find(|(known, _)| *known == parameter);
            let (_, names) = named.unwrap_or_else(|| panic!("`{parameter}` is in no list"));
            asked.insert(parameter);
            let body = operation.body.as_ref().map(|it| world.shapes.sample(it).to_string());
            for name in *names {
                let path = operation.path_with(&[
                    ("app", "web"),
                    ("machine", &world.machine),
                    (parameter, name),
                ]);
                let call = (operation.method.as_str(), path.as_str());
                let (status, error) =
                    refused(&world.router, call, body.clone().unwrap_or_default()).await;
                assert_eq!(status, 404, "{call:?} {error}");
                assert!(error.error.contains(name), "{call:?} {error}");
            }
        }
    }
    assert_eq!(asked.len(), NAMED.len(), "{asked:?}");
    assert!(world.cloud.host.commands.lock().unwrap().is_empty(), "nothing was done");
}

#[tokio::test]
async fn bodies_that_are_broken_too_large_or_too_slow_are_refused_by_every_endpoint() {
    let world = World::start().await;
    let deep = "[".repeat(100_000);
    let large = format!("{{\"a\":\"{}\"}}", "a".repeat(1024 * 1024));
    for (operation, _) in world.with_bodies() {
        let path = world.path(operation);
        let call = (operation.method.as_str(), path.as_str());
        for broken in ["{", "nul", "[]]", "{\"a\":}", "\u{feff}{}", deep.as_str()] {
            let (status, error) = refused(&world.router, call, broken.to_owned()).await;
            let shown: String = broken.chars().take(9).collect();
            assert_eq!((status, error.code), (400, Code::InvalidRequest), "{call:?} {shown}");
        }
        let (status, _) = refused(&world.router, call, vec![0xff, 0xfe, b'{']).await;
        assert_eq!(status, 400, "{call:?}");
        let (status, error) = refused(&world.router, call, large.clone()).await;
        assert_eq!((status, error.code), (413, Code::BodyTooLarge), "{call:?}");
        let begun = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
        let never = futures_util::StreamExt::chain(begun, futures_util::stream::pending());
        let (status, error) = refused(&world.router, call, Body::from_stream(never)).await;
        assert_eq!(status, 400, "{call:?} {error}");
        assert!(error.error.starts_with("the body did not come within"), "{call:?} {error}");
    }
    assert!(world.cloud.host.commands.lock().unwrap().is_empty(), "nothing was done");
}

#[tokio::test]
async fn methods_that_a_path_does_not_have_are_405() {
    let world = World::start().await;
    for operation in &world.shapes.operations {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "BREW"] {
            let same = |it: &&Operation| it.path == operation.path && it.method == method;
            if world.shapes.operations.iter().find(same).is_some() {
                continue;
            }
            let path = world.path(operation);
            let (status, error) = refused(&world.router, (method, &path), "").await;
            let expected = (405, Code::MethodNotAllowed);
            assert_eq!((status, error.code), expected, "{method} {path} {error}");
        }
    }
}
