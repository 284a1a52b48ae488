//! What machines reach outside of their host, and how much of it (N5, N6, N7).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use perch_host::network::NetworkConfig;

use super::lab::{
    DOUBT, HOST_V4, HOST_V6, Lab, OUTSIDE_V4, OUTSIDE_V6, Outcome, PATIENCE, PRIVATE_NEIGHBOURS,
    connect, connect_here, inside, serve, serve_at,
};

fn at(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

#[test]
fn a_machine_reaches_the_internet_as_its_host() {
    let Some(mut lab) = Lab::new("internet") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&net.outside, "::");
        for (outside, host) in [(OUTSIDE_V4, HOST_V4), (OUTSIDE_V6, HOST_V6)] {
            let seen = connect(&a.namespace, at(outside, port));
            assert_eq!(seen, Outcome::Seen(host.parse().unwrap()));
        }
    });
}

#[test]
fn n5_mail_does_not_leave_by_port_25() {
    let Some(mut lab) = Lab::new("n5") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        for address in [OUTSIDE_V4, OUTSIDE_V6] {
            serve_at(&net.outside, address, 25);
            serve_at(&net.outside, address, 587);
            assert_eq!(connect(&a.namespace, at(address, 25)), Outcome::Unreachable);
            assert!(connect(&a.namespace, at(address, 587)).is_connected());
            assert!(connect_here(at(address, 25), PATIENCE).0.is_connected());
        }
    });
}

#[test]
fn n6_networks_of_the_host_are_closed_unless_opened() {
    let Some(mut lab) = Lab::new("n6") else {
        return;
    };
    let config = NetworkConfig {
        opened: vec!["192.168.77.0/24".parse().unwrap()],
        closed: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        ..NetworkConfig::default()
    };
    lab.run_with(config, async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&net.outside, "::");
        for neighbour in PRIVATE_NEIGHBOURS.iter().chain([&OUTSIDE_V4, &OUTSIDE_V6]) {
            assert!(connect_here(at(neighbour, port), PATIENCE).0.is_connected(), "{neighbour}");
            let outcome = connect(&a.namespace, at(neighbour, port));
            if *neighbour == "192.168.77.2" {
                assert!(outcome.is_connected(), "{neighbour}");
            } else {
                assert_eq!(outcome, Outcome::Unreachable, "{neighbour}");
            }
        }
    });
}

#[test]
fn n7_one_machines_connections_are_limited_and_anothers_are_not_affected() {
    let Some(mut lab) = Lab::new("n7") else {
        return;
    };
    let config = NetworkConfig { connections_max: 10, ..NetworkConfig::default() };
    lab.run_with(config, async |net| {
        let (greedy, modest) = (net.machine(1, 0).await, net.machine(2, 1).await);
        let port = serve(&net.outside, "::");
        let connected = inside(&greedy.namespace, move || {
            let mut kept = Vec::new();
            let mut connected = 0;
            for number in 0..16 {
                let outside = if number % 2 == 0 { OUTSIDE_V4 } else { OUTSIDE_V6 };
                let patience = if connected < 10 { PATIENCE } else { DOUBT / 2 };
                let (outcome, stream) = connect_here(at(outside, port), patience);
                connected += u32::from(outcome.is_connected());
                kept.push(stream);
            }
            connected
        });
        assert_eq!(connected, 10);
        assert!(connect(&modest.namespace, at(OUTSIDE_V4, port)).is_connected());
        assert!(PATIENCE > Duration::from_secs(1));
    });
}
