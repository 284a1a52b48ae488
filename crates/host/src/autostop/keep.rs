//! Looks at each app when something may be due, and has a machine stopped or suspended.
//!
//! Never stops one itself: it gives a command to the machine's own task, after every edge has said
//! that nothing is under way and that it sends nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use perch_types::host::{Command, WatchEvent};
use perch_types::service::{Autostop, Service};
use perch_types::{AppName, MachineId, OrgSlug};
use tokio::sync::broadcast::error::RecvError;

use super::decide::{Member, decide};
use super::{Way, member};
use crate::heartbeat::BEAT_MS;
use crate::machine::actor::Handle;
use crate::machine::state::State;
use crate::schema::{Asker, Queued};
use crate::shared::Shared;

/// How long it is waited whether a machine could be suspended; it is stopped instead at the next
/// look after that.
const SUSPEND_WAIT: Duration = Duration::from_secs(60);

type App = (OrgSlug, AppName);

/// When which app is looked at; moments are the boot clock's.
#[derive(Debug, Default)]
struct Agenda {
    due: BTreeMap<App, u64>,
    order: BTreeSet<(u64, App)>,
    /// When machines of a kind last handed their work over to each other, by app and kind.
    handed_over: BTreeMap<App, BTreeMap<String, u64>>,
    /// The machines of each app, and the app of each machine: a look is not one at all of them.
    machines: BTreeMap<App, BTreeSet<MachineId>>,
    apps: BTreeMap<MachineId, App>,
}

impl Agenda {
    /// Has an app looked at by then, or not at all.
    fn set(&mut self, app: &App, due_ms: Option<u64>) {
        if let Some(before) = self.due.remove(app) {
            self.order.remove(&(before, app.clone()));
        }
        if let Some(due_ms) = due_ms {
            self.due.insert(app.clone(), due_ms);
            self.order.insert((due_ms, app.clone()));
        } else {
            self.handed_over.remove(app);
        }
    }

    /// Notes that a machine with these services is new or has changed.
    fn hear(&mut self, id: &MachineId, app: &App, services: &[Service], due_ms: u64) {
        if !self.apps.contains_key(id) {
            self.apps.insert(id.clone(), app.clone());
            self.machines.entry(app.clone()).or_default().insert(id.clone());
        }
        let asks = |autostop| matches!(autostop, Some(Autostop::Stop | Autostop::Suspend));
        let has_one = services.iter().any(|service| asks(service.autostop));
        if has_one && !self.due.contains_key(app) {
            self.set(app, Some(due_ms));
        }
    }

    /// Notes that a machine is no more.
    fn forget(&mut self, id: &MachineId) {
        let Some(app) = self.apps.remove(id) else { return };
        if let Some(machines) = self.machines.get_mut(&app) {
            machines.remove(id);
            if machines.is_empty() {
                self.machines.remove(&app);
            }
        }
    }

    /// Takes an app that is due.
    fn take(&mut self, now_ms: u64) -> Option<App> {
        let (due_ms, app) = self.order.first().cloned()?;
        if due_ms > now_ms {
            return None;
        }
        self.order.remove(&(due_ms, app.clone()));
        self.due.remove(&app);
        Some(app)
    }
}

/// Runs until the agent ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut agenda = Agenda::default();
    let mut changes = shared.changes.subscribe();
    let idle_ms = u64::try_from(shared.config.limits.autostop_idle.as_millis()).unwrap_or(u64::MAX);
    hear_all(&shared, &mut agenda, idle_ms);
    loop {
        let now_ms = shared.effects.clock.boot_ms();
        shared.heartbeats.beat("autostop", now_ms);
        while let Some(app) = agenda.take(now_ms) {
            look(&shared, &mut agenda, &app, idle_ms);
        }
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            change = changes.recv() => match change {
                Ok(event) => match event.as_ref() {
                    WatchEvent::Changed { machine } => {
                        let app = (machine.org.clone(), machine.app.clone());
                        let due_ms = now_ms.saturating_add(idle_ms);
                        agenda.hear(&machine.id, &app, &machine.services, due_ms);
                    }
                    WatchEvent::Removed { id } => agenda.forget(id),
                    WatchEvent::Snapshot { .. }
                    | WatchEvent::Rest { .. }
                    | WatchEvent::Heartbeat => {}
                },
                Err(RecvError::Lagged(_)) => hear_all(&shared, &mut agenda, idle_ms),
                // The host holds the other end.
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(Duration::from_millis(BEAT_MS)) => {}
        }
    }
}

fn hear_all(shared: &Shared, agenda: &mut Agenda, idle_ms: u64) {
    let due_ms = shared.effects.clock.boot_ms().saturating_add(idle_ms);
    (agenda.machines, agenda.apps) = Default::default();
    for handle in shared.all() {
        let published = handle.published();
        let machine = &published.machine;
        let app = (machine.org.clone(), machine.app.clone());
        agenda.hear(&machine.id, &app, &machine.config.services, due_ms);
    }
}

/// Looks at the machines of an app.
fn look(shared: &Arc<Shared>, agenda: &mut Agenda, app: &App, idle_ms: u64) {
    let now_ms = shared.effects.clock.boot_ms();
    let ids = agenda.machines.get(app).into_iter().flatten();
    let all = ids.filter_map(|id| Some(shared.machine(id).ok()?.published()));
    let mut kinds: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    let mut is_known = true;
    for published in all {
        let machine = &published.machine;
        let Some(usage) = shared.loads.usage(&machine.id) else {
            is_known = false;
            break;
        };
        let found = member(machine, usage, published.since_boot_ms, now_ms);
        if let Some((kind, member)) = found {
            kinds.entry(kind).or_default().push(member);
        }
    }
    if !is_known {
        return agenda.set(app, Some(now_ms.saturating_add(idle_ms)));
    }
    let mut handed_over = agenda.handed_over.remove(app).unwrap_or_default();
    handed_over.retain(|kind, _| kinds.contains_key(kind));
    let mut again_ms: Option<u64> = None;
    for (kind, members) in kinds {
        let last_ms = handed_over.get(&kind).copied();
        let rests_ms = last_ms.map_or(u64::MAX, |last_ms| now_ms.saturating_sub(last_ms));
        let verdict = decide(&members, idle_ms, rests_ms);
        if verdict.hands_over {
            handed_over.insert(kind, now_ms);
        }
        if let Some((id, way)) = verdict.act {
            shared.tasks.spawn(rest(Arc::clone(shared), id, way));
        }
        again_ms = match (again_ms, verdict.again_ms) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    let due_ms = again_ms.map(|again_ms| now_ms.saturating_add(again_ms));
    agenda.set(app, due_ms);
    if due_ms.is_some() && !handed_over.is_empty() {
        agenda.handed_over.insert(app.clone(), handed_over);
    }
}

/// Stops or suspends a machine if nothing is under way to it.
async fn rest(shared: Arc<Shared>, id: MachineId, way: Way) {
    let Ok(handle) = shared.machine(&id) else { return };
    if way == Way::Suspend && give(&shared, &handle, Command::Suspend).await {
        let mut follow = handle.follow();
        let settled = follow.wait_for(|published| published.machine.state != State::Suspending);
        let found = match tokio::time::timeout(SUSPEND_WAIT, settled).await {
            Ok(Ok(published)) => published.machine.clone(),
            Ok(Err(_)) | Err(_) => return,
        };
        // A request that came meanwhile leaves it running without a fault.
        if found.state != State::Started || found.failure.is_none() {
            return;
        }
        tracing::warn!(machine = %id, "machine could not be suspended, it is stopped instead");
    } else if way == Way::Suspend {
        return;
    }
    give(&shared, &handle, Command::Stop { signal: None, timeout: None }).await;
}

/// Gives the machine's task a command once every edge has said that nothing is under way; returns
/// whether it was accepted.
async fn give(shared: &Shared, handle: &Handle, command: Command) -> bool {
    let question = shared.loads.ask();
    shared.announce(WatchEvent::Rest { id: handle.id.clone(), question });
    let is_idle = tokio::select! {
        is_idle = shared.loads.answered(question) => is_idle,
        () = shared.stopping.cancelled() => false,
    };
    if is_idle {
        let queued = Queued { asker: Asker::Autostop, ..Queued::of(command) };
        match handle.command(queued).await {
            Ok(_) => {
                tracing::info!(machine = %handle.id, "machine is put to rest: nothing uses it");
                return true;
            }
            Err(error) => tracing::debug!(machine = %handle.id, %error, "machine goes on"),
        }
    }
    // Whoever closed the gate opens it with this.
    let published = handle.published();
    if published.machine.state != State::Destroyed {
        let machine = Box::new(shared.record_of(&published.machine));
        shared.announce(WatchEvent::Changed { machine });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_looked_at_when_it_is_due_and_known_by_its_machines() {
        let mut agenda = Agenda::default();
        let app = |name: &str| (OrgSlug::personal(), name.parse::<AppName>().unwrap());
        let services = |autostop: &str| -> Vec<Service> {
            let one = serde_json::json!([{"internal_port": 1, "autostop": autostop}]);
            serde_json::from_value(one).unwrap()
        };
        let id = MachineId::from_bits;
        agenda.hear(&id(1), &app("web"), &services("stop"), 300);
        agenda.hear(&id(2), &app("web"), &services("stop"), 900);
        agenda.hear(&id(3), &app("off"), &services("off"), 100);
        agenda.hear(&id(4), &app("nap"), &services("suspend"), 200);
        assert_eq!(agenda.take(199), None);
        assert_eq!(agenda.take(1_000), Some(app("nap")));
        agenda.set(&app("nap"), Some(2_000));
        assert_eq!(agenda.take(1_000), Some(app("web")));
        assert_eq!(agenda.take(1_000), None, "the third asks for nothing");
        agenda.set(&app("nap"), Some(1_500));
        assert_eq!(agenda.take(1_500), Some(app("nap")));
        agenda.set(&app("nap"), None);
        assert_eq!((agenda.take(u64::MAX), agenda.order.len()), (None, 0));
        assert_eq!(agenda.machines[&app("web")].len(), 2);
        for bits in 1..=4 {
            agenda.forget(&id(bits));
        }
        assert!(agenda.machines.is_empty() && agenda.apps.is_empty());
    }
}
