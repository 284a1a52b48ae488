//! Large answers in the clear: the kernel moves them from the machine's connection to the client's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perch_edge::Limits;
use perch_types::MachineState;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::accounts::{event, keep_events};
use crate::data_path::read;
use crate::tls::{client, dial};
use crate::world::{OK, Origin, World, limited, machine, read_head, status, until};

const BYTES: usize = 3 * 1024 * 1024;
const HALF: usize = BYTES / 2 + 7;
/// The most that is read before the rest is moved: what had come with the head.
const READ_MAX: usize = 256 * 1024;
/// Just not worth it.
const SMALL_BYTES: usize = 256 * 1024 - 1;

fn content(bytes: usize) -> String {
    (0..bytes).map(|at| char::from(b'a' + u8::try_from(at % 23).unwrap())).collect()
}

/// An answer that says to be of [`BYTES`], and has this body.
fn large(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n{body}")
}

fn ask(stream: &mut TcpStream, path: &str) {
    let text = format!("GET {path} HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n");
    stream.write_all(text.as_bytes()).unwrap();
}

/// Waits for the event of an answer, and finds out whether it says all of this.
fn tells(head: &str, parts: &[&str]) {
    until("the event is written", || event(head).is_some());
    let event = event(head).unwrap();
    for part in parts {
        assert!(event.contains(part), "{part}: {event}");
    }
}

#[test]
fn a_large_answer_is_moved_whole_and_both_connections_go_on() {
    keep_events();
    let body = content(BYTES);
    let sent = large(&body);
    let origin = Origin::new(move |head| match head.split(' ').nth(1).unwrap() {
        "/small" => OK.to_owned(),
        _ => sent.clone(),
    });
    let world = World::web(&origin);
    let mut stream = world.connect();
    for round in 1..=3 {
        ask(&mut stream, "/");
        let (head, whole) = read(&mut stream);
        assert!(status(&head) == "200" && whole == body, "{head}{} bytes", whole.len());
        let moved = world.spliced();
        assert!(moved > round * (BYTES - READ_MAX) && moved <= round * BYTES, "{round}: {moved}");
        tells(&head, &["status=200", &format!("bytes_out={BYTES} "), "end=\"whole\""]);
        ask(&mut stream, "/small");
        assert_eq!(read(&mut stream).1, "ok");
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_small_or_has_no_length_or_leaves_under_tls_is_not_moved() {
    let body = content(BYTES);
    let sent = body.clone();
    let origin = Origin::new(move |head| match head.split(' ').nth(1).unwrap() {
        "/small" => {
            let small = sent.get(..SMALL_BYTES).unwrap();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {SMALL_BYTES}\r\n\r\n{small}")
        }
        "/end" => format!("HTTP/1.1 200 OK\r\n\r\n{sent}!"),
        _ => large(&sent),
    });
    let world = World::web(&origin);
    assert!(world.get("web", "/small").len() > SMALL_BYTES);
    assert!(world.get("web", "/end").len() > BYTES);
    let config = Arc::new(client(&world, &[&TLS13], &["http/1.1"]));
    let whole = world.runtime.block_on(async {
        let mut stream = dial(&world, &config, "web.perch.localhost").await.unwrap();
        let text = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _end = stream.read_to_end(&mut all).await;
        all
    });
    assert!(whole.ends_with(body.as_bytes()), "{} bytes", whole.len());
    assert_eq!(world.spliced(), 0);
    assert!(world.get("web", "/").ends_with(&body));
    assert!(world.spliced() > 0);
}

#[test]
fn a_client_with_little_room_gets_all_of_it() {
    let body = content(BYTES);
    let sent = large(&body);
    let origin = Origin::new(move |_| sent.clone());
    let world = World::web(&origin);
    let mut stream = world.connect();
    set_socket_recv_buffer_size(&stream, 64 * 1024).unwrap();
    ask(&mut stream, "/");
    read_head(&mut stream).unwrap();
    let (mut whole, mut piece) = (Vec::new(), [0; 8 * 1024]);
    while whole.len() < BYTES {
        let count = stream.read(&mut piece).unwrap();
        assert_ne!(count, 0, "{} bytes", whole.len());
        whole.extend_from_slice(&piece[..count]);
    }
    assert!(whole == body.as_bytes(), "{} bytes", whole.len());
    assert!(world.spliced() > BYTES - READ_MAX);
}

/// Reads an answer that does not come to its end, and finds out that it was told so.
fn breaks_off(world: &World, path: &str) {
    let mut stream = world.connect();
    ask(&mut stream, path);
    let head = read_head(&mut stream).unwrap();
    let mut part = Vec::new();
    let _end = stream.read_to_end(&mut part);
    assert!(part == content(HALF).as_bytes(), "{} bytes", part.len());
    assert!(world.spliced() > HALF - READ_MAX);
    tells(&head, &[&format!("bytes_out={HALF} "), "end=\"broken\""]);
}

#[test]
fn a_machine_that_ends_or_falls_silent_in_the_middle_has_the_client_cut_off() {
    keep_events();
    let origin = Origin::new(|head| match head.split(' ').nth(1).unwrap() {
        "/ends" => format!("{}!", large(&content(HALF))),
        "/silent" => large(&content(HALF)),
        _ => large(&content(BYTES)),
    });
    let limits = Limits { idle: Duration::from_secs(2), ..Limits::default() };
    let machines = vec![machine(1, "web", MachineState::Started, origin.port)];
    let world = World::with(machines, limits);
    breaks_off(&world, "/ends");
    breaks_off(&world, "/silent");
    assert!(world.get("web", "/").ends_with(&content(BYTES)), "others are served");
}

#[test]
fn a_client_that_leaves_frees_the_machine_and_leaves_nothing_to_the_next() {
    // More than the buffers on the way hold.
    const BIG_BYTES: usize = 64 * 1024 * 1024;
    keep_events();
    let body = content(BYTES);
    let sent = large(&body);
    let origin = Origin::new(move |head| match head.split(' ').nth(1).unwrap() {
        "/big" => {
            let big = "x".repeat(BIG_BYTES);
            format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG_BYTES}\r\n\r\n{big}!")
        }
        "/small" => OK.to_owned(),
        _ => sent.clone(),
    });
    let limits = serde_json::json!({"type": "requests", "soft_limit": 1, "hard_limit": 1});
    let one = limited(machine(1, "web", MachineState::Started, origin.port), limits);
    let world = World::with(vec![one], Limits { queue_max: 0, ..Limits::default() });
    let mut leaving = world.connect();
    ask(&mut leaving, "/big");
    let head = read_head(&mut leaving).unwrap();
    leaving.read_exact(&mut vec![0; BYTES]).unwrap();
    assert!(world.spliced() > BYTES - READ_MAX);
    assert_eq!(status(&world.get("web", "/small")), "503", "the one place is taken");
    drop(leaving);
    until("the place is free again", || status(&world.get("web", "/small")) == "200");
    tells(&head, &["status=200", "end=\"client_left\""]);
    let mut next = world.connect();
    ask(&mut next, "/");
    let (_, whole) = read(&mut next);
    assert!(whole == body, "{} bytes", whole.len());
}
