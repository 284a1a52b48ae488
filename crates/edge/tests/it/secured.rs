//! Certificates while they change, clients that name nobody, and how a connection ends.

use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tls::{client, dial, trusting};
use crate::world::{DEADLINE, OK, Origin, World};

const NAME: &str = "web.perch.localhost";

/// Asks over a connection that stays; returns the answer's first line.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    let head = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap();
        answer.push(byte.unwrap());
    }
    String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
}

#[test]
fn e9_a_certificate_changes_while_it_is_served_and_no_connection_is_lost() {
    let origin = Origin::new(|_| OK.to_owned());
    let world = World::web(&origin);
    let before = Arc::new(client(&world, &[&TLS12, &TLS13], &["http/1.1"]));
    world.runtime.block_on(async {
        let mut kept = dial(&world, &before, NAME).await.unwrap();
        assert_eq!(ask(&mut kept).await, "HTTP/1.1 200 OK");
        let after = Arc::new(trusting(world.renew(), &[&TLS12, &TLS13], &["http/1.1"]));
        // The very next client is shown the new one.
        let mut fresh = dial(&world, &after, NAME).await.unwrap();
        assert_eq!(ask(&mut fresh).await, "HTTP/1.1 200 OK");
        // One that trusts the old one alone, and has no session from then, sees that it has changed.
        let distrusting = Arc::new(client(&world, &[&TLS12, &TLS13], &["http/1.1"]));
        let error = dial(&world, &distrusting, NAME).await.unwrap_err().to_string();
        assert!(error.contains("invalid peer certificate"), "{error}");
        // What was there before goes on.
        assert_eq!(ask(&mut kept).await, "HTTP/1.1 200 OK");
        for number in 0..20 {
            if number % 5 == 0 {
                world.renew();
            }
            assert_eq!(ask(&mut kept).await, "HTTP/1.1 200 OK");
        }
    });
}

#[test]
fn e11_a_client_that_names_nobody_is_shown_no_certificate() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    for versions in [[&TLS12], [&TLS13]] {
        let mut config = client(&world, &versions, &["http/1.1"]);
        config.enable_sni = false;
        let refused = world.runtime.block_on(dial(&world, &Arc::new(config), NAME));
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("AccessDenied"), "{error}");
        // Nor by an address, which is no name.
        let config = Arc::new(client(&world, &versions, &["http/1.1"]));
        world.runtime.block_on(dial(&world, &config, "127.0.0.1")).unwrap_err();
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn the_last_answer_ends_its_session_well_and_the_next_connection_takes_it_up() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let head = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    for versions in [[&TLS12], [&TLS13]] {
        let config = Arc::new(client(&world, &versions, &["http/1.1"]));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            world.runtime.block_on(async {
                let mut stream = dial(&world, &config, NAME).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut answer = String::new();
                let read = stream.read_to_string(&mut answer);
                // An end without the word that nothing follows is an error.
                tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap();
                assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
                assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
            });
        }
    }
}
