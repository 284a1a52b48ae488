//! `perch tokens create deploy|list|revoke`.
//!
//! Never stores a token: what it makes is printed once.

use clap::{Args, Subcommand, ValueEnum};
use perch_types::GoDuration;
use perch_types::api::CreateDeployToken;

use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Make a token and print it; nobody can print it again
    Create(CreateArgs),
    /// List the tokens for the app
    #[command(visible_alias = "ls")]
    List,
    /// End a token
    Revoke {
        /// Id, as the list shows it
        id: String,
    },
}

/// What a new token is.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What it may do
    kind: Kind,
    /// Name, to tell it from others
    #[arg(short, long, default_value = "deploy")]
    name: String,
    /// How long it holds
    #[arg(short = 'x', long, value_name = "DURATION", default_value = "8760h")]
    expiry: GoDuration,
}

/// Kinds of tokens.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Deploy the app, and reach nothing else
    Deploy,
}

pub(crate) async fn run(invocation: &Invocation, command: TokensCommand) -> Result {
    match command {
        TokensCommand::Create(args) => create(invocation, args).await,
        TokensCommand::List => list(invocation).await,
        TokensCommand::Revoke { id } => revoke(invocation, &id).await,
    }
}

async fn create(invocation: &Invocation, args: CreateArgs) -> Result {
    let app = invocation.app()?;
    let Kind::Deploy = args.kind;
    let request = CreateDeployToken { expiry: Some(args.expiry), name: Some(args.name) };
    let made = invocation.api()?.create_deploy_token(&app, &request).await;
    let made = made.during(format!("make a token for the app `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&made);
        return Ok(());
    }
    let end = made.expires_at.map(|end| format!(" until {end}")).unwrap_or_default();
    invocation.ui.good(format!("token {} for the app `{app}`{end}", made.token_id));
    invocation.ui.data(made.token.expose());
    Ok(())
}

async fn list(invocation: &Invocation) -> Result {
    let app = invocation.app()?;
    let tokens = invocation.api()?.app_tokens(&app).await;
    let tokens = tokens.during(format!("list the tokens for the app `{app}`"))?.tokens;
    if invocation.ui.is_json() {
        invocation.ui.json(&tokens);
        return Ok(());
    }
    if tokens.is_empty() {
        invocation.ui.say(format!("the app `{app}` has no tokens of its own"));
        return Ok(());
    }
    let mut rows = vec![row(["ID", "NAME", "UNTIL"])];
    rows.extend(tokens.iter().map(|token| {
        let end = token.expires_at.map(|end| end.to_string()).unwrap_or_default();
        row([token.token_id.as_str(), &token.name, &end])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn revoke(invocation: &Invocation, id: &str) -> Result {
    let app = invocation.app()?;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(CommandError::usage(
            format!("`{id}` is not the id of a token"),
            "`perch tokens list` shows the ids",
        ));
    }
    let ended = invocation.api()?.revoke_app_token(&app, id).await;
    ended.during(format!("end the token `{id}` of the app `{app}`"))?;
    invocation.ui.good(format!("token {id} is ended"));
    Ok(())
}
