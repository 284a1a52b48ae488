//! How machines stand, from their records.
//!
//! Never a call.

use perch_deploy::{Mark, Verdict, is_known, is_worse, judge};
use perch_types::api::{Answers, CheckState, CheckStatus, Machine, MachineEvent};
use perch_types::{InstanceId, MachineConfig, MachineState, Timestamp};

use crate::fake::{THEN, World};

fn started(checks: &[(CheckState, &str)]) -> Machine {
    let mut world = World::default();
    world.add_machine(MachineState::Started, MachineConfig::default());
    let mut machine = world.machines.remove(0);
    machine.checks = checks
        .iter()
        .map(|(status, output)| CheckStatus {
            name: "check".to_owned(),
            status: *status,
            output: (*output).to_owned(),
            updated_at: Timestamp::from_unix_ms(THEN),
        })
        .collect();
    machine
}

#[test]
fn a_wrong_listener_is_found_among_the_checks_that_follow_from_it() {
    let refused = (CheckState::Critical, "connect to 10.0.0.2:8080: refused");
    let wrong = (CheckState::Critical, "listens on 127.0.0.1:8080, expected 0.0.0.0:8080");
    let nothing = (CheckState::Critical, "nothing listens on 0.0.0.0:8080");
    let fine = (CheckState::Passing, "200 OK");
    for (checks, because, is_wrong) in [
        (&[refused, wrong][..], wrong.1, true),
        (&[wrong, refused], wrong.1, true),
        (&[fine, refused], refused.1, false),
        // A slow start mends this, so it is given all the time there is.
        (&[nothing], nothing.1, false),
        (&[refused, nothing], refused.1, false),
    ] {
        let want = Verdict::Waiting { because: because.to_owned(), wrong_listener: is_wrong };
        assert_eq!(judge(&started(checks), &Mark::default()), want, "{checks:?}");
    }
    assert_eq!(judge(&started(&[fine]), &Mark::default()), Verdict::Ready);
}

#[test]
fn what_ended_before_an_update_is_the_version_befores_fault() {
    let event = |id: &str, kind: &str, code: i32| {
        let exit = serde_json::json!({
            "exit_event": {
                "exit_code": code, "guest_exit_code": code, "guest_signal": 0, "signal": 0,
                "oom_killed": false, "requested_stop": false, "restarting": false,
                "exited_at": "2026-01-01T00:00:00Z",
            },
            "restart_count": 0,
        });
        let event = serde_json::json!({
            "id": id, "type": kind, "status": "stopped", "source": "flyd", "timestamp": THEN,
            "request": (kind == "exit").then_some(exit),
        });
        serde_json::from_value::<MachineEvent>(event).unwrap()
    };
    let with = |events: &[(&str, &str, i32)]| {
        let events = events.iter().map(|(id, kind, code)| event(id, kind, *code)).collect();
        Machine { events, ..started(&[]) }
    };
    let before = with(&[("b", "exit", 4), ("a", "update", 0)]);
    // It ended once more before the update was noted.
    let updated =
        with(&[("d", "update", 0), ("c", "exit", 4), ("b", "exit", 4), ("a", "update", 0)]);
    let mark = Mark::of_update(&before, &updated);
    assert_eq!(judge(&updated, &mark), Verdict::Runs);
    let ended = with(&[("e", "exit", 5), ("d", "update", 0), ("c", "exit", 4)]);
    assert!(matches!(judge(&ended, &mark), Verdict::Exited(exit) if exit.exit_code == 5));
    // Where nothing says when the update was noted, all since is its own.
    let silent = with(&[("c", "exit", 4), ("b", "exit", 4), ("a", "update", 0)]);
    let mark = Mark::of_update(&before, &silent);
    assert!(matches!(judge(&silent, &mark), Verdict::Exited(exit) if exit.exit_code == 4));
    assert_eq!(judge(&before, &mark), Verdict::Runs);
}

#[test]
fn a_version_is_worse_only_beyond_what_is_chance() {
    let answers =
        |(count, errors)| Answers { instance_id: InstanceId::from_parts(1, 1), count, errors };
    for (before, after, want) in [
        ((100, 0), (20, 4), false),
        ((100, 0), (20, 5), true),
        ((100, 0), (5, 5), true),
        ((100, 0), (1000, 100), false),
        ((100, 0), (1000, 110), true),
        ((100, 50), (100, 60), false),
        ((100, 50), (100, 61), true),
        ((100, 50), (0, 0), false),
    ] {
        assert_eq!(is_worse(&answers(before), &answers(after)), want, "{before:?} {after:?}");
    }
    assert!(is_known(&answers((20, 0))) && !is_known(&answers((19, 19))));
}
