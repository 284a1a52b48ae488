//! Connections at ports where the edge speaks no HTTP.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perch_edge::{Limits, RawLimits};
use perch_types::directory::MachineRecord;
use perch_types::service::Protocol;
use perch_types::{MachineId, MachineState};
use serde_json::{Value, json};

use crate::world::{DEADLINE, World, machine, until};

/// The public port of these tests.
pub(crate) const PORT: (Protocol, u16) = (Protocol::Tcp, 5000);

/// A program on loopback that takes connections.
pub(crate) struct Program {
    pub(crate) port: u16,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Program {
    pub(crate) fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let program =
            Self { port: listener.local_addr().unwrap().port(), connections: Arc::default() };
        let (connections, serve) = (Arc::clone(&program.connections), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        program
    }

    /// Answers all that it is sent with the same in capitals.
    pub(crate) fn capitals() -> Self {
        Self::new(|mut stream| {
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count].to_ascii_uppercase()).is_err() {
                    return;
                }
            }
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A machine of `web` with one service, which has these public ports.
pub(crate) fn serving(id: u64, state: MachineState, internal: u16, ports: &Value) -> MachineRecord {
    let mut machine = machine(id, "web", state, internal);
    let service = json!({"internal_port": internal, "ports": ports});
    machine.services = serde_json::from_value(json!([service])).unwrap();
    machine
}

pub(crate) fn plain(id: u64, state: MachineState, internal: u16) -> MachineRecord {
    serving(id, state, internal, &json!([{"port": PORT.1}]))
}

pub(crate) fn limited(id: u64, internal: u16, limits: Value) -> MachineRecord {
    crate::world::limited(plain(id, MachineState::Started, internal), limits)
}

fn with(machines: Vec<MachineRecord>, limits: RawLimits) -> World {
    World::with_raw(machines, Limits::default(), limits, None)
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends a word and returns what comes back for it.
pub(crate) fn ask(stream: &mut (impl std::io::Read + std::io::Write), word: &str) -> String {
    stream.write_all(word.as_bytes()).unwrap();
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Returns whether a connection is ended without a word. One that is only silent is not.
pub(crate) fn is_ended(mut stream: TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn bytes_pass_both_ways_and_each_side_ends_its_own_half() {
    let program = Program::new(|mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(question.to_ascii_uppercase().as_bytes()).unwrap();
    });
    let world = World::new(vec![plain(1, MachineState::Started, program.port)]);
    let mut stream = connect(world.claim_port("web", PORT));
    stream.write_all(b"hello").unwrap();
    // The program answers only once it has seen the end.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HELLO");
}

#[test]
fn a_connection_wakes_a_machine_that_sleeps() {
    for state in [MachineState::Created, MachineState::Stopped, MachineState::Suspended] {
        let program = Program::capitals();
        let world = World::new(vec![plain(1, state, program.port)]);
        let address = world.claim_port("web", PORT);
        let mut streams = [connect(address), connect(address)];
        for stream in &mut streams {
            assert_eq!(ask(stream, "hello"), "HELLO", "{state:?}");
        }
        assert_eq!(world.host.starts.load(Ordering::SeqCst), 1, "one start for both");
    }
}

#[test]
fn a_port_is_open_for_as_long_as_it_is_claimed_and_what_passes_goes_on() {
    let program = Program::capitals();
    let world = World::new(vec![plain(1, MachineState::Started, program.port)]);
    let address = world.claim_port("web", PORT);
    let mut stream = connect(address);
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    world.release_port(PORT);
    until("the port is closed", || TcpStream::connect(address).is_err());
    assert_eq!(ask(&mut stream, "still"), "STILL");
}

#[test]
fn a_port_that_somebody_else_has_is_opened_once_it_is_free() {
    let program = Program::capitals();
    let limits = RawLimits { bind_pause: Duration::from_millis(10), ..RawLimits::default() };
    let world = with(vec![plain(1, MachineState::Started, program.port)], limits);
    world.doors.taken.store(3, Ordering::SeqCst);
    let mut stream = connect(world.claim_port("web", PORT));
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
}

#[test]
fn another_apps_port_leads_to_none_of_its_machines() {
    let program = Program::capitals();
    let world = World::new(vec![plain(1, MachineState::Started, program.port)]);
    assert!(is_ended(connect(world.claim_port("empty", PORT))));
    // Whose it is may change.
    let before = world.doors.opened.load(Ordering::SeqCst);
    world.claim_port("web", PORT);
    until("the port is opened anew", || world.doors.opened.load(Ordering::SeqCst) > before);
    let mut stream = connect(world.claim_port("web", PORT));
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    assert_eq!(program.count(), 1);
}

#[test]
fn connections_go_to_the_least_loaded_and_never_over_a_hard_limit() {
    let programs = [Program::capitals(), Program::capitals()];
    let limits = json!({"soft_limit": 1, "hard_limit": 2});
    let machines = (1..).zip(&programs).map(|(id, it)| limited(id, it.port, limits.clone()));
    let nobody_waits = Limits { queue_max: 0, ..Limits::default() };
    let world = World::with(machines.collect(), nobody_waits);
    let address = world.claim_port("web", PORT);
    let mut streams = Vec::new();
    for want in [1, 2] {
        for _ in 0..2 {
            let mut stream = connect(address);
            assert_eq!(ask(&mut stream, "a"), "A");
            streams.push(stream);
        }
        assert_eq!(programs.each_ref().map(Program::count), [want, want]);
    }
    assert!(is_ended(connect(address)), "all are at their hard limit");
    streams.pop();
    until("there is room again", || {
        let mut stream = connect(address);
        stream.write_all(b"b").ok();
        stream.read(&mut [0; 1]).is_ok_and(|count| count == 1)
    });
}

#[test]
fn a_machine_that_refuses_is_left_for_another() {
    let program = Program::capitals();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let world = World::new(vec![
        plain(1, MachineState::Started, deaf),
        limited(2, program.port, json!({"soft_limit": 1})),
    ]);
    let address = world.claim_port("web", PORT);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(address);
        assert_eq!(ask(&mut stream, "hello"), "HELLO");
        // It stays, so that the other has less to do.
        streams.push(stream);
    }
    assert_eq!(program.count(), 4);
}

#[test]
fn e5_more_connections_of_one_address_than_may_be_are_ended_at_once() {
    let program = Program::capitals();
    let limits = RawLimits { of_address: 2, ..RawLimits::default() };
    let world = with(vec![plain(1, MachineState::Started, program.port)], limits);
    let address = world.claim_port("web", PORT);
    let mut streams = [connect(address), connect(address)];
    for stream in &mut streams {
        assert_eq!(ask(stream, "a"), "A");
    }
    assert!(is_ended(connect(address)));
    drop(streams);
    until("there is room again", || {
        let mut stream = connect(address);
        stream.write_all(b"b").ok();
        stream.read(&mut [0; 1]).is_ok_and(|count| count == 1)
    });
}

#[test]
fn a_connection_over_which_nothing_moves_is_ended() {
    let program = Program::capitals();
    let limits = RawLimits { idle: Duration::from_millis(200), ..RawLimits::default() };
    let world = with(vec![plain(1, MachineState::Started, program.port)], limits);
    assert!(is_ended(connect(world.claim_port("web", PORT))));
}

#[test]
fn a_machine_that_stops_gets_no_more_and_is_not_waited_for() {
    let (old, new) = (Program::capitals(), Program::capitals());
    let world = World::new(vec![plain(1, MachineState::Started, old.port)]);
    let address = world.claim_port("web", PORT);
    let mut stream = connect(address);
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    world.host.put(plain(2, MachineState::Started, new.port));
    world.host.set(&MachineId::from_bits(1), MachineState::Stopping, false);
    until("the host is told", || !world.host.drained.lock().unwrap().is_empty());
    let mut another = connect(address);
    assert_eq!(ask(&mut another, "a"), "A");
    assert_eq!((old.count(), new.count()), (1, 1));
    // It is the program's to end.
    assert_eq!(ask(&mut stream, "still"), "STILL");
}

#[test]
fn a_stopped_edge_takes_no_more_and_lets_what_passes_end() {
    let program = Program::capitals();
    let world = World::new(vec![plain(1, MachineState::Started, program.port)]);
    let address = world.claim_port("web", PORT);
    let mut stream = connect(address);
    assert_eq!(ask(&mut stream, "hello"), "HELLO");
    world.stop();
    until("the port is closed", || TcpStream::connect(address).is_err());
    assert_eq!(ask(&mut stream, "still"), "STILL");
}

/// A program that answers with what it was told of its client in front: a line, or so many bytes.
pub(crate) fn telling(length: Option<usize>) -> Program {
    Program::new(move |mut stream| {
        let mut header = Vec::new();
        let mut byte = [0];
        while length.map_or_else(|| !header.ends_with(b"\n"), |length| header.len() < length) {
            stream.read_exact(&mut byte).unwrap();
            header.push(byte[0]);
        }
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(hex(&header).as_bytes()).unwrap();
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the second version of what a client on loopback, at a port, is told as.
pub(crate) fn second_version(client: u16, public: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
    header.extend(client.to_be_bytes());
    header.extend(public.to_be_bytes());
    header
}

#[test]
fn the_program_is_told_of_its_client_in_front() {
    for (version, length) in [(None, None), (Some("v2"), Some(28))] {
        let program = telling(length);
        let ports = json!([{"start_port": 5000, "end_port": 5002, "handlers": ["proxy_proto"],
            "proxy_proto_options": {"version": version}}]);
        let world = World::new(vec![serving(1, MachineState::Started, program.port, &ports)]);
        let mut stream = connect(world.claim_port("web", (Protocol::Tcp, 5002)));
        let client = stream.local_addr().unwrap().port();
        stream.write_all(b"x").unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        let want = match version {
            None => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {client} 5002\r\n").into_bytes(),
            Some(_) => second_version(client, 5002),
        };
        assert_eq!(got, hex(&want), "{version:?}");
    }
}
