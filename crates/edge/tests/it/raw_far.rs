//! Connections at raw ports whose machine is another host's: the edge there passes them on to it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_edge::{Limits, RawLimits, peer_name};
use perch_types::directory::MachineRecord;
use perch_types::service::Autostop;
use perch_types::{HostId, MachineId, MachineState};
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::far::knock;
use crate::raw::{
    PORT, Program, ask, connect, hex, is_ended, limited, plain, second_version, serving, telling,
};
use crate::raw_tls::{SSL_REQUEST, line_of, shake, told_in_front};
use crate::tls::trusting;
use crate::world::{Pair, status, until};

fn started(id: u64, program: &Program) -> MachineRecord {
    let mut record = plain(id, MachineState::Started, program.port);
    // What rests is what the host is told of.
    record.services[0].autostop = Some(Autostop::Stop);
    record
}

/// Both sides, of which the far one has the machines, and the port.
fn across(machines: Vec<MachineRecord>) -> Pair {
    claimed(Pair::new(Vec::new(), machines))
}

fn claimed(pair: Pair) -> Pair {
    pair.claim_port("web", PORT);
    pair
}

/// Connects where there is no machine.
fn dial(pair: &Pair) -> TcpStream {
    connect(pair.near.port(PORT))
}

/// Returns whether a new connection is passed.
fn passes(pair: &Pair) -> bool {
    let mut stream = dial(pair);
    stream.write_all(b"b").ok();
    stream.read(&mut [0; 1]).is_ok_and(|count| count == 1)
}

fn is_unused(pair: &Pair) -> bool {
    pair.far.host.is_unused(&MachineId::from_bits(2))
}

/// The way from one edge to the other, which can be lost.
struct Wire {
    address: SocketAddr,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    is_cut: Arc<AtomicBool>,
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    std::io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Write).ok();
}

impl Wire {
    fn to(there: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Self { address, streams: Arc::default(), is_cut: Arc::default() };
        let (streams, is_cut) = (Arc::clone(&wire.streams), Arc::clone(&wire.is_cut));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let mut streams = streams.lock().unwrap();
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let far = TcpStream::connect(there).unwrap();
                for (from, to) in [(&near, &far), (&far, &near)] {
                    streams.push(from.try_clone().unwrap());
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || copy(from, to));
                }
            }
        });
        wire
    }

    /// Loses all that is under way, and takes nothing more: so it looks when the server there is
    /// gone.
    fn cut(&self) {
        let mut streams = self.streams.lock().unwrap();
        self.is_cut.store(true, Ordering::SeqCst);
        streams.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    /// Loses the connection that came first.
    fn cut_first(&self) {
        let mut streams = self.streams.lock().unwrap();
        streams.drain(..2).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

#[test]
fn bytes_pass_through_the_edge_of_the_machines_host_as_they_are() {
    // More than any window between the edges.
    let question = "\0hello\r\n\r\n".repeat(300_000);
    let program = Program::new(|mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(question.to_ascii_uppercase().as_bytes()).unwrap();
    });
    let pair = across(vec![started(2, &program)]);
    let mut stream = dial(&pair);
    stream.write_all(question.as_bytes()).unwrap();
    // The program answers only once it has seen the end.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer == question.to_ascii_uppercase(), "{}", answer.len());
}

#[test]
fn the_program_may_end_its_half_first() {
    let heard = Arc::<Mutex<String>>::default();
    let hears = Arc::clone(&heard);
    let program = Program::new(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        hears.lock().unwrap().push_str(&rest);
    });
    let pair = across(vec![started(2, &program)]);
    let mut stream = dial(&pair);
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    assert_eq!(word, "bye");
    stream.write_all(b"still here").unwrap();
    drop(stream);
    until("the rest came too", || *heard.lock().unwrap() == "still here");
    until("it is over at both", || is_unused(&pair));
}

#[test]
fn a_connection_is_under_way_and_counted_at_the_edge_there() {
    let program = Program::capitals();
    let pair = across(vec![started(2, &program)]);
    let mut stream = dial(&pair);
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    assert!(!is_unused(&pair));
    drop(stream);
    until("it is over", || is_unused(&pair));
    let text = pair.far.readings().text();
    for name in ["fly_edge_data_in", "fly_edge_data_out"] {
        let of_web = |line: &&str| line.starts_with(name) && line.contains("app=\"web\"");
        let line = text.lines().find(of_web).unwrap();
        assert!(line.ends_with(" 5"), "{line}");
    }
    let answered = |line: &str| {
        line.starts_with("fly_edge_http_responses_count") && line.contains("app=\"web\"")
    };
    assert!(!text.lines().any(answered), "it is no request: {text}");
    assert!(!pair.near.readings().text().contains("app=\"web\""));
}

#[test]
fn the_edge_there_wakes_a_machine_once_for_all_connections() {
    let program = Program::capitals();
    let pair = across(vec![plain(2, MachineState::Stopped, program.port)]);
    std::thread::scope(|scope| {
        for index in 0..8 {
            let side = if index % 4 == 0 { &pair.far } else { &pair.near };
            let mut stream = connect(side.port(PORT));
            scope.spawn(move || assert_eq!(ask(&mut stream, "hello"), "HELLO"));
        }
    });
    assert_eq!(pair.far.host.starts.load(Ordering::SeqCst), 1);
    assert_eq!(pair.near.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn the_hard_limit_holds_for_connections_over_both_edges() {
    let program = Program::capitals();
    let machine = limited(2, program.port, json!({"soft_limit": 1, "hard_limit": 2}));
    let nobody_waits = Limits { queue_max: 0, ..Limits::default() };
    let pair = claimed(Pair::with(Vec::new(), vec![machine], &nobody_waits));
    let mut streams = [connect(pair.far.port(PORT)), dial(&pair)];
    for stream in &mut streams {
        assert_eq!(ask(stream, "a"), "A");
    }
    assert!(is_ended(dial(&pair)) && is_ended(connect(pair.far.port(PORT))));
    assert_eq!(program.count(), 2);
    drop(streams);
    until("there is room again", || passes(&pair));
}

#[test]
fn e5_what_is_carried_has_a_place_among_the_connections_of_the_edge_there() {
    let program = Program::capitals();
    let limits = RawLimits { of_app: 1, ..RawLimits::default() };
    let pair = claimed(Pair::with_raw(Vec::new(), vec![started(2, &program)], &limits));
    let mut first = connect(pair.far.port(PORT));
    assert_eq!(ask(&mut first, "a"), "A");
    assert!(is_ended(dial(&pair)));
    drop(first);
    until("there is room again", || passes(&pair));
    until("what was carried has left its place", || {
        let mut stream = connect(pair.far.port(PORT));
        stream.write_all(b"b").ok();
        stream.read(&mut [0; 1]).is_ok_and(|count| count == 1)
    });
}

#[test]
fn the_program_is_told_of_the_client_of_the_other_edge() {
    let program = telling(Some(28));
    let ports = json!([{"port": PORT.1, "handlers": ["proxy_proto"],
        "proxy_proto_options": {"version": "v2"}}]);
    let pair = across(vec![serving(2, MachineState::Started, program.port, &ports)]);
    let mut stream = dial(&pair);
    let client = stream.local_addr().unwrap().port();
    stream.write_all(b"x").unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, hex(&second_version(client, PORT.1)));
}

#[test]
fn e9_tls_ends_at_the_clients_edge() {
    let (mail, database) = (told_in_front(), Program::capitals());
    let ports = json!([{"port": 443, "handlers": ["tls", "proxy_proto"]}]);
    let mut other = serving(3, MachineState::Started, mail.port, &ports);
    other.app = "other".parse().unwrap();
    let ports = json!([{"port": PORT.1, "handlers": ["pg_tls"]}]);
    let web = serving(2, MachineState::Started, database.port, &ports);
    let pair = claimed(Pair::with_https(Vec::new(), vec![web, other]));
    let config = |alpn: &[&str]| trusting(Arc::clone(&pair.roots), &[&TLS12, &TLS13], alpn);
    let stream = connect(pair.near.https.unwrap());
    let (client, line) = line_of(shake(config(&[]), stream, "other.perch.localhost").unwrap());
    assert_eq!(line, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {client} 443\r\n"));
    let mut stream = dial(&pair);
    stream.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    let mut stream = shake(config(&["postgresql"]), stream, "web.perch.localhost").unwrap();
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"postgresql"[..]));
    assert_eq!((mail.count(), database.count()), (1, 1));
}

#[test]
fn a_host_that_is_lost_takes_no_connection_and_ends_those_that_it_had() {
    let (here, there) = (Program::capitals(), Program::capitals());
    let pair = claimed(Pair::new(
        vec![limited(1, here.port, json!({"soft_limit": 1, "hard_limit": 2}))],
        vec![started(2, &there)],
    ));
    let wire = Wire::to(pair.far.peers);
    pair.put_edge(&pair.far.id, wire.address);
    // As near as this host's own.
    let mut near = started(2, &there);
    near.host = pair.far.id.clone();
    pair.publish(&near);
    // This host's machine is first, and the other helps when that has enough to do.
    let mut first = dial(&pair);
    assert_eq!(ask(&mut first, "a"), "A");
    // Only now: where a connection goes is settled before it says anything.
    let mut second = dial(&pair);
    assert_eq!(ask(&mut second, "b"), "B");
    assert_eq!((here.count(), there.count()), (1, 1));
    wire.cut();
    assert!(is_ended(second));
    until("it is over there too", || is_unused(&pair));
    let mut third = dial(&pair);
    assert_eq!(ask(&mut third, "c"), "C");
    assert_eq!((here.count(), there.count()), (2, 1));
    assert_eq!(ask(&mut first, "still"), "STILL");
}

#[test]
fn a_port_that_only_machines_of_another_host_list_leads_there() {
    let program = Program::capitals();
    // Another part of the same app.
    let ports = json!([{"port": 80, "handlers": ["http"]}]);
    let here = serving(1, MachineState::Started, program.port, &ports);
    let pair = claimed(Pair::new(vec![here], vec![started(2, &program)]));
    assert_eq!(ask(&mut dial(&pair), "hello"), "HELLO");
}

#[test]
fn e5_apps_share_no_connection_between_edges() {
    let (program, another) = (Program::capitals(), Program::capitals());
    let second = (PORT.0, PORT.1 + 1);
    let ports = json!([{"port": second.1}]);
    let mut other = serving(3, MachineState::Started, another.port, &ports);
    other.app = "other".parse().unwrap();
    let pair = across(vec![started(2, &program), other]);
    pair.claim_port("other", second);
    let wire = Wire::to(pair.far.peers);
    pair.put_edge(&pair.far.id, wire.address);
    let mut first = dial(&pair);
    assert_eq!(ask(&mut first, "a"), "A");
    let mut next = connect(pair.near.port(second));
    assert_eq!(ask(&mut next, "b"), "B");
    wire.cut_first();
    assert!(is_ended(first));
    assert_eq!(ask(&mut next, "still"), "STILL");
}

#[test]
fn e6_a_host_that_cannot_be_reached_sends_a_connection_elsewhere() {
    let program = Program::capitals();
    let pair = across(vec![started(2, &program)]);
    // A third host, which the client's edge would rather ask, is away.
    let mut away = started(3, &program);
    away.host = HostId::from_bits(3);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pair.put_edge(&away.host, closed);
    pair.publish(&away);
    assert_eq!(ask(&mut dial(&pair), "hello"), "HELLO");
    assert_eq!(program.count(), 1);
}

#[test]
fn a_machine_there_that_refuses_is_left_for_another_and_at_last_for_none() {
    let program = Program::capitals();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let limits = Limits { stale: Duration::from_millis(300), ..Limits::default() };
    let machines = vec![plain(2, MachineState::Started, deaf), started(3, &program)];
    let pair = claimed(Pair::with(Vec::new(), machines, &limits));
    let mut streams: Vec<_> = (0..4).map(|_| dial(&pair)).collect();
    streams.iter_mut().for_each(|stream| assert_eq!(ask(stream, "hello"), "HELLO"));
    assert_eq!(program.count(), 4);
    let pair =
        claimed(Pair::with(Vec::new(), vec![plain(2, MachineState::Started, deaf)], &limits));
    assert!(is_ended(dial(&pair)));
}

#[test]
fn edges_that_stop_let_what_they_carry_end() {
    let program = Program::capitals();
    let pair = across(vec![started(2, &program)]);
    let mut stream = dial(&pair);
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    pair.far.stop();
    assert_eq!(ask(&mut stream, "still"), "STILL");
    until("it takes no more", || !passes(&pair));
    pair.near.stop();
    assert_eq!(ask(&mut stream, "and still"), "AND STILL");
}

#[test]
fn only_the_edge_of_a_host_has_a_connection_carried_and_only_to_a_raw_port_of_the_app() {
    let (program, elsewhere) = (Program::capitals(), Program::capitals());
    let ports = json!([{"port": PORT.1}, {"port": 80, "handlers": ["http"]}]);
    let mut other = started(1, &elsewhere);
    other.app = "other".parse().unwrap();
    let there = serving(2, MachineState::Started, program.port, &ports);
    let pair = claimed(Pair::new(vec![other], vec![there]));
    let order = |app: &str, port: u16, ends: &str| {
        format!("Perch-Hop: from=000000000001;org=personal;app={app};port={port};wait=0{ends}\r\n")
    };
    let (carried, asked) = ("CONNECT web.perch.localhost:5000", "GET /");
    let ends = ";client=192.0.2.1:1025;at=198.51.100.7:5000";
    let (one, nine) = (peer_name(&pair.near.id), "perch.example".to_owned());
    for (name, line, order, want) in [
        (nine, carried, order("web", PORT.1, ends), "PC03"),
        (one.clone(), carried, order("web", PORT.1, ""), "PC03"),
        (one.clone(), carried, order("web", PORT.1, ";client=192.0.2.1:1025"), "PC03"),
        (one.clone(), asked, order("web", 80, ends), "PC03"),
        (one.clone(), carried, order("web", 80, ends), "PR01"),
        (one.clone(), carried, order("web", 5001, ends), "PR01"),
        // It is the other host's, and goes one hop, no more.
        (one, carried, order("other", PORT.1, ends), "PR01"),
    ] {
        let answer = knock(&pair, &pair.authority, Some(name), (line, &order)).unwrap();
        assert_ne!(status(&answer), "200", "{order}: {answer}");
        assert!(answer.contains(&format!("unsent={want}")), "{order}: {answer}");
    }
    assert_eq!((program.count(), elsewhere.count()), (0, 0));
    // Its own clients are carried.
    assert_eq!(ask(&mut dial(&pair), "hello"), "HELLO");
}
