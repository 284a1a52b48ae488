//! Requests to machines that run.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use perch_types::{MachineId, MachineState};

use crate::world::{OK, Origin, World, machine, read_head, status, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n";

fn world_of(origin: &Origin) -> World {
    World::new(vec![machine(1, "web", MachineState::Started, origin.port)])
}

#[test]
fn e2_an_answer_passes_and_the_fields_of_connections_do_not() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-App: 1\r\n\
         Keep-Alive: 5\r\n\r\nok"
            .to_owned()
    });
    let world = world_of(&origin);
    let answer = world.raw(
        format!(
            "{GET}Connection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nX-Keep: 1\r\n\
                 Fly-Client-IP: 6.6.6.6\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n"
        )
        .as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(answer.contains("x-app: 1") && !answer.contains("x-hop"), "{answer}");
    assert!(answer.contains("via: 1.1 perch") && answer.contains("-ams\r\n"), "{answer}");
    let seen = origin.last.lock().unwrap().clone();
    for want in [
        "host: web.perch.localhost\r\n",
        "x-keep: 1\r\n",
        "fly-client-ip: 127.0.0.1\r\n",
        "x-forwarded-for: 1.1.1.1, 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "fly-region: ams\r\n",
    ] {
        assert!(seen.contains(want), "{want}: {seen}");
    }
    for gone in ["x-mine", "te:", "connection"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
}

#[test]
fn connections_to_a_machine_are_used_again() {
    let origin = Origin::fine();
    let world = world_of(&origin);
    let mut stream = world.connect();
    for _ in 0..20 {
        stream.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
        assert_eq!(status(&read_head(&mut stream).unwrap()), "200");
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    assert_eq!((origin.count(), origin.connections.load(Ordering::SeqCst)), (20, 1));
}

#[test]
fn an_idle_connection_that_the_app_closed_is_no_error() {
    let origin = Origin::new(|_| format!("{OK}!"));
    let world = world_of(&origin);
    for _ in 0..20 {
        assert_eq!(status(&world.get("web", "/")), "200");
        // The end of the connection is on its way to the edge.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(origin.count(), 20);
}

#[test]
fn an_answer_that_breaks_off_has_no_false_end() {
    for head in ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\n"] {
        let origin = Origin::new(move |_| format!("HTTP/1.1 200 OK\r\n{head}hello!"));
        let world = world_of(&origin);
        let answer = world.raw(format!("{GET}\r\n").as_bytes());
        assert!(answer.contains("hello") && !answer.ends_with("0\r\n\r\n"), "{answer}");
        assert_eq!(origin.count(), 1);
    }
}

#[test]
fn e6_a_request_is_never_sent_twice() {
    let origin = Origin::new(|_| String::new());
    let second = Origin::new(|_| String::new());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, origin.port),
        machine(2, "web", MachineState::Started, second.port),
    ]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PC02"), "{answer}");
    assert_eq!(origin.count() + second.count(), 1);
}

#[test]
fn a_machine_that_refuses_the_connection_is_passed_over() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let origin = Origin::fine();
    let machines = vec![
        machine(1, "web", MachineState::Started, port),
        machine(2, "web", MachineState::Started, origin.port),
    ];
    let stale = std::time::Duration::from_millis(300);
    let world = World::with(machines, perch_edge::Limits { stale, ..Default::default() });
    for _ in 0..20 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    assert_eq!(origin.count(), 20);
    let answer = {
        world.host.set(&MachineId::from_bits(2), MachineState::Failed, false);
        until("the change is known", || world.get("web", "/").contains("PC01"));
        world.get("web", "/")
    };
    assert_eq!(status(&answer), "502");
}

#[test]
fn a_full_machine_says_when_to_come_back_and_is_free_again() {
    let is_open = std::sync::Arc::new(AtomicBool::new(false));
    let gate = std::sync::Arc::clone(&is_open);
    let origin = Origin::new(move |head| {
        if head.contains("/slow") {
            until("the gate opens", || gate.load(Ordering::SeqCst));
        }
        OK.to_owned()
    });
    let mut record = machine(1, "web", MachineState::Started, origin.port);
    record.services[0].concurrency = serde_json::from_str(r#"{"hard_limit":1}"#).unwrap();
    let nobody_waits = perch_edge::Limits { queue_max: 0, ..Default::default() };
    let world = World::with(vec![record], nobody_waits);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.get("web", "/slow"));
        until("the slow one is there", || origin.count() == 1);
        let answer = world.get("web", "/");
        assert!(status(&answer) == "503" && answer.contains("retry-after: 1"), "{answer}");
        is_open.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
    until("it is free again", || status(&world.get("web", "/")) == "200");
    is_open.store(false, Ordering::SeqCst);
    // A client that goes away frees its place too.
    let mut gone = world.connect();
    gone.write_all(b"GET /slow HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    until("it is full", || status(&world.get("web", "/")) == "503");
    drop(gone);
    until("it is free after a client left", || status(&world.get("web", "/")) == "200");
    is_open.store(true, Ordering::SeqCst);
}

#[test]
fn answers_without_bodies_keep_their_length_and_the_connection() {
    let origin = Origin::new(|head| {
        let status = if head.contains("/304") { "304 Not Modified" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 1234\r\n\r\n")
    });
    let world = world_of(&origin);
    let mut stream = world.connect();
    for line in ["HEAD /", "GET /304", "HEAD /"] {
        let text = format!("{line} HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let head = read_head(&mut stream).unwrap();
        // The library leaves the length of a 304 away, as it may (RFC 9110, section 8.6).
        let want = if line == "GET /304" { " 304 " } else { "content-length: 1234" };
        assert!(head.contains(want), "{line}: {head}");
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_switch_of_protocols_is_a_tunnel_both_ways() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned()
    });
    let world = world_of(&origin);
    let mut stream = world.connect();
    let ask = format!("{GET}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    // Nothing that would pass for HTTP.
    for text in ["\0\n\n\r\0hello", "GET / HTTP/9\n\n"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, text.to_ascii_uppercase().into_bytes());
    }
}

#[test]
fn e3_a_switch_that_was_not_asked_for_is_refused() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n"
            .to_owned()
    });
    let world = world_of(&origin);
    let asked = "Connection: upgrade, close\r\nUpgrade: websocket\r\n";
    for fields in ["Connection: close\r\n", asked] {
        let answer = world.raw(format!("{GET}{fields}\r\n").as_bytes());
        assert!(status(&answer) == "502" && answer.contains("PU03"), "{answer}");
    }
    // Ways around the edge are not offered to the app at all.
    world.raw(format!("{GET}Connection: upgrade, close\r\nUpgrade: h2c\r\n\r\n").as_bytes());
    assert!(!origin.last.lock().unwrap().contains("upgrade"));
}

#[test]
fn e4_an_answer_of_two_lengths_is_refused() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_owned()
    });
    let world = world_of(&origin);
    assert!(world.get("web", "/").contains("PU03"));
    world.get("web", "/");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn a_host_that_is_away_takes_no_machine_with_it() {
    let origin = Origin::fine();
    let world = world_of(&origin);
    world.host.hang_up();
    for _ in 0..10 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    // What changed meanwhile is heard of when the watch is taken up again.
    world.host.set(&MachineId::from_bits(1), MachineState::Failed, false);
    until("the watch is taken up again", || world.get("web", "/").contains("PM08"));
}

#[test]
fn changes_of_routes_drop_no_request() {
    let (first, second) = (Origin::fine(), Origin::fine());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first.port),
        machine(2, "web", MachineState::Started, second.port),
    ]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(status(&world.get("web", "/")), "200");
                }
            });
        }
        for round in 0..1000_u64 {
            let id = MachineId::from_bits(1 + (round / 2) % 2);
            world.host.set(&id, MachineState::Started, round % 2 == 1);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(first.count() > 0 && second.count() > 0);
}

#[test]
fn the_platforms_own_documents_are_at_a_host_name_of_their_own() {
    let world = World::new(Vec::new());
    let found = world.get("oidc", "/personal/.well-known/jwks");
    assert!(found.starts_with("HTTP/1.1 200 "), "{found}");
    assert!(found.contains("content-type: application/json") && found.ends_with("{\"keys\":[]}"));
    for path in ["/personal/.well-known/other", "/"] {
        let none = world.get("oidc", path);
        assert!(none.starts_with("HTTP/1.1 404 "), "{none}");
    }
    let post = world.raw(
        b"POST /personal/.well-known/jwks HTTP/1.1\r\nHost: oidc.perch.localhost\r\n\
          Connection: close\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(post.starts_with("HTTP/1.1 404 "), "{post}");
    // An app is not found there, and the documents at no app.
    let app = world.get("web", "/personal/.well-known/jwks");
    assert!(!app.contains("\"keys\""), "{app}");
}
