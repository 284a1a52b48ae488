//! Datagrams at raw ports.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perch_edge::{Limits, RawLimits};
use perch_types::MachineState;
use perch_types::directory::MachineRecord;
use perch_types::ports::RawPort;
use perch_types::service::Protocol;
use serde_json::json;

use crate::world::{DEADLINE, World, machine, until};

/// A program that answers each datagram with its client's port, as it sees it, and the same bytes;
/// `quiet` it does not answer.
struct Program {
    port: u16,
    datagrams: Arc<AtomicUsize>,
}

impl Program {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let program = Self { port: socket.local_addr().unwrap().port(), datagrams: Arc::default() };
        let datagrams = Arc::clone(&program.datagrams);
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((count, client)) = socket.recv_from(&mut bytes) {
                datagrams.fetch_add(1, Ordering::SeqCst);
                if &bytes[..count] == b"quiet" {
                    continue;
                }
                let mut answer = client.port().to_be_bytes().to_vec();
                answer.extend(&bytes[..count]);
                socket.send_to(&answer, client).ok();
            }
        });
        program
    }

    fn machine(&self, id: u64, state: MachineState) -> MachineRecord {
        let mut machine = machine(id, "web", state, self.port);
        let service = json!({"internal_port": self.port, "protocol": "udp",
            "ports": [{"port": self.port}]});
        machine.services = serde_json::from_value(json!([service])).unwrap();
        machine
    }

    fn public(&self) -> RawPort {
        (Protocol::Udp, self.port)
    }
}

fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Sends a word; returns from which port it came to the program, and what that answered.
fn ask(socket: &UdpSocket, word: &str) -> (u16, String) {
    socket.send(word.as_bytes()).unwrap();
    let mut bytes = [0; 2048];
    let count = socket.recv(&mut bytes).unwrap();
    let text = String::from_utf8(bytes[2..count].to_vec()).unwrap();
    (u16::from_be_bytes([bytes[0], bytes[1]]), text)
}

#[test]
fn each_client_has_a_flow_of_its_own() {
    let program = Program::new();
    let world = World::new(vec![program.machine(1, MachineState::Started)]);
    let address = world.claim_port("web", program.public());
    let (one, two) = (client(address), client(address));
    let (first, text) = ask(&one, "hello");
    assert_eq!(text, "hello");
    assert_eq!(ask(&one, "again"), (first, "again".to_owned()));
    let (second, text) = ask(&two, "other");
    assert_eq!(text, "other");
    assert_ne!(first, second);
    assert_eq!(ask(&one, ""), (first, String::new()), "an empty one is one too");
}

#[test]
fn a_datagram_wakes_a_machine_and_waits_for_it() {
    let program = Program::new();
    let world = World::new(vec![program.machine(1, MachineState::Stopped)]);
    let one = client(world.claim_port("web", program.public()));
    one.send(b"first").unwrap();
    one.send(b"second").unwrap();
    let mut bytes = [0; 64];
    for want in [&b"first"[..], b"second"] {
        let count = one.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[2..count], want);
    }
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_flow_goes_on_at_another_machine_when_its_own_stops() {
    let (old, new) = (Program::new(), Program::new());
    let mut second = new.machine(2, MachineState::Started);
    second.services[0].ports[0].port = Some(old.port);
    let world = World::new(vec![old.machine(1, MachineState::Started)]);
    let one = client(world.claim_port("web", old.public()));
    assert_eq!(ask(&one, "hello").1, "hello");
    world.host.put(second);
    world.host.set(&perch_types::MachineId::from_bits(1), MachineState::Stopping, false);
    until("the host is told", || !world.host.drained.lock().unwrap().is_empty());
    assert_eq!(ask(&one, "there").1, "there");
    let counts = (old.datagrams.load(Ordering::SeqCst), new.datagrams.load(Ordering::SeqCst));
    assert_eq!(counts, (1, 1));
}

#[test]
fn there_are_only_so_many_flows_and_old_ones_end() {
    let program = Program::new();
    let limits =
        RawLimits { of_port: 1, flow_idle: Duration::from_millis(100), ..RawLimits::default() };
    let machines = vec![program.machine(1, MachineState::Started)];
    let world = World::with_raw(machines, Limits::default(), limits, None);
    let address = world.claim_port("web", program.public());
    assert_eq!(ask(&client(address), "hello").1, "hello");
    let second = client(address);
    second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    until("the flow before has ended", || {
        second.send(b"x").unwrap();
        second.recv(&mut [0; 16]).is_ok()
    });
}

#[test]
fn a_flow_without_an_answer_gives_way_and_one_with_does_not() {
    let program = Program::new();
    let long = 30 * DEADLINE;
    let limits =
        RawLimits { of_port: 2, flow_idle: long, flow_unanswered: long, ..RawLimits::default() };
    let machines = vec![program.machine(1, MachineState::Started)];
    let world = World::with_raw(machines, Limits::default(), limits, None);
    let address = world.claim_port("web", program.public());
    let answered = client(address);
    let (first, _) = ask(&answered, "hello");
    let silent = client(address);
    silent.send(b"quiet").unwrap();
    until("it has come", || program.datagrams.load(Ordering::SeqCst) == 2);
    let other = client(address);
    other.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    until("the silent one has given way", || {
        other.send(b"x").unwrap();
        other.recv(&mut [0; 16]).is_ok()
    });
    assert_eq!(ask(&answered, "again"), (first, "again".to_owned()));
}

#[test]
fn a_closed_port_takes_nothing_more() {
    let program = Program::new();
    let world = World::new(vec![program.machine(1, MachineState::Started)]);
    let address = world.claim_port("web", program.public());
    let one = client(address);
    assert_eq!(ask(&one, "hello").1, "hello");
    world.release_port(program.public());
    // Its address is free again: also the flows have let go of it.
    until("the port is closed", || UdpSocket::bind(address).is_ok());
}
