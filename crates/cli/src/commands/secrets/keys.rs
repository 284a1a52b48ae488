//! `perch secrets keys …`: keys that the platform makes, keeps and uses for the app.
//!
//! Never prints a key, and takes one from standard input only: others can see a command line.

use clap::Subcommand;
use perch_client::Api;
use perch_types::secret_keys::{SecretKeyType, SetSecretKey, name_fault};
use perch_types::{AppName, Octets};

use super::read_input;
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with secret keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the app's secret keys, with their public halves
    #[command(visible_alias = "ls")]
    List,
    /// Have a key made that nobody ever sees
    Generate {
        /// What it is for: es256, hs256, hs384, hs512, xaes256gcm, nacl_auth, nacl_box,
        /// nacl_secretbox or nacl_sign
        #[arg(value_name = "TYPE")]
        kind: SecretKeyType,
        /// Name
        name: String,
        /// Also when there is a key of this name: what it encrypted is lost then
        #[arg(long)]
        force: bool,
    },
    /// Set a key from base64 on standard input
    #[command(visible_alias = "set")]
    Import {
        /// What it is for, as with `generate`
        #[arg(value_name = "TYPE")]
        kind: SecretKeyType,
        /// Name
        name: String,
        /// Also when there is a key of this name: what it encrypted is lost then
        #[arg(long)]
        force: bool,
    },
    /// Delete keys: what they encrypted is lost
    #[command(visible_alias = "rm")]
    Delete {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(super) async fn run(invocation: &Invocation, command: KeysCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    match command {
        KeysCommand::List => list(invocation, (&api, &app)).await,
        KeysCommand::Generate { kind, name, force } => {
            let set = SetSecretKey { kind, value: None };
            put(invocation, (&api, &app), (&name, set), force).await
        }
        KeysCommand::Import { kind, name, force } => {
            let value = Octets::from_base64(read_input()?.expose().trim()).ok_or_else(|| {
                CommandError::usage("standard input is not base64", "write the key in base64")
            })?;
            let set = SetSecretKey { kind, value: Some(value) };
            put(invocation, (&api, &app), (&name, set), force).await
        }
        KeysCommand::Delete { names } => delete(invocation, (&api, &app), &names).await,
    }
}

async fn list(invocation: &Invocation, (api, app): (&Api, &AppName)) -> Result {
    let keys = api.secret_keys(app).await;
    let keys = keys.during(format!("list the secret keys of `{app}`"))?.secret_keys;
    if invocation.ui.is_json() {
        invocation.ui.json(&keys);
        return Ok(());
    }
    if keys.is_empty() {
        invocation.ui.say(format!("`{app}` has no secret keys"));
        return Ok(());
    }
    let mut rows = vec![row(["NAME", "TYPE", "PUBLIC KEY", "UPDATED AT"])];
    rows.extend(keys.iter().map(|key| {
        let public = key.public_key.as_ref().map(Octets::to_base64).unwrap_or_default();
        row([key.name.as_str(), key.kind.as_str(), &public, &key.updated_at.to_string()])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn put(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    (name, set): (&str, SetSecretKey),
    force: bool,
) -> Result {
    if let Some(fault) = name_fault(name) {
        let shown: String = name.chars().take(40).collect();
        return Err(CommandError::usage(
            format!("the name `{shown}` {fault}"),
            "choose another name",
        ));
    }
    if !force {
        let keys = api.secret_keys(app).await;
        let keys = keys.during(format!("list the secret keys of `{app}`"))?.secret_keys;
        if keys.iter().any(|key| key.name == name) {
            return Err(CommandError::refused(
                format!("`{app}` has a secret key `{name}`"),
                "choose another name, or add `--force` to lose what it encrypted",
            ));
        }
    }
    let set = api.set_secret_key(app, name, &set).await;
    let set = set.during(format!("set the secret key `{name}` of `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&set);
        return Ok(());
    }
    invocation.ui.good(format!("secret key `{name}` of `{app}` is set, of type {}", set.key.kind));
    if let Some(public) = set.key.public_key {
        invocation.ui.data(public.to_base64());
    }
    Ok(())
}

async fn delete(invocation: &Invocation, (api, app): (&Api, &AppName), names: &[String]) -> Result {
    for name in names {
        match invocation.ui.confirm(&format!("Delete the secret key `{name}` of `{app}`?")) {
            Some(true) => {}
            Some(false) => {
                return Err(CommandError::Refused {
                    fact: format!("secret key `{name}` stays"),
                    hint: None,
                });
            }
            None => {
                return Err(CommandError::refused(
                    "there is nobody to ask whether this is meant",
                    "add `--yes` to delete without a question",
                ));
            }
        }
        let deleted = api.delete_secret_key(app, name).await;
        deleted.during(format!("delete the secret key `{name}` of `{app}`"))?;
        invocation.ui.good(format!("secret key `{name}` of `{app}` is deleted"));
    }
    Ok(())
}
