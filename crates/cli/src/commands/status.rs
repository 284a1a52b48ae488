//! `perch status`.
//!
//! Never waits for anything to change.

use clap::Args;
use perch_client::ListFilter;
use perch_types::api::{App, CheckState, Machine, MachineEvent, WakeTimes};
use serde::Serialize;

use crate::clock::{age, now};
use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::probe::Target;
use crate::table::{row, table};

/// How many events are shown.
const EVENTS_SHOWN: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {}

#[derive(Debug, Serialize)]
struct Status {
    app: App,
    url: String,
    machines: Vec<Machine>,
}

pub(crate) async fn run(invocation: &Invocation, _: StatusArgs) -> Result {
    let name = invocation.app()?;
    let (api, address) = invocation.api_and_address()?;
    let what = format!("look at the app `{name}`");
    let app = api.app(&name).await.during(&what)?;
    let machines = api.machines(&name, &ListFilter::default()).await.during(&what)?;
    let platform = api.platform().await.during(&what)?;
    let url = Target::new(&address, &platform, &app.hostname).url();
    let status = Status { app, url, machines };
    if invocation.ui.is_json() {
        invocation.ui.json(&status);
        return Ok(());
    }
    let ui = &invocation.ui;
    let mut rows = vec![
        row(["app", name.as_str()]),
        row(["owner", status.app.organization.slug.as_str()]),
        row(["status", &status.app.status]),
        row(["address", &status.url]),
    ];
    rows.extend(status.app.wake.map(|wake| row(["wake", &wake_in_words(wake)])));
    table(&rows).iter().for_each(|line| ui.data(line));
    ui.data("");
    if status.machines.is_empty() {
        ui.say("it has no machines; `perch deploy` makes one");
        return Ok(());
    }
    machine_table(&status.machines).iter().for_each(|line| ui.data(line));
    let failing = status.machines.iter().flat_map(|machine| {
        let not_passing = machine.checks.iter().filter(|it| it.status != CheckState::Passing);
        not_passing
            .map(move |check| format!("machine {}: {}: {}", machine.id, check.name, check.output))
    });
    failing.for_each(|line| ui.warn(line));
    ui.data("");
    event_table(&status.machines).iter().for_each(|line| ui.data(line));
    Ok(())
}

/// Returns how long an app takes to wake: what its first visitor waits for.
fn wake_in_words(wake: WakeTimes) -> String {
    let WakeTimes { count, p50_ms, p99_ms } = wake;
    let requests = if count == 1 { "request" } else { "requests" };
    format!("half in {p50_ms} ms, 99 of 100 in {p99_ms} ms ({count} {requests} waited)")
}

/// Returns machines as a table with a head.
pub(crate) fn machine_table(machines: &[Machine]) -> Vec<String> {
    let now = now();
    let mut rows =
        vec![row(["MACHINE", "NAME", "STATE", "READY", "REGION", "SIZE", "IMAGE", "UPDATED"])];
    rows.extend(machines.iter().map(|machine| {
        row([
            machine.id.as_str(),
            &machine.name,
            machine.state.as_str(),
            &checks_in_words(machine),
            machine.region.as_str(),
            &format!("{} CPU, {} MB", machine.config.cpus(), machine.config.memory_mb()),
            &image_in_words(machine),
            &age(machine.updated_at, now),
        ])
    }));
    table(&rows)
}

fn checks_in_words(machine: &Machine) -> String {
    let passing = machine.checks.iter().filter(|it| it.status == CheckState::Passing).count();
    match machine.checks.len() {
        0 => "-".to_owned(),
        total => format!("{passing}/{total}"),
    }
}

/// Returns the image's name with its tag or the beginning of its digest.
fn image_in_words(machine: &Machine) -> String {
    let image = &machine.image_ref;
    let name = image.repository.as_str();
    match (&image.digest, image.tag.as_str()) {
        (_, tag) if !tag.is_empty() => {
            format!("{name}:{}", tag.chars().take(24).collect::<String>())
        }
        (Some(digest), _) => {
            format!("{name}@{}", digest.hex().chars().take(12).collect::<String>())
        }
        (None, _) => name.to_owned(),
    }
}

/// Returns what happened, and why if nobody asked for it.
fn kind_in_words(event: &MachineEvent) -> String {
    let reason = event.request.as_ref().and_then(|request| request.get("reason")?.as_str());
    match reason {
        Some(reason) => format!("{} ({reason})", event.kind),
        None => event.kind.clone(),
    }
}

fn event_table(machines: &[Machine]) -> Vec<String> {
    let now = now();
    let mut events: Vec<_> = machines
        .iter()
        .flat_map(|machine| machine.events.iter().map(move |event| (machine, event)))
        .collect();
    events.sort_by_key(|(_, event)| std::cmp::Reverse(event.timestamp));
    let mut rows = vec![row(["EVENT", "STATUS", "MACHINE", "BY", "AGE"])];
    rows.extend(events.into_iter().take(EVENTS_SHOWN).map(|(machine, event)| {
        let then = perch_types::Timestamp::from_unix_ms(event.timestamp);
        let kind = kind_in_words(event);
        row([&kind, &event.status, machine.id.as_str(), &event.source, &age(then, now)])
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_why_it_happened() {
        let event = |request| MachineEvent {
            id: "01A".to_owned(),
            kind: "stop".to_owned(),
            status: "stopping".to_owned(),
            source: "flyd".to_owned(),
            timestamp: 0,
            request,
        };
        let why = serde_json::json!({"reason": "autostop"});
        assert_eq!(kind_in_words(&event(Some(why))), "stop (autostop)");
        for silent in [None, Some(serde_json::json!({"exit_event": {}}))] {
            assert_eq!(kind_in_words(&event(silent)), "stop");
        }
    }

    #[test]
    fn wake_times_are_said_in_words() {
        for (count, want) in [
            (1, "half in 41 ms, 99 of 100 in 90 ms (1 request waited)"),
            (3, "half in 41 ms, 99 of 100 in 90 ms (3 requests waited)"),
        ] {
            assert_eq!(wake_in_words(WakeTimes { count, p50_ms: 41, p99_ms: 90 }), want);
        }
    }
}
