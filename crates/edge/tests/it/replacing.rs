//! E10: edges take turns at one socket and routes change by the thousand, and no request is dropped.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{DEADLINE, Origin, World, machine, read_head, status, until};

const TURNS: usize = 4;
const ROUTES_A_TURN: usize = 2_500;
const CLIENTS: usize = 2;
const TUNNEL: &str = "GET /tunnel HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";

fn origin() -> Origin {
    Origin::new(|head| {
        if head.contains("/tunnel") {
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\n\r\n"
                .to_owned()
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
        }
    })
}

struct OnEnd<'a>(&'a AtomicBool);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn e10_edges_take_turns_and_ten_thousand_routes_change_without_a_dropped_request() {
    let origin = origin();
    // A client that was kept from running is no idle one.
    let limits = Limits { linger: DEADLINE, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, origin.port)], limits);
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(status(&world.get("web", "/")), "200");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
            scope.spawn(|| keep_alive(&world, &is_over, &answered));
        }
        // Also when a turn fails.
        let _end = OnEnd(&is_over);
        for turn in 0..TURNS {
            let numbers = turn * ROUTES_A_TURN..(turn + 1) * ROUTES_A_TURN;
            world.put_routes(numbers.map(|number| format!("r{number}.example")));
            let before = answered.load(Ordering::SeqCst);
            world.replace();
            until("requests go on", || answered.load(Ordering::SeqCst) > before + 20);
        }
    });
    for number in [0, TURNS * ROUTES_A_TURN - 1] {
        let ask = format!("GET / HTTP/1.1\r\nHost: r{number}.example\r\nConnection: close\r\n\r\n");
        until("the route is known", || status(&world.raw(ask.as_bytes())) == "200");
    }
}

/// A client that uses its connection again until it is told that the last request was that.
fn keep_alive(world: &World, is_over: &AtomicBool, answered: &AtomicUsize) {
    let mut kept = None;
    while !is_over.load(Ordering::SeqCst) {
        let stream = kept.get_or_insert_with(|| world.connect());
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
        let head = read_head(stream).expect("an answer on a connection that was not said to close");
        assert_eq!(status(&head), "200", "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"ok");
        answered.fetch_add(1, Ordering::SeqCst);
        if head.to_ascii_lowercase().contains("connection: close") {
            kept = None;
        }
    }
}

#[test]
fn e10_a_tunnel_outlives_the_edge_that_made_it() {
    let origin = origin();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    let mut tunnel = world.connect();
    tunnel.write_all(TUNNEL.as_bytes()).unwrap();
    assert!(read_head(&mut tunnel).unwrap().starts_with("HTTP/1.1 101"));
    std::thread::scope(|scope| {
        let replaced = scope.spawn(|| world.replace());
        // Another edge answers while the one before only has the tunnel left.
        let before = origin.connections.load(Ordering::SeqCst);
        until("the other edge has connections of its own", || {
            assert_eq!(status(&world.get("web", "/")), "200");
            origin.connections.load(Ordering::SeqCst) > before
        });
        for _ in 0..3 {
            tunnel.write_all(b"still").unwrap();
            let mut echo = [0; 5];
            tunnel.read_exact(&mut echo).unwrap();
            assert_eq!(&echo, b"STILL");
        }
        assert!(!replaced.is_finished());
        drop(tunnel);
        replaced.join().unwrap();
    });
}
