//! `perch logs`.
//!
//! Never lets a program's bytes reach the terminal as they are: `ui` escapes them.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use perch_types::MachineId;
use perch_types::api::{AppLogEntry, LogRecord, LogStream};
use perch_types::host::LogsQuery;
use tokio::time::sleep;

use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::ui::Ui;

/// How many of a machine's newest records are shown before new ones.
const LAST: u64 = 100;
/// Between two questions for new entries of an app.
const PAUSE: Duration = Duration::from_millis(500);
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
        match api.app_logs(&app, token.as_deref()).await {
            Ok(logs) => {
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
        if !follow {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

fn print(invocation: &Invocation, entry: &AppLogEntry) {
    if invocation.ui.is_json() {
        invocation.ui.json(&entry);
        return;
    }
    let it = &entry.attributes;
    invocation.ui.data(format!(
        "{} {} {} [{}] {}",
        it.timestamp,
        it.instance,
        it.region,
        it.level,
        it.message.replace('\n', "\\n")
    ));
}

async fn of_machine(invocation: &Invocation, machine: &MachineId, follow: bool) -> Result {
    let app = invocation.app()?;
    let what = format!("read the log of machine `{machine}`");
    let query = LogsQuery { last: Some(LAST), follow, ..LogsQuery::default() };
    let mut lines = invocation.api()?.logs(&app, machine, &query).await.during(&what)?;
    while let Some(record) = lines.next().await {
        let record: LogRecord = record.during(&what)?;
        if invocation.ui.is_json() {
            invocation.ui.json(&record);
            continue;
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
        invocation.ui.data(format!("{} [{stream}] {message}", record.timestamp));
    }
    Ok(())
}
