//! What waits behind a run: labels that are seen at once, and versions in their order.

use std::collections::{BTreeMap, VecDeque};

use perch_types::host::{Command, WaitQuery};
use perch_types::labels::{LABELS_MAX, LabelChange, Labels};
use perch_types::{Code, GoDuration, InstanceId, MachineId};

use super::put_end_first;
use crate::machine::state::QUEUED_MAX;
use crate::rpc::tests::{Rig, request};
use crate::schema::Queued;

fn id() -> MachineId {
    request().id
}

/// Changes labels: `key=value` sets one, `key` takes one away.
fn merge(of: &[&str]) -> Command {
    let labels = of.iter().map(|label| match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => ((*label).to_owned(), None),
    });
    let change = LabelChange::Merge { labels: labels.collect() };
    Command::SetLabels { change, instance: None }
}

fn shown(rig: &Rig) -> String {
    let machine = rig.host.get(&id()).unwrap();
    machine.config.metadata.iter().map(|(key, value)| format!("{key}={value} ")).collect()
}

async fn wait(rig: &Rig, states: &str) {
    let query = WaitQuery { states: states.to_owned(), timeout_ms: 10_000, ..WaitQuery::default() };
    rig.host.wait(&id(), &query).await.unwrap();
}

/// A machine that was told to stop, and whose program takes its time.
async fn stopping() -> Rig {
    let rig = Rig::new().await;
    rig.host.create(request()).await.unwrap();
    wait(&rig, "started").await;
    rig.server.runtime.ignore_signals(true);
    let stop = Command::Stop { signal: None, timeout: Some(GoDuration::from_secs(300)) };
    rig.host.command(&id(), stop).await.unwrap();
    rig
}

fn update(number: u64) -> Command {
    let config = serde_json::from_value(serde_json::json!({"image": format!("web:{number}")}));
    Command::Update {
        instance: InstanceId::from_parts(number, 1),
        epoch: number,
        config: Box::new(config.unwrap()),
        config_digest: number.to_string(),
        skip_launch: true,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    }
}

#[tokio::test]
async fn labels_are_seen_at_once_behind_a_run_and_survive_the_agent() {
    let rig = stopping().await;
    rig.host.command(&id(), merge(&["a=1", "b=2"])).await.unwrap();
    rig.host.command(&id(), merge(&["b", "c=3"])).await.unwrap();
    assert_eq!(shown(&rig), "a=1 c=3 ");
    let rig = rig.again().await;
    assert_eq!(shown(&rig), "a=1 c=3 ");
    rig.server.runtime.exit(&id(), 0);
    wait(&rig, "stopped").await;
    rig.host.command(&id(), merge(&["d=4"])).await.unwrap();
    assert_eq!(shown(&rig), "a=1 c=3 d=4 ");
    let rig = rig.again().await;
    assert_eq!(shown(&rig), "a=1 c=3 d=4 ");
    let replace = LabelChange::Replace { labels: BTreeMap::new() };
    rig.host.command(&id(), Command::SetLabels { change: replace, instance: None }).await.unwrap();
    assert_eq!(shown(&rig), "");
}

#[tokio::test]
async fn many_changes_of_labels_take_one_place_behind_a_run() {
    let rig = stopping().await;
    for number in 0..QUEUED_MAX * 3 {
        rig.host.command(&id(), merge(&[&format!("n={number}")])).await.unwrap();
    }
    assert_eq!(shown(&rig), format!("n={} ", QUEUED_MAX * 3 - 1));
}

#[tokio::test]
async fn labels_that_no_record_can_hold_are_refused() {
    let rig = stopping().await;
    let long = "x".repeat(4000);
    for command in [
        merge(&[&format!("a={long}")]),
        merge(&["=1"]),
        Command::SetLabels {
            change: LabelChange::Replace {
                labels: (0..=LABELS_MAX)
                    .map(|n| (n.to_string(), String::new()))
                    .collect::<Labels>(),
            },
            instance: None,
        },
    ] {
        let refused = rig.host.command(&id(), command).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidValue);
        assert!(refused.error.starts_with("metadata: "), "{}", refused.error);
    }
    assert_eq!(shown(&rig), "");
}

/// What counts is the version that the machine is about to have, not the one that runs.
#[tokio::test]
async fn a_version_that_waits_is_newer_than_one_that_comes_late() {
    let rig = stopping().await;
    rig.host.command(&id(), update(3)).await.unwrap();
    let late = rig.host.command(&id(), update(2)).await.unwrap_err();
    assert_eq!((late.code, late.error.as_str()), (Code::Conflict, "epoch 2 is older than 3"));
    let change = |number| Command::SetLabels {
        change: LabelChange::Merge { labels: BTreeMap::from([("a".to_owned(), Some("1".into()))]) },
        instance: Some(InstanceId::from_parts(number, 1)),
    };
    let refused = rig.host.command(&id(), change(1)).await.unwrap_err();
    assert_eq!(refused.code, Code::PreconditionFailed);
    assert!(refused.error.starts_with("machine_version: "), "{}", refused.error);
    rig.host.command(&id(), change(3)).await.unwrap();
    rig.server.runtime.exit(&id(), 0);
    let query = WaitQuery {
        states: "stopped".to_owned(),
        instance: Some(InstanceId::from_parts(3, 1)),
        timeout_ms: 10_000,
        ..WaitQuery::default()
    };
    let machine = rig.host.wait(&id(), &query).await.unwrap();
    assert_eq!(machine.config.image, "web:3");
    assert_eq!(shown(&rig), "a=1 ");
}

/// A destroyed machine is in the host's list for a while; whoever waits for more is told.
#[tokio::test]
async fn what_is_destroyed_is_told_and_not_waited_for() {
    let rig = stopping().await;
    let waiting = {
        let host = rig.host.clone();
        tokio::spawn(async move {
            let query = WaitQuery {
                states: "started".to_owned(),
                from_event: host.get(&id()).unwrap().events.first().map(|event| event.id.clone()),
                timeout_ms: 30_000,
                ..WaitQuery::default()
            };
            host.wait(&id(), &query).await
        })
    };
    rig.host.command(&id(), Command::Destroy { force: true }).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::MachineNotFound);
    wait(&rig, "destroyed").await;
    assert!(rig.host.list().is_empty());
    let all = rig.host.all();
    assert_eq!((all[0].id.clone(), all[0].events[0].kind.as_str()), (id(), "destroy"));
}

/// Commands that wait for room, before and after an end is put first.
#[test]
fn an_end_does_not_wait_for_the_room_that_it_frees() {
    let name = |queued: &Queued| match &queued.command {
        Command::Start => "start".to_owned(),
        Command::Stop { .. } => "stop".to_owned(),
        Command::Restart { .. } => "restart".to_owned(),
        Command::Suspend => "suspend".to_owned(),
        Command::Destroy { force } => format!("destroy {force}"),
        Command::Update { skip_launch, .. } => format!("update {skip_launch}"),
        other => format!("{other:?}").split(' ').next().unwrap_or_default().to_owned(),
    };
    let launched = || match update(1) {
        Command::Update { instance, epoch, config, config_digest, secrets, .. } => {
            Command::Update {
                instance,
                epoch,
                config,
                config_digest,
                secrets,
                cordoned: false,
                skip_launch: false,
            }
        }
        other => other,
    };
    let stop = || Command::Stop { signal: None, timeout: None };
    let restart = Command::Restart { force: false, signal: None, timeout: None };
    let destroy = || Command::Destroy { force: true };
    for (commands, expected) in [
        (vec![], ""),
        (vec![Command::Start], "start"),
        (vec![stop(), Command::Start], "stop, start"),
        (vec![Command::Start, stop()], "stop"),
        (vec![restart, Command::Suspend, stop(), Command::Start], "stop, start"),
        (vec![launched(), merge(&["a=1"]), stop()], "stop, update true, SetLabels"),
        (vec![launched(), Command::Start], "update false, start"),
        (vec![launched(), stop(), destroy()], "destroy true"),
        (vec![destroy()], "destroy true"),
    ] {
        let queued = commands.into_iter().map(Queued::of);
        let mut queued: VecDeque<Queued> = queued.collect();
        let before: Vec<String> = queued.iter().map(name).collect();
        let changed = put_end_first(&mut queued);
        let after: Vec<String> = queued.iter().map(name).collect();
        assert_eq!(after.join(", "), expected, "{before:?}");
        assert_eq!(changed, before != after, "{before:?}");
        assert!(!put_end_first(&mut queued), "{after:?}: once is enough");
    }
}
