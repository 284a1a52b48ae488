//! Machines that nothing uses, and an edge that is played.

use perch_types::host::MachineLoad;
use tokio::task::JoinHandle;

use super::*;
use crate::loads::Member;
use crate::schema::Asker;

/// The number of the edge.
const EDGE: u64 = 7;

/// A service of which nobody has to listen for its machine to be ready.
fn service(autostop: &str, port: u16) -> serde_json::Value {
    json!({"services": [{"protocol": "udp", "internal_port": 1000 + port, "autostop": autostop,
        "ports": [{"port": port}]}]})
}

/// Has an edge join that answers every question so, and has nothing under way.
fn edge(rig: &Rig, is_idle: bool) -> (Member, JoinHandle<()>) {
    let member = rig.host.join_edge(Some(EDGE));
    let (host, (_, mut changes)) = (rig.host.clone(), rig.host.watch());
    let answers = tokio::spawn(async move {
        while let Ok(event) = changes.recv().await {
            if let WatchEvent::Rest { question, .. } = event.as_ref() {
                host.rest(Rest { edge: EDGE, question: *question, is_idle });
            }
        }
    });
    rig.host.loads(Loads { edge: EDGE, all: true, machines: Vec::new() });
    (member, answers)
}

fn pass_idle_time(rig: &Rig) {
    let idle = crate::autostop::IDLE_DEFAULT.as_millis();
    rig.clock.passed_ms.fetch_add(2 * u64::try_from(idle).unwrap(), Ordering::SeqCst);
}

fn has_reason(machine: &HostMachine, kind: &str) -> bool {
    let why = json!({"reason": "autostop"});
    let events = machine.events.iter();
    let mut of_kind = events.filter(|event| event.kind == kind && event.source == "flyd");
    of_kind.any(|event| event.request.as_ref() == Some(&why))
}

#[tokio::test]
async fn a_machine_that_nothing_uses_is_stopped_and_an_event_says_why() {
    let rig = Rig::new().await;
    let used = rig.create(1, service("stop", 80)).await;
    let unused = rig.create(2, service("stop", 81)).await;
    let left_alone = rig.create(3, service("off", 82)).await;
    let (_member, _answers) = edge(&rig, true);
    let machines = vec![MachineLoad { id: used.clone(), in_flight: 1, peak: 1 }];
    rig.host.loads(Loads { edge: EDGE, all: false, machines });
    pass_idle_time(&rig);
    let stopped = rig.wait(&unused, "stopped").await;
    assert!(has_reason(&stopped, "stop"), "{:?}", stopped.events);
    // They were looked at with the other.
    assert_eq!(rig.host.get(&used).unwrap().state, State::Started);
    assert_eq!(rig.host.get(&left_alone).unwrap().state, State::Started);
    // The next request starts it, and it is not stopped before the time is over again.
    rig.tell(&unused, Command::Start).await;
    rig.wait(&unused, "started").await;
    let machines = vec![MachineLoad { id: used.clone(), in_flight: 0, peak: 1 }];
    rig.host.loads(Loads { edge: EDGE, all: false, machines });
    pass_idle_time(&rig);
    rig.wait(&used, "stopped").await;
    rig.wait(&unused, "stopped").await;
}

#[tokio::test]
async fn a_machine_is_suspended_or_stopped_where_that_does_not_succeed() {
    let rig = Rig::new().await;
    let (_member, _answers) = edge(&rig, true);
    let frozen = rig.create(1, service("suspend", 80)).await;
    pass_idle_time(&rig);
    let suspended = rig.wait(&frozen, "suspended").await;
    assert!(has_reason(&suspended, "suspend"), "{:?}", suspended.events);
    rig.server.runtime.fail_freeze("no room");
    let other = rig.create(2, service("suspend", 81)).await;
    pass_idle_time(&rig);
    let stopped = rig.wait(&other, "stopped").await;
    assert!(has_reason(&stopped, "suspend") && has_reason(&stopped, "stop"));
}

#[tokio::test]
async fn a_machine_to_which_something_has_just_begun_goes_on_and_is_said_to() {
    let rig = Rig::new().await;
    let id = rig.create(1, service("stop", 80)).await;
    let (_, mut changes) = rig.host.watch();
    let (_member, _answers) = edge(&rig, false);
    pass_idle_time(&rig);
    let mut was_asked = false;
    loop {
        match changes.recv().await.unwrap().as_ref() {
            WatchEvent::Rest { id: asked, .. } => was_asked = *asked == id,
            // Whoever had closed the gate opens it again.
            WatchEvent::Changed { machine } if was_asked => {
                assert_eq!(
                    (&machine.id, machine.ready, machine.state),
                    (&id, true, State::Started)
                );
                break;
            }
            WatchEvent::Changed { .. }
            | WatchEvent::Snapshot { .. }
            | WatchEvent::Removed { .. }
            | WatchEvent::Heartbeat => {}
        }
    }
    rig.tell(&id, STOP).await;
    rig.wait(&id, "stopped").await;
    let late = Queued { asker: Asker::Autostop, ..Queued::of(STOP) };
    let handle = rig.host.shared.machine(&id).unwrap();
    let error = handle.command(late).await.unwrap_err();
    assert_eq!(error.code, Code::WrongState);
    let stopped = rig.host.get(&id).unwrap();
    assert!(!has_reason(&stopped, "stop"), "somebody asked for it");
}
