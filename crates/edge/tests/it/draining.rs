//! Machines that are about to be stopped: no new request, and the host is told when the last ended.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perch_types::{MachineId, MachineState};

use crate::world::{OK, Origin, World, machine, read_head, status, until};

#[test]
fn the_host_hears_that_a_machine_is_drained_when_its_last_request_has_ended() {
    let (is_open, other) = (Arc::new(AtomicBool::new(false)), Origin::fine());
    let (gate, is_taken) = (Arc::clone(&is_open), AtomicBool::new(false));
    // Only the first: what is sent here before the news arrive must not wait for it.
    let slow = Origin::new(move |_| {
        if !is_taken.swap(true, Ordering::SeqCst) {
            until("the answer may go", || gate.load(Ordering::SeqCst));
        }
        OK.to_owned()
    });
    let world = World::new(vec![machine(1, "web", MachineState::Started, slow.port)]);
    let get_some = || (0..10).all(|_| status(&world.get("web", "/")) == "200");
    let id = MachineId::from_bits(1);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| world.get("web", "/"));
        until("the request is under way", || slow.count() == 1);
        world.host.put(machine(2, "web", MachineState::Started, other.port));
        world.host.set(&id, MachineState::Stopping, false);
        // The other gets them all from now on.
        until("the other is used", || {
            let before = (slow.count(), other.count());
            get_some() && (slow.count(), other.count()) == (before.0, before.1 + 10)
        });
        assert!(world.host.drained.lock().unwrap().is_empty());
        is_open.store(true, Ordering::SeqCst);
        assert_eq!(status(&request.join().unwrap()), "200");
        until("the host is told", || !world.host.drained.lock().unwrap().is_empty());
    });
    let (machine, drained) = world.host.drained.lock().unwrap()[0].clone();
    assert_eq!((machine, drained.generation.counter), (id, 2));
    assert!(drained.edge.is_some(), "it speaks for itself alone");
    let before = slow.count();
    assert!(get_some());
    assert_eq!(slow.count(), before, "nothing comes after the gate was closed");
}

#[test]
fn a_tunnel_holds_nothing_up() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned()
    });
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    let mut stream = world.connect();
    let ask = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: Upgrade\r\n\
               Upgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    assert!(read_head(&mut stream).unwrap().starts_with("HTTP/1.1 101"));
    world.host.set(&MachineId::from_bits(1), MachineState::Stopping, false);
    until("the host is told", || !world.host.drained.lock().unwrap().is_empty());
    // It is the app's to end.
    stream.write_all(b"still").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"STILL");
}

#[test]
fn a_machine_that_is_only_not_ready_is_not_said_to_be_drained() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    let id = MachineId::from_bits(1);
    world.host.set(&id, MachineState::Started, false);
    world.host.set(&id, MachineState::Started, true);
    until("it is ready again", || status(&world.get("web", "/")) == "200");
    std::thread::sleep(Duration::from_millis(50));
    assert!(world.host.drained.lock().unwrap().is_empty());
}
