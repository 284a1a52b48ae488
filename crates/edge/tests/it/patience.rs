//! Connections over which nothing moves, and the end of the edge.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{Origin, World, machine, read_head, status, until};

/// Long enough that a busy machine does not keep a test from its next byte for so long.
const LIMIT: Duration = Duration::from_secs(2);
const GET: &str = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n";

fn world(origin: &Origin, limits: Limits) -> World {
    World::with(vec![machine(1, "web", MachineState::Started, origin.port)], limits)
}

fn switching() -> Origin {
    Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned()
    })
}

fn open_tunnel(world: &World) -> std::net::TcpStream {
    let mut stream = world.connect();
    let ask = format!("{GET}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    assert!(read_head(&mut stream).unwrap().starts_with("HTTP/1.1 101"));
    stream
}

#[test]
fn a_tunnel_ends_when_nothing_moves_and_not_before() {
    let origin = switching();
    let world = world(&origin, Limits { idle: LIMIT, ..Limits::default() });
    let mut stream = open_tunnel(&world);
    let began = Instant::now();
    let mut byte = [0];
    for _ in 0..6 {
        std::thread::sleep(LIMIT / 4);
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"A");
    }
    let quiet_since = Instant::now();
    assert!(quiet_since.duration_since(began) > LIMIT, "it outlived the limit while bytes moved");
    assert_eq!(stream.read(&mut byte).unwrap_or(0), 0);
    assert!(quiet_since.elapsed() >= LIMIT / 2 && quiet_since.elapsed() < 20 * LIMIT);
}

#[test]
fn a_ports_idle_timeout_replaces_the_edges_own() {
    let origin = switching();
    let mut patient = machine(1, "web", MachineState::Started, origin.port);
    patient.services = serde_json::from_value(serde_json::json!([{
        "internal_port": origin.port,
        "ports": [{"port": 80, "handlers": ["http"], "http_options": {"idle_timeout": 2}}],
    }]))
    .unwrap();
    let limits = Limits { idle: Duration::from_millis(100), ..Limits::default() };
    let world = World::with(vec![patient], limits);
    let mut stream = open_tunnel(&world);
    let began = Instant::now();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let took = began.elapsed();
    assert!((Duration::from_millis(1_500)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn an_app_that_falls_silent_in_the_middle_of_an_answer_is_cut_off() {
    let (gate, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (wait, tell) = (Arc::clone(&gate), Arc::clone(&answered));
    // The second request shows that the first left the connection to the machine.
    let origin = Origin::new(move |_| {
        if tell.swap(true, Ordering::SeqCst) {
            until("the test is over", || wait.load(Ordering::SeqCst));
        }
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned()
    });
    let world = world(&origin, Limits { idle: LIMIT, ..Limits::default() });
    let mut stream = world.connect();
    stream.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let _end = stream.read_to_end(&mut answer);
    assert!(began.elapsed() >= LIMIT && began.elapsed() < 20 * LIMIT, "{:?}", began.elapsed());
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
    gate.store(true, Ordering::SeqCst);
}

#[test]
fn a_client_that_reads_nothing_is_given_up_and_the_machine_is_free_again() {
    // More than the buffers on the way hold.
    const BODY_BYTES: usize = 64 * 1024 * 1024;
    let origin = Origin::new(|head| {
        if head.contains("/big") {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n{}!",
                "x".repeat(BODY_BYTES)
            )
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
        }
    });
    let mut one = machine(1, "web", MachineState::Started, origin.port);
    one.services = serde_json::from_value(serde_json::json!([{
        "internal_port": origin.port, "ports": [{"port": 80, "handlers": ["http"]}],
        "concurrency": {"type": "requests", "soft_limit": 1, "hard_limit": 1},
    }]))
    .unwrap();
    let world = World::with(vec![one], Limits { stall: LIMIT, queue_max: 0, ..Limits::default() });
    let mut stream = world.connect();
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(status(&world.get("web", "/")), "503", "the one place is taken");
    until("the place is free again", || status(&world.get("web", "/")) == "200");
    assert!(world.spliced() > 0, "the kernel moves such a body");
    // A slow reader is no stalled one.
    let mut slow = world.connect();
    slow.write_all(b"GET /big HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; 1024 * 1024]);
    while began.elapsed() < LIMIT * 3 / 2 {
        std::thread::sleep(LIMIT / 8);
        read += slow.read(&mut piece).unwrap();
    }
    assert!(read > 0 && slow.read(&mut piece).unwrap() > 0);
}

#[test]
fn a_stop_ends_idle_connections_soon_and_others_after_their_answer() {
    let gate = Arc::new(AtomicBool::new(false));
    let wait = Arc::clone(&gate);
    let origin = Origin::new(move |head| {
        if head.contains("/slow") {
            until("the answer may go", || wait.load(Ordering::SeqCst));
        }
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
    });
    let world = world(&origin, Limits::default());
    let (mut used, mut fresh, mut busy) = (world.connect(), world.connect(), world.connect());
    used.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
    let mut ok = [0; 2];
    read_head(&mut used).unwrap();
    used.read_exact(&mut ok).unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    until("the slow request is under way", || origin.count() == 2);
    let began = Instant::now();
    world.stop();
    for idle in [&mut used, &mut fresh] {
        assert_eq!(idle.read(&mut ok).unwrap_or(0), 0);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    gate.store(true, Ordering::SeqCst);
    let mut answer = String::new();
    busy.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}
