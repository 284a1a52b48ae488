//! Machines that do not run when a request comes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{OnStart, Origin, World, machine, status};

fn short() -> Limits {
    Limits { hold: Duration::from_millis(600), ..Limits::default() }
}

#[test]
fn sleeping_machines_of_every_kind_are_woken() {
    for state in [MachineState::Created, MachineState::Stopped, MachineState::Suspended] {
        let origin = Origin::fine();
        let world = World::new(vec![machine(1, "web", state, origin.port)]);
        assert_eq!(status(&world.get("web", "/")), "200", "{state:?}");
        assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn fifty_requests_start_a_machine_once() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, origin.port)]);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(status(&world.get("web", "/")), "200"));
        }
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
    assert_eq!(origin.count(), 50);
}

#[test]
fn a_refused_start_is_a_503() {
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, 1)]);
    *world.host.on_start.lock().unwrap() = OnStart::Refused;
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PM07"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 5"), "{answer}");
}

#[test]
fn a_program_that_ends_at_once_is_started_twice_and_no_more() {
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, 1)]);
    *world.host.on_start.lock().unwrap() = OnStart::Exits;
    let began = Instant::now();
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PM01"), "{answer}");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 2);
    // All news came before the start was accepted: none may be waited for.
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_machine_that_never_listens_holds_a_request_until_the_deadline() {
    let world = World::with(vec![machine(1, "web", MachineState::Stopped, 1)], short());
    *world.host.on_start.lock().unwrap() = OnStart::NeverReady;
    let began = Instant::now();
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PC01"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_machine_that_no_request_may_start_is_left_alone() {
    let mut manual = machine(1, "web", MachineState::Stopped, 1);
    manual.services[0].autostart = Some(false);
    let world = World::new(vec![manual]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PM08"), "{answer}");
    assert!(world.get("empty", "/").contains("PR01"));
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn more_requests_than_may_be_held_are_turned_away() {
    let limits = Limits { held_max: 0, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Stopped, 1)], limits);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PR04"), "{answer}");
}
