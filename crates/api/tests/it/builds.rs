//! Builds: the context goes up, lines come down, the push token lives as long as the answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http_body_util::BodyExt as _;
use perch_api::PushScope;
use perch_client::body_of;
use perch_types::build::{BuildEvent, BuildRequest};
use perch_types::{ApiError, Code};
use tokio::sync::{mpsc, oneshot};

use crate::cloud::{ADMIN, Cloud, web};

#[derive(Debug, Default)]
struct Builder {
    token: Mutex<Option<String>>,
    context: Mutex<Vec<u8>>,
    lines: Mutex<Option<mpsc::Receiver<String>>>,
    gone: Mutex<Option<oneshot::Sender<()>>>,
}

async fn build(State(builder): State<Arc<Builder>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("perch-build-app"), "web");
    let asked: BuildRequest = serde_json::from_str(&header("perch-build")).unwrap();
    *builder.token.lock().unwrap() = Some(header("perch-build-token"));
    let context = body.collect().await.unwrap().to_bytes();
    *builder.context.lock().unwrap() = context.to_vec();
    if asked.tag == "refused" {
        let error = ApiError::new(Code::NoSpace, "the disk is full");
        return (http::StatusCode::INSUFFICIENT_STORAGE, axum::Json(error)).into_response();
    }
    let lines = builder.lines.lock().unwrap().take().unwrap();
    let gone = builder.gone.lock().unwrap().take();
    let state = (lines, gone.map(Gone));
    Body::from_stream(futures_util::stream::unfold(state, |(mut lines, gone)| async move {
        let line = lines.recv().await?;
        Some((Ok::<_, std::io::Error>(line), (lines, gone)))
    }))
    .into_response()
}

/// Tells, by being dropped, that the answer is.
#[expect(dead_code, reason = "its end is what is waited for")]
struct Gone(oneshot::Sender<()>);

async fn cloud() -> (Cloud, Arc<Builder>, mpsc::Sender<String>, oneshot::Receiver<()>) {
    let cloud = Cloud::start_with(true).await;
    cloud.app().await;
    let (sender, lines) = mpsc::channel(8);
    let (gone, is_gone) = oneshot::channel();
    let builder = Arc::new(Builder {
        lines: Mutex::new(Some(lines)),
        gone: Mutex::new(Some(gone)),
        ..Builder::default()
    });
    let router = Router::new()
        .route("/builder/v1/build", post(build))
        .route("/builder/v1/bootstrap", post(async || "{\"event\":\"done\"}\n"))
        .with_state(Arc::clone(&builder));
    let socket = cloud.folder.path().join("builder.sock");
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(perch_api::serve::serve(
        perch_api::serve::Listener::Unix(listener),
        router,
        perch_api::serve::ServeLimits::default(),
        std::future::pending(),
    ));
    (cloud, builder, sender, is_gone)
}

fn tagged(tag: &str) -> BuildRequest {
    BuildRequest { tag: tag.to_owned(), ..BuildRequest::default() }
}

fn line(text: &str) -> String {
    let event = BuildEvent::Log { line: text.to_owned() };
    serde_json::to_string(&event).unwrap() + "\n"
}

#[tokio::test]
async fn lines_come_live_and_the_push_token_ends_with_them() {
    let (cloud, builder, sender, _gone) = cloud().await;
    let context = vec![7; 300_000];
    let mut lines =
        cloud.admin.build(&web(), &tagged("v1"), body_of(context.clone())).await.unwrap();
    assert_eq!(*builder.context.lock().unwrap(), context);
    let token = builder.token.lock().unwrap().clone().unwrap();
    let scope = cloud.api.push_tokens().check(&token);
    assert!(matches!(scope, Some(PushScope::App { name, .. }) if name == web()));
    for text in ["one", "two"] {
        sender.send(line(text)).await.unwrap();
        let event = lines.next().await.unwrap().unwrap();
        assert_eq!(event, BuildEvent::Log { line: text.to_owned() });
    }
    drop(sender);
    assert!(lines.next().await.is_none());
    let ended = async {
        while cloud.api.push_tokens().check(&token).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the token has ended");
    // A push token is for the registry, not for the API.
    assert_eq!(cloud.raw(("GET", "/v1/apps"), Some(&token), "").await.0, 401);
}

#[tokio::test]
async fn the_push_token_of_a_running_build_ends_with_its_app() {
    let (cloud, builder, sender, _gone) = cloud().await;
    let _lines = cloud.admin.build(&web(), &tagged("v1"), body_of("tar")).await.unwrap();
    sender.send(line("one")).await.unwrap();
    let token = builder.token.lock().unwrap().clone().unwrap();
    assert!(cloud.api.push_tokens().check(&token).is_some());
    assert_eq!(cloud.raw(("DELETE", "/v1/apps/web"), Some(ADMIN), "").await.0, 202);
    assert_eq!(cloud.api.push_tokens().check(&token), None);
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_build() {
    let (cloud, builder, sender, gone) = cloud().await;
    let mut lines = cloud.admin.build(&web(), &tagged("v1"), body_of("tar")).await.unwrap();
    sender.send(line("one")).await.unwrap();
    lines.next().await.unwrap().unwrap();
    drop(lines);
    let gone = tokio::time::timeout(Duration::from_secs(5), gone).await;
    assert!(gone.expect("the builder's request is dropped").is_err());
    let token = builder.token.lock().unwrap().clone().unwrap();
    let ended = async {
        while cloud.api.push_tokens().check(&token).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the token has ended");
}

#[tokio::test]
async fn an_error_of_the_builder_is_the_answer() {
    let (cloud, _builder, _sender, _gone) = cloud().await;
    let error = cloud.admin.build(&web(), &tagged("refused"), body_of("tar")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Some(Code::NoSpace), "the disk is full")
    );
    let error = cloud.admin.build(&web(), &tagged("-bad-"), body_of("tar")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidValue));
    let (status, error) = cloud.error(("POST", "/v1/apps/web/builds"), Some(ADMIN), "tar").await;
    assert_eq!((status, error.error.as_str()), (400, "the header `perch-build` is missing"));
    let mut lines = cloud.admin.bootstrap_images(true).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), BuildEvent::Done);
}
