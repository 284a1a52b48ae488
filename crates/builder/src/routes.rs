//! The builder's HTTP: what comes in is checked and put on disk, what goes out is streamed.
//!
//! Never on a network: the daemon serves this on a Unix socket that only its own roles can open.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use perch_types::build::{
    BUILD_HEADER, BuildEvent, BuildRequest, CONTEXT_BYTES_MAX, FORCE_HEADER, STORE_HEADER,
};
use perch_types::{ApiError, AppName, Code, Secret};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::bootstrap;
use crate::build::Job;
use crate::builder::Builder;
use crate::config::{ARGUMENTS_MAX, EVENTS_WAITING_MAX};
use crate::disk;
use crate::error::Error;

/// The header that names the app that is built.
pub const APP_HEADER: &str = "perch-build-app";
/// The header with the registry's password: push to the app's repository, pull of base images.
pub const TOKEN_HEADER: &str = "perch-build-token";

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const TAG_BYTES_MAX: usize = 128;

/// Returns the builder's routes:
/// `POST /builder/v1/build`, `POST /builder/v1/bootstrap`, `GET /builder/v1/usage`,
/// `POST /builder/v1/prune`.
pub fn router(builder: Arc<Builder>) -> Router {
    Router::new()
        .route("/builder/v1/build", post(build))
        .route("/builder/v1/bootstrap", post(bootstrap_images))
        .route("/builder/v1/usage", get(usage))
        .route("/builder/v1/prune", post(prune))
        .layer(DefaultBodyLimit::disable())
        .with_state(builder)
}

async fn build(State(builder): State<Arc<Builder>>, request: Request) -> Response {
    match accept(&builder, request).await {
        Ok(job) => {
            let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
            builder.start(job, events);
            stream(receiver)
        }
        Err(error) => refuse(&error.to_api()),
    }
}

async fn bootstrap_images(State(builder): State<Arc<Builder>>, headers: HeaderMap) -> Response {
    let Ok(token) = text(&headers, TOKEN_HEADER).map(Secret::new) else {
        return refuse(&ApiError::new(
            Code::Unauthenticated,
            format!("the header `{TOKEN_HEADER}` is missing"),
        ));
    };
    let force = text(&headers, FORCE_HEADER).is_ok_and(|value| value == "1");
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    tokio::spawn(bootstrap::run(builder, token, force, events));
    stream(receiver)
}

async fn usage(State(builder): State<Arc<Builder>>) -> Response {
    let found = tokio::task::spawn_blocking(move || builder.usage()).await;
    match found {
        Ok(Ok(stores)) => {
            let rows: Vec<_> = stores
                .iter()
                .map(|store| serde_json::json!({ "name": store.name, "bytes": store.bytes }))
                .collect();
            axum::Json(rows).into_response()
        }
        Ok(Err(error)) => refuse(&error.to_api()),
        Err(error) => refuse(&ApiError::new(Code::Internal, error.to_string())),
    }
}

async fn prune(State(builder): State<Arc<Builder>>) -> Response {
    match tokio::task::spawn_blocking(move || builder.prune()).await {
        Ok(Ok(names)) => axum::Json(names).into_response(),
        Ok(Err(error)) => refuse(&error.to_api()),
        Err(error) => refuse(&ApiError::new(Code::Internal, error.to_string())),
    }
}

/// Checks a request and puts its context on disk.
async fn accept(builder: &Builder, request: Request) -> Result<Job, Error> {
    let headers = request.headers();
    let app: AppName = text(headers, APP_HEADER)?
        .parse()
        .map_err(|error| Error::Request(format!("the header `{APP_HEADER}`: {error}")))?;
    let store = text(headers, STORE_HEADER)?.to_owned();
    let token = Secret::new(text(headers, TOKEN_HEADER)?);
    let wanted: BuildRequest = serde_json::from_str(text(headers, BUILD_HEADER)?)
        .map_err(|error| Error::Request(format!("the header `{BUILD_HEADER}`: {error}")))?;
    check(&wanted)?;
    if !is_word(&store) {
        return Err(Error::Request(format!("the header `{STORE_HEADER}`: `{store}` is no id")));
    }
    let folder = builder.disk.context(&random_name()?)?;
    match receive(&folder, request.into_body()).await {
        Ok(gzip) => {
            let app = app.as_str().to_owned();
            Ok(Job { app, store, request: wanted, token, folder, gzip })
        }
        Err(error) => {
            disk::remove(&folder)?;
            Err(error)
        }
    }
}

/// Returns whether a text is plain enough for a tag, the name of a stage or of a folder.
fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check(request: &BuildRequest) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::Request(text));
    if !is_word(&request.tag) || request.tag.len() > TAG_BYTES_MAX {
        return refuse(format!("`{}` is no tag of an image", request.tag));
    }
    if let Some(target) = request.target.as_deref().filter(|target| !is_word(target)) {
        return refuse(format!("`{target}` is no name of a stage"));
    }
    if request.args.len() > ARGUMENTS_MAX {
        return refuse(format!("more than {ARGUMENTS_MAX} build arguments"));
    }
    for (name, value) in &request.args {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if name.is_empty() || !plain || value.contains('\0') {
            return refuse(format!("`{name}` is no build argument"));
        }
    }
    Ok(())
}

/// Streams a body to `packed/context` and returns whether it is gzipped.
async fn receive(folder: &Path, body: Body) -> Result<bool, Error> {
    let packed = folder.join("packed");
    disk::make_folder(&packed)?;
    let path = packed.join("context");
    let mut file = tokio::fs::File::create(&path).await.map_err(Error::file("create", &path))?;
    let mut body = body.into_data_stream();
    let mut magic: Vec<u8> = Vec::new();
    let mut bytes = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            Error::Request(format!("the context did not arrive whole: {error}"))
        })?;
        magic.extend(chunk.iter().take(GZIP_MAGIC.len().saturating_sub(magic.len())));
        bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if bytes > CONTEXT_BYTES_MAX {
            return Err(crate::context::ContextError::Bytes.into());
        }
        file.write_all(&chunk).await.map_err(Error::file("write", &path))?;
    }
    file.flush().await.map_err(Error::file("write", &path))?;
    if bytes == 0 {
        return Err(Error::Request("the context is empty".to_owned()));
    }
    Ok(magic == GZIP_MAGIC)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Error> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Error::Request(format!("the header `{name}` is missing")))
}

fn random_name() -> Result<String, Error> {
    let mut bytes = [0_u8; 12];
    getrandom::fill(&mut bytes).map_err(|error| Error::Cage(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn stream(mut receiver: mpsc::Receiver<BuildEvent>) -> Response {
    // Dropping this stream, as the server does when the client goes away, closes the channel.
    let lines =
        futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)).map(|event| {
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            Ok::<_, serde_json::Error>(Bytes::from(line))
        });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn refuse(error: &ApiError) -> Response {
    let status =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(error)).into_response()
}
