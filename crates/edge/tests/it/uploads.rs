//! Bodies of requests: what stands behind a head, who may be slow, and what is kept apart.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use perch_edge::Limits;
use perch_types::directory::MachineRecord;
use perch_types::{InstanceId, MachineState};

use crate::world::{DEADLINE, OK, Origin, World, machine, read_head, status, until};

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const HOST: &str = "Host: web.perch.localhost\r\n";
/// What can be taken for no head of HTTP.
const NOISE: &[u8] = b"\0\n\nhello";

/// A program that answers with the body that it was sent, once all of it is there.
struct Echo {
    port: u16,
    /// Heads that it got.
    heads: Arc<AtomicUsize>,
    /// Whether one of them wished to switch.
    saw_wish: Arc<AtomicBool>,
}

impl Echo {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let echo = Self { port, heads: Arc::default(), saw_wish: Arc::default() };
        let (heads, saw_wish) = (Arc::clone(&echo.heads), Arc::clone(&echo.saw_wish));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (heads, saw_wish) = (Arc::clone(&heads), Arc::clone(&saw_wish));
                std::thread::spawn(move || answer(stream, &heads, &saw_wish));
            }
        });
        echo
    }

    fn count(&self) -> usize {
        self.heads.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, heads: &AtomicUsize, saw_wish: &AtomicBool) {
    while let Some(head) = read_head(&mut stream) {
        heads.fetch_add(1, Ordering::SeqCst);
        if head.contains("\r\nupgrade:") {
            saw_wish.store(true, Ordering::SeqCst);
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let is_chunked = head.contains("\r\ntransfer-encoding: chunked\r\n");
        let (mut body, mut byte) = (Vec::new(), [0]);
        while body.len() < length || (is_chunked && !body.ends_with(b"0\r\n\r\n")) {
            if !matches!(stream.read(&mut byte), Ok(1)) {
                return;
            }
            body.push(byte[0]);
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
            return;
        }
    }
}

fn world_of(port: u16, limits: Limits) -> World {
    World::with(vec![machine(1, "web", MachineState::Started, port)], limits)
}

#[test]
fn e3_a_wish_to_switch_with_a_body_is_none_and_its_body_passes() {
    let echo = Echo::new();
    let world = world_of(echo.port, Limits::default());
    let chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for (line, wish, rest) in [
        ("POST", "h2c", "Content-Length: 3\r\n\r\nabc"),
        ("POST", "websocket", "Content-Length: 3\r\n\r\nabc"),
        ("GET", "websocket", "Content-Length: 3\r\n\r\nabc"),
        ("POST", "websocket", chunked),
    ] {
        let answer = world.raw(
            format!(
                "{line} / HTTP/1.1\r\n{HOST}Connection: Upgrade, HTTP2-Settings, close\r\n\
                 Upgrade: {wish}\r\n{rest}"
            )
            .as_bytes(),
        );
        assert!(status(&answer) == "200" && answer.contains("abc"), "{line} {wish}: {answer}");
    }
    assert!(!echo.saw_wish.load(Ordering::SeqCst), "the app was not offered a switch");
}

fn wish(fields: &str) -> String {
    format!("GET /wish HTTP/1.1\r\n{HOST}Connection: Upgrade{fields}\r\nUpgrade: websocket\r\n\r\n")
}

#[test]
fn e3_bytes_ahead_of_a_switch_wait_for_its_answer_and_go_into_the_tunnel_alone() {
    let origin = Origin::new(|head| if head.contains("/wish") { SWITCH } else { OK }.to_owned());
    let world = world_of(origin.port, Limits::default());
    let plain = format!("GET / HTTP/1.1\r\n{HOST}\r\n");
    for before in [0, 1, 3] {
        let mut stream = world.connect();
        let all = [plain.repeat(before).as_bytes(), wish("").as_bytes(), NOISE].concat();
        stream.write_all(&all).unwrap();
        for _ in 0..before {
            let head = read_head(&mut stream).unwrap();
            assert_eq!(status(&head), "200", "{head}");
            stream.read_exact(&mut [0; 2]).unwrap();
        }
        let head = read_head(&mut stream).unwrap();
        assert_eq!(status(&head), "101", "behind {before}: {head}");
        let mut echo = vec![0; NOISE.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, NOISE.to_ascii_uppercase(), "behind {before}");
    }
}

#[test]
fn e3_bytes_ahead_of_a_switch_that_is_refused_are_judged_as_any_request() {
    let origin = Origin::fine();
    let world = world_of(origin.port, Limits::default());
    let next = format!("GET /next HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
    let answer = world.raw([wish("").as_bytes(), next.as_bytes()].concat().as_slice());
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(origin.count(), 2);
    let answer = world.raw(&[wish("").as_bytes(), NOISE].concat());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("PE03"), "{answer}");
    assert_eq!(origin.count(), 3, "nothing of what is in doubt came there");
}

#[test]
fn e4_what_was_not_asked_for_is_nobodys_answer() {
    let origin = Origin::new(|head| {
        let more = if head.contains("/odd") {
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
        } else {
            ""
        };
        format!("{OK}{more}")
    });
    let world = World::new(vec![shared(machine(1, "web", MachineState::Started, origin.port))]);
    assert_eq!(status(&world.get("web", "/odd")), "200");
    for _ in 0..5 {
        let answer = world.get("web", "/");
        assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 2, "the odd one was not used again");
}

/// Has connections to a machine be for all clients.
fn shared(mut record: MachineRecord) -> MachineRecord {
    record.services[0].concurrency = serde_json::from_str(r#"{"type":"requests"}"#).unwrap();
    record
}

#[test]
fn e4_a_connection_is_one_apps_and_one_versions_also_where_the_address_is_the_same() {
    let origin = Origin::fine();
    let at = |id, app| shared(machine(id, app, MachineState::Started, origin.port));
    let world = World::new(vec![at(1, "web"), at(2, "other")]);
    let connections = || origin.connections.load(Ordering::SeqCst);
    for (app, want) in [("web", 1), ("web", 1), ("other", 2), ("web", 2), ("other", 2)] {
        assert_eq!(status(&world.get(app, "/")), "200");
        assert_eq!(connections(), want, "{app}");
    }
    let mut next = at(1, "web");
    next.instance = InstanceId::from_parts(2, 2);
    world.host.put(next);
    until("the next version has a connection of its own", || {
        assert_eq!(status(&world.get("web", "/")), "200");
        connections() == 3
    });
}

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\na")
}

#[test]
fn e5_a_body_that_stops_is_a_408_and_no_fault_of_the_machine() {
    let echo = Echo::new();
    let limits = Limits { body_stall: Duration::from_millis(200), ..Limits::default() };
    let asleep = machine(2, "web", MachineState::Stopped, echo.port);
    let world =
        World::with(vec![machine(1, "web", MachineState::Started, echo.port), asleep], limits);
    // More than it takes to leave a machine out that fails.
    for _ in 0..8 {
        let answer = world.raw(post(10).as_bytes());
        assert!(status(&answer) == "408" && answer.contains("PU05"), "{answer}");
    }
    assert_eq!(status(&world.get("web", "/")), "200");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0, "no other machine was needed");
}

#[test]
fn e5_a_body_that_drips_is_a_408() {
    let echo = Echo::new();
    let limits = Limits {
        body_grace: Duration::from_millis(200),
        body_rate_min: 1_000_000,
        ..Limits::default()
    };
    let world = world_of(echo.port, limits);
    let mut stream = world.connect();
    let (mut drops, is_over) = (stream.try_clone().unwrap(), AtomicBool::new(false));
    stream.write_all(post(1_000_000).as_bytes()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) && drops.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let head = read_head(&mut stream);
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(status(&head.unwrap()), "408");
    });
    assert_eq!(echo.count(), 1);
}

#[test]
fn e5_a_body_that_is_too_large_is_a_413() {
    let echo = Echo::new();
    let world = world_of(echo.port, Limits { body_bytes_max: 3, ..Limits::default() });
    let ask = |rest: &str| {
        let head = format!("POST / HTTP/1.1\r\n{HOST}Connection: close\r\n");
        world.raw(format!("{head}{rest}").as_bytes())
    };
    let answer = ask("Content-Length: 4\r\n\r\nabcd");
    assert!(status(&answer) == "413" && answer.contains("PU06"), "{answer}");
    assert_eq!(echo.count(), 0, "the app was not asked");
    let answer = ask("Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n");
    assert!(status(&answer) == "413" && answer.contains("PU06"), "{answer}");
    assert_eq!(status(&ask("Content-Length: 3\r\n\r\nabc")), "200");
}

/// One whose port says how long nothing may move.
fn patient(id: u64, app: &str, port: u16, idle_timeout: u32) -> MachineRecord {
    let mut record = machine(id, app, MachineState::Started, port);
    record.services = serde_json::from_value(serde_json::json!([{
        "internal_port": port,
        "ports": [{"port": 80, "handlers": ["http"],
            "http_options": {"idle_timeout": idle_timeout}}],
    }]))
    .unwrap();
    record
}

#[test]
fn a_ports_idle_timeout_holds_before_the_answer_too() {
    let gate = Arc::new(AtomicBool::new(false));
    let gated = |gate: &Arc<AtomicBool>| {
        let gate = Arc::clone(gate);
        Origin::new(move |_| {
            until("the answer may go", || gate.load(Ordering::SeqCst));
            OK.to_owned()
        })
    };
    let (long, short, plain) = (gated(&gate), gated(&gate), gated(&gate));
    let limits = Limits { answer: Duration::from_millis(1_500), ..Limits::default() };
    let machines = vec![
        patient(1, "web", long.port, 600),
        machine(3, "apart", MachineState::Started, plain.port),
    ];
    let world = World::with(machines, limits);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| world.get("web", "/"));
        until("the long one is under way", || long.count() == 1);
        // Begun later, and over by the edge's own limit while the long one is not.
        let answer = world.get("apart", "/");
        assert!(status(&answer) == "504" && answer.contains("PU02"), "{answer}");
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&held.join().unwrap()), "200");
    });
    gate.store(false, Ordering::SeqCst);
    drop(world);
    // One that says less than the edge.
    let limits = Limits { answer: 2 * DEADLINE, ..Limits::default() };
    let world = World::with(vec![patient(2, "other", short.port, 1)], limits);
    let answer = world.get("other", "/");
    assert!(status(&answer) == "504" && answer.contains("PU02"), "{answer}");
    gate.store(true, Ordering::SeqCst);
}
