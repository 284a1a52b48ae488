//! What the edge makes of its host's news, and what it tells the host.

use perch_types::directory::Generation;
use perch_types::{InstanceId, MachineState, Timestamp};

use super::*;
use crate::room::Connected;

pub(crate) fn record(id: u64, app: &str, state: MachineState) -> MachineRecord {
    MachineRecord {
        id: MachineId::from_bits(id),
        org: OrgSlug::personal(),
        app: app.parse().unwrap(),
        name: "m".to_owned(),
        host: HostId::from_bits(1),
        region: "ams".parse().unwrap(),
        instance: InstanceId::from_parts(1, 1),
        generation: Generation { incarnation: 1, counter: 1 },
        state,
        ready: state == MachineState::Started,
        cordoned: false,
        private_ip: "fdaa:0:1::2".parse().unwrap(),
        private_ipv4: "10.209.0.2".parse().unwrap(),
        services: serde_json::from_str(
            r#"[{"internal_port":8080,"ports":[{"port":80,"handlers":["http"]}]}]"#,
        )
        .unwrap(),
        metadata: std::collections::BTreeMap::new(),
        skip_dns: false,
        statics: Vec::new(),
        containers: Vec::new(),
        image: "web:1".to_owned(),
        cpus: 1,
        cpu_kind: Default::default(),
        memory_mb: 256,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn web() -> AppKey {
    AppKey { org: OrgSlug::personal(), name: "web".parse().unwrap() }
}

fn book() -> Book {
    Book::new(HostId::from_bits(1), None)
}

#[test]
fn a_change_keeps_what_is_in_flight() {
    let (live, mut book, app) = (Live::default(), book(), web());
    let first = record(1, "web", MachineState::Started);
    take(&live, &mut book, WatchEvent::Snapshot { machines: vec![first.clone()] });
    let guard = live.machines_of(&app).unwrap()[0].load.begin(None).unwrap();
    let mut second = first;
    second.generation.counter = 2;
    second.ready = false;
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(second) });
    let machines = live.machines_of(&app).unwrap();
    assert!(!machines[0].record.ready);
    assert_eq!(machines[0].load.in_flight(), 1);
    drop(guard);
    assert_eq!(machines[0].load.in_flight(), 0);
}

#[test]
fn an_older_record_changes_nothing_and_another_hosts_is_not_taken() {
    let (live, mut book, app) = (Live::default(), book(), web());
    let mut new = record(1, "web", MachineState::Started);
    new.generation.counter = 5;
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(new) });
    let old = record(1, "web", MachineState::Stopped);
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(old) });
    let mut foreign = record(2, "web", MachineState::Started);
    foreign.host = HostId::from_bits(2);
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(foreign) });
    let machines = live.machines_of(&app).unwrap();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].record.state, MachineState::Started);
    take(&live, &mut book, WatchEvent::Removed { id: MachineId::from_bits(1) });
    assert!(live.machines_of(&app).is_none());
}

#[test]
fn an_app_has_no_machine_of_another_organizations_app_of_its_name() {
    let (live, mut book, ours) = (Live::default(), book(), web());
    let theirs = AppKey { org: "theirs".parse().unwrap(), ..web() };
    let known = |live: &Live| {
        let ids = |app: &AppKey| -> Vec<MachineId> {
            let machines = live.machines_of(app).unwrap_or_default();
            machines.iter().map(|target| target.record.id.clone()).collect()
        };
        (ids(&ours), ids(&theirs))
    };
    let mut left = record(1, "web", MachineState::Started);
    left.org = theirs.org.clone();
    let own = record(2, "web", MachineState::Started);
    let (one, two) = (MachineId::from_bits(1), MachineId::from_bits(2));
    let machines = vec![left.clone(), own.clone()];
    take(&live, &mut book, WatchEvent::Snapshot { machines });
    assert_eq!(known(&live), (vec![two.clone()], vec![one.clone()]));
    for machine in [left, own] {
        take(&live, &mut book, WatchEvent::Changed { machine: Box::new(machine) });
        assert_eq!(known(&live), (vec![two.clone()], vec![one.clone()]));
    }
    take(&live, &mut book, WatchEvent::Removed { id: one });
    assert_eq!(known(&live), (vec![two], Vec::new()));
}

#[tokio::test]
async fn a_closed_gate_lets_nothing_in_and_is_drained_once_only_tunnels_are_left() {
    let load = Arc::new(Load::default());
    let (request, tunnel) = (load.begin(None).unwrap(), load.begin(None).unwrap());
    load.set_open(false);
    assert!(load.begin(None).is_none() && !load.is_open());
    assert_eq!(load.in_flight(), 2);
    let waiting = Arc::clone(&load);
    let drained = tokio::spawn(async move { waiting.drained().await });
    let tunnel = tunnel.into_tunnel();
    tokio::task::yield_now().await;
    assert!(!drained.is_finished());
    drop(request);
    tokio::time::timeout(Duration::from_secs(5), drained).await.unwrap().unwrap();
    assert_eq!(load.in_flight(), 1);
    load.set_open(true);
    let more = load.begin(Some(2)).unwrap();
    assert!(load.begin(Some(2)).is_none(), "the tunnel counts as one");
    drop((tunnel, more));
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn the_host_is_told_what_is_news_of_machines_of_apps_that_may_rest() {
    let (live, mut book) = (Live::default(), book());
    let mut first = record(1, "web", MachineState::Started);
    first.services[0].autostop = Some(Autostop::Stop);
    let sibling = record(2, "web", MachineState::Started);
    let other = record(3, "api", MachineState::Started);
    let machines = vec![first.clone(), sibling, other];
    take(&live, &mut book, WatchEvent::Snapshot { machines });
    let api = AppKey { name: "api".parse().unwrap(), ..web() };
    let begin =
        |app: &AppKey, at: usize| live.machines_of(app).unwrap()[at].load.begin(None).unwrap();
    let told = |all| {
        let mut told: Vec<_> = live
            .loads(all)
            .into_iter()
            .map(|(told, _)| (told.id.bits(), told.in_flight, told.peak))
            .collect();
        told.sort_unstable();
        told
    };
    assert!(told(true).is_empty());
    let (one, two) = (begin(&web(), 0), begin(&web(), 0));
    let _others = (begin(&api, 0), begin(&web(), 1));
    assert_eq!(told(false), [(1, 2, 2), (2, 1, 1)]);
    assert!(told(false).is_empty(), "nothing has changed");
    drop(two);
    assert_eq!(told(false), [(1, 1, 2)]);
    drop(one);
    assert_eq!(told(false), [(1, 0, 1)]);
    drop(begin(&web(), 0));
    assert_eq!(told(false), [(1, 0, 1)], "it began and ended since");
    assert_eq!(told(true), [(2, 1, 1)]);
    // What is counted survives a change of the record.
    first.generation.counter += 1;
    let before = live.metrics_of(&web()).unwrap();
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(first) });
    assert!(Arc::ptr_eq(&before, &live.metrics_of(&web()).unwrap()));
    assert!(Arc::ptr_eq(&before, &live.machines_of(&web()).unwrap()[1].load.app));
}

#[test]
fn what_the_host_did_not_hear_is_news_again() {
    let load = Arc::new(Load::default());
    let (one, two) = (load.begin(None).unwrap(), load.begin(None).unwrap());
    assert_eq!(load.news(false), Some((2, 2)));
    load.untold(2);
    assert_eq!(load.news(false), Some((2, 2)));
    assert_eq!(load.news(false), None, "once it is told");
    drop((one, two));
    let (in_flight, peak) = load.news(false).unwrap();
    assert_eq!((in_flight, peak), (0, 2));
    load.untold(peak);
    assert!(!load.close_if_idle() && load.is_open(), "the host does not know of it yet");
    let _again = load.begin(None).unwrap();
    assert_eq!(load.news(false), Some((1, 2)), "the most since it was told");
    load.untold(2);
    assert_eq!(load.news(true), Some((1, 2)));
}

#[test]
fn a_gate_is_closed_for_a_rest_only_if_nothing_is_under_way() {
    let load = Arc::new(Load::default());
    let request = load.begin(None).unwrap().into_tunnel();
    assert!(!load.close_if_idle() && load.is_open());
    drop(request);
    assert!(!load.close_if_idle() && load.is_open(), "the host does not know of it yet");
    assert_eq!(load.news(false), Some((0, 1)));
    assert!(load.close_if_idle() && !load.is_open());
    assert!(load.begin(None).is_none());
    assert!(load.close_if_idle(), "it is closed already");
    load.set_open(true);
    let stays = Connected::begin(&load, None).unwrap();
    assert!(!load.close_if_idle() && load.is_open(), "a client's connection stays with it");
    assert_eq!(load.news(false), Some((1, 1)));
    drop(stays);
    assert_eq!(load.news(false), Some((0, 1)));
    assert!(load.close_if_idle() && !load.is_open());
}

#[test]
fn how_long_a_machine_is_as_it_is_survives_news_that_change_nothing() {
    let (live, mut book, app) = (Live::default(), book(), web());
    let mut record = record(1, "web", MachineState::Started);
    record.ready = false;
    let mut since = |record: &MachineRecord| {
        let machine = Box::new(record.clone());
        take(&live, &mut book, WatchEvent::Changed { machine });
        live.machines_of(&app).unwrap()[0].since
    };
    let first = since(&record);
    record.generation.counter += 1;
    assert_eq!(since(&record), first);
    record.ready = true;
    record.generation.counter += 1;
    assert!(since(&record) > first);
}

#[test]
fn nothing_is_known_until_the_host_has_said_something() {
    let (live, mut book) = (Live::default(), Book::new(HostId::from_bits(1), None));
    assert!(!live.is_known());
    take(&live, &mut book, WatchEvent::Heartbeat);
    assert!(!live.is_known());
    take(&live, &mut book, WatchEvent::Snapshot { machines: Vec::new() });
    assert!(live.is_known());
}

#[test]
fn who_waits_for_an_app_hears_of_its_changes_and_of_no_others() {
    let (live, mut book) = (Live::default(), book());
    let (web_1, api_2) =
        (record(1, "web", MachineState::Started), record(2, "api", MachineState::Started));
    let machines = vec![web_1.clone(), api_2.clone()];
    take(&live, &mut book, WatchEvent::Snapshot { machines });
    let mut waits = live.changes_of(&web());
    let mut change = |event| {
        take(&live, &mut book, event);
        let is_told = waits.has_changed().unwrap_or(true);
        waits.mark_unchanged();
        is_told
    };
    assert!(!change(WatchEvent::Changed { machine: Box::new(api_2) }));
    assert!(!change(WatchEvent::Removed { id: MachineId::from_bits(2) }));
    assert!(change(WatchEvent::Changed { machine: Box::new(web_1.clone()) }));
    assert!(change(WatchEvent::Snapshot { machines: vec![web_1.clone()] }));
    assert!(change(WatchEvent::Removed { id: MachineId::from_bits(1) }));
    assert!(live.machines_of(&web()).is_none());
    // What comes later under its name is heard of by who looks again.
    let waits = live.changes_of(&web());
    take(&live, &mut book, WatchEvent::Changed { machine: Box::new(web_1) });
    assert!(waits.has_changed().unwrap());
    assert_eq!(live.apps().len(), 1);
}

#[test]
fn a_machines_weight_is_what_its_labels_say_now() {
    let (live, mut book) = (Live::default(), book());
    let mut record = record(1, "web", MachineState::Started);
    let mut weight = |said: Option<&str>| {
        record.generation.counter += 1;
        record.metadata =
            said.map(|said| (labels::WEIGHT.to_owned(), said.to_owned())).into_iter().collect();
        let machine = Box::new(record.clone());
        take(&live, &mut book, WatchEvent::Changed { machine });
        live.machines_of(&web()).unwrap()[0].load.weight()
    };
    assert_eq!(
        [None, Some("25"), Some("0"), Some("x"), None].map(&mut weight),
        [100, 25, 0, 100, 100]
    );
}
