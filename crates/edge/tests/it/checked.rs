//! Checks, as the edge sees them: a machine that is not ready gets nothing until it is again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use perch_types::{MachineId, MachineState};

use crate::world::{Origin, World, machine, read_head, status, until};

fn id(number: u64) -> MachineId {
    MachineId::from_bits(number)
}

/// Asks some times, well each time; returns how much of that an app got.
fn of_some(world: &World, origin: &Origin) -> usize {
    let before = origin.count();
    for _ in 0..8 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    origin.count() - before
}

#[test]
fn a_machine_whose_checks_fail_gets_nothing_and_comes_back_with_them() {
    let (first, second) = (Origin::fine(), Origin::fine());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first.port),
        machine(2, "web", MachineState::Started, second.port),
    ]);
    for round in 0..2 {
        until("both are asked", || {
            let before = (first.count(), second.count());
            of_some(&world, &first);
            first.count() > before.0 && second.count() > before.1
        });
        world.host.set(&id(1), MachineState::Started, false);
        until("the edge knows", || of_some(&world, &first) == 0);
        for _ in 0..5 {
            assert_eq!(of_some(&world, &first), 0, "round {round}");
        }
        world.host.set(&id(1), MachineState::Started, true);
    }
    // Nobody took it for one that sleeps.
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
}

/// Asks over a connection that stays.
fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    assert_eq!(status(&read_head(stream).unwrap()), "200");
    stream.read_exact(&mut [0; 2]).unwrap();
}

#[test]
fn a_client_that_stays_moves_on_from_a_machine_whose_checks_fail() {
    let (first, second) = (Origin::fine(), Origin::fine());
    let world = World::new(vec![machine(1, "web", MachineState::Started, first.port)]);
    let mut stream = world.connect();
    ask(&mut stream);
    assert_eq!(first.count(), 1);
    world.host.put(machine(2, "web", MachineState::Started, second.port));
    world.host.set(&id(1), MachineState::Started, false);
    until("the other is asked", || {
        ask(&mut stream);
        second.count() > 0
    });
    let before = first.count();
    for _ in 0..10 {
        ask(&mut stream);
    }
    assert_eq!(first.count(), before);
}

#[test]
fn where_no_machine_is_ready_requests_wait_for_the_checks_and_nothing_is_started() {
    let origin = Origin::fine();
    let mut unready = machine(1, "web", MachineState::Started, origin.port);
    unready.ready = false;
    let world = World::new(vec![unready]);
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..3).map(|_| scope.spawn(|| world.get("web", "/"))).collect();
        until("they are held", || {
            let text = world.readings().text();
            let mut held = text.lines().filter(|line| line.starts_with("perch_edge_held_requests"));
            held.any(|line| line.ends_with(" 3"))
        });
        assert_eq!(origin.count(), 0);
        world.host.set(&id(1), MachineState::Started, true);
        for request in requests {
            assert_eq!(status(&request.join().unwrap()), "200");
        }
    });
    assert_eq!((origin.count(), world.host.starts.load(Ordering::SeqCst)), (3, 0));
}
