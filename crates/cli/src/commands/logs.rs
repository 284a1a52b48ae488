//! `perch logs`.
//!
//! Never lets a program's bytes reach the terminal as they are: `ui` escapes them.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use perch_client::Api;
use perch_types::api::{AppLogEntry, LogRecord, LogStream};
use perch_types::host::LogsQuery;
use perch_types::{AppName, MachineId, MachineState};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::ui::Ui;

/// How many of a machine's newest records are shown before new ones.
const LAST: u64 = 100;
/// How many entries of an app the platform returns at once (contract 3.5); so many mean that there
/// are more.
const PAGE_ENTRIES: usize = 100;
/// The process group of apps that have one, which is not worth a word.
const GROUP_DEFAULT: &str = "app";
/// Between two questions for new entries, and before a log that broke off is asked for again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a log that is followed may be silent before its machine is looked at.
const SILENCE: Duration = Duration::from_secs(5);
/// How many entries are remembered, so as not to show one twice.
const SEEN_MAX: usize = 4096;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Show what there is and end; the default where output is no terminal
    #[arg(short, long)]
    no_tail: bool,
    /// Go on also where output is no terminal
    #[arg(short, long, conflicts_with = "no_tail")]
    follow: bool,
    /// Only of this machine
    #[arg(short, long, value_name = "ID")]
    machine: Option<MachineId>,
}

pub(crate) async fn run(invocation: &Invocation, args: LogsArgs) -> Result {
    let follow = args.follow || (!args.no_tail && Ui::is_interactive());
    match &args.machine {
        Some(machine) => of_machine(invocation, machine, follow).await,
        None => of_app(invocation, follow).await,
    }
}

async fn of_app(invocation: &Invocation, follow: bool) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    let what = format!("read the logs of `{app}`");
    let mut token: Option<String> = None;
    let mut seen: VecDeque<String> = VecDeque::new();
    loop {
        let mut full = false;
        match api.app_logs(&app, token.as_deref()).await {
            Ok(logs) => {
                full = logs.data.len() >= PAGE_ENTRIES;
                for entry in &logs.data {
                    if !seen.contains(&entry.id) {
                        seen.push_back(entry.id.clone());
                        print(invocation, entry);
                    }
                }
                seen.drain(..seen.len().saturating_sub(SEEN_MAX));
                if !logs.meta.next_token.is_empty() {
                    token = Some(logs.meta.next_token);
                }
            }
            // A server that restarts is no reason to stop following.
            Err(error) if follow && token.is_some() && error.is_transient() => {}
            Err(error) => return Err(error).during(what),
        }
        if !follow || invocation.ui.reader_is_gone() {
            return Ok(());
        }
        if !full {
            sleep(PAUSE).await;
        }
    }
}

fn print(invocation: &Invocation, entry: &AppLogEntry) {
    if invocation.ui.is_json() {
        invocation.ui.json(&entry);
        return;
    }
    let it = &entry.attributes;
    let named = |key: &str| it.meta.get(key).and_then(Value::as_str);
    let group = named("process_group").filter(|name| *name != GROUP_DEFAULT);
    let process = it.meta.get("process").and_then(Value::as_u64);
    let from = origin([group, named("container")], process);
    invocation.ui.data(format!(
        "{} {} {} [{from}{}] {}",
        it.timestamp,
        it.instance,
        it.region,
        it.level,
        it.message.replace('\n', "\\n")
    ));
}

async fn of_machine(invocation: &Invocation, machine: &MachineId, follow: bool) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    let what = format!("read the log of machine `{machine}`");
    let mut query = LogsQuery { last: Some(LAST), follow, ..LogsQuery::default() };
    let mut known = false;
    loop {
        match print_records(invocation, (&api, &app, machine), &mut query, &mut known).await {
            // A server that restarts is no reason to stop following.
            Err(error) if follow && known && error.is_transient() => {}
            Err(error) => return Err(error).during(what),
            Ok(()) if !follow => return Ok(()),
            Ok(()) => {}
        }
        if invocation.ui.reader_is_gone() || is_gone(&api, &app, machine).await {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Returns whether nothing more can come of a machine.
async fn is_gone(api: &Api, app: &AppName, machine: &MachineId) -> bool {
    match api.machine(app, machine).await {
        Ok(machine) => machine.state == MachineState::Destroyed,
        Err(error) => error.is_not_found(),
    }
}

/// Prints records until the answer ends; moves the query behind the last one. `known` becomes true
/// once the platform has answered.
async fn print_records(
    invocation: &Invocation,
    (api, app, machine): (&Api, &AppName, &MachineId),
    query: &mut LogsQuery,
    known: &mut bool,
) -> std::result::Result<(), perch_client::Error> {
    let mut lines = api.logs(app, machine, query).await?;
    *known = true;
    loop {
        let record: LogRecord = match timeout(SILENCE, lines.next()).await {
            Ok(Some(record)) => record?,
            Ok(None) => return Ok(()),
            // The log of a machine that was destroyed stays as silent as that of an idle one.
            Err(_) if is_gone(api, app, machine).await => return Ok(()),
            Err(_) => continue,
        };
        *query = LogsQuery {
            from_seq: Some(record.seq.saturating_add(1)),
            last: None,
            follow: query.follow,
        };
        print_record(invocation, &record);
        if invocation.ui.reader_is_gone() {
            return Ok(());
        }
    }
}

fn print_record(invocation: &Invocation, record: &LogRecord) {
    if invocation.ui.is_json() {
        invocation.ui.json(record);
        return;
    }
    if record.dropped > 0 {
        invocation.ui.warn(format!("{} records before this one were dropped", record.dropped));
    }
    let stream = match record.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::System => "system",
    };
    let message = record.message.replace('\n', "\\n");
    let from = origin([None, record.container.as_deref()], record.process.map(u64::from));
    invocation.ui.data(format!("{} [{from}{stream}] {message}", record.timestamp));
}

/// Returns what stands before a line's stream: whose it is, where there are several.
fn origin(names: [Option<&str>; 2], process: Option<u64>) -> String {
    let names = names.into_iter().flatten().map(|name| format!("{name} "));
    names.chain(process.map(|number| format!("process {number} "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whose_it_is_where_there_are_several() {
        for (names, process, want) in [
            ([None, None], None, ""),
            ([Some("worker"), None], None, "worker "),
            ([None, Some("proxy")], None, "proxy "),
            ([Some("worker"), None], Some(1), "worker process 1 "),
        ] {
            assert_eq!(origin(names, process), want);
        }
    }
}
