//! Who reaches whom: machines, their host, everybody else (N1, N3).

use std::net::{IpAddr, SocketAddr};

use super::lab::{
    HOST_V4, HOST_V6, Lab, Machine, OUTSIDE_V4, Outcome, PATIENCE, connect, connect_briefly,
    connect_here, inside, ip, serve, serve_at, udp, until_marker,
};
use perch_host::network::{NetworkConfig, RESOLVER_V6};

fn v6(machine: &Machine) -> Outcome {
    Outcome::Seen(machine.attached.private_ip.into())
}

#[test]
fn n1_machines_reach_their_own_network_and_no_other() {
    let Some(mut lab) = Lab::new("n1_networks") else {
        return;
    };
    lab.run(async |net| {
        let (a, b) = (net.machine(1, 0).await, net.machine(1, 1).await);
        let stranger = net.machine(2, 2).await;
        let port = serve(&b.namespace, "::");
        assert_eq!(connect(&a.namespace, b.v6(port)), v6(&a));
        assert_eq!(connect(&stranger.namespace, b.v6(port)), Outcome::Unreachable);
        // IPv4 addresses are for the host, not for each other.
        for from in [&a, &stranger] {
            assert_eq!(connect(&from.namespace, b.v4(port)), Outcome::Unreachable);
        }
        // What another network has looks like what nobody has.
        let nobody: SocketAddr = "[fdaa:0:2:0:1:2:3:2]:80".parse().unwrap();
        assert_eq!(connect(&a.namespace, nobody), Outcome::Unreachable);
        let nobody: SocketAddr = "10.209.77.7:80".parse().unwrap();
        assert_eq!(connect(&a.namespace, nobody), Outcome::Unreachable);
    });
}

#[test]
fn n1_a_datagram_does_not_cross_networks() {
    let Some(mut lab) = Lab::new("n1_datagram") else {
        return;
    };
    lab.run(async |net| {
        let (a, b) = (net.machine(7, 0).await, net.machine(7, 1).await);
        let stranger = net.machine(8, 2).await;
        let receiver = udp(&b.namespace, ("::".parse::<IpAddr>().unwrap(), 5000));
        for (from, text) in [(&stranger, &b"stranger"[..]), (&a, b"friend")] {
            let to = b.v6(5000);
            udp(&from.namespace, from.v6(6000)).send_to(text, to).unwrap();
        }
        assert!(until_marker(&receiver, b"friend").is_empty());
    });
}

#[test]
fn the_host_reaches_machines_from_the_resolvers_addresses() {
    let Some(mut lab) = Lab::new("host_to_machine") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&a.namespace, "::");
        let seen = connect_here(a.v4(port), PATIENCE).0;
        assert_eq!(seen, Outcome::Seen("10.209.0.1".parse().unwrap()));
        assert_eq!(connect_here(a.v6(port), PATIENCE).0, Outcome::Seen(RESOLVER_V6.into()));
        // An address that no machine has fails at once instead of leaking to the outside.
        let (gone, _) = connect_here("10.209.9.9:80".parse().unwrap(), PATIENCE);
        assert_eq!(gone, Outcome::Unreachable);
        let (gone, _) = connect_here("[fdaa:1:2:3::2]:80".parse().unwrap(), PATIENCE);
        assert_eq!(gone, Outcome::Unreachable);
    });
}

#[test]
fn n3_a_machine_reaches_no_service_of_its_host() {
    let Some(mut lab) = Lab::new("n3_host") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&net.host, "::");
        let at: [SocketAddr; 6] = [
            format!("{HOST_V4}:{port}").parse().unwrap(),
            format!("[{HOST_V6}]:{port}").parse().unwrap(),
            format!("10.50.0.1:{port}").parse().unwrap(),
            format!("10.209.0.1:{port}").parse().unwrap(),
            format!("[fdaa::3]:{port}").parse().unwrap(),
            format!("[fd00:77::1]:{port}").parse().unwrap(),
        ];
        for to in at {
            assert_eq!(connect_briefly(&a.namespace, to), Outcome::Silence, "{to}");
        }
        // The gateway is nobody's address.
        let gateway: SocketAddr = format!("169.254.1.1:{port}").parse().unwrap();
        assert_eq!(connect(&a.namespace, gateway), Outcome::Unreachable);
        // The same port answers the outside, so the silence above is the firewall's.
        let public: SocketAddr = format!("{HOST_V4}:{port}").parse().unwrap();
        assert!(connect(&net.outside, public).is_connected());
    });
}

#[test]
fn n3_the_hosts_loopback_is_not_routed_to_from_a_machine() {
    let Some(mut lab) = Lab::new("n3_loopback") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let secret = udp(&net.host, ("127.0.0.1".parse::<IpAddr>().unwrap(), 0));
        let port = secret.local_addr().unwrap().port();
        // A machine that could change its own routes would send loopback addresses out.
        ip(&[
            "-n",
            &a.namespace,
            "route",
            "del",
            "local",
            "127.0.0.0/8",
            "dev",
            "lo",
            "table",
            "local",
        ]);
        let to: SocketAddr = ([127, 0, 0, 1], port).into();
        let from = a.v4(0);
        inside(&a.namespace, move || {
            let socket = std::net::UdpSocket::bind(from).unwrap();
            // The kernel may refuse already here, which is as good.
            let _sent = socket.send_to(b"leak", to);
        });
        let own = udp(&net.host, ("127.0.0.1".parse::<IpAddr>().unwrap(), 0));
        own.send_to(b"marker", to).unwrap();
        assert!(until_marker(&secret, b"marker").is_empty());
    });
}

#[test]
fn machines_reach_the_resolver_and_the_public_ports() {
    let Some(mut lab) = Lab::new("resolver") else {
        return;
    };
    let config = NetworkConfig { public_ports: vec![8443], ..NetworkConfig::default() };
    lab.run_with(config, async |net| {
        let a = net.machine(1, 0).await;
        for resolver in ["10.209.0.1", "fdaa::3"] {
            let address: IpAddr = resolver.parse().unwrap();
            serve_at(&net.host, resolver, 53);
            let server = udp(&net.host, (address, 53));
            let from: IpAddr = if address.is_ipv4() { a.v4(0).ip() } else { a.v6(0).ip() };
            assert_eq!(connect(&a.namespace, (address, 53)), Outcome::Seen(from));
            let client = udp(&a.namespace, (from, 0));
            client.send_to(b"question", (address, 53)).unwrap();
            let mut buffer = [0; 64];
            let (length, asking) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], asking.ip()), (&b"question"[..], from));
            server.send_to(b"answer", asking).unwrap();
            let (length, answering) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], answering.ip()), (&b"answer"[..], address));
        }
        serve_at(&net.host, "::", 8443);
        let public: [IpAddr; 2] = [HOST_V4.parse().unwrap(), HOST_V6.parse().unwrap()];
        for address in public {
            assert!(connect(&a.namespace, (address, 8443)).is_connected(), "{address}");
        }
        let private: IpAddr = "10.50.0.1".parse().unwrap();
        assert_eq!(connect_briefly(&a.namespace, (private, 8443)), Outcome::Silence);
    });
}

#[test]
fn n3_the_outside_reaches_neither_machines_nor_the_resolver() {
    let Some(mut lab) = Lab::new("n3_outside") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&a.namespace, "::");
        serve_at(&net.host, "10.209.0.1", 53);
        serve_at(&net.host, "fdaa::3", 53);
        let resolver: [IpAddr; 2] = ["10.209.0.1".parse().unwrap(), RESOLVER_V6.into()];
        for to in [a.v4(port), a.v6(port), (resolver[0], 53).into(), (resolver[1], 53).into()] {
            assert_eq!(connect_briefly(&net.outside, to), Outcome::Silence, "{to}");
        }
        assert!(connect_here(a.v4(port), PATIENCE).0.is_connected());
        // A machine behind the firewall is not a way around it either.
        let outside: IpAddr = OUTSIDE_V4.parse().unwrap();
        let back = serve(&net.outside, "0.0.0.0");
        assert!(connect(&a.namespace, (outside, back)).is_connected());
        assert_eq!(connect_briefly(&net.outside, a.v4(port)), Outcome::Silence);
    });
}
