//! What a wait is satisfied by.

use perch_types::directory::Generation;
use perch_types::host::{HostMachine, WaitQuery};

use super::Asked;
use crate::machine::record::tests::{at, record};
use crate::machine::record::{Place, Readiness, Source, host_machine};
use crate::machine::state::State;

/// A machine that was launched, started and then did what `later` says.
fn machine(later: &[(&str, State)]) -> HostMachine {
    let mut record = record();
    let life = [("launch", State::Created), ("start", State::Started)];
    let mut ms = 0;
    for (kind, state) in life.iter().chain(later) {
        record.state = *state;
        ms += 1;
        if !kind.is_empty() {
            record.note(kind, Source::User, at(ms)).id = format!("{kind}-{ms}");
        }
    }
    let place = Place {
        host: perch_types::HostId::from_bits(1),
        region: "fra".parse().unwrap(),
        private_ip: "fdaa::1".parse().unwrap(),
        private_ipv4: "10.0.0.1".parse().unwrap(),
    };
    host_machine(&record, &Readiness::default(), Generation::default(), &place)
}

fn is_reached(states: &str, from_event: Option<&str>, machine: &HostMachine) -> bool {
    let from_event = from_event.map(str::to_owned);
    let query = WaitQuery { states: states.to_owned(), from_event, ..WaitQuery::default() };
    Asked::parse(&query).unwrap().is_reached(machine)
}

#[test]
fn without_an_event_what_is_now_counts() {
    let started = machine(&[]);
    assert!(is_reached("started", None, &started));
    assert!(is_reached("stopped, settled", None, &started));
    assert!(!is_reached("stopped,failed", None, &started));
    // Created is on its way to something else.
    let created = HostMachine { state: State::Created, ..machine(&[]) };
    assert!(!is_reached("settled", None, &created));
    assert!(is_reached("created", None, &created));
}

#[test]
fn from_an_event_on_only_what_came_after_it_counts() {
    let started = machine(&[]);
    let start = Some("start-2");
    assert!(!is_reached("started", start, &started), "it is started, and was before");
    assert!(!is_reached("settled", start, &started));
    assert!(is_reached("started", Some("launch-1"), &started));
    let restart = [("restart", State::Restarting)];
    assert!(!is_reached("started", start, &machine(&restart)));
    let again =
        [("restart", State::Restarting), ("exit", State::Restarting), ("start", State::Started)];
    assert!(is_reached("started", start, &machine(&again)));
    assert!(is_reached("settled", start, &machine(&again)));
    // It was there and has gone on.
    let twice = [("stop", State::Stopping), ("exit", State::Stopped), ("start", State::Started)];
    assert!(is_reached("stopped", start, &machine(&twice)));
    assert!(!is_reached("stopped", Some("exit-4"), &machine(&twice)));
    // A state that no event told.
    assert!(is_reached("failed", start, &machine(&[("", State::Failed)])));
    // An event that is not kept any more was before all that are.
    assert!(is_reached("started", Some("long-ago"), &started));
}

#[test]
fn another_version_is_not_waited_for() {
    let query = WaitQuery {
        states: "started".to_owned(),
        instance: Some(perch_types::InstanceId::from_parts(9, 9)),
        ..WaitQuery::default()
    };
    assert!(!Asked::parse(&query).unwrap().is_reached(&machine(&[])));
    let mine = WaitQuery { instance: Some(machine(&[]).instance), ..query };
    assert!(Asked::parse(&mine).unwrap().is_reached(&machine(&[])));
}

#[test]
fn a_word_that_is_no_state_is_refused() {
    for states in ["flying", "", " , "] {
        let query = WaitQuery { states: states.to_owned(), ..WaitQuery::default() };
        Asked::parse(&query).unwrap_err();
    }
}
