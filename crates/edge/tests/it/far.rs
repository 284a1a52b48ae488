//! Two edges: requests for machines of the other host go through the edge there.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_edge::{Limits, peer_name};
use perch_types::directory::MachineRecord;
use perch_types::{HostId, MachineId, MachineState};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::world::{
    Authority, DEADLINE, OK, OnStart, Origin, Pair, machine, read_head, status, until,
};

fn started(id: u64, origin: &Origin) -> MachineRecord {
    machine(id, "web", MachineState::Started, origin.port)
}

fn limited(id: u64, origin: &Origin) -> MachineRecord {
    let limits = serde_json::json!({"type": "requests", "soft_limit": 1, "hard_limit": 1});
    crate::world::limited(started(id, origin), limits)
}

#[test]
fn what_a_port_says_counts_also_where_only_machines_of_another_host_list_it() {
    let origin = Origin::fine();
    // Another part of the same app, with no port.
    let mut worker = started(1, &origin);
    worker.services.clear();
    let mut web = started(2, &origin);
    let ports = serde_json::json!([
        {"port": 80, "handlers": ["http"], "force_https": true},
        {"port": 443, "handlers": ["tls", "http"]},
    ]);
    let service = serde_json::json!([{"internal_port": origin.port, "ports": ports}]);
    web.services = serde_json::from_value(service).unwrap();
    let pair = Pair::with_https(vec![worker], vec![web]);
    let answer = pair.near.get("/");
    assert_eq!(status(&answer), "301", "{answer}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn e2_a_request_goes_through_the_edge_of_the_machines_host_as_the_client_sent_it() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nPerch-Hop: static\r\nX-App: 1\r\n\r\nok".to_owned()
    });
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let forged = "Perch-Hop: from=000000000001;org=personal;app=other;port=80;wait=0\r\n\
                  Fly-Client-IP: 6.6.6.6\r\nX-Keep: 1\r\nTE: trailers\r\n";
    let answer = pair.near.ask("/a?b=c", forged);
    assert!(status(&answer) == "200" && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(answer.contains("x-app: 1\r\n"), "{answer}");
    assert!(!answer.contains("perch-hop") && !answer.contains("cache-status"), "{answer}");
    let seen = origin.last.lock().unwrap().clone();
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    let id = answer.lines().find_map(|line| line.strip_prefix("fly-request-id: ")).unwrap();
    for want in [
        "host: web.perch.localhost\r\n",
        "x-keep: 1\r\n",
        "fly-client-ip: 127.0.0.1\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "fly-region: ams\r\n",
        "via: 1.1 perch\r\n",
        &format!("fly-request-id: {id}\r\n"),
    ] {
        assert_eq!(seen.matches(want).count(), 1, "{want}: {seen}");
    }
    assert!(!seen.contains("hop") && !seen.contains("6.6.6.6"), "{seen}");
    // Through the machine's own edge the field is nobody's either.
    pair.far.ask("/", forged);
    assert!(!origin.last.lock().unwrap().contains("hop"));
}

#[test]
fn connections_on_the_way_are_used_again() {
    let origin = Origin::fine();
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let mut stream = pair.near.connect();
    for _ in 0..20 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
        assert_eq!(status(&read_head(&mut stream).unwrap()), "200");
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    assert_eq!((origin.count(), origin.connections.load(Ordering::SeqCst)), (20, 1));
}

#[test]
fn answers_that_are_not_read_stop_no_others() {
    // More than the buffers on the way hold, but those between the edges.
    const BIG_BYTES: usize = 24 << 20;
    let origin = Origin::new(|head| {
        if head.contains("/big") {
            let body = "x".repeat(BIG_BYTES);
            return format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG_BYTES}\r\n\r\n{body}");
        }
        OK.to_owned()
    });
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let unread: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = pair.near.connect();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
            assert_eq!(status(&read_head(&mut stream).unwrap()), "200");
            stream
        })
        .collect();
    // Long enough for all of them to stand still.
    for _ in 0..200 {
        let answer = pair.near.get("/");
        assert!(status(&answer) == "200" && answer.ends_with("ok"), "{}", answer.len());
    }
    drop(unread);
}

#[test]
fn the_edge_there_wakes_a_machine_once_for_all() {
    let origin = Origin::fine();
    let mut asleep = started(2, &origin);
    (asleep.state, asleep.ready) = (MachineState::Stopped, false);
    let pair = Pair::new(Vec::new(), vec![asleep]);
    std::thread::scope(|scope| {
        for index in 0..20 {
            let side = if index % 4 == 0 { &pair.far } else { &pair.near };
            scope.spawn(move || assert_eq!(status(&side.get("/")), "200"));
        }
    });
    // What the directory says of it is old by now, and only it was woken.
    assert_eq!(status(&pair.near.get("/")), "200");
    assert_eq!(pair.far.host.starts.load(Ordering::SeqCst), 1);
    assert_eq!(pair.near.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_start_that_is_refused_there_is_told_here() {
    let origin = Origin::fine();
    let mut asleep = started(2, &origin);
    (asleep.state, asleep.ready) = (MachineState::Stopped, false);
    let pair = Pair::new(Vec::new(), vec![asleep]);
    *pair.far.host.on_start.lock().unwrap() = OnStart::Refused;
    let answer = pair.near.get("/");
    assert!(status(&answer) == "503" && answer.contains("PM07"), "{answer}");
    // Its owner finds that where the machine is.
    until("its owner is told", || {
        let notes = pair.far.host.notes.lock().unwrap();
        notes.iter().any(|(id, note)| *id == MachineId::from_bits(2) && note.code == "PM07")
    });
    let notes = pair.near.host.notes.lock().unwrap();
    assert!(notes.iter().all(|(_, note)| note.code != "PM07"), "{notes:?}");
}

#[test]
fn the_hard_limit_holds_over_both_edges() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (high, count) = (Arc::clone(&most), Arc::clone(&now));
    let origin = Origin::new(move |_| {
        let here = count.fetch_add(1, Ordering::SeqCst) + 1;
        high.fetch_max(here, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(3));
        count.fetch_sub(1, Ordering::SeqCst);
        OK.to_owned()
    });
    let pair = Pair::new(Vec::new(), vec![limited(2, &origin)]);
    std::thread::scope(|scope| {
        for index in 0..20 {
            let side = if index % 2 == 0 { &pair.far } else { &pair.near };
            scope.spawn(move || assert_eq!(status(&side.get("/")), "200"));
        }
    });
    assert_eq!((origin.count(), most.load(Ordering::SeqCst)), (20, 1));
}

#[test]
fn a_request_that_waits_there_too_long_is_told_here() {
    let gate = Arc::new(AtomicBool::new(false));
    let origin = Origin::gated(&gate);
    let limits = Limits { queue: Duration::from_millis(300), ..Limits::default() };
    let pair = Pair::with(Vec::new(), vec![limited(2, &origin)], &limits);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| pair.far.get("/slow"));
        until("the slow one is there", || origin.count() == 1);
        let late = pair.near.get("/");
        assert!(status(&late) == "503" && late.contains("PR03"), "{late}");
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
    assert_eq!(origin.count(), 1, "the late one was never sent");
}

#[test]
fn this_hosts_machine_is_first_and_the_others_help_when_it_is_full() {
    let gate = Arc::new(AtomicBool::new(false));
    let (here, there) = (Origin::gated(&gate), Origin::gated(&gate));
    let pair = Pair::new(vec![limited(1, &here)], vec![limited(2, &there)]);
    for _ in 0..5 {
        assert_eq!(status(&pair.near.get("/")), "200");
    }
    assert_eq!((here.count(), there.count()), (5, 0));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| pair.near.get("/slow"));
        until("the slow one is there", || here.count() == 6);
        assert_eq!(status(&pair.near.get("/")), "200");
        assert_eq!((here.count(), there.count()), (6, 1));
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
    let ask = |fields: &str| status(&pair.near.ask("/", fields)).to_owned();
    assert_eq!(ask("Fly-Prefer-Region: fra\r\n"), "200");
    assert_eq!(ask("Fly-Force-Region: fra\r\n"), "200");
    assert_eq!(ask("Fly-Force-Instance-Id: 00000000000002\r\n"), "200");
    assert_eq!((here.count(), there.count()), (6, 4));
    assert_eq!(ask("Fly-Force-Instance-Id: 00000000000003\r\n"), "404");
    assert_eq!(ask("Fly-Force-Region: ord\r\n"), "404");
}

#[test]
fn a_replay_goes_to_the_other_host_and_is_told_who_sent_it() {
    let sends = Origin::new(|head| {
        let field = match head.split(' ').nth(1) {
            Some("/region") => "region=fra",
            Some("/elsewhere") => "elsewhere=true",
            _ => "instance=00000000000002",
        };
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nFly-Replay: {field}\r\n\r\n")
    });
    let takes = Origin::fine();
    let pair = Pair::new(vec![started(1, &sends)], vec![started(2, &takes)]);
    for path in ["/instance", "/region", "/elsewhere"] {
        let answer = pair.near.get(path);
        assert!(status(&answer) == "200" && answer.ends_with("ok"), "{path}: {answer}");
        let seen = takes.last.lock().unwrap().clone();
        let source = format!("fly-replay-src: instance={};region=ams;", MachineId::from_bits(1));
        assert!(seen.starts_with(&format!("GET {path} ")) && seen.contains(&source), "{seen}");
    }
    assert_eq!((sends.count(), takes.count()), (3, 3));
}

#[test]
fn a_replay_that_a_far_machine_asks_for_is_carried_out_by_the_clients_edge() {
    let takes = Origin::fine();
    let sends = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nFly-Replay: app=other\r\n\r\n".to_owned()
    });
    let pair = Pair::new(
        vec![machine(3, "other", MachineState::Started, takes.port)],
        vec![started(2, &sends)],
    );
    assert_eq!(status(&pair.near.get("/")), "200");
    let source = format!("fly-replay-src: instance={};region=fra;", MachineId::from_bits(2));
    assert!(takes.last.lock().unwrap().contains(&source));
}

#[test]
fn what_is_sent_on_to_an_app_of_the_other_host_comes_to_the_port_that_it_has() {
    let sends = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nFly-Replay: app=other\r\n\r\n".to_owned()
    });
    let takes = Origin::fine();
    let mut other = machine(2, "other", MachineState::Started, takes.port);
    let ports = serde_json::json!([{"port": 8080, "handlers": ["http"]}]);
    other.services[0].ports = serde_json::from_value(ports).unwrap();
    let pair = Pair::new(vec![started(1, &sends)], vec![other]);
    let answer = pair.near.get("/");
    assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    assert_eq!((sends.count(), takes.count()), (1, 1));
}

#[test]
fn e5_an_app_of_the_other_host_has_only_so_many_connections_here() {
    let origin = Origin::fine();
    let limits = Limits { app_connections_max: 1, ..Limits::default() };
    let pair = Pair::with(Vec::new(), vec![started(2, &origin)], &limits);
    let mut first = pair.near.connect();
    first.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
    assert_eq!(status(&read_head(&mut first).unwrap()), "200");
    let second = pair.near.get("/");
    assert!(status(&second) == "503" && second.contains("PR07"), "{second}");
    assert_eq!(origin.count(), 1);
    drop(first);
    until("its place is free", || status(&pair.near.get("/")) == "200");
}

#[test]
fn a_switch_of_protocols_is_a_tunnel_through_both_edges() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned()
    });
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let mut stream = pair.near.connect();
    let ask = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: Upgrade\r\n\
               Upgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    assert!(!head.contains("perch-hop"), "{head}");
    for text in ["\0\n\n\r\0hello", "GET / HTTP/9\n\n"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, text.to_ascii_uppercase().into_bytes());
    }
    // It keeps the machine: the edge there has it under way.
    assert!(!pair.far.host.is_unused(&MachineId::from_bits(2)));
}

#[test]
fn a_switch_that_the_app_does_not_take_is_an_answer() {
    let origin = Origin::fine();
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let fields = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    let answer = pair.near.ask("/", fields);
    assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    assert!(origin.last.lock().unwrap().contains("upgrade: websocket"));
}

/// A program that answers with how many bytes it was sent, by length or in chunks.
pub(crate) fn counting() -> (u16, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counts: Arc<Mutex<Vec<usize>>> = Arc::default();
    let kept = Arc::clone(&counts);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Some(head) = read_head(&mut stream) else { continue };
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let count = match length {
                Some(length) => {
                    let mut body = vec![0; length.parse().unwrap()];
                    stream.read_exact(&mut body).unwrap();
                    body.len()
                }
                None => chunked(&mut stream),
            };
            kept.lock().unwrap().push(count);
            let text = count.to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, counts)
}

fn chunked(stream: &mut TcpStream) -> usize {
    let mut count = 0;
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let text = String::from_utf8(line).unwrap();
        let size = usize::from_str_radix(text.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return count;
        }
        count += size;
    }
}

#[test]
fn bodies_of_every_kind_pass_whole() {
    let (port, counts) = counting();
    let pair = Pair::new(Vec::new(), vec![machine(2, "web", MachineState::Started, port)]);
    let head = "POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n";
    let large = vec![b'x'; 3 * 1024 * 1024];
    let mut sized = format!("{head}Content-Length: {}\r\n\r\n", large.len()).into_bytes();
    sized.extend_from_slice(&large);
    let mut chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..40 {
        chunks.extend_from_slice(b"2710\r\n");
        chunks.extend_from_slice(&large[..10_000]);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let empty = format!("{head}Content-Length: 0\r\n\r\n").into_bytes();
    for (bytes, want) in [(sized, "3145728"), (chunks, "400000"), (empty, "0")] {
        let answer = pair.near.raw(&bytes);
        assert!(status(&answer) == "200" && answer.ends_with(&format!("\n{want}")), "{answer}");
    }
    assert_eq!(*counts.lock().unwrap(), [3_145_728, 400_000, 0]);
}

#[test]
fn e6_a_host_that_cannot_be_reached_sends_a_request_elsewhere_and_no_further_than_that() {
    let origin = Origin::fine();
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    // A third host, which the client's edge would rather ask, is away.
    let mut away = started(3, &origin);
    away.host = HostId::from_bits(3);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pair.put_edge(&away.host, closed);
    pair.publish(&away);
    let large = "x".repeat(200_000);
    let post = format!(
        "POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
         Content-Length: 200000\r\n\r\n{large}"
    );
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\r\n"[..],
        post.as_bytes(),
    ] {
        assert_eq!(status(&pair.near.raw(bytes)), "200");
    }
    let named = "Fly-Force-Instance-Id: 00000000000003\r\n";
    let answer = pair.near.ask("/", named);
    assert!(status(&answer) == "502" && answer.contains("PC03"), "{answer}");
}

#[test]
fn e6_what_a_machine_may_have_seen_is_not_sent_again() {
    // It takes the request and says nothing.
    let origin = Origin::new(|_| String::new());
    let other = Origin::new(|_| String::new());
    let pair = Pair::new(Vec::new(), vec![started(2, &origin), started(4, &other)]);
    let post = b"POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
                 Content-Length: 0\r\n\r\n";
    let answer = pair.near.raw(post);
    assert!(status(&answer) == "502" && answer.contains("PC02"), "{answer}");
    assert_eq!(origin.count() + other.count(), 1);
}

#[test]
fn a_file_of_the_image_comes_from_the_host_that_has_it() {
    let origin = Origin::fine();
    let mut record = started(2, &origin);
    record.statics =
        serde_json::from_str(r#"[{"guest_path": "/app", "url_prefix": "/static/"}]"#).unwrap();
    let pair = Pair::new(Vec::new(), vec![record]);
    let answer = pair.near.get("/static/a.css");
    assert!(status(&answer) == "200" && answer.ends_with("color: green }"), "{answer}");
    assert!(answer.contains("fly-cache-status: HIT\r\n"), "{answer}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn an_edge_that_stops_ends_what_is_under_way_for_others_too() {
    let gate = Arc::new(AtomicBool::new(false));
    let origin = Origin::gated(&gate);
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| pair.near.get("/slow"));
        until("the slow one is there", || origin.count() == 1);
        pair.far.stop();
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
}

/// Speaks to the edge that has the machine as another edge does, with a certificate for a name.
pub(crate) fn knock(
    pair: &Pair,
    authority: &Authority,
    name: Option<String>,
    (asked, order): (&str, &str),
) -> Option<String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(pair.authority.roots());
    let mut config = match name {
        Some(name) => {
            let (chain, key) = authority.issue(name);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let head = format!(
        "{asked} HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n{order}\r\n"
    );
    let asking = async {
        let stream = tokio::net::TcpStream::connect(pair.far.peers).await.ok()?;
        let server = ServerName::try_from(peer_name(&pair.far.id)).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        let _end = stream.read_to_end(&mut answer).await;
        (!answer.is_empty()).then(|| String::from_utf8(answer).unwrap())
    };
    pair.runtime.block_on(async { tokio::time::timeout(DEADLINE, asking).await.unwrap() })
}

#[test]
fn only_the_edge_of_a_host_is_served_and_only_under_its_own_name() {
    let origin = Origin::fine();
    let pair = Pair::new(Vec::new(), vec![started(2, &origin)]);
    let order = |from: &str, app: &str| {
        format!("Perch-Hop: from={from};org=personal;app={app};port=80;wait=0\r\n")
    };
    let (one, nine) = (peer_name(&pair.near.id), peer_name(&HostId::from_bits(9)));
    let ask =
        |name: Option<String>, order: &str| knock(&pair, &pair.authority, name, ("GET /", order));
    let fine = order("000000000001", "web");
    assert_eq!(ask(None, &fine), None, "a certificate is asked for");
    let foreign = knock(&pair, &Authority::new(), Some(one.clone()), ("GET /", &fine));
    assert_eq!(foreign, None, "somebody else's authority");
    for (name, order) in [
        ("perch.example".to_owned(), fine.clone()),
        (one.clone(), order("000000000009", "web")),
        // It is what it says, and no host of this platform.
        (nine, order("000000000009", "web")),
        (one.clone(), String::new()),
        (one.clone(), "Perch-Hop: nonsense\r\n".to_owned()),
    ] {
        let answer = ask(Some(name), &order).unwrap();
        assert!(status(&answer) == "502" && answer.contains("unsent=PC03"), "{order}: {answer}");
    }
    assert_eq!(origin.count(), 0);
    let answer = ask(Some(one.clone()), &fine).unwrap();
    let told = format!("perch-hop: machine={}\r\n", MachineId::from_bits(2));
    assert!(status(&answer) == "200" && answer.contains(&told), "{answer}");
    // What is not here is not passed on: one hop, no more.
    let elsewhere = Origin::fine();
    let mut record = machine(7, "other", MachineState::Started, elsewhere.port);
    record.host = pair.near.id.clone();
    pair.near.host.put(record.clone());
    pair.publish(&record);
    let other = b"GET / HTTP/1.1\r\nHost: other.perch.localhost\r\nConnection: close\r\n\r\n";
    until("its own edge has heard of it", || status(&pair.near.raw(other)) == "200");
    let answer = ask(Some(one), &order("000000000001", "other")).unwrap();
    assert!(answer.contains("unsent=PR01") && elsewhere.count() == 1, "{answer}");
}
