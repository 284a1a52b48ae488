//! E10: edges take turns at one socket and routes change by the thousand, and no request is dropped.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::StatusCode;
use http_body_util::BodyExt as _;
use perch_edge::Limits;
use perch_types::MachineState;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::h2::{self, WEB};
use crate::sockets::{SWITCH, open, talk};
use crate::tls::{client, dial};
use crate::world::{DEADLINE, OK, Origin, World, machine, read_head, status, until};

const TURNS: usize = 4;
const ROUTES_A_TURN: usize = 2_500;
const CLIENTS: usize = 2;
/// Streams of one connection that are under way at each turn under TLS, of which there are so many.
const STREAMS: usize = 8;
const SECURED_TURNS: usize = 2;
const NAME: &str = "web.perch.localhost";
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

/// One of the routes that come, and lead elsewhere a turn later.
fn route(number: usize) -> String {
    format!("r{number}.example")
}

fn ask(world: &World, host: &str) -> String {
    let ask = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    world.raw(ask.as_bytes())
}

#[test]
fn e10_edges_take_turns_and_ten_thousand_routes_change_without_a_dropped_request() {
    let origin = origin();
    let other = Origin::new(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_owned());
    // A client that was kept from running is no idle one.
    let limits = Limits { linger: DEADLINE, ..Limits::default() };
    let started = |id, app, origin: &Origin| machine(id, app, MachineState::Started, origin.port);
    let machines = vec![started(1, "web", &origin), started(2, "other", &other)];
    let world = World::with(machines, limits);
    world.put_routes("web", std::iter::once(route(0)));
    until("the first route is known", || status(&ask(&world, &route(0))) == "200");
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Whoever has the first route meanwhile: nobody is refused there.
        for host in ["web.perch.localhost", "web.perch.localhost", "r0.example"] {
            let (world, is_over, answered) = (&world, &is_over, &answered);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(status(&ask(world, host)), "200");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..CLIENTS {
            scope.spawn(|| keep_alive(&world, &is_over, &answered));
        }
        // Also when a turn fails.
        let _end = OnEnd(&is_over);
        for turn in 0..TURNS {
            let of = |turn: usize| (turn * ROUTES_A_TURN..(turn + 1) * ROUTES_A_TURN).map(route);
            world.put_routes("web", of(turn));
            if let Some(before) = turn.checked_sub(1) {
                world.put_routes("other", of(before));
            }
            let before = answered.load(Ordering::SeqCst);
            world.replace();
            until("requests go on", || answered.load(Ordering::SeqCst) > before + 20);
        }
    });
    let last = TURNS * ROUTES_A_TURN - 1;
    for number in (0..last).step_by(ROUTES_A_TURN / 4).chain([last]) {
        let want = if number / ROUTES_A_TURN + 1 == TURNS { "ok" } else { "no" };
        until("the route leads to its app", || ask(&world, &route(number)).ends_with(want));
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

/// What clients that keep their connections have done.
#[derive(Default)]
struct Kept {
    is_over: AtomicBool,
    /// Answers over HTTP/1.1, and over HTTP/2.
    answered: [AtomicUsize; 2],
    /// Connections that they made for that.
    dialled: [AtomicUsize; 2],
}

impl Kept {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn note(counts: &[AtomicUsize; 2], kind: usize) {
        counts[kind].fetch_add(1, Ordering::SeqCst);
    }

    fn read(counts: &[AtomicUsize; 2]) -> [usize; 2] {
        counts.each_ref().map(|count| count.load(Ordering::SeqCst))
    }

    /// Waits until both kinds of clients had to connect anew, and have answers over that.
    fn until_they_moved(&self, (answered, dialled): ([usize; 2], [usize; 2])) {
        until("clients have moved to the next edge", || {
            let (now, made) = (Self::read(&self.answered), Self::read(&self.dialled));
            (0..2).all(|kind| now[kind] > answered[kind] + 10 && made[kind] > dialled[kind])
        });
    }
}

/// Uses a connection of HTTP/1.1 under TLS again until it is told that the last request was that.
async fn keep_https(world: &World, kept: &Kept) {
    let config = Arc::new(client(world, &[&TLS12, &TLS13], &["http/1.1"]));
    let mut connection = None;
    while !kept.is_over() {
        let mut stream = if let Some(stream) = connection.take() {
            stream
        } else {
            Kept::note(&kept.dialled, 0);
            dial(world, &config, NAME).await.unwrap()
        };
        let ask = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap();
            answer.push(byte.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert_eq!(status(&answer), "200", "{answer}");
        Kept::note(&kept.answered, 0);
        if !answer.contains("connection: close") {
            connection = Some(stream);
        }
    }
}

/// Uses a connection of HTTP/2 again until it takes nothing more.
async fn keep_http2(world: &World, kept: &Kept) {
    let mut connection = None;
    while !kept.is_over() {
        let (mut sender, end) = if let Some(known) = connection.take() {
            known
        } else {
            Kept::note(&kept.dialled, 1);
            h2::connect(world, NAME).await
        };
        // It was told so before it asked: nothing is lost, and it asks over another.
        if sender.ready().await.is_err() {
            continue;
        }
        let asked = sender.try_send_request(h2::get(WEB, &[]));
        match tokio::time::timeout(DEADLINE, asked).await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.status(), StatusCode::OK);
                let body = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await;
                assert_eq!(body.unwrap().unwrap().to_bytes(), "ok");
                Kept::note(&kept.answered, 1);
                connection = Some((sender, end));
            }
            // It was told so while it asked: what it gets back was not sent.
            Err(mut error) => {
                let is_unsent = error.take_message().is_some();
                let error = format!("{:?}", error.error());
                assert!(is_unsent || error.contains("NO_ERROR"), "{error}");
            }
        }
    }
}

/// Asks for several at once over one connection that take until the gate opens.
async fn slow_streams(world: &World) {
    let (sender, _end) = h2::connect(world, NAME).await;
    let ask = |_| {
        let mut sender = sender.clone();
        let slow = h2::get(&format!("{WEB}slow"), &[]);
        tokio::spawn(async move { h2::send(&mut sender, slow).await })
    };
    let asked: Vec<_> = (0..STREAMS).map(ask).collect();
    for one in asked {
        let (status, _, body) = one.await.unwrap();
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
    }
}

#[test]
fn e10_connections_under_tls_streams_and_websockets_lose_nothing_when_edges_take_turns() {
    let [gate, slow] = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let (opened, came) = (Arc::clone(&gate), Arc::clone(&slow));
    let origin = Origin::new(move |head| {
        if head.contains("/chat") {
            return SWITCH.to_owned();
        }
        if head.contains("/slow") {
            let turn = came.fetch_add(1, Ordering::SeqCst) / STREAMS;
            until("the gate opens", || opened.load(Ordering::SeqCst) > turn);
        }
        OK.to_owned()
    });
    let limits = Limits { linger: DEADLINE, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, origin.port)], limits);
    let (kept, on) = (Kept::default(), &world.runtime);
    std::thread::scope(|scope| {
        scope.spawn(|| on.block_on(keep_https(&world, &kept)));
        scope.spawn(|| on.block_on(keep_http2(&world, &kept)));
        // Also when a turn fails.
        let _end = OnEnd(&kept.is_over);
        for turn in 0..SECURED_TURNS {
            let streams = scope.spawn(|| on.block_on(slow_streams(&world)));
            let mut socket = on.block_on(async {
                let config = Arc::new(client(&world, &[&TLS13], &["http/1.1"]));
                let mut socket = dial(&world, &config, NAME).await.unwrap();
                assert!(open(&mut socket).await.starts_with("HTTP/1.1 101"));
                talk(&mut socket, "before").await;
                socket
            });
            let due = (turn + 1) * STREAMS;
            until("the streams are at the app", || slow.load(Ordering::SeqCst) == due);
            let before = (Kept::read(&kept.answered), Kept::read(&kept.dialled));
            let replaced = scope.spawn(|| world.replace());
            kept.until_they_moved(before);
            // What began before goes on where it began.
            on.block_on(talk(&mut socket, "still"));
            assert!(!replaced.is_finished() && !streams.is_finished());
            gate.store(turn + 1, Ordering::SeqCst);
            streams.join().unwrap();
            on.block_on(talk(&mut socket, "after"));
            assert!(!replaced.is_finished());
            drop(socket);
            replaced.join().unwrap();
        }
    });
}
