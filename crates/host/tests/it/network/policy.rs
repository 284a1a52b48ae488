//! What an app's network policies leave open, with real packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use perch_host::network::MachineNetwork;
use perch_types::network_policy::{
    Allowed, NetworkPolicy, POLICIES_MAX, PORTS_MAX, PolicyDirection, PolicyPort, PolicyProtocol,
    PolicyRule, PolicySelector, RULES_MAX,
};
use perch_types::{MachineId, Timestamp};

use super::lab::{
    Lab, Machine, Net, OUTSIDE_V4, OUTSIDE_V6, Outcome, PATIENCE, connect, connect_briefly,
    connect_here, open, serve_at, udp, until_marker,
};

const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;

fn only_open(protocol: PolicyProtocol) -> Option<BTreeSet<PolicyPort>> {
    Some(BTreeSet::from([PolicyPort { protocol, port: OPEN }]))
}

/// Makes a machine that is confined before it is connected, as a start does; twice, as one that is
/// tried again does.
async fn confined(net: &Net, slot: u32, allowed: Allowed) -> Machine {
    let namespace = net.namespace(slot);
    for _ in 0..2 {
        net.network.confine(open(&namespace), allowed.clone()).await.unwrap();
    }
    let id = MachineId::from_bits(0x00c0_ffee_0000_0000 | u64::from(slot));
    let wanted = MachineNetwork { machine: id.clone(), network_id: 1, slot };
    let attached = net.network.attach(open(&namespace), wanted).await.unwrap();
    Machine { id, namespace, attached }
}

fn from(machine: &Machine) -> Outcome {
    Outcome::Seen(machine.attached.private_ip.into())
}

#[test]
fn n11_ingress_with_a_rule_is_closed_but_for_it_and_for_the_edge() {
    let Some(mut lab) = Lab::new("n11_ingress") else {
        return;
    };
    lab.run(async |net| {
        let ingress = only_open(PolicyProtocol::Tcp);
        let behind = confined(&net, 0, Allowed { ingress, egress: None }).await;
        let other = net.machine(1, 1).await;
        for port in [OPEN, CLOSED] {
            serve_at(&behind.namespace, "::", port);
        }
        assert_eq!(connect(&other.namespace, behind.v6(OPEN)), from(&other));
        assert_eq!(connect_briefly(&other.namespace, behind.v6(CLOSED)), Outcome::Silence);
        // A port of TCP is none of UDP.
        let receiver = udp(&behind.namespace, ("::".parse::<IpAddr>().unwrap(), OPEN));
        let sender = udp(&other.namespace, other.v6(6000));
        sender.send_to(b"closed", behind.v6(OPEN)).unwrap();
        // The edge, which is on the host, reaches every port, and so does what it sends.
        for to in [behind.v4(OPEN), behind.v4(CLOSED), behind.v6(CLOSED)] {
            assert!(connect_here(to, PATIENCE).0.is_connected(), "{to}");
        }
        udp(&net.host, ("::".parse::<IpAddr>().unwrap(), 0))
            .send_to(b"host", behind.v6(OPEN))
            .unwrap();
        assert!(until_marker(&receiver, b"host").is_empty());
        // The other direction is as it was.
        let outside = serve_at(&net.outside, "::", CLOSED);
        let out: SocketAddr = format!("{OUTSIDE_V4}:{outside}").parse().unwrap();
        assert!(connect(&behind.namespace, out).is_connected());
        serve_at(&other.namespace, "::", CLOSED);
        assert_eq!(connect(&behind.namespace, other.v6(CLOSED)), from(&behind));
    });
}

#[test]
fn n11_egress_with_a_rule_is_closed_but_for_it() {
    let Some(mut lab) = Lab::new("n11_egress") else {
        return;
    };
    lab.run(async |net| {
        let egress = only_open(PolicyProtocol::Tcp);
        let behind = confined(&net, 0, Allowed { ingress: None, egress }).await;
        let other = net.machine(1, 1).await;
        for port in [OPEN, CLOSED] {
            serve_at(&net.outside, "::", port);
            serve_at(&other.namespace, "::", port);
            serve_at(&behind.namespace, "::", port);
        }
        for address in [OUTSIDE_V4.to_owned(), format!("[{OUTSIDE_V6}]")] {
            let to = |port| -> SocketAddr { format!("{address}:{port}").parse().unwrap() };
            assert!(connect(&behind.namespace, to(OPEN)).is_connected(), "{address}");
            // It is told at once.
            assert_eq!(connect(&behind.namespace, to(CLOSED)), Outcome::Unreachable, "{address}");
            assert!(connect(&other.namespace, to(CLOSED)).is_connected(), "{address}");
        }
        assert_eq!(connect(&behind.namespace, other.v6(OPEN)), from(&behind));
        assert_eq!(connect(&behind.namespace, other.v6(CLOSED)), Outcome::Unreachable);
        // What others ask of it is answered.
        assert_eq!(connect(&other.namespace, behind.v6(CLOSED)), from(&other));
        assert!(connect_here(behind.v4(CLOSED), PATIENCE).0.is_connected());
        // And the resolver is always there, which is a port that no rule names.
        let resolver = udp(&net.host, ("fdaa::3".parse::<IpAddr>().unwrap(), 53));
        udp(&behind.namespace, behind.v6(6000))
            .send_to(b"question", resolver.local_addr().unwrap())
            .unwrap();
        assert!(until_marker(&resolver, b"question").is_empty());
    });
}

/// As many policies as an app can have, each as large as can be, with no port twice.
fn largest() -> Vec<NetworkPolicy> {
    let mut next = 1_000;
    let mut rule = |direction| PolicyRule {
        direction,
        ports: (0..PORTS_MAX)
            .map(|_| {
                next += 1;
                let protocol = [PolicyProtocol::Tcp, PolicyProtocol::Udp][usize::from(next % 2)];
                PolicyPort { protocol, port: next }
            })
            .collect(),
        ..PolicyRule::default()
    };
    let directions = [PolicyDirection::Ingress, PolicyDirection::Egress];
    (0..POLICIES_MAX)
        .map(|number| NetworkPolicy {
            id: format!("np_{number}"),
            name: "a".to_owned(),
            selector: PolicySelector { all: Some(true), ..PolicySelector::default() },
            rules: (0..RULES_MAX).map(|index| rule(directions[index % 2])).collect(),
            created_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        })
        .collect()
}

#[test]
fn n11_the_largest_policies_are_loaded_whole() {
    let Some(mut lab) = Lab::new("n11_largest") else {
        return;
    };
    lab.run(async |net| {
        let id = MachineId::from_bits(1);
        let allowed = Allowed::of(&largest(), &id, &Default::default());
        let ports = |side: &Option<BTreeSet<PolicyPort>>| {
            let tcp = side.iter().flatten().filter(|it| it.protocol == PolicyProtocol::Tcp);
            tcp.map(|it| it.port).collect::<Vec<u16>>()
        };
        let (ingress, egress) = (ports(&allowed.ingress), ports(&allowed.egress));
        let each = POLICIES_MAX * RULES_MAX * PORTS_MAX / 4;
        assert_eq!((ingress.len(), egress.len()), (each, each));
        let behind = confined(&net, 0, allowed).await;
        let other = net.machine(1, 1).await;
        // The first and the last of each, and one of the other direction between them.
        for (ports, foreign, from, to) in
            [(&ingress, &egress, &other, &behind), (&egress, &ingress, &behind, &other)]
        {
            for port in [ports[0], ports[each - 1]] {
                serve_at(&to.namespace, "::", port);
                assert!(connect(&from.namespace, to.v6(port)).is_connected(), "{port}");
            }
            serve_at(&to.namespace, "::", foreign[each / 2]);
            let closed = connect_briefly(&from.namespace, to.v6(foreign[each / 2]));
            assert!(!closed.is_connected(), "{closed:?}");
        }
    });
}
