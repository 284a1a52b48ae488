//! Machines that are destroyed while something waits for them: who waits has an answer at once, and
//! nothing is held any more.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use perch_edge::{Limits, RawLimits};
use perch_types::{MachineId, MachineState};
use serde_json::json;

use crate::h2::{self, WEB};
use crate::raw::{PORT, connect, is_ended, serving};
use crate::world::{OnStart, Origin, World, limited, machine, status, until};

/// Requests that wait, each over a connection of its own, and over one together.
const HELD: usize = 8;
const STREAMS: usize = 4;
const OF_APP: &str = "perch_app_held_requests{app=\"web\"";
const OF_ALL: &str = "perch_edge_held_requests";

/// Limits under which nobody is answered because the time for it is over.
fn patient() -> Limits {
    let hour = Duration::from_secs(3_600);
    Limits { hold: hour, queue: hour, ..Limits::default() }
}

/// Returns one of the edge's numbers; nothing of an app that it does not know.
fn reading(world: &World, name: &str) -> Option<usize> {
    let text = world.readings().text();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// How the edge hears of it.
#[derive(Debug, Clone, Copy)]
enum Heard {
    /// Its host has begun.
    Begun,
    /// It is done.
    Done,
    /// It is not among those that there are when the host is watched anew.
    Anew,
}

#[test]
fn requests_that_are_held_for_an_app_are_answered_at_once_when_it_is_destroyed() {
    let world = World::with(Vec::new(), patient());
    *world.host.on_start.lock().unwrap() = OnStart::Silent;
    let states = [MachineState::Stopped, MachineState::Starting, MachineState::Started];
    let ways = [(Heard::Begun, "PM08"), (Heard::Done, "PR01"), (Heard::Anew, "PR01")];
    let cases = states.into_iter().flat_map(|state| ways.map(|way| (state, way)));
    for (bits, (state, (heard, code))) in (1..).zip(cases) {
        let id = MachineId::from_bits(bits);
        let mut asleep = machine(bits, "web", state, 1);
        asleep.ready = false;
        world.host.put(asleep);
        until("the edge knows it", || reading(&world, OF_APP) == Some(0));
        std::thread::scope(|scope| {
            let requests: Vec<_> =
                (0..HELD).map(|_| scope.spawn(|| world.get("web", "/"))).collect();
            let streams = scope.spawn(|| over_http2(&world));
            until("all are held", || reading(&world, OF_APP) == Some(HELD + STREAMS));
            match heard {
                Heard::Begun => world.host.set(&id, MachineState::Destroying, false),
                Heard::Done => world.host.remove(&id),
                Heard::Anew => {
                    world.host.forget(&id);
                    world.host.hang_up();
                }
            }
            for request in requests {
                let answer = request.join().unwrap();
                assert_eq!(status(&answer), "503", "{state:?} {heard:?}: {answer}");
                assert!(answer.contains(code), "{state:?} {heard:?}: {answer}");
            }
            for (status, answer) in streams.join().unwrap() {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{state:?} {heard:?}");
                assert!(answer.contains(code), "{state:?} {heard:?}: {answer}");
            }
        });
        assert_eq!(reading(&world, OF_ALL), Some(0), "{state:?} {heard:?}");
        world.host.remove(&id);
        until("nothing is known of the app", || reading(&world, OF_APP).is_none());
    }
}

/// Asks for several at once over one connection; returns the answers.
fn over_http2(world: &World) -> Vec<(StatusCode, String)> {
    world.runtime.block_on(async {
        let (sender, _end) = h2::connect(world, "web.perch.localhost").await;
        let ask = |_| {
            let mut sender = sender.clone();
            tokio::spawn(async move { h2::send(&mut sender, h2::get(WEB, &[])).await })
        };
        let asked: Vec<_> = (0..STREAMS).map(ask).collect();
        let mut answers = Vec::new();
        for one in asked {
            let (status, _, body) = one.await.unwrap();
            answers.push((status, body));
        }
        answers
    })
}

#[test]
fn who_queues_for_a_full_machine_is_answered_at_once_when_it_is_destroyed() {
    let gate = Arc::new(AtomicBool::new(false));
    let origin = Origin::gated(&gate);
    let one = json!({"type": "requests", "hard_limit": 1});
    let full = limited(machine(1, "web", MachineState::Started, origin.port), one);
    let world = World::with(vec![full], patient());
    let id = MachineId::from_bits(1);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.get("web", "/slow"));
        until("one is at the app", || origin.count() == 1);
        let requests: Vec<_> = (0..HELD).map(|_| scope.spawn(|| world.get("web", "/"))).collect();
        until("the others queue", || reading(&world, OF_APP) == Some(HELD));
        world.host.set(&id, MachineState::Destroying, false);
        for request in requests {
            let answer = request.join().unwrap();
            assert!(status(&answer) == "503" && answer.contains("PM08"), "{answer}");
        }
        // The one that is under way has its answer, whatever is known of the machine by then.
        world.host.remove(&id);
        until("nothing is known of the app", || reading(&world, OF_APP).is_none());
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
    assert_eq!((origin.count(), reading(&world, OF_ALL)), (1, Some(0)));
}

#[test]
fn a_connection_that_waits_for_an_app_ends_at_once_when_it_is_destroyed() {
    let asleep = serving(1, MachineState::Stopped, 1, &json!([{"port": PORT.1}]));
    let world = World::with_raw(vec![asleep], patient(), RawLimits::default(), None);
    *world.host.on_start.lock().unwrap() = OnStart::Silent;
    let mut stream = connect(world.claim_port("web", PORT));
    stream.write_all(b"hello").unwrap();
    until("it is held", || reading(&world, OF_ALL) == Some(1));
    world.host.remove(&MachineId::from_bits(1));
    until("it is not held any more", || reading(&world, OF_ALL) == Some(0));
    assert!(is_ended(stream));
}
