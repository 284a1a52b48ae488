//! `perch machine metadata …`: labels of a machine.
//!
//! Never makes a new version of it.

use std::collections::BTreeMap;

use clap::Subcommand;
use perch_client::Api;
use perch_types::api::UpdateMetadata;
use perch_types::{AppName, MachineId};

use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with labels.
#[derive(Debug, Subcommand)]
pub(crate) enum MetadataCommand {
    /// Show a machine's labels
    #[command(visible_alias = "ls")]
    List {
        /// Machine's id
        id: MachineId,
    },
    /// Set labels of a machine
    Set {
        /// Machine's id
        id: MachineId,
        /// Labels
        #[arg(required = true, value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Take labels of a machine away
    Unset {
        /// Machine's id
        id: MachineId,
        /// Labels' keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    command: MetadataCommand,
) -> Result {
    match command {
        MetadataCommand::List { id } => list(invocation, (api, app), &id).await,
        MetadataCommand::Set { id, labels } => {
            let labels = labels.iter().map(|label| {
                let (key, value) = pair(label)?;
                Ok((key, Some(value)))
            });
            let labels = labels.collect::<Result<_>>()?;
            change(invocation, (api, app), &id, labels).await
        }
        MetadataCommand::Unset { id, keys } => {
            let keys = keys.into_iter().map(|key| (key, None)).collect();
            change(invocation, (api, app), &id, keys).await
        }
    }
}

/// Reads `KEY=VALUE`.
pub(crate) fn pair(label: &str) -> Result<(String, String)> {
    match label.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(CommandError::usage(format!("`{label}` is no label"), "`KEY=VALUE`")),
    }
}

async fn list(invocation: &Invocation, (api, app): (&Api, &AppName), id: &MachineId) -> Result {
    let what = format!("look at the labels of machine `{id}`");
    let labels = api.metadata(app, id).await.during(what)?;
    let ui = &invocation.ui;
    if ui.is_json() {
        ui.json(&labels);
    } else if labels.is_empty() {
        ui.say(format!("machine {id} has no labels"));
    } else {
        let mut rows = vec![row(["KEY", "VALUE"])];
        rows.extend(labels.iter().map(|(key, value)| row([key, value])));
        table(&rows).iter().for_each(|line| ui.data(line));
    }
    Ok(())
}

async fn change(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    id: &MachineId,
    metadata: BTreeMap<String, Option<String>>,
) -> Result {
    let update = UpdateMetadata { metadata, ..UpdateMetadata::default() };
    let changed = api.merge_metadata(app, id, &update).await;
    changed.during(format!("change the labels of machine `{id}`"))?;
    invocation.ui.good(format!("labels of machine {id} are changed"));
    Ok(())
}
