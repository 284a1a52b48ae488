//! E6, E7 and E8 over the wire: nothing is sent twice, what is remembered is nobody else's, and pages
//! say nothing of what is behind them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_edge::Limits;
use perch_types::{MachineId, MachineState};

use crate::world::{OK, Origin, World, machine, read_head, status};

/// Sends a request over a connection that stays, and reads its answer.
fn ask(stream: &mut TcpStream, head: &str, body: &str) -> String {
    let text = format!("{head}Host: web.perch.localhost\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).unwrap();
    let head = read_head(stream).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head
}

#[test]
fn e6_what_was_sent_over_a_kept_connection_that_ends_is_not_sent_again() {
    let origin =
        Origin::new(|head| if head.contains("/gone") { String::new() } else { OK.to_owned() });
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    for (head, body) in [
        ("POST /gone HTTP/1.1\r\nContent-Length: 3\r\n", "abc"),
        ("POST /gone HTTP/1.1\r\nContent-Length: 0\r\n", ""),
        ("GET /gone HTTP/1.1\r\n", ""),
    ] {
        let mut stream = world.connect();
        for _ in 0..2 {
            assert_eq!(status(&ask(&mut stream, "GET / HTTP/1.1\r\n", "")), "200");
        }
        let connections = origin.connections.load(Ordering::SeqCst);
        let before = origin.count();
        let answer = ask(&mut stream, head, body);
        assert!(status(&answer) == "502", "{head}: {answer}");
        assert_eq!(origin.count(), before + 1, "{head}: it arrived once");
        assert_eq!(origin.connections.load(Ordering::SeqCst), connections, "it was a kept one");
    }
}

/// An app that ends each connection at the moment of its answer, so that the next request meets the
/// end on its way; returns its port and the paths that it was asked for.
fn ends_at_once() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let paths = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let paths = Arc::clone(&paths);
            std::thread::spawn(move || answer_and_end(stream, &paths));
        }
    });
    (port, asked)
}

fn answer_and_end(mut stream: TcpStream, paths: &Mutex<Vec<String>>) {
    while let Some(head) = read_head(&mut stream) {
        paths.lock().unwrap().push(head.split(' ').nth(1).unwrap().to_owned());
        // The body, which is always the same.
        let is_whole = stream.read_exact(&mut [0; 3]).is_ok();
        if !is_whole || stream.write_all(OK.as_bytes()).is_err() {
            return;
        }
        // What is on its way already is read, and gets no answer.
        stream.shutdown(std::net::Shutdown::Write).ok();
    }
}

#[test]
fn e6_a_post_that_meets_the_end_of_its_connection_arrives_once_or_is_told_to_have_failed() {
    let (port, asked) = ends_at_once();
    let mut record = machine(1, "web", MachineState::Started, port);
    record.services[0].concurrency = serde_json::from_str(r#"{"type":"requests"}"#).unwrap();
    let world = World::new(vec![record]);
    let mut stream = world.connect();
    let mut answered = BTreeSet::new();
    for number in 0..100 {
        let head = format!("POST /{number} HTTP/1.1\r\nContent-Length: 3\r\n");
        match status(&ask(&mut stream, &head, "abc")) {
            "200" => {
                answered.insert(format!("/{number}"));
            }
            other => {
                assert_eq!(other, "502");
                stream = world.connect();
            }
        }
    }
    let asked = asked.lock().unwrap().clone();
    let once: BTreeSet<String> = asked.iter().cloned().collect();
    assert_eq!(once.len(), asked.len(), "one arrived twice: {asked:?}");
    assert!(answered.is_subset(&once) && !answered.is_empty(), "{answered:?}");
}

fn raw(world: &World, host: &str, path: &str) -> String {
    let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    world.raw(text.as_bytes())
}

#[test]
fn e7_where_a_request_went_is_remembered_for_its_own_app_host_and_path_alone() {
    // Over TLS or not makes no difference: remembered is where a request goes, not what comes back.
    let sends = || {
        Origin::new(|head| {
            let remember = if head.starts_with("GET /a/") {
                "fly-replay-cache: /a/*\r\nfly-replay-cache-ttl-secs: 60\r\n"
            } else {
                ""
            };
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nfly-replay: app=other\r\n{remember}\r\n"
            )
        })
    };
    let (web, empty, other) = (sends(), sends(), Origin::fine());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, web.port),
        machine(2, "empty", MachineState::Started, empty.port),
        machine(3, "other", MachineState::Started, other.port),
    ]);
    world.claim("shop.example", "web");
    let (web_before, other_before) = (web.count(), other.count());
    let mut asked = 0;
    for (host, path, is_first) in [
        ("web.perch.localhost", "/a/1", true),
        ("web.perch.localhost", "/a/2", false),
        ("web.perch.localhost", "/b", true),
        ("web.perch.localhost", "/A/1", true),
        ("shop.example", "/a/1", true),
        ("shop.example", "/a/1", false),
        ("SHOP.example", "/a/3", false),
        ("web.perch.localhost", "/a/1", false),
    ] {
        let answer = raw(&world, host, path);
        assert!(status(&answer) == "200" && answer.ends_with("ok"), "{host}{path}: {answer}");
        asked += usize::from(is_first);
        assert_eq!(web.count() - web_before, asked, "{host}{path}");
    }
    assert_eq!(other.count() - other_before, 8);
    // Another app, of the same path: it says for itself where that goes.
    assert_eq!(status(&raw(&world, "empty.perch.localhost", "/a/1")), "200");
    assert_eq!(empty.count(), 1);
}

#[test]
fn e7_no_answer_is_kept_whatever_it_says_of_itself() {
    let number = Arc::new(Mutex::new(0));
    let count = Arc::clone(&number);
    let origin = Origin::new(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: public, max-age=3600\r\n\
             ETag: \"a\"\r\nExpires: Thu, 01 Jan 2099 00:00:00 GMT\r\n\r\n{count}"
        )
    });
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    for want in 1..=3 {
        let answer = world.get("web", "/same");
        assert!(answer.ends_with(&format!("\r\n\r\n{want}")), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("\r\nage:"), "{answer}");
    }
}

/// What nobody should find in a page, whoever sent it.
const MARK: &str = "s3cr3t-7f3a";

#[test]
fn e8_pages_of_the_edge_say_nothing_of_the_request_or_of_what_is_behind_them() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let garbage = Origin::new(|_| format!("{MARK} nonsense\r\n\r\n!"));
    let breaks = Origin::new(|_| String::new());
    let loops = Origin::new(|_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nfly-replay: app={MARK}\r\n\r\n")
    });
    let limits = Limits {
        stale: Duration::from_millis(50),
        hold: Duration::from_millis(50),
        ..Limits::default()
    };
    let head = |host: &str| {
        format!(
            "GET /{MARK}?q={MARK} HTTP/1.1\r\nHost: {host}\r\nCookie: {MARK}\r\n\
             X-Mine: {MARK}\r\nUser-Agent: {MARK}\r\nReferer: http://{MARK}/\r\nConnection: close\r\n"
        )
    };
    let web = head("web.perch.localhost");
    for (what, behind, text, want) in [
        ("nobody's name", garbage.port, head(&format!("{MARK}.example")), "404"),
        ("in doubt", garbage.port, format!("{web}Content-Length: {MARK}\r\n"), "400"),
        (
            "a large head",
            garbage.port,
            format!("{web}{}", format!("X: {MARK}\r\n").repeat(200)),
            "431",
        ),
        ("no machine", garbage.port, head("empty.perch.localhost"), "503"),
        ("not listening", port, web.clone(), "502"),
        ("no answer", breaks.port, web.clone(), "502"),
        ("a broken answer", garbage.port, web.clone(), "502"),
        ("a replay to nobody", loops.port, web, "502"),
    ] {
        let machine = machine(1, "web", MachineState::Started, behind);
        let world = World::with(vec![machine], limits.clone());
        let mut stream = world.connect();
        // It may be refused while it is still being written.
        stream.write_all(format!("{text}\r\n").as_bytes()).ok();
        let mut answer = Vec::new();
        let _end = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(status(&answer), want, "{what}: {answer}");
        let id = MachineId::from_bits(1).to_string();
        let (at, socket) = (format!(":{behind}"), "host.sock");
        for secret in [MARK, id.as_str(), "127.0.0.1", "::1", at.as_str(), socket, "personal"] {
            assert!(!answer.contains(secret), "{what}: {secret} in {answer}");
        }
    }
}
