//! E1: what two parsers could read differently ends at the edge.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{Origin, World, machine, status};

const HOST: &str = "Host: web.perch.localhost\r\n";

/// Behind `METHOD / HTTP/1.1` and the host, where no other is given.
const DOUBTFUL: &[(&str, &str)] = &[
    ("POST / HTTP/1.1\r\n", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("POST / HTTP/1.1\r\n", "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
    ("POST / HTTP/1.1\r\n", "Content-Length: 2\r\nContent-Length: 1\r\n\r\nab"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("GET / HTTP/1.1\n", "\r\n"),
    ("GET / HTTP/1.1\r\n", "X: a\n\r\n"),
    ("GET / HTTP/1.1\r\n", "X: a\r\n b\r\n\r\n"),
    ("GET / HTTP/1.1\r\n", "X : a\r\n\r\n"),
    ("GET / HTTP/1.1\r\n", "X: a\0b\r\n\r\n"),
    ("GET / HTTP/1.1\r\n", "Host: web.perch.localhost\r\n\r\n"),
    ("GET http://other.perch.localhost/ HTTP/1.1\r\n", "\r\n"),
    ("GET web.perch.localhost HTTP/1.1\r\n", "\r\n"),
    ("CONNECT web.perch.localhost HTTP/1.1\r\n", "\r\n"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nab\r\n"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\nab\r\n0\r\n\r\n"),
    ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"),
];

#[test]
fn e1_doubt_is_a_400_a_closed_connection_and_silence_at_the_origin() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    let smuggled = format!("GET /smuggled HTTP/1.1\r\n{HOST}\r\n");
    let mut doubtful: Vec<String> =
        DOUBTFUL.iter().map(|(line, rest)| format!("{line}{HOST}{rest}{smuggled}")).collect();
    doubtful.push(format!("GET / HTTP/1.0\r\n\r\n{smuggled}"));
    doubtful.push(format!("GET / HTTP/1.1\r\n\r\n{smuggled}"));
    for text in doubtful {
        let answer = world.raw(text.as_bytes());
        assert_eq!(status(&answer), "400", "{text:?}\n{answer}");
        assert!(answer.contains("PE03"), "{text:?}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{text:?}\n{answer}");
        assert_eq!(origin.count(), 0, "{text:?}");
    }
}

#[test]
fn e1_a_body_that_turns_doubtful_on_its_way_never_ends_well() {
    let origin = Origin::new(|_| String::new());
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    let mut stream = world.connect();
    let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    crate::world::until("the head is at the origin", || origin.count() == 1);
    stream.write_all(b"zz\r\n").ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok();
    assert!(answer.is_empty() || matches!(status(&answer), "400" | "502"), "{answer}");
    assert_eq!(origin.count(), 1);
}

#[test]
fn e5_a_head_that_is_too_large_is_a_431() {
    let world = World::new(vec![]);
    let head = format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", "X: y\r\n".repeat(200));
    let answer = world.raw(head.as_bytes());
    assert!(status(&answer) == "431" && answer.contains("PE04"), "{answer}");
}

#[test]
fn e5_a_slow_head_is_cut_off() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(vec![], limits);
    let mut stream = world.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    // Ends or is reset; either is in time.
    let _end = stream.read_to_end(&mut answer);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn e11_an_unknown_app_and_a_foreign_name_get_the_same_page() {
    let world = World::new(vec![]);
    let page = |host: &str| {
        let answer = world
            .raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        let id = answer.lines().find(|line| line.starts_with("fly-request-id")).unwrap();
        let id = id.split(": ").nth(1).unwrap().to_owned();
        let date = answer.lines().find(|line| line.starts_with("date")).unwrap_or_default();
        answer.replace(&id, "ID").replace(date, "DATE")
    };
    let unknown = page("nothing.perch.localhost");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    for other in ["perch.localhost", "example.com", "a.b.perch.localhost", "127.0.0.1"] {
        assert_eq!(page(other), unknown, "{other}");
    }
}
