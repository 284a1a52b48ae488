//! Logs: of one machine as lines, of an app in the contract's shape (3.5).
//!
//! Never keeps a record: the hosts have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json as JsonReply};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::CONTENT_TYPE;
use perch_types::api::{AppLogAttributes, AppLogEntry, AppLogs, AppLogsMeta, LogRecord, LogStream};
use perch_types::error::chain;
use perch_types::host::LogsQuery;
use perch_types::{Code, MachineId};
use serde_json::json;

use crate::body::Parameters;
use crate::config::{Host, Shared};
use crate::documents;
use crate::machines::of_host;
use crate::reply::Failure;
use crate::routes::{OfApp, Target};

/// The type of answers that are lines of JSON.
pub(crate) const LINES_TYPE: &str = "application/x-ndjson";
/// Records of an app that are returned at once (contract 3.5).
const APP_RECORDS_MAX: usize = 100;
/// Records of one machine that are looked at for one answer.
const MACHINE_RECORDS_MAX: usize = 1000;
/// Machines of an app that are asked for one answer.
const MACHINES_MAX: usize = 64;
/// The label that names a machine's process group (contract 1.13).
const GROUP_KEY: &str = "fly_process_group";
/// Records of a machine's log that can be asked for by `last`.
const LAST_MAX: u64 = 100_000;

pub(crate) async fn machine(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Result<Response, Failure> {
    let query = LogsQuery {
        from_seq: parameters.parsed("from_seq")?,
        last: parameters.parsed::<u64>("last")?.map(|last| last.min(LAST_MAX)),
        follow: parameters.flag("follow")?,
    };
    let host = target.host()?;
    let lines = host.client.logs(&target.id, &query).await;
    let lines = lines.map_err(|error| of_host(error, &target.id))?;
    let bytes = lines.into_stream().map(|record| -> Result<Bytes, perch_client::BoxError> {
        let mut line = serde_json::to_vec(&record?)?;
        line.push(b'\n');
        Ok(line.into())
    });
    Ok(([(CONTENT_TYPE, LINES_TYPE)], Body::from_stream(bytes)).into_response())
}

pub(crate) async fn app(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Result<JsonReply<AppLogs>, Failure> {
    let mut position = Position::parse(parameters.get("next_token").unwrap_or_default())?;
    let (instance, region) = (parameters.get("instance"), parameters.get("region"));
    let placements = documents::placements(shared.store.as_ref(), &app.org).await?;
    let own = placements.into_iter().filter(|(_, placement)| placement.document.app == app.name);
    let own: Vec<_> = own.collect();
    // The token does not grow by machines that are gone.
    position.next.retain(|id, _| own.iter().any(|(placed, _)| placed == id));
    let (mut records, mut seen) = (Vec::new(), BTreeMap::new());
    let asked = own
        .into_iter()
        .filter(|(id, placement)| {
            instance.is_none_or(|instance| instance == id.as_str())
                && region.is_none_or(|region| region == placement.document.region.as_str())
        })
        .take(MACHINES_MAX);
    for (id, placement) in asked {
        let Some(host) = shared.hosts.get(&placement.document.host) else {
            continue;
        };
        // A machine whose host is away must not hide the others.
        match of_machine(host, &id, &position).await {
            Ok(found) => {
                seen.extend(position.is_start().then(|| (id, after(&found))));
                records.extend(found);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), machine = %id, "log not read");
            }
        }
    }
    records.sort_by(|one: &LogRecord, other| {
        (one.timestamp, &one.machine, one.seq).cmp(&(other.timestamp, &other.machine, other.seq))
    });
    if position.is_start() {
        // Without a token the newest; with one, what follows it without a gap.
        records.drain(..records.len().saturating_sub(APP_RECORDS_MAX));
        position.next = seen;
    } else {
        records.truncate(APP_RECORDS_MAX);
    }
    for record in &records {
        position.pass(record);
    }
    let meta = AppLogsMeta { next_token: position.token() };
    let view = shared.view.load();
    let group = |id: &MachineId| view.machine(id)?.metadata.get(GROUP_KEY).cloned();
    let data = records.into_iter().map(|record| entry(group(&record.machine), record)).collect();
    Ok(JsonReply(AppLogs { data, meta }))
}

/// Returns the number of the record that will follow these of a machine.
fn after(records: &[LogRecord]) -> u64 {
    records.last().map_or(0, |record| record.seq.saturating_add(1))
}

/// Where a reader is in the logs of an app: the next record of each machine it has seen, or a
/// moment. To clients a text without a meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Position {
    next: BTreeMap<MachineId, u64>,
    after_unix_ns: Option<i128>,
}

impl Position {
    fn parse(token: &str) -> Result<Self, Failure> {
        let bad = || Failure::new(Code::InvalidRequest, "next_token: is not one of this server");
        if token.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(unix_ns) = token.parse::<i128>() {
            return Ok(Self { after_unix_ns: Some(unix_ns), ..Self::default() });
        }
        let mut next = BTreeMap::new();
        for part in token.split('_').filter(|part| *part != "-") {
            let (id, seq) = part.split_once('.').ok_or_else(bad)?;
            next.insert(id.parse().map_err(|_| bad())?, seq.parse().map_err(|_| bad())?);
            if next.len() > MACHINES_MAX {
                return Err(bad());
            }
        }
        Ok(Self { next, after_unix_ns: None })
    }

    fn is_start(&self) -> bool {
        self.next.is_empty() && self.after_unix_ns.is_none()
    }

    fn pass(&mut self, record: &LogRecord) {
        self.next.insert(record.machine.clone(), record.seq.saturating_add(1));
        self.after_unix_ns = None;
    }

    fn token(&self) -> String {
        if let Some(unix_ns) = self.after_unix_ns {
            return unix_ns.to_string();
        }
        let parts: Vec<String> = self.next.iter().map(|(id, seq)| format!("{id}.{seq}")).collect();
        if parts.is_empty() { "-".to_owned() } else { parts.join("_") }
    }

    fn query(&self, id: &MachineId) -> LogsQuery {
        match (self.next.get(id), self.after_unix_ns) {
            (Some(seq), _) => LogsQuery { from_seq: Some(*seq), last: None, follow: false },
            // A machine that is new since the token, from its first record on.
            (None, _) if !self.is_start() => {
                let last = u64::try_from(MACHINE_RECORDS_MAX).ok();
                LogsQuery { from_seq: None, last, follow: false }
            }
            (None, _) => {
                let last = u64::try_from(APP_RECORDS_MAX).ok();
                LogsQuery { from_seq: None, last, follow: false }
            }
        }
    }
}

async fn of_machine(
    host: &Host,
    id: &MachineId,
    position: &Position,
) -> Result<Vec<LogRecord>, perch_client::Error> {
    let mut lines = host.client.logs(id, &position.query(id)).await?;
    let mut records = Vec::new();
    while records.len() < MACHINE_RECORDS_MAX {
        let Some(record) = lines.next().await else {
            break;
        };
        let record = record?;
        let unix_ns = i128::from(record.timestamp.unix_ms()) * 1_000_000;
        if position.after_unix_ns.is_none_or(|after| unix_ns > after) {
            records.push(record);
        }
    }
    Ok(records)
}

/// Makes an entry. Which group, container and process it is of is more than the contract has.
fn entry(group: Option<String>, record: LogRecord) -> AppLogEntry {
    let (level, provider) = match record.stream {
        LogStream::Stdout => ("info", "app"),
        LogStream::Stderr => ("error", "app"),
        LogStream::System => ("info", "runner"),
    };
    let mut meta = BTreeMap::from([
        ("instance".to_owned(), json!(record.machine)),
        ("region".to_owned(), json!(record.region)),
        ("event".to_owned(), json!({ "provider": provider })),
    ]);
    meta.extend(group.map(|name| ("process_group".to_owned(), json!(name))));
    meta.extend(record.container.map(|name| ("container".to_owned(), json!(name))));
    meta.extend(record.process.map(|number| ("process".to_owned(), json!(number))));
    AppLogEntry {
        id: format!("{}-{}", record.machine, record.seq),
        attributes: AppLogAttributes {
            timestamp: record.timestamp,
            message: record.message,
            level: level.to_owned(),
            instance: record.machine.to_string(),
            region: record.region.to_string(),
            meta,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_is_given_back_as_it_was() {
        for token in ["-", "00000000000001.7", "00000000000001.7_00000000000002.0", "170000"] {
            assert_eq!(Position::parse(token).unwrap().token(), token);
        }
        assert!(Position::parse("").unwrap().is_start());
        for bad in ["x", "1.2", "0000000000000a", "00000000000001.x"] {
            assert!(Position::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_token_is_a_position_or_an_error(token in ".{0,60}") {
            if let Ok(position) = Position::parse(&token) {
                prop_assert_eq!(Position::parse(&position.token()).unwrap(), position);
            }
        }
    }
}
