//! What the api and the edge ask of a host, over HTTP (`types::host` has the table).
//!
//! Never checks who asks: the daemon does when it accepts the connection.

mod attach;
mod stream;
mod volumes;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use perch_types::api::{
    DiskUsage, ExecRequest, ExecResponse, MachineMemory, ProcessStat, Pruned, ReclaimMemory,
    ReclaimedMemory, SetMemory,
};
use perch_types::consumed::MachineConsumed;
use perch_types::host::{
    Accepted, Command, CreateMachine, Drained, EdgeNote, HostInfo, HostMachine, Loads, LogsQuery,
    MachinesQuery, PREFIX, Rest, STATIC_NAME_HEADER, StaticQuery, WaitQuery, WatchQuery,
};
use perch_types::{ApiError, Code, MachineId};

use crate::Host;

/// The largest body: a configuration, or the input of a program.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Returns the routes of a host.
pub fn router(host: Host) -> Router {
    let routes = Router::new()
        .route("/machines", post(create).get(list))
        .route("/machines/{id}", get(one))
        .route("/machines/{id}/command", post(command))
        .route("/machines/{id}/wait", get(wait))
        .route("/machines/{id}/exec", post(exec))
        .route("/machines/{id}/attach", get(attach::attach))
        .route("/machines/{id}/ps", get(processes))
        .route("/machines/{id}/memory", get(memory).put(set_memory))
        .route("/machines/{id}/memory/reclaim", post(reclaim_memory))
        .route("/machines/{id}/logs", get(logs))
        .route("/machines/{id}/static", get(static_file))
        .route("/machines/{id}/drained", post(drained))
        .route("/machines/{id}/rest", post(rest))
        .route("/machines/{id}/note", post(note))
        .route("/loads", post(loads))
        .route("/consumed", get(consumed))
        .merge(volumes::routes())
        .route("/watch", get(watch))
        .route("/info", get(info))
        .route("/usage", get(usage))
        .route("/prune", post(prune))
        .fallback(|| async { Refusal(ApiError::new(Code::NotFound, "no such path")) })
        .method_not_allowed_fallback(|| async {
            Refusal(ApiError::new(Code::MethodNotAllowed, "the path has no such method"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(host);
    Router::new().nest(PREFIX, routes)
}

/// An error as an answer.
#[derive(Debug)]
struct Refusal(ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = http::StatusCode::from_u16(self.0.code.status())
            .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    body.map(|Json(body)| body).map_err(|rejection| {
        let code = if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
            Code::BodyTooLarge
        } else {
            Code::InvalidRequest
        };
        Refusal(ApiError::new(code, rejection.body_text()))
    })
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    query
        .map(|Query(query)| query)
        .map_err(|rejection| Refusal(ApiError::new(Code::InvalidRequest, rejection.body_text())))
}

fn machine_id(text: &str) -> Result<MachineId, Refusal> {
    text.parse().map_err(|_| Refusal(ApiError::machine_not_found(text)))
}

async fn create(
    State(host): State<Host>,
    request: Result<Json<CreateMachine>, JsonRejection>,
) -> Answer<HostMachine> {
    let request = body(request)?;
    // The caller may hang up; what was begun is carried out.
    let created = tokio::spawn(async move { host.create(request).await }).await;
    Ok(Json(created.map_err(|_| internal())??))
}

async fn list(
    State(host): State<Host>,
    asked: Result<Query<MachinesQuery>, QueryRejection>,
) -> Answer<Vec<HostMachine>> {
    let MachinesQuery { app } = query(asked)?;
    Ok(Json(match app {
        Some(app) => host.of_app(&app),
        None => host.all(),
    }))
}

async fn one(State(host): State<Host>, Path(id): Path<String>) -> Answer<HostMachine> {
    Ok(Json(host.get(&machine_id(&id)?)?))
}

async fn command(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<Command>, JsonRejection>,
) -> Answer<Accepted> {
    let (id, request) = (machine_id(&id)?, body(request)?);
    let accepted = tokio::spawn(async move { host.command(&id, request).await }).await;
    Ok(Json(accepted.map_err(|_| internal())??))
}

fn internal() -> Refusal {
    Refusal(ApiError::new(Code::Internal, "the request was given up"))
}

async fn wait(
    State(host): State<Host>,
    Path(id): Path<String>,
    asked: Result<Query<WaitQuery>, QueryRejection>,
) -> Answer<HostMachine> {
    Ok(Json(host.wait(&machine_id(&id)?, &query(asked)?).await?))
}

async fn exec(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<ExecRequest>, JsonRejection>,
) -> Answer<ExecResponse> {
    Ok(Json(host.exec(&machine_id(&id)?, body(request)?).await?))
}

async fn processes(State(host): State<Host>, Path(id): Path<String>) -> Answer<Vec<ProcessStat>> {
    Ok(Json(host.processes(&machine_id(&id)?).await?))
}

async fn memory(State(host): State<Host>, Path(id): Path<String>) -> Answer<MachineMemory> {
    Ok(Json(host.memory(&machine_id(&id)?).await?))
}

async fn set_memory(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<SetMemory>, JsonRejection>,
) -> Answer<MachineMemory> {
    Ok(Json(host.set_memory(&machine_id(&id)?, body(request)?.limit_mb).await?))
}

async fn reclaim_memory(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<ReclaimMemory>, JsonRejection>,
) -> Answer<ReclaimedMemory> {
    let amount_mb = body(request)?.amount_mb;
    let actual_mb = host.reclaim_memory(&machine_id(&id)?, amount_mb).await?;
    Ok(Json(ReclaimedMemory { actual_mb }))
}

async fn logs(
    State(host): State<Host>,
    Path(id): Path<String>,
    asked: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let (id, asked) = (machine_id(&id)?, query(asked)?);
    stream::logs(host.log(id)?, asked).await
}

async fn static_file(
    State(host): State<Host>,
    Path(id): Path<String>,
    asked: Result<Query<StaticQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let (id, asked) = (machine_id(&id)?, query(asked)?);
    let found = host.static_file(&id, &asked.path).await?;
    let reader = tokio_util::io::ReaderStream::new(tokio::fs::File::from_std(found.file));
    let headers = [
        (http::header::CONTENT_LENGTH, found.bytes.to_string()),
        (http::header::ETAG, format!("\"{}\"", found.tag)),
    ];
    let mut response = (headers, axum::body::Body::from_stream(reader)).into_response();
    // A name that no header can carry has no ending that matters.
    if let Ok(name) = http::HeaderValue::from_str(&found.name) {
        response.headers_mut().insert(STATIC_NAME_HEADER, name);
    }
    Ok(response)
}

async fn watch(
    State(host): State<Host>,
    asked: Result<Query<WatchQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    Ok(stream::watch(&host, query(asked)?))
}

async fn drained(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<Drained>, JsonRejection>,
) -> Answer<Drained> {
    let drained = body(request)?;
    host.drained(&machine_id(&id)?, drained)?;
    Ok(Json(drained))
}

async fn rest(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<Rest>, JsonRejection>,
) -> Answer<()> {
    machine_id(&id)?;
    host.rest(body(request)?);
    Ok(Json(()))
}

async fn note(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Result<Json<EdgeNote>, JsonRejection>,
) -> Answer<()> {
    host.edge_note(&machine_id(&id)?, &body(request)?)?;
    Ok(Json(()))
}

async fn loads(
    State(host): State<Host>,
    request: Result<Json<Loads>, JsonRejection>,
) -> Answer<()> {
    host.loads(body(request)?);
    Ok(Json(()))
}

async fn consumed(State(host): State<Host>) -> Json<Vec<MachineConsumed>> {
    Json(host.consumed().await)
}

async fn usage(State(host): State<Host>) -> Answer<DiskUsage> {
    Ok(Json(host.usage().await?))
}

async fn prune(State(host): State<Host>) -> Answer<Pruned> {
    // The caller may hang up; what was begun is carried out.
    let pruned = tokio::spawn(async move { host.tidy(crate::CachePolicy::EMPTY).await }).await;
    Ok(Json(pruned.map_err(|_| internal())??))
}

async fn info(State(host): State<Host>) -> Json<HostInfo> {
    Json(host.info())
}

#[cfg(test)]
pub(crate) mod tests;
