//! `perch secrets …`: values go in, names and digests come out.
//!
//! Never prints a value, not even one that was just typed.

pub(crate) mod keys;

use std::collections::BTreeMap;
use std::io::Read as _;

use clap::{Args, Subcommand};
use perch_client::{Api, ListFilter};
use perch_types::secrets::{CHANGES_MAX, UpdateSecrets, name_fault, value_fault};
use perch_types::{AppName, MachineState, Secret};

use super::deploy;
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// The most that is read from standard input, in bytes.
const INPUT_BYTES_MAX: u64 = 1024 * 1024;
/// What stands for a value that comes from standard input.
const FROM_INPUT: &str = "-";
/// What begins and ends a value of several lines.
const QUOTES: &str = "\"\"\"";

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// List the names and digests of the app's secrets
    #[command(visible_alias = "ls")]
    List,
    /// Set secrets; machines that run begin anew to see them
    Set {
        /// NAME=VALUE; `NAME=-` takes the value from standard input, which others cannot see
        #[arg(required = true, value_name = "NAME=VALUE")]
        pairs: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Set secrets from lines of NAME=VALUE on standard input
    Import {
        #[command(flatten)]
        how: How,
    },
    /// Take secrets away; machines that run begin anew
    Unset {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Have machines that run begin anew, to see secrets that were staged
    Deploy,
    /// Make, import and delete keys that the platform uses for the app
    #[command(subcommand)]
    Keys(keys::KeysCommand),
}

/// How a change takes effect.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct How {
    /// Leave the machines alone: they see the change at their next start
    #[arg(long)]
    stage: bool,
}

type Values = BTreeMap<String, Option<Secret>>;

pub(crate) async fn run(invocation: &Invocation, command: SecretsCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    match command {
        SecretsCommand::List => list(invocation, &api, &app).await,
        SecretsCommand::Set { pairs, how } => {
            let values = of_pairs(&pairs)?;
            change(invocation, (&api, &app), values, how).await
        }
        SecretsCommand::Import { how } => {
            let input = read_input()?;
            let values = of_lines(input.expose())?;
            change(invocation, (&api, &app), values, how).await
        }
        SecretsCommand::Unset { names, how } => {
            let values = names.into_iter().map(|name| (name, None)).collect();
            change(invocation, (&api, &app), values, how).await
        }
        SecretsCommand::Deploy => {
            let what = format!("list the secrets of `{app}`");
            let version = api.secrets(&app).await.during(what)?.version;
            deploy_version(invocation, (&api, &app), version).await
        }
        SecretsCommand::Keys(command) => keys::run(invocation, command).await,
    }
}

async fn list(invocation: &Invocation, api: &Api, app: &AppName) -> Result {
    let secrets = api.secrets(app).await.during(format!("list the secrets of `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&secrets.secrets);
        return Ok(());
    }
    if secrets.secrets.is_empty() {
        invocation.ui.say(format!("`{app}` has no secrets"));
        return Ok(());
    }
    let mut rows = vec![row(["NAME", "DIGEST", "UPDATED AT"])];
    rows.extend(
        secrets.secrets.iter().map(|secret| {
            row([secret.name.as_str(), &secret.digest, &secret.updated_at.to_string()])
        }),
    );
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    let machines = api.machines(app, &ListFilter::default()).await;
    let machines = machines.during(format!("list the machines of `{app}`"))?;
    let behind = machines.iter().filter(|machine| {
        machine.state == MachineState::Started
            && machine.secrets_version.is_some_and(|seen| seen < secrets.version)
    });
    match behind.count() {
        0 => {}
        count => invocation.ui.hint(format!(
            "{count} of the machines began before the last change; `perch secrets deploy` has them \
             begin anew"
        )),
    }
    Ok(())
}

/// Reads NAME=VALUE from the command line.
fn of_pairs(pairs: &[String]) -> Result<Values> {
    let mut values = Values::new();
    let from_input =
        pairs.iter().filter(|pair| pair.split_once('=').is_some_and(|it| it.1 == FROM_INPUT));
    if from_input.count() > 1 {
        return Err(CommandError::usage(
            "standard input can be the value of one secret only",
            "set the others with a command of their own, or use `perch secrets import`",
        ));
    }
    for (index, pair) in pairs.iter().enumerate() {
        let Some((name, value)) = pair.split_once('=') else {
            // It may be a value alone: it is not shown.
            return Err(CommandError::usage(
                format!("argument {} has no `=`", index + 1),
                "write NAME=VALUE",
            ));
        };
        let value = if value == FROM_INPUT { read_input()? } else { Secret::new(value) };
        put(&mut values, name, value)?;
    }
    Ok(values)
}

/// Reads NAME=VALUE from lines. Empty ones and those that begin with `#` say nothing; a value
/// between triple quotes may have several lines.
fn of_lines(text: &str) -> Result<Values> {
    let mut values = Values::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let fault = |fact: &str| {
            CommandError::usage(format!("line {} {fact}", index + 1), "write NAME=VALUE")
        };
        let (name, value) = line.split_once('=').ok_or_else(|| fault("has no `=`"))?;
        let value = match value.strip_prefix(QUOTES) {
            None => value.to_owned(),
            Some(first) => match first.strip_suffix(QUOTES) {
                Some(whole) => whole.to_owned(),
                None => {
                    let mut whole = first.to_owned();
                    loop {
                        let (_, next) =
                            lines.next().ok_or_else(|| fault("begins a value without an end"))?;
                        whole.push('\n');
                        if let Some(last) = next.strip_suffix(QUOTES) {
                            whole.push_str(last);
                            break whole;
                        }
                        whole.push_str(next);
                    }
                }
            },
        };
        put(&mut values, name.trim(), Secret::new(value))?;
    }
    if values.is_empty() {
        return Err(CommandError::usage(
            "standard input names no secret",
            "write NAME=VALUE lines",
        ));
    }
    Ok(values)
}

fn put(values: &mut Values, name: &str, value: Secret) -> Result {
    if let Some(fault) = name_fault(name) {
        let shown: String = name.chars().take(40).collect();
        return Err(CommandError::usage(
            format!("the name `{shown}` {fault}"),
            "a secret is a variable inside machines",
        ));
    }
    if let Some(fault) = value_fault(&value) {
        return Err(CommandError::usage(
            format!("the value of `{name}` {fault}"),
            "keep large values in a volume",
        ));
    }
    values.insert(name.to_owned(), Some(value));
    Ok(())
}

fn read_input() -> Result<Secret> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_string(&mut text);
    let read = u64::try_from(read.during("read standard input")?).unwrap_or(u64::MAX);
    if read > INPUT_BYTES_MAX {
        return Err(CommandError::usage(
            format!("standard input is longer than {INPUT_BYTES_MAX} bytes"),
            "keep large values in a volume",
        ));
    }
    // What an editor or `echo` adds is not part of a value.
    let end = text.strip_suffix('\n').map_or(text.len(), str::len);
    text.truncate(end);
    Ok(Secret::new(text))
}

async fn change(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    values: Values,
    how: How,
) -> Result {
    let what = format!("change the secrets of `{app}`");
    let count = values.len();
    let mut version = 0;
    let mut rest = values.into_iter().peekable();
    while rest.peek().is_some() {
        let values = rest.by_ref().take(CHANGES_MAX).collect();
        version = api.update_secrets(app, &UpdateSecrets { values }).await.during(&what)?.version;
    }
    invocation
        .ui
        .good(format!("{count} secrets of `{app}` are changed; they have version {version}"));
    if how.stage {
        invocation.ui.say("machines see them at their next start, or after `perch secrets deploy`");
        return Ok(());
    }
    deploy_version(invocation, (api, app), version).await
}

async fn deploy_version(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    version: u64,
) -> Result {
    let count = Box::pin(deploy::restart(invocation, api, app, version)).await?;
    if count == 0 {
        invocation.ui.say("no machine that a deploy made runs; they see them at their next start");
    } else {
        let machines = if count == 1 { "machine sees" } else { "machines see" };
        invocation.ui.good(format!("{count} {machines} version {version}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let values = of_lines(text).unwrap();
        let shown = |value: Option<Secret>| value.unwrap().expose().to_owned();
        values.into_iter().map(|(name, value)| (name, shown(value))).collect()
    }

    #[test]
    fn lines_are_read_as_they_are_meant() {
        let text =
            "# all of it\n\nA=one\nB=a=b c \nC=\nD=\"\"\"first\nsecond\n\"\"\"\nE=\"\"\"x\"\"\"";
        let want = [("A", "one"), ("B", "a=b c "), ("C", ""), ("D", "first\nsecond\n"), ("E", "x")];
        assert_eq!(read(text), want.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn t4_bad_input_is_told_without_the_value() {
        for text in ["hunter2", "A B=hunter2", "1A=hunter2", "A=\"\"\"hunter2", "", "# hunter2"] {
            let error = format!("{:?}", of_lines(text).unwrap_err());
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = format!("{:?}", of_pairs(&["hunter2".to_owned()]).unwrap_err());
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!format!("{:?}", of_lines("A=hunter2").unwrap()).contains("hunter2"));
    }
}
