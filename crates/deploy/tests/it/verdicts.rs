//! How machines stand, from their records.
//!
//! Never a call.

use perch_deploy::{Mark, Verdict, is_known, is_worse, judge};
use perch_types::api::{Answers, CheckState, CheckStatus, Machine};
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
