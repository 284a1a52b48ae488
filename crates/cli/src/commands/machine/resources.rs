//! `perch machine ps` and `perch machine memory`.
//!
//! Never trusts the names of processes: `ui` escapes them.

use clap::{Args, ValueEnum};
use perch_client::{Api, ProcessOrder};
use perch_types::api::ProcessStat;
use perch_types::{AppName, MachineId};

use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// How a process's command is cut in the table.
const COMMAND_CHARACTERS_MAX: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Machine's id
    id: MachineId,
    /// What counts for the order
    #[arg(long, value_enum, default_value_t = Field::Pid)]
    sort_by: Field,
    /// The largest first
    #[arg(long)]
    desc: bool,
}

/// The words of `--sort-by`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Field {
    Pid,
    Stime,
    Rtime,
    Command,
    Directory,
    Cpu,
    Rss,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// Machine's id
    id: MachineId,
    /// What it may use from now on, until it stops
    #[arg(long, value_name = "MB", conflicts_with = "reclaim")]
    limit: Option<u64>,
    /// Take back what it could do without
    #[arg(long, value_name = "MB")]
    reclaim: Option<u64>,
}

pub(crate) async fn ps(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    args: PsArgs,
) -> Result {
    let field = args.sort_by.to_possible_value().map(|value| value.get_name().to_owned());
    let order = ProcessOrder { sort_by: field, descending: args.desc };
    let found = api.processes(app, &args.id, &order).await;
    let found = found.during(format!("list the processes of machine `{}`", args.id))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&found);
    } else {
        process_table(&found).iter().for_each(|line| invocation.ui.data(line));
    }
    Ok(())
}

fn process_table(processes: &[ProcessStat]) -> Vec<String> {
    let several = processes.iter().any(|process| process.container.is_some());
    let mut rows = vec![row(["PID", "CPU", "MEMORY", "RUNS", "LISTENS", "FOLDER", "COMMAND"])];
    if several && let Some(head) = rows.first_mut() {
        head.insert(0, "CONTAINER".to_owned());
    }
    rows.extend(processes.iter().map(|process| {
        let listens: Vec<&str> =
            process.listen_sockets.iter().map(|socket| socket.address.as_str()).collect();
        let mut cells = row([
            &process.pid.to_string(),
            &format!("{}%", process.cpu),
            &format!("{} MB", process.rss.div_ceil(1 << 20)),
            &format!("{}s", process.rtime),
            &if listens.is_empty() { "-".to_owned() } else { listens.join(",") },
            &process.directory,
            &process.command.chars().take(COMMAND_CHARACTERS_MAX).collect::<String>(),
        ]);
        if several {
            cells.insert(0, process.container.clone().unwrap_or_default());
        }
        cells
    }));
    table(&rows)
}

pub(crate) async fn memory(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    args: MemoryArgs,
) -> Result {
    let id = &args.id;
    if let Some(amount_mb) = args.reclaim {
        let reclaimed = api.reclaim_memory(app, id, amount_mb).await;
        let reclaimed = reclaimed.during(format!("reclaim memory of machine `{id}`"))?;
        if invocation.ui.is_json() {
            invocation.ui.json(&reclaimed);
        } else {
            invocation.ui.good(format!("machine {id} gave back {} MB", reclaimed.actual_mb));
        }
        return Ok(());
    }
    let memory = match args.limit {
        Some(limit_mb) => {
            let set = api.set_memory(app, id, limit_mb).await;
            set.during(format!("change the memory of machine `{id}`"))?
        }
        None => {
            api.memory(app, id).await.during(format!("look at the memory of machine `{id}`"))?
        }
    };
    if invocation.ui.is_json() {
        invocation.ui.json(&memory);
    } else {
        let rows = [
            row(["limit", &format!("{} MB", memory.limit_mb)]),
            row(["available", &format!("{} MB", memory.available_mb)]),
        ];
        table(&rows).iter().for_each(|line| invocation.ui.data(line));
    }
    Ok(())
}
