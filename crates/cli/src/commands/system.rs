//! `perch system df|prune`.
//!
//! Never deletes what a machine names: the servers decide what may go.

use clap::Subcommand;

use crate::context::size_in_words;
use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with the servers.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what takes the servers' disks
    Df,
    /// Delete images that no machine uses from the servers' disks
    Prune,
}

pub(crate) async fn run(invocation: &Invocation, command: SystemCommand) -> Result {
    match command {
        SystemCommand::Df => df(invocation).await,
        SystemCommand::Prune => prune(invocation).await,
    }
}

async fn df(invocation: &Invocation) -> Result {
    let usage = invocation.api()?.system_usage().await.during("read the servers' disks")?;
    if invocation.ui.is_json() {
        invocation.ui.json(&usage);
        return Ok(());
    }
    let mut rows = vec![row(["SERVER", "WHAT", "COUNT", "SIZE", "RECLAIMABLE"])];
    for host in &usage.hosts {
        let server = host.host.to_string();
        rows.extend(host.uses.iter().map(|one| {
            row([
                &server,
                &one.kind,
                &one.count.map_or_else(String::new, |count| count.to_string()),
                &size_in_words(one.bytes),
                &size_in_words(one.reclaimable_bytes),
            ])
        }));
        let free =
            format!("{} of {}", size_in_words(host.free_bytes), size_in_words(host.total_bytes));
        rows.push(row([&server, "free", "", &free, ""]));
    }
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn prune(invocation: &Invocation) -> Result {
    let pruned = invocation.api()?.system_prune().await.during("free the servers' disks")?;
    if invocation.ui.is_json() {
        invocation.ui.json(&pruned);
        return Ok(());
    }
    invocation.ui.say(format!(
        "{} images deleted, {} freed",
        pruned.images,
        size_in_words(pruned.bytes)
    ));
    Ok(())
}
