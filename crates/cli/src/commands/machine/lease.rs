//! `perch machine lease …`: who holds a machine at the moment.
//!
//! Never acquires one: that is for programs that refresh it.

use clap::Subcommand;
use perch_client::Api;
use perch_types::api::Lease;
use perch_types::{AppName, Code, MachineId, Timestamp};

use crate::clock::now;
use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with leases.
#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Show who holds machines' leases
    View {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
    /// End machines' leases, whoever holds them
    Clear {
        /// Machines' ids
        #[arg(required = true)]
        ids: Vec<MachineId>,
    },
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    command: LeaseCommand,
) -> Result {
    match command {
        LeaseCommand::View { ids } => view(invocation, (api, app), ids).await,
        LeaseCommand::Clear { ids } => {
            for id in ids {
                clear(invocation, (api, app), &id).await?;
            }
            Ok(())
        }
    }
}

async fn view(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    ids: Vec<MachineId>,
) -> Result {
    let mut leases = Vec::new();
    for id in ids {
        let lease = find(api, app, &id).await?;
        leases.push((id, lease));
    }
    let ui = &invocation.ui;
    if ui.is_json() {
        let held = leases.iter().filter_map(|(id, lease)| {
            let lease = lease.as_ref()?;
            Some(serde_json::json!({ "machine": id, "lease": lease }))
        });
        ui.json(&held.collect::<Vec<_>>());
        return Ok(());
    }
    let mut rows = vec![row(["MACHINE", "OWNER", "ENDS", "NONCE", "DESCRIPTION"])];
    for (id, lease) in &leases {
        match lease {
            Some(lease) => rows.push(row([
                id.as_str(),
                &lease.owner,
                &ends(lease),
                &lease.nonce,
                &lease.description,
            ])),
            None => ui.say(format!("machine {id} has no lease")),
        }
    }
    if rows.len() > 1 {
        table(&rows).iter().for_each(|line| ui.data(line));
    }
    Ok(())
}

fn ends(lease: &Lease) -> String {
    let then = Timestamp::from_unix_ms(lease.expires_at.saturating_mul(1_000));
    format!("in {}", crate::clock::age(now(), then))
}

async fn clear(invocation: &Invocation, (api, app): (&Api, &AppName), id: &MachineId) -> Result {
    let Some(lease) = find(api, app, id).await? else {
        invocation.ui.say(format!("machine {id} has no lease"));
        return Ok(());
    };
    match api.release_lease(app, id, &lease.nonce).await {
        // It ended by itself meanwhile.
        Err(error) if error.code() == Some(Code::LeaseNotFound) => {}
        released => released.during(format!("end the lease of machine `{id}`"))?,
    }
    invocation.ui.good(format!("lease of machine {id} is ended; {} held it", lease.owner));
    Ok(())
}

async fn find(api: &Api, app: &AppName, id: &MachineId) -> Result<Option<Lease>> {
    match api.lease(app, id).await {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.code() == Some(Code::LeaseNotFound) => Ok(None),
        Err(error) => Err(error).during(format!("look at the lease of machine `{id}`")),
    }
}
