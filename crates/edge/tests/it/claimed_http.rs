//! HTTP at ports that apps have claimed: the same as at 80 and 443, with the port's own number.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use perch_edge::{Certificates, Limits, RawLimits};
use perch_types::MachineState;
use perch_types::ports::RawPort;
use perch_types::service::Protocol;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::raw::{connect, serving};
use crate::tls::{Certs, client};
use crate::world::{Origin, World, machine, status, until};

const PLAIN: RawPort = (Protocol::Tcp, 8080);
const SECURE: RawPort = (Protocol::Tcp, 8443);

fn get(address: SocketAddr, host: &str) -> String {
    let mut stream = connect(address);
    send(&mut stream, host)
}

fn send(stream: &mut (impl std::io::Read + std::io::Write), host: &str) -> String {
    let head = format!("GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A connection that ends without TLS' own end is as good: the answer has its length.
    let _end = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn world(origin: &Origin, state: MachineState, ports: &Value) -> World {
    let web = serving(1, state, origin.port, ports);
    World::new(vec![web, machine(2, "other", MachineState::Started, origin.port)])
}

#[test]
fn e2_a_request_comes_to_the_app_with_the_ports_number_and_wakes_it() {
    let origin = Origin::fine();
    let ports = json!([{"start_port": 8079, "end_port": 8080, "handlers": ["http"],
        "http_options": {"response": {"headers": {"x-port": "8080"}}}}]);
    let world = world(&origin, MachineState::Stopped, &ports);
    let address = world.claim_port("web", PLAIN);
    let answer = get(address, "web.perch.localhost:8080");
    assert!(status(&answer) == "200" && answer.contains("x-port: 8080\r\n"), "{answer}");
    let seen = origin.last.lock().unwrap().to_ascii_lowercase();
    for field in ["fly-forwarded-port: 8080\r\n", "x-forwarded-proto: http\r\n"] {
        assert_eq!(seen.matches(field).count(), 1, "{field} in {seen}");
    }
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn e1_an_apps_own_port_has_any_name_that_is_nobody_elses() {
    let origin = Origin::fine();
    let ports = json!([{"port": 8080, "handlers": ["http"]}]);
    let world = world(&origin, MachineState::Started, &ports);
    let address = world.claim_port("web", PLAIN);
    for host in ["web.perch.localhost", "192.0.2.1:8080", "nobody.example"] {
        assert_eq!(status(&get(address, host)), "200", "{host}");
    }
    let before = origin.count();
    // What a browser keeps for these names is not for this app to see.
    for host in ["other.perch.localhost", "empty.perch.localhost", "oidc.perch.localhost"] {
        let answer = get(address, host);
        assert!(status(&answer) == "421" && answer.contains("PT01"), "{host}: {answer}");
    }
    assert_eq!(origin.count(), before);
    assert_eq!(status(&get(world.address, "nobody.example")), "404", "and at 80 it is nobody's");
}

#[test]
fn e1_doubt_is_refused_at_a_claimed_port_as_elsewhere() {
    let origin = Origin::fine();
    let ports = json!([{"port": 8080, "handlers": ["http"]}]);
    let world = world(&origin, MachineState::Started, &ports);
    let mut stream = connect(world.claim_port("web", PLAIN));
    let head = "POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nContent-Length: 5\r\n\
                Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(status(&answer) == "400" && answer.contains("PE03"), "{answer}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn what_an_app_sends_on_from_its_port_reaches_one_that_has_no_such_port() {
    let second = Origin::fine();
    let first = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nFly-Replay: app=other\r\nContent-Length: 0\r\n\r\n".to_owned()
    });
    let ports = json!([{"port": 8080, "handlers": ["http"]}]);
    let web = serving(1, MachineState::Started, first.port, &ports);
    let other = machine(2, "other", MachineState::Started, second.port);
    let world = World::new(vec![web, other]);
    let answer = get(world.claim_port("web", PLAIN), "web.perch.localhost:8080");
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[test]
fn a_redirect_names_the_port_at_which_the_app_speaks_https_and_that_one_answers() {
    let origin = Origin::fine();
    let ports = json!([{"port": 8080, "handlers": ["http"], "force_https": true},
        {"port": 8443, "handlers": ["tls", "edge_http"]}]);
    let certs = Arc::new(Certs::new());
    let roots = Arc::new(certs.roots());
    let resolver = certs as Arc<dyn Certificates>;
    let machines = vec![serving(1, MachineState::Started, origin.port, &ports)];
    let mut world =
        World::with_raw(machines, Limits::default(), RawLimits::default(), Some(resolver));
    world.roots = roots;
    let answer = get(world.claim_port("web", PLAIN), "web.perch.localhost:8080");
    assert_eq!(status(&answer), "301", "{answer}");
    assert!(answer.contains("location: https://web.perch.localhost:8443/a\r\n"), "{answer}");
    let config = Arc::new(client(&world, &[&TLS12, &TLS13], &["http/1.1"]));
    let name = "web.perch.localhost".try_into().unwrap();
    let stream: TcpStream = connect(world.claim_port("web", SECURE));
    let connection = ClientConnection::new(config, name).unwrap();
    let answer = send(&mut StreamOwned::new(connection, stream), "web.perch.localhost:8443");
    assert_eq!(status(&answer), "200", "{answer}");
    let seen = origin.last.lock().unwrap().to_ascii_lowercase();
    assert!(seen.contains("fly-forwarded-port: 8443\r\n"), "{seen}");
    assert!(seen.contains("x-forwarded-proto: https\r\n"), "{seen}");
}

#[test]
fn e10_a_claimed_port_serves_on_when_the_edge_is_replaced_and_the_binder_knows_what_there_is() {
    let origin = Origin::fine();
    let ports = json!([{"port": 8080, "handlers": ["http"]}]);
    let world = world(&origin, MachineState::Started, &ports);
    let address = world.claim_port("web", PLAIN);
    assert_eq!(status(&get(address, "web.perch.localhost")), "200");
    let said = || world.doors.only.lock().unwrap().contains(&PLAIN);
    until("the binder is told", said);
    let opened = world.doors.opened.load(Ordering::SeqCst);
    world.replace();
    until("the next edge has the port", || world.doors.opened.load(Ordering::SeqCst) > opened);
    let address = world.claim_port("web", PLAIN);
    assert_eq!(status(&get(address, "web.perch.localhost")), "200");
    assert!(said(), "an edge that ends gives nothing up");
    world.release_port(PLAIN);
    until("the binder may let go of it", || !said());
}
