//! The crate `flytrap` against a real server: its client, and how it reads a machine's environment.
//!
//! Takes the server from `PERCH_URL`, `PERCH_TOKEN`, `PERCH_APP` and `PERCH_MACHINE`, and beside
//! them the environment of that machine. Never changes anything.

use std::error::Error;

use flytrap::Placement;
use flytrap::api::{Client, MachineState};

fn var(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set"))
}

fn hold(what: &str, holds: bool) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("not so: {what}")) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (url, app, id) = (var("PERCH_URL")?, var("PERCH_APP")?, var("PERCH_MACHINE")?);
    let client = Client::with_origin(url.as_str(), var("PERCH_TOKEN")?);

    let apps = client.apps("personal").await?;
    hold("the total is the number of apps", apps.total == apps.apps.len())?;
    let entry = apps.iter().find(|entry| entry.name == app).ok_or("the app is not listed")?;
    hold("the app has one machine", entry.machine_count == 1)?;
    hold(
        "the app has an id and a network",
        !entry.id.is_empty() && !entry.network_name.is_empty(),
    )?;
    println!("passed: flytrap apps");

    let machines = client.machines(&app).await?;
    let machine = machines.iter().find(|machine| machine.id == id).ok_or("no such machine")?;
    hold("the machine is started", machine.state == MachineState::Started)?;
    hold("the machine is ready", machine.is_ready())?;
    println!("passed: flytrap machines");

    let unknown = client.machines("no-such-app").await;
    hold("an unknown app is an error", unknown.is_err())?;
    let refused = Client::with_origin(url.as_str(), "perch_nobody").apps("personal").await;
    hold("an unknown token is an error", refused.is_err())?;
    println!("passed: flytrap errors");

    hold("the environment is that of a machine", flytrap::hosted())?;
    let here = Placement::current()?;
    hold("the environment names the app", here.app == app)?;
    hold("its address is the API's", here.private_ip == machine.private_ip)?;
    hold("its region is the API's", here.location == machine.location)?;
    let inside = here.machine.ok_or("the environment does not tell of the machine")?;
    hold("the environment names the machine", inside.id == id)?;
    hold("its version is the API's", inside.version == machine.instance_id)?;
    hold("it names an image and its memory", inside.image.is_some() && inside.memory.is_some())?;
    let peers = client.peers().await?;
    hold("a machine is not its own peer", peers.iter().all(|peer| peer.id != id))?;
    println!("passed: flytrap environment");
    Ok(())
}
