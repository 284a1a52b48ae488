//! `perch ips …`: the addresses at which an app is reached.
//!
//! Never chooses an address: the platform has them.

use std::net::IpAddr;

use clap::Subcommand;
use perch_client::Api;
use perch_types::AppName;
use perch_types::ips::{AssignIp, IpAssignment, IpType};

use crate::clock::{age, now};
use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// What to do with addresses.
#[derive(Debug, Subcommand)]
pub(crate) enum IpsCommand {
    /// List the app's addresses
    #[command(visible_alias = "ls")]
    List,
    /// Allocate an IPv4 address
    #[command(name = "allocate-v4")]
    AllocateV4 {
        /// One that other apps have too
        #[arg(long)]
        shared: bool,
        /// Place
        #[arg(short, long)]
        region: Option<String>,
    },
    /// Allocate an IPv6 address
    #[command(name = "allocate-v6")]
    AllocateV6 {
        /// One that only machines of the app's network reach
        #[arg(long)]
        private: bool,
        /// Place
        #[arg(short, long)]
        region: Option<String>,
    },
    /// Release addresses
    Release {
        /// Addresses
        #[arg(required = true, value_name = "ADDRESS")]
        ips: Vec<IpAddr>,
    },
}

pub(crate) async fn run(invocation: &Invocation, command: IpsCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    match command {
        IpsCommand::List => list(invocation, (&api, &app)).await,
        IpsCommand::AllocateV4 { shared, region } => {
            let kind = if shared { IpType::SharedV4 } else { IpType::V4 };
            allocate(invocation, (&api, &app), kind, region).await
        }
        IpsCommand::AllocateV6 { private, region } => {
            let kind = if private { IpType::PrivateV6 } else { IpType::V6 };
            allocate(invocation, (&api, &app), kind, region).await
        }
        IpsCommand::Release { ips } => {
            for ip in ips {
                let released = api.release_ip(&app, ip).await;
                released.during(format!("release the address {ip} of `{app}`"))?;
                invocation.ui.good(format!("address {ip} of `{app}` is released"));
            }
            Ok(())
        }
    }
}

/// Returns the word that clients have for a kind of address: they tell it by the address.
fn kind(ip: &IpAssignment) -> &'static str {
    match (ip.ip, ip.shared) {
        (IpAddr::V4(_), true) => IpType::SharedV4.as_str(),
        (IpAddr::V4(_), false) => IpType::V4.as_str(),
        (IpAddr::V6(_), _) => IpType::V6.as_str(),
    }
}

async fn list(invocation: &Invocation, (api, app): (&Api, &AppName)) -> Result {
    let ips = api.ips(app).await.during(format!("list the addresses of `{app}`"))?.ips;
    if invocation.ui.is_json() {
        invocation.ui.json(&ips);
        return Ok(());
    }
    if ips.is_empty() {
        invocation.ui.say(format!("`{app}` has no addresses; its host name works without"));
        return Ok(());
    }
    let mut rows = vec![row(["ADDRESS", "TYPE", "REGION", "AGE"])];
    rows.extend(ips.iter().map(|ip| {
        row([&ip.ip.to_string(), kind(ip), ip.region.as_str(), &age(ip.created_at, now())])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn allocate(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    kind: IpType,
    region: Option<String>,
) -> Result {
    let wanted = AssignIp { kind, region, ..AssignIp::default() };
    let assigned = api.assign_ip(app, &wanted).await;
    let assigned = assigned.during(format!("allocate an address for `{app}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&assigned);
        return Ok(());
    }
    invocation.ui.good(format!("`{app}` has the address"));
    invocation.ui.data(assigned.ip);
    Ok(())
}
