//! WebSockets: under TLS as without, and how long they keep a machine.

use std::sync::Arc;
use std::time::Duration;

use perch_edge::Limits;
use perch_types::directory::MachineRecord;
use perch_types::service::Autostop;
use perch_types::{MachineId, MachineState};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::tls::{client, dial};
use crate::world::{DEADLINE, Origin, World, machine, until};

pub(crate) const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const ASK: &str = "GET /chat HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Version: 13\r\n\r\n";

fn id() -> MachineId {
    MachineId::from_bits(1)
}

/// A machine that may rest, at both of the usual ports.
fn record(port: u16) -> MachineRecord {
    let mut record = machine(1, "web", MachineState::Started, port);
    record.services = serde_json::from_value(serde_json::json!([{
        "internal_port": port,
        "ports": [{"port": 80, "handlers": ["http"]}, {"port": 443, "handlers": ["tls", "http"]}],
    }]))
    .unwrap();
    record.services[0].autostop = Some(Autostop::Stop);
    record
}

/// Asks for a WebSocket and reads the head of the answer.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> String {
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap();
        head.push(byte.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Says something and reads what the app makes of it.
pub(crate) async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut echo = vec![0; text.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(echo, text.to_ascii_uppercase().into_bytes());
}

#[test]
fn a_websocket_passes_under_tls_and_its_fields_with_it() {
    let origin = Origin::new(|_| SWITCH.to_owned());
    let world = World::new(vec![record(origin.port)]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(client(&world, &[version], &["http/1.1"]));
        let long = "x".repeat(100_000);
        world.runtime.block_on(async {
            let mut stream = dial(&world, &config, "web.perch.localhost").await.unwrap();
            let head = open(&mut stream).await.to_ascii_lowercase();
            for want in [
                "http/1.1 101",
                "\r\nupgrade: websocket\r\n",
                "\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n",
            ] {
                assert!(head.contains(want), "{want}: {head}");
            }
            // Nothing that would pass for HTTP, and more than one record of TLS.
            for text in ["\0\n\n\r\0hello", "GET / HTTP/9\n\n", long.as_str()] {
                talk(&mut stream, text).await;
            }
        });
    }
    let seen = origin.last.lock().unwrap().to_ascii_lowercase();
    for want in [
        "\r\nupgrade: websocket\r\n",
        "\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n",
        "\r\nsec-websocket-version: 13\r\n",
        "\r\nx-forwarded-proto: https\r\n",
    ] {
        assert_eq!(seen.matches(want).count(), 1, "{want}: {seen}");
    }
}

#[test]
fn a_tunnel_keeps_its_machine_from_resting_for_as_long_as_it_is_there() {
    let origin = Origin::new(|_| SWITCH.to_owned());
    let world = World::new(vec![record(origin.port)]);
    let config = Arc::new(client(&world, &[&TLS13], &["http/1.1"]));
    world.runtime.block_on(async {
        let mut plain = TcpStream::connect(world.address).await.unwrap();
        assert!(open(&mut plain).await.starts_with("HTTP/1.1 101"));
        let mut secure = dial(&world, &config, "web.perch.localhost").await.unwrap();
        assert!(open(&mut secure).await.starts_with("HTTP/1.1 101"));
        // Its client says nothing for a while; the host asks again and again.
        for _ in 0..5 {
            assert!(!world.host.is_unused(&id()));
        }
        until("the host has heard of both", || {
            let loads = world.host.loads.lock().unwrap();
            loads
                .iter()
                .flat_map(|loads| &loads.machines)
                .any(|it| it.id == id() && it.in_flight == 2)
        });
        talk(&mut plain, "still here").await;
        drop(plain);
        until("the host has heard that one has ended", || {
            let loads = world.host.loads.lock().unwrap();
            let mut told = loads.iter().rev().flat_map(|loads| &loads.machines);
            told.find(|it| it.id == id()).is_some_and(|it| it.in_flight == 1)
        });
        assert!(!world.host.is_unused(&id()));
        talk(&mut secure, "and here").await;
        drop(secure);
    });
    until("nothing is left", || world.host.is_unused(&id()));
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_and_lets_its_machine_rest() {
    let origin = Origin::new(|_| SWITCH.to_owned());
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(vec![record(origin.port)], limits);
    let config = Arc::new(client(&world, &[&TLS13], &["http/1.1"]));
    world.runtime.block_on(async {
        let mut stream = dial(&world, &config, "web.perch.localhost").await.unwrap();
        assert!(open(&mut stream).await.starts_with("HTTP/1.1 101"));
        let mut rest = Vec::new();
        // However it ends.
        let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
    });
    until("the machine is unused", || world.host.is_unused(&id()));
}
