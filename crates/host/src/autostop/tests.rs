//! The tables of who is put to rest when.

use perch_types::directory::Generation;
use perch_types::{HostId, MachineId};
use serde_json::{Value, json};

use super::decide::{Verdict, decide};
use super::*;
use crate::machine::record::tests::record;
use crate::machine::record::{Place, Readiness, host_machine};

const IDLE: u64 = 300_000;
const LONG: u64 = 10 * IDLE;

fn machine(config: Value) -> HostMachine {
    let place = Place {
        host: HostId::from_bits(1),
        region: "ams".parse().unwrap(),
        private_ip: "fdaa:0:1::2".parse().unwrap(),
        private_ipv4: "10.209.0.2".parse().unwrap(),
    };
    let generation = Generation::default();
    let mut machine = host_machine(&record(), &Readiness::default(), generation, &place);
    machine.config = serde_json::from_value(config).unwrap();
    (machine.state, machine.ready) = (State::Started, true);
    machine
}

fn service(autostop: &Value) -> Value {
    json!({"internal_port": 80, "autostop": autostop, "ports": [{"port": 80}]})
}

#[test]
fn all_services_of_a_machine_have_to_say_what_becomes_of_it() {
    let one = |autostop: Value| json!({"services": [service(&autostop)]});
    let two = |first: &str, second: &str| json!({"services": [service(&json!(first)), service(&json!(second))]});
    for (config, want) in [
        (one(json!("stop")), Some(Way::Stop)),
        (one(json!(true)), Some(Way::Stop)),
        (one(json!("suspend")), Some(Way::Suspend)),
        (one(json!("off")), None),
        (one(json!(null)), None),
        (json!({}), None),
        (two("stop", "suspend"), Some(Way::Stop)),
        (two("suspend", "suspend"), Some(Way::Suspend)),
        (two("suspend", "off"), None),
        // Nobody sees whether it is used.
        (json!({"services": [{"internal_port": 80, "autostop": "stop"}]}), None),
        (json!({"services": [service(&json!("stop"))], "standbys": ["00000000000abc"]}), None),
        (json!({"services": [service(&json!("stop"))], "schedule": "daily"}), None),
        // What cannot be suspended is stopped.
        (
            json!({"services": [service(&json!("suspend"))], "init": {"swap_size_mb": 64}}),
            Some(Way::Stop),
        ),
    ] {
        assert_eq!(way(&machine(config.clone())), want, "{config}");
    }
    let mut cordoned = machine(one(json!("stop")));
    cordoned.cordoned = true;
    assert_eq!(way(&cordoned), None);
}

#[test]
fn the_lowest_soft_limit_counts_and_least_only_in_the_primary_region() {
    let limits = |limits: Value| -> Vec<Service> {
        let of = |soft: &Value| json!({"internal_port": 1, "concurrency": {"soft_limit": soft}});
        let all: Vec<Value> = limits.as_array().unwrap().iter().map(of).collect();
        serde_json::from_value(json!(all)).unwrap()
    };
    for (given, want) in [
        (json!([]), SOFT_LIMIT_DEFAULT),
        (json!([null]), SOFT_LIMIT_DEFAULT),
        (json!([30, 5]), 5),
        (json!([0]), 1),
    ] {
        assert_eq!(soft_limit(&limits(given.clone())), want, "{given}");
    }
    let here: Region = "ams".parse().unwrap();
    for (env, want) in [
        (json!({}), 2),
        (json!({"PRIMARY_REGION": "ams"}), 2),
        (json!({"PRIMARY_REGION": "fra"}), 0),
    ] {
        let config: MachineConfig = serde_json::from_value(json!({"env": env, "services": [
            {"internal_port": 1, "min_machines_running": 1},
            {"internal_port": 2, "min_machines_running": 2},
        ]}))
        .unwrap();
        assert_eq!(least(&config, &here), want, "{env}");
    }
}

#[test]
fn only_machines_at_the_same_ports_do_each_others_work() {
    let usage = Usage { in_flight: 0, active_ms: 50, full_ms: None };
    let kind_of = |ports: Value| {
        let machine = machine(json!({"services": [{"internal_port": 1, "ports": ports}]}));
        member(&machine, usage, 0, 100).map(|(kind, _)| kind)
    };
    let web = kind_of(json!([{"port": 80}, {"port": 443}]));
    assert!(web.is_some());
    assert_eq!(kind_of(json!([{"port": 443}, {"port": 80}])), web);
    assert_ne!(kind_of(json!([{"port": 80}])), web);
    assert_eq!(kind_of(json!([])), None, "nobody sees its work");
}

#[test]
fn what_counts_of_a_machine_is_no_longer_than_it_serves() {
    let mut one = machine(json!({"services": [service(&json!("stop"))]}));
    let of = |machine: &HostMachine, usage: Usage, since: u64| {
        let (_, found) = member(machine, usage, since, 1_000)?;
        Some((found.in_flight, found.idle_ms, found.calm_ms, found.up_ms))
    };
    let usage = |in_flight, active_ms, full_ms| Usage { in_flight, active_ms, full_ms };
    assert_eq!(of(&one, usage(0, 400, Some(300)), 100), Some((0, 600, 700, 900)));
    assert_eq!(of(&one, usage(0, 400, None), 800), Some((0, 200, 200, 200)));
    assert_eq!(of(&one, usage(1, 400, None), 100), Some((1, 0, 900, 900)));
    assert_eq!(of(&one, usage(20, 400, None), 100), Some((20, 0, 0, 900)), "it is full now");
    one.ready = false;
    assert_eq!(of(&one, usage(0, 400, None), 100), Some((0, 0, 0, 0)), "it may still come");
    (one.ready, one.state) = (true, State::Stopping);
    assert_eq!(of(&one, usage(0, 400, None), 100), None);
    (one.state, one.cordoned) = (State::Started, true);
    assert_eq!(of(&one, usage(0, 400, None), 100), None);
}

#[test]
fn a_machine_that_is_not_ready_has_its_patience_first_and_is_stopped() {
    let usage = Usage { in_flight: 0, active_ms: 0, full_ms: None };
    let service = |check: Value| {
        json!({"internal_port": 80, "autostop": "suspend", "ports": [{"port": 80}],
            "checks": [check]})
    };
    let containers = |grace_s: u64| {
        json!([{"name": "app", "image": "a:1",
            "healthchecks": [{"name": "up", "grace_period": grace_s, "tcp": {"port": 1}}]}])
    };
    let checked = |grace: &str| service(json!({"type": "tcp", "grace_period": grace}));
    let plain = service(json!({"type": "tcp"}));
    let now_ms = 1_000_000;
    for (config, want) in [
        (json!({"services": [plain]}), 700_000),
        (json!({"services": [checked("20s")]}), 700_000),
        (json!({"services": [checked("400s")]}), 600_000),
        (
            json!({"services": [checked("400s")],
                "checks": {"up": {"type": "tcp", "port": 1, "grace_period": "500s"}}}),
            500_000,
        ),
        (json!({"services": [plain], "containers": containers(600)}), 400_000),
        (json!({"services": [checked("20m")]}), 0),
    ] {
        let mut one = machine(config.clone());
        one.ready = false;
        let (_, found) = member(&one, usage, 0, now_ms).unwrap();
        assert_eq!((found.idle_ms, found.is_ready), (want, false), "{config}");
        assert_eq!(found.way, Some(Way::Stop), "{config}");
        one.ready = true;
        let (_, found) = member(&one, usage, 0, now_ms).unwrap();
        assert_eq!((found.idle_ms, found.is_ready), (now_ms, true), "{config}");
    }
}

/// A machine that serves for long: what is under way, and how long it was unused and calm.
fn serving(bits: u64, in_flight: u32, idle_ms: u64, calm_ms: u64) -> Member {
    Member {
        id: MachineId::from_bits(bits),
        is_ready: true,
        way: Some(Way::Stop),
        least: 0,
        in_flight,
        idle_ms,
        calm_ms,
        up_ms: LONG,
    }
}

fn number(members: &[Member], verdict: &Verdict) -> usize {
    let id = verdict.act.as_ref().map(|(id, _)| id);
    members.iter().position(|one| Some(&one.id) == id).map_or(0, |at| at + 1)
}

#[test]
fn the_table_of_who_rests() {
    let unused = |bits| serving(bits, 0, LONG, LONG);
    let used = |bits| serving(bits, 0, 5_000, LONG);
    let busy = |bits| serving(bits, 1, 0, LONG);
    let full = |bits| serving(bits, 30, 0, 0);
    let was_full = |bits| serving(bits, 0, 1_000, 1_000);
    let off = |bits| Member { way: None, ..unused(bits) };
    let new = |bits| Member { up_ms: 2_000, calm_ms: 2_000, idle_ms: 2_000, ..unused(bits) };
    let least = |least, member| Member { least, ..member };
    let deaf = |bits| Member { is_ready: false, ..unused(bits) };
    let begins = |bits| Member { is_ready: false, ..new(bits) };
    for (name, members, want) in [
        ("the last one, unused", vec![unused(1)], 1),
        ("the last one, used a moment ago", vec![used(1)], 0),
        ("the last one, in use", vec![busy(1)], 0),
        ("the last one, new", vec![new(1)], 0),
        ("one that is to be left alone", vec![off(1)], 0),
        ("the last one of one that has to run", vec![least(1, unused(1))], 0),
        ("one of two, one of which has to run", vec![least(1, unused(1)), unused(2)], 1),
        ("one of two, both of which have to run", vec![least(2, unused(1)), unused(2)], 0),
        ("the one that is unused for longer", vec![serving(1, 0, IDLE, LONG), unused(2)], 2),
        ("the unused one, not the used", vec![used(1), unused(2)], 2),
        ("one of two that both do a little", vec![used(1), used(2)], 1),
        ("the one with nothing under way", vec![busy(1), used(2)], 2),
        ("none while something is under way to each", vec![busy(1), busy(2)], 0),
        ("none while the other is full", vec![full(1), unused(2)], 0),
        ("none while the other was full", vec![was_full(1), unused(2)], 0),
        ("one beside the full one and one more", vec![full(1), used(2), unused(3)], 3),
        ("of those that may", vec![off(1), used(2)], 2),
        ("none while the other is new", vec![used(1), new(2)], 0),
        ("one that never listens", vec![deaf(1)], 1),
        ("one that may come to listen", vec![begins(1)], 0),
        ("one that never listens, in use", vec![Member { in_flight: 1, ..deaf(1) }], 0),
        ("the last one that never listens of one that has to run", vec![least(1, deaf(1))], 0),
        (
            "one that never listens, not the one that has to run",
            vec![least(1, unused(1)), deaf(2)],
            2,
        ),
        ("one that never listens, while another works", vec![full(1), deaf(2)], 2),
        ("none whose work one that does not listen would have", vec![used(1), begins(2)], 0),
        ("the last one that listens, unused", vec![unused(1), begins(2)], 1),
        ("none of none", vec![], 0),
    ] {
        let verdict = decide(&members, IDLE, u64::MAX);
        assert_eq!(number(&members, &verdict), want, "{name}");
    }
}

#[test]
fn work_is_handed_over_once_in_the_idle_time_and_unused_machines_do_not_wait_for_it() {
    let members = [serving(1, 0, 5_000, LONG), serving(2, 0, 9_000, LONG), serving(3, 0, 1, LONG)];
    let verdict = decide(&members, IDLE, u64::MAX);
    assert_eq!((number(&members, &verdict), verdict.hands_over), (2, true));
    let verdict = decide(&members, IDLE, IDLE - 60_000);
    assert_eq!((number(&members, &verdict), verdict.again_ms), (0, Some(60_000)));
    let members = [serving(1, 0, IDLE, LONG), serving(2, 0, 9_000, LONG)];
    let verdict = decide(&members, IDLE, 0);
    assert_eq!((number(&members, &verdict), verdict.hands_over), (1, false));
}

#[test]
fn it_is_looked_again_when_something_may_be_so() {
    let unused = serving(1, 0, LONG, LONG);
    for (name, members, want) in [
        ("one that is used now", vec![serving(1, 1, 0, LONG)], Some(IDLE)),
        ("one that was used", vec![serving(1, 0, 100_000, LONG)], Some(200_000)),
        ("not all the time", vec![serving(1, 0, IDLE - 1, LONG)], Some(1_000)),
        ("once the other was calm", vec![serving(1, 1, 0, 100_000), unused.clone()], Some(200_000)),
        (
            "once nothing happens to be under way",
            vec![serving(1, 1, 0, LONG), serving(2, 1, 0, LONG)],
            Some(10_000),
        ),
        (
            "once it has not listened for long enough",
            vec![Member { is_ready: false, ..serving(1, 0, 100_000, 100_000) }],
            Some(200_000),
        ),
        (
            "once the first of both may be",
            vec![
                serving(1, 0, 100_000, LONG),
                Member { is_ready: false, ..serving(2, 0, 200_000, 200_000) },
            ],
            Some(100_000),
        ),
        ("only when machines change", vec![Member { least: 1, ..unused.clone() }], None),
        ("never", vec![Member { way: None, ..unused }], None),
    ] {
        assert_eq!(decide(&members, IDLE, u64::MAX).again_ms, want, "{name}");
    }
}

#[test]
fn no_request_wakes_a_machine_that_stands_by_or_has_a_schedule() {
    for (more, want) in [
        (json!({}), true),
        (json!({"standbys": []}), true),
        (json!({"standbys": ["00000000000abc"]}), false),
        (json!({"schedule": "daily"}), false),
    ] {
        let mut config = json!({"services": [service(&json!("stop")), service(&json!("off"))]});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let machine = machine(config);
        let published = machine.record(HostId::from_bits(1));
        assert_eq!(published.services.len(), 2);
        for (one, own) in published.services.iter().zip(&machine.config.services) {
            assert_eq!(one.starts_on_request(), want, "{more}");
            assert_eq!(own.autostart, None, "what the user said stays");
        }
    }
}
