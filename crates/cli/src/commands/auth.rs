//! `perch auth login|logout|whoami|token`.
//!
//! Never stores a token that the platform did not accept.

use clap::Subcommand;
use perch_types::Secret;
use serde::Serialize;

use crate::credentials::{self, Credentials};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with logins.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Log in; the token is asked for, or read from standard input
    Login {
        /// Address with the fingerprint, as perchd prints it: `https://HOST:PORT#FINGERPRINT`; the
        /// fingerprint may be left out when the login before was to the same server
        url: String,
    },
    /// Forget the address and the token
    Logout,
    /// Show who you are and where
    Whoami,
    /// Print the token
    Token,
}

#[derive(Debug, Serialize)]
struct Identity {
    platform: String,
    origin: String,
    tokens: Vec<perch_types::api::TokenInfo>,
}

pub(crate) async fn run(invocation: &Invocation, command: AuthCommand) -> Result {
    match command {
        AuthCommand::Login { url } => login(invocation, &url).await,
        AuthCommand::Logout => logout(invocation),
        AuthCommand::Whoami => whoami(invocation).await,
        AuthCommand::Token => {
            invocation.ui.data(invocation.credentials()?.token.expose());
            Ok(())
        }
    }
}

async fn login(invocation: &Invocation, url: &str) -> Result {
    let address = credentials::login_address(url).during("log in")?;
    let token = match &invocation.global.token {
        Some(token) => token.clone(),
        None => invocation.ui.ask_secret("Token: ").await.during("read the token")?,
    };
    if token.is_empty() {
        return Err(CommandError::usage(
            "the token is empty",
            "the server's administrator finds it in /var/lib/perch/admin.json",
        ));
    }
    let credentials =
        Credentials { address, token: Secret::new(token), origin: "the command line".to_owned() };
    let checked = credentials.api()?.current_tokens().await.during("check the token")?;
    let path = credentials::store(&credentials.address, &credentials.token)
        .during("store the address and the token")?;
    let orgs: Vec<&str> = checked.tokens.iter().map(|it| it.org_slug.as_str()).collect();
    invocation.ui.good(format!(
        "logged in to {} for {}; stored in {}",
        credentials.address.url(),
        orgs.join(", "),
        path.display()
    ));
    Ok(())
}

fn logout(invocation: &Invocation) -> Result {
    match credentials::forget().during("forget the address and the token")? {
        Some((path, url)) => invocation.ui.good(format!(
            "logged out of {url}: {} is removed; the token itself stays good",
            path.display()
        )),
        None => invocation.ui.say("there was no login to forget"),
    }
    Ok(())
}

async fn whoami(invocation: &Invocation) -> Result {
    let credentials = invocation.credentials()?;
    let tokens = credentials.api()?.current_tokens().await.during("look at the token")?.tokens;
    let identity =
        Identity { platform: credentials.address.url(), origin: credentials.origin, tokens };
    if invocation.ui.is_json() {
        invocation.ui.json(&identity);
        return Ok(());
    }
    let mut rows =
        vec![row(["platform", &identity.platform]), row(["known from", &identity.origin])];
    for token in &identity.tokens {
        rows.push(row(["organization", token.org_slug.as_str()]));
        rows.push(row(["token", &format!("{} ({})", token.name, token.token_id)]));
    }
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}
