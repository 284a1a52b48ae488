//! Packets that no honest machine sends (N1, N2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{arp, ethernet, exchange, hardware_address, icmpv6, udp as datagram};
use super::lab::{
    Lab, Machine, Net, OUTSIDE_V4, OUTSIDE_V6, Outcome, PATIENCE, connect_here, ip, run, serve,
    udp, until_marker,
};

/// Sends a datagram to `to` under each source, then an honest one, and returns what arrived
/// before the honest one.
fn forge(from: &Machine, sources: &[IpAddr], to: (IpAddr, u16), at: &std::net::UdpSocket) -> usize {
    let mac = hardware_address(&from.namespace);
    let own: IpAddr = if to.0.is_ipv4() {
        from.attached.private_ipv4.into()
    } else {
        from.attached.private_ip.into()
    };
    let mut frames: Vec<_> =
        sources.iter().map(|source| datagram(&mac, (*source, 999), to, b"forged")).collect();
    frames.push(datagram(&mac, (own, 999), to, b"honest"));
    exchange(&from.namespace, b"", &frames);
    until_marker(at, b"honest").len()
}

/// Takes the protection away, to see that the forged packets are good ones.
fn unprotect(net: &Net, machine: &Machine) {
    run("ip", &["netns", "exec", &net.host, "nft", "flush", "chain", "inet", "perch", "pin"]);
    for interface in ["all", machine.attached.interface.as_str()] {
        let name = format!("net.ipv4.conf.{interface}.rp_filter=0");
        run("ip", &["netns", "exec", &net.host, "sysctl", "-qw", &name]);
    }
}

#[test]
fn n2_a_machine_cannot_speak_for_another_source_ipv6() {
    let Some(mut lab) = Lab::new("n2_v6") else {
        return;
    };
    lab.run(async |net| {
        let (a, b, c) = (net.machine(1, 0).await, net.machine(1, 1).await, net.machine(1, 2).await);
        let receiver = udp(&b.namespace, b.v6(5000));
        let to = (b.v6(0).ip(), 5000);
        let unowned = "fdaa:0:1:0:1:2:3:2".parse().unwrap();
        let link_local = "fe80::2".parse().unwrap();
        let resolver = "fdaa::3".parse().unwrap();
        let sources = [c.v6(0).ip(), unowned, link_local, resolver, OUTSIDE_V6.parse().unwrap()];
        assert_eq!(forge(&a, &sources, to, &receiver), 0);
        unprotect(&net, &a);
        assert!(forge(&a, &sources, to, &receiver) > 0, "the forged packets are no good");
    });
}

#[test]
fn n2_a_machine_cannot_speak_for_another_source_ipv4() {
    let Some(mut lab) = Lab::new("n2_v4") else {
        return;
    };
    lab.run(async |net| {
        let (a, c) = (net.machine(1, 0).await, net.machine(1, 2).await);
        let outside: IpAddr = OUTSIDE_V4.parse().unwrap();
        let receiver = udp(&net.outside, (outside, 5000));
        let sources = [
            c.v4(0).ip(),
            "10.209.0.1".parse().unwrap(),
            "10.209.77.77".parse().unwrap(),
            "198.51.100.7".parse().unwrap(),
            "127.0.0.1".parse().unwrap(),
            "10.50.0.1".parse().unwrap(),
        ];
        assert_eq!(forge(&a, &sources, (outside, 5000), &receiver), 0);
        unprotect(&net, &a);
        let arrived = forge(&a, &sources, (outside, 5000), &receiver);
        assert!(arrived > 0, "the forged packets are no good");
    });
}

#[test]
fn n2_a_forged_question_never_reaches_the_resolver() {
    let Some(mut lab) = Lab::new("n2_resolver") else {
        return;
    };
    lab.run(async |net| {
        let (a, victim) = (net.machine(1, 0).await, net.machine(2, 1).await);
        let v4: IpAddr = "10.209.0.1".parse().unwrap();
        let v6: IpAddr = "fdaa::3".parse().unwrap();
        for (resolver, source) in [(v4, victim.v4(0).ip()), (v6, victim.v6(0).ip())] {
            let server = udp(&net.host, (resolver, 53));
            assert_eq!(forge(&a, &[source], (resolver, 53), &server), 0);
        }
    });
}

#[test]
fn n1_arp_and_neighbour_discovery_get_no_answer_and_change_nothing() {
    let Some(mut lab) = Lab::new("n1_arp") else {
        return;
    };
    lab.run(async |net| {
        let (a, b) = (net.machine(1, 0).await, net.machine(1, 1).await);
        let mac = hardware_address(&a.namespace);
        let own = a.attached.private_ipv4;
        let mut frames = Vec::new();
        for asked in [Ipv4Addr::new(10, 209, 0, 1), Ipv4Addr::new(203, 0, 113, 1), own] {
            frames.push(arp(&mac, 1, own, asked));
        }
        frames.push(arp(&mac, 2, b.attached.private_ipv4, b.attached.private_ipv4));
        let fe80: Ipv6Addr = "fe80::1".parse().unwrap();
        let everybody: Ipv6Addr = "ff02::1".parse().unwrap();
        let of_all = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac];
        for target in [RESOLVER, fe80, b.attached.private_ip] {
            let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
            solicitation.extend(target.octets());
            let direct = [&mac[..], &mac];
            let from = a.attached.private_ip;
            frames.push(icmpv6(of_all, from, everybody, &solicitation));
            frames.push(icmpv6(direct, from, target, &solicitation));
        }
        let mut advertisement = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
        advertisement.extend(b.attached.private_ip.octets());
        advertisement.extend([2, 1, 2, 9, 9, 9, 9, 9]);
        frames.push(icmpv6(of_all, a.attached.private_ip, everybody, &advertisement));
        // The answer to an honest question marks the end of what could be answered.
        let server = udp(&net.host, ("10.209.0.1".parse::<IpAddr>().unwrap(), 53));
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let (_, asking) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"the-answer", asking).unwrap();
        });
        let resolver = (IpAddr::from([10, 209, 0, 1]), 53);
        frames.push(datagram(&mac, (own.into(), 999), resolver, b"question"));
        let came = exchange(&a.namespace, b"the-answer", &frames);
        answering.join().unwrap();
        let kinds: Vec<_> = came.iter().map(|frame| (frame[12], frame[13])).collect();
        assert_eq!(kinds, [(8, 0)], "only the answer came");
        // What was claimed is not believed.
        let port = serve(&b.namespace, "::");
        assert!(connect_here(b.v4(port), PATIENCE).0.is_connected());
        assert!(connect_here(b.v6(port), PATIENCE).0.is_connected());
        assert_eq!(ip(&["-n", &net.host, "neigh", "show", "dev", &a.attached.interface]), "");
    });
}

const RESOLVER: Ipv6Addr = perch_host::network::RESOLVER_V6;

#[test]
fn n1_router_advertisements_and_multicast_reach_nobody() {
    let Some(mut lab) = Lab::new("n1_multicast") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let mac = hardware_address(&a.namespace);
        let before = ip(&["-n", &net.host, "-6", "route", "show", "default"]);
        let any: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let listener = udp(&net.host, (IpAddr::from(any), 5353));
        let index = ip(&["-n", &net.host, "-j", "addr", "show", "dev", "wan"]);
        assert!(index.contains("203.0.113.1"));
        listener.join_multicast_v4(&group, &Ipv4Addr::new(203, 0, 113, 1)).unwrap();
        let all_v4 = [1, 0, 0x5e, 0, 0, 0xfb];
        let multicast = datagram(&mac, (a.v4(0).ip(), 5353), (group.into(), 5353), b"multicast");
        let multicast = ethernet(&all_v4, &mac, 0x0800, &multicast[14..]);
        let router = [134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_v6 = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac];
        let everybody = "ff02::1".parse().unwrap();
        let advertisement = icmpv6(all_v6, "fe80::2".parse().unwrap(), everybody, &router);
        exchange(&a.namespace, b"", &[multicast, advertisement]);
        let marker = udp(&net.host, (IpAddr::from(Ipv4Addr::LOCALHOST), 0));
        marker.send_to(b"marker", (Ipv4Addr::LOCALHOST, 5353)).unwrap();
        assert!(until_marker(&listener, b"marker").is_empty());
        assert_eq!(ip(&["-n", &net.host, "-6", "route", "show", "default"]), before);
    });
}

#[test]
fn a_machine_without_a_name_for_its_route_is_not_answered() {
    let Some(mut lab) = Lab::new("no_route") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let port = serve(&a.namespace, "::");
        net.network.detach(a.id.clone()).await.unwrap();
        assert_eq!(connect_here(a.v4(port), PATIENCE).0, Outcome::Unreachable);
        assert_eq!(connect_here(a.v6(port), PATIENCE).0, Outcome::Unreachable);
    });
}
