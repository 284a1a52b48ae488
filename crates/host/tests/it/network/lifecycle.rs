//! Attaching, finding and removing machines, and who listens in them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Instant;

use perch_host::network::{Error, Listener, MachineNetwork, Network, NetworkConfig, SocketDiag};
use perch_types::MachineId;
use perch_types::address::private_ip;

use super::lab::{
    Lab, Outcome, PATIENCE, connect, connect_here, inside, ip, open, run, serve, serve_at,
};

#[test]
fn attaching_and_detaching_may_happen_twice() {
    let Some(mut lab) = Lab::new("twice") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let wanted = MachineNetwork { machine: a.id.clone(), network_id: 1, slot: 0 };
        let again = net.network.attach(open(&a.namespace), wanted.clone()).await.unwrap();
        assert_eq!(again, a.attached);
        assert_eq!(a.attached.private_ip, private_ip(1, &a.id));
        let port = serve(&a.namespace, "::");
        assert!(connect_here(a.v4(port), PATIENCE).0.is_connected());
        assert!(connect_here(a.v6(port), PATIENCE).0.is_connected());
        // A new boot of the machine has a new namespace; the old one may linger.
        let other = net.namespace(9);
        net.network.attach(open(&other), wanted).await.unwrap();
        let port = serve(&other, "::");
        assert!(connect_here(a.v4(port), PATIENCE).0.is_connected());
        let listed = net.network.list().await.unwrap();
        assert_eq!(listed.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&a.id]);
        assert!(listed[0].1.received_bytes > 0 && listed[0].1.sent_bytes > 0);
        assert!(net.network.detach(a.id.clone()).await.unwrap());
        assert!(!net.network.detach(a.id.clone()).await.unwrap());
        assert!(net.network.list().await.unwrap().is_empty());
    });
}

#[test]
fn a_restart_of_the_server_keeps_machines_connected() {
    let Some(mut lab) = Lab::new("restart") else {
        return;
    };
    lab.run(async |net| {
        let (a, b) = (net.machine(5, 0).await, net.machine(5, 1).await);
        let port = serve(&b.namespace, "::");
        let again = Network::open(NetworkConfig::default()).await.unwrap();
        assert_eq!(connect(&a.namespace, b.v6(port)), Outcome::Seen(a.v6(0).ip()));
        assert_eq!(again.list().await.unwrap().len(), 2);
        // And the new one knows the networks of the old one.
        let rules = run("ip", &["netns", "exec", &net.host, "nft", "list", "ruleset"]);
        assert!(rules.contains("fdaa:0:5:: . fdaa:0:5::"), "{rules}");
    });
}

#[test]
fn teardown_leaves_nothing_behind() {
    let Some(mut lab) = Lab::new("teardown") else {
        return;
    };
    lab.run(async |net| {
        net.machine(1, 0).await;
        net.machine(2, 1).await;
        net.network.clone().teardown().await.unwrap();
        let host = net.host.as_str();
        let rules = run("ip", &["netns", "exec", host, "nft", "list", "ruleset"]);
        assert_eq!(rules, "");
        for shown in [
            ip(&["-n", host, "addr"]),
            ip(&["-n", host, "route"]),
            ip(&["-n", host, "-6", "route"]),
        ] {
            assert!(!shown.contains("10.209.") && !shown.contains("fdaa:"), "{shown}");
        }
        net.network.teardown().await.unwrap();
    });
}

#[test]
fn a_failed_attach_leaves_nothing_behind() {
    let Some(mut lab) = Lab::new("failed_attach") else {
        return;
    };
    lab.run(async |net| {
        let namespace = net.namespace(3);
        // The name that the machine's end would get is taken.
        ip(&["-n", &namespace, "link", "add", "eth0", "type", "bridge"]);
        let machine = MachineId::from_bits(3);
        let wanted = MachineNetwork { machine, network_id: 1, slot: 3 };
        let error = net.network.attach(open(&namespace), wanted.clone()).await.unwrap_err();
        assert!(matches!(error, Error::Interface { .. }), "{error}");
        assert!(net.network.list().await.unwrap().is_empty());
        let beyond = MachineNetwork { slot: 1 << 20, ..wanted };
        let error = net.network.attach(open(&namespace), beyond).await.unwrap_err();
        assert_eq!(error.to_string(), "use address slot 1048576: the pool has 65519");
    });
}

#[test]
fn a_pool_that_the_host_uses_is_refused() {
    let Some(mut lab) = Lab::new("pool") else {
        return;
    };
    lab.run(async |net| {
        for pool in ["10.50.0.0/16", "203.0.112.0/20", "100.64.0.0/26"] {
            let pool = perch_host::network::Pool::new(pool.parse().unwrap()).unwrap();
            let config = NetworkConfig { pool, ..NetworkConfig::default() };
            let error = Network::open(config).await.unwrap_err();
            assert!(matches!(error, Error::PoolInUse { .. }), "{error}");
        }
        drop(net);
    });
}

#[test]
fn who_listens_is_seen_without_connecting() {
    let Some(mut lab) = Lab::new("listeners") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let namespace = open(&a.namespace);
        let mut diag = SocketDiag::open(namespace.as_fd()).unwrap();
        drop(namespace);
        assert_eq!(diag.listeners().unwrap(), []);
        serve_at(&a.namespace, "127.0.0.1", 3000);
        serve_at(&a.namespace, "::", 8080);
        serve_at(&net.host, "0.0.0.0", 4000);
        let seen = diag.listeners().unwrap();
        let expected = [("127.0.0.1", 3000), ("::", 8080)]
            .map(|(address, port)| Listener { address: address.parse::<IpAddr>().unwrap(), port });
        assert_eq!(seen, expected);
        assert_eq!(seen.iter().map(Listener::is_reachable).collect::<Vec<_>>(), [false, true]);
        let started = Instant::now();
        for _ in 0..100 {
            diag.listeners().unwrap();
        }
        eprintln!("measured: listeners() takes {:?}", started.elapsed() / 100);
    });
}

#[test]
fn many_machines_are_attached_quickly() {
    let Some(mut lab) = Lab::new("many") else {
        return;
    };
    lab.run(async |net| {
        const MACHINES: u32 = 40;
        let namespaces: Vec<_> = (0..MACHINES).map(|slot| net.namespace(slot)).collect();
        let mut taken = Vec::new();
        for (slot, namespace) in (0..MACHINES).zip(&namespaces) {
            let machine = MachineId::from_bits(u64::from(slot));
            let wanted = MachineNetwork { machine, network_id: slot % 7, slot };
            let namespace = open(namespace);
            let started = Instant::now();
            net.network.attach(namespace, wanted).await.unwrap();
            taken.push(started.elapsed());
        }
        taken.sort_unstable();
        let (median, worst) = (taken[taken.len() / 2], taken[taken.len() - 1]);
        eprintln!("measured: attach takes {median:?} (median), min {:?}, max {worst:?}", taken[0]);
        let listed: BTreeSet<_> =
            net.network.list().await.unwrap().into_iter().map(|(id, _)| id.bits()).collect();
        assert_eq!(listed.len(), 40);
        assert!(median.as_millis() < 100, "{median:?}");
    });
}

#[test]
fn unprivileged_programs_may_use_low_ports_and_ping() {
    let Some(mut lab) = Lab::new("low_ports") else {
        return;
    };
    lab.run(async |net| {
        let a = net.machine(1, 0).await;
        let read = |name: &'static str| {
            inside(&a.namespace, move || std::fs::read_to_string(name).unwrap())
        };
        assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start").trim(), "0");
        assert_eq!(read("/proc/sys/net/ipv4/ping_group_range").trim(), "0\t2147483647");
    });
}

#[test]
fn a_namespace_of_another_user_namespace_is_attached() {
    let Some(mut lab) = Lab::new("user_namespace") else {
        return;
    };
    lab.run(async |net| {
        let mut sleeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sleep", "60"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/net", sleeper.id());
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while std::fs::read_link(&path).unwrap() == own {
            assert!(Instant::now() < deadline, "unshare made no namespace");
            tokio::task::yield_now().await;
        }
        let namespace = std::fs::File::open(&path).unwrap();
        let wanted = MachineNetwork { machine: MachineId::from_bits(77), network_id: 1, slot: 77 };
        let attached = net.network.attach(namespace.into(), wanted).await.unwrap();
        let mut diag = SocketDiag::open(std::fs::File::open(&path).unwrap().as_fd()).unwrap();
        assert_eq!(diag.listeners().unwrap(), []);
        // Nobody listens, which only the machine itself can say.
        let to = (attached.private_ip, 80).into();
        assert_eq!(connect_here(to, PATIENCE).0, Outcome::Refused);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    });
}
