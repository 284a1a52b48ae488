//! Answers that stay open: lines of JSON.
//!
//! Never waits for a slow reader without a limit: a watcher that lags is cut off and begins again
//! with a snapshot.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use perch_types::api::LogRecord;
use perch_types::host::{LogsQuery, WATCH_HEARTBEAT_MS, WatchEvent, WatchQuery};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Refusal;
use crate::Host;
use crate::drains::Sender;
use crate::loads::Member;
use crate::logs::{Following, Log};

type Line = Result<Bytes, std::convert::Infallible>;

fn line<T: Serialize>(value: &T) -> Line {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn answer(lines: impl Stream<Item = Line> + Send + 'static) -> Response {
    let headers = [(http::header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::from_stream(lines)).into_response()
}

/// Answers with records of a log, and what is added if asked to.
pub(super) async fn logs(log: Log, query: LogsQuery) -> Result<Response, Refusal> {
    let follow = query.follow;
    let read = tokio::task::spawn_blocking(move || {
        let found = log.read(&query)?;
        Ok::<_, perch_types::ApiError>((log, found))
    })
    .await
    .map_err(|_| super::internal())?;
    let (log, (records, next)) = read?;
    let first = stream::iter(records).map(|record| line(&record));
    if !follow {
        return Ok(answer(first));
    }
    let following = log.follow(next)?;
    Ok(answer(first.chain(stream::unfold(following, follow_on).flat_map(stream::iter))))
}

async fn follow_on(mut following: Following) -> Option<(Vec<Line>, Following)> {
    let records: Vec<LogRecord> = following.next().await.ok()?;
    if records.is_empty() {
        return None;
    }
    Some((records.iter().map(line).collect(), following))
}

/// What a watcher is sent next, and that it is one of those who send requests.
struct Watching {
    changes: Receiver<Arc<WatchEvent>>,
    _sender: Option<Sender>,
    _member: Option<Member>,
}

/// Answers with a snapshot of all machines and every change after it.
pub(super) fn watch(host: &Host, query: WatchQuery) -> Response {
    // First the promise, then the snapshot: what is in it may be drained already.
    let sender = query.drains.then(|| host.join_senders(query.edge));
    let member = query.drains.then(|| host.join_edge(query.edge));
    let (snapshot, changes) = host.watch();
    let first = stream::once(std::future::ready(line(&snapshot)));
    let watching = Watching { changes, _sender: sender, _member: member };
    answer(first.chain(stream::unfold(watching, next_change)))
}

async fn next_change(mut watching: Watching) -> Option<(Line, Watching)> {
    let beat = Duration::from_millis(WATCH_HEARTBEAT_MS);
    match tokio::time::timeout(beat, watching.changes.recv()).await {
        Ok(Ok(event)) => Some((line(event.as_ref()), watching)),
        Err(_) => Some((line(&WatchEvent::Heartbeat), watching)),
        Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => None,
    }
}
