//! Common requests over HTTP/1.1 take a path of their own: what is the same there as on the general
//! one, and what comes behind them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use perch_types::MachineState;

use crate::world::{OK, Origin, World, machine, read_head, replay, status};

/// A field that ends at the edge, and makes no request a common one.
const NOT_COMMON: &str = "TE: trailers\r\n";

/// Returns a head without what differs from request to request: its lines in an order of their own.
pub(crate) fn told(head: &str) -> Vec<String> {
    let differs = |line: &&str| {
        ["fly-request-id: ", "connection: ", "date: "].iter().any(|name| line.starts_with(name))
    };
    let mut lines: Vec<String> =
        head.lines().filter(|line| !differs(line)).map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn parts(answer: &str) -> (Vec<String>, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, "no end"));
    (told(head), body)
}

#[test]
fn e2_both_paths_say_the_same_to_machines_and_clients() {
    let answers = [
        OK,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: app\r\nVia: 1.1 app\r\nSet-Cookie: a\r\n\
         Set-Cookie: b\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-One: \t1 \r\n\r\nok",
        "HTTP/1.1 404 Nowhere At All\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nup to the end!",
        "HTTP/1.0 200 OK\r\n\r\nup to the end!",
        "HTTP/1.1 204 No Content\r\nX-One: 1\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\n\
         Content-Length: 2\r\nLocation: /b\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nFly-Request-Id: mine\r\nFly-Cache-Status: HIT\r\n\
         Perch-Hop: static\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok!",
        "nonsense\r\n\r\n!",
        "",
    ];
    let origin = Origin::new(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        answers[path.trim_start_matches('/').parse::<usize>().unwrap()].to_owned()
    });
    let world = World::web(&origin);
    let fields = "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n\
                  X-Forwarded-Proto: https\r\n\
                  X-Forwarded-Port: 8443\r\nVia: 1.0 other\r\nCookie: a=b\r\nCookie: c=d\r\n\
                  ACCEPT: \t*/* \r\nKeep-Alive: timeout=5\r\n";
    for number in 0..answers.len() {
        let ask = |more: &str| {
            let text = format!(
                "GET /{number} HTTP/1.1\r\nHost: Web.Perch.localhost:80\r\n{fields}{more}\
                 Connection: close\r\n\r\n"
            );
            (world.raw(text.as_bytes()), origin.last.lock().unwrap().clone())
        };
        let ((common, heard), (general, heard_too)) = (ask(""), ask(NOT_COMMON));
        assert_eq!(told(&heard), told(&heard_too), "{number}");
        let ((head, body), (head_too, body_too)) = (parts(&common), parts(&general));
        assert_eq!(head, head_too, "{number}");
        // A page of the edge names its request.
        if status(&common) != "502" {
            assert_eq!(body, body_too, "{number}");
        }
        for answer in [&common, &general] {
            assert_eq!(answer.matches("\r\ndate: ").count(), 1, "{answer}");
        }
    }
}

#[test]
fn the_head_alone_is_answered_with_the_length_that_there_would_be() {
    let origin = Origin::new(|head| {
        assert!(head.starts_with("HEAD / "), "{head}");
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned()
    });
    let world = World::web(&origin);
    let mut stream = world.connect();
    for _ in 0..2 {
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
        let head = read_head(&mut stream).unwrap();
        assert!(head.contains("\r\ncontent-length: 5\r\n"), "{head}");
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

/// Reads an answer with a length.
pub(crate) fn read(stream: &mut TcpStream) -> (String, String) {
    let head = read_head(stream).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// An app that answers with the path that it was asked for.
fn echo() -> Origin {
    Origin::new(|head| {
        let path = head.split(' ').nth(1).unwrap();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())
    })
}

#[test]
fn requests_behind_each_other_are_answered_in_their_order_whatever_their_path() {
    let origin = echo();
    let world = World::web(&origin);
    let mut stream = world.connect();
    let host = "HTTP/1.1\r\nHost: web.perch.localhost\r\n";
    let text = format!(
        "GET /1 {host}\r\nGET /2 {host}\r\nPOST /3 {host}Content-Length: 3\r\n\r\nabc\
         GET /4 {host}\r\n\
         GET /5 {host}\r\n"
    );
    // The last one comes in two pieces.
    let (most, rest) = text.split_at(text.len() - 9);
    stream.write_all(most.as_bytes()).unwrap();
    for number in 1..=4 {
        let (head, body) = read(&mut stream);
        assert_eq!((status(&head), body), ("200", format!("/{number}")));
    }
    stream.write_all(rest.as_bytes()).unwrap();
    assert_eq!(read(&mut stream).1, "/5");
}

#[test]
fn a_connection_goes_on_behind_a_replay_and_behind_a_page() {
    let web = Origin::new(|head| match head.split(' ').nth(1).unwrap() {
        "/on" => replay("fly-replay: app=other"),
        "/bad" => replay("fly-replay: app=nobodys"),
        "/gone" => String::new(),
        _ => OK.to_owned(),
    });
    let other = Origin::fine();
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, web.port),
        machine(3, "other", MachineState::Started, other.port),
    ]);
    let mut stream = world.connect();
    for (path, want, code) in [
        ("/", "200", ""),
        ("/on", "200", ""),
        ("/gone", "502", "PC02"),
        ("/", "200", ""),
        ("/bad", "502", "PA04"),
        ("/on", "200", ""),
    ] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let (head, body) = read(&mut stream);
        assert!(status(&head) == want && body.contains(code), "{path}: {head}{body}");
        assert!(!head.contains("fly-replay"), "{head}");
    }
    assert_eq!(other.count(), 2);
    assert!(other.last.lock().unwrap().contains("fly-replay-src: instance="));
}

#[test]
fn a_large_body_arrives_whole_however_its_end_is_told() {
    const BYTES: usize = 1024 * 1024 + 7;
    let body: String =
        (0..BYTES).map(|at| char::from(b'a' + u8::try_from(at % 23).unwrap())).collect();
    let sent = body.clone();
    let origin = Origin::new(move |head| {
        if head.starts_with("GET /length ") {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n{sent}")
        } else {
            format!("HTTP/1.1 200 OK\r\n\r\n{sent}!")
        }
    });
    let world = World::web(&origin);
    let (_, whole) = world.get("web", "/length").split_once("\r\n\r\n").map(own).unwrap();
    assert!(whole == body, "{} bytes", whole.len());
    let (_, chunks) = world.get("web", "/end").split_once("\r\n\r\n").map(own).unwrap();
    let (mut rest, mut whole) = (chunks.as_str(), String::new());
    loop {
        let (size, behind) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            assert_eq!(behind, "\r\n");
            break;
        }
        let (piece, behind) = behind.split_at(size);
        whole.push_str(piece);
        rest = behind.strip_prefix("\r\n").unwrap();
    }
    assert!(whole == body, "{} bytes", whole.len());
}

fn own((head, body): (&str, &str)) -> (String, String) {
    (head.to_owned(), body.to_owned())
}
