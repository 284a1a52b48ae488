//! The network of a cage: a cable to the host and rules that lead it only to the internet.
//!
//! Never gives a build a way to the host, its loopback, a machine or a private network: what
//! comes out of the cable may be forwarded to public addresses and to the host's resolvers on
//! port 53, nothing else, and nothing may come in but answers (security N3, N5, N6).
//!
//! Why a cable and not a user-mode stack: `slirp4netns` and `pasta` connect as a process of the
//! host, so what a build asks for would leave with the host's own rights, towards its LAN address,
//! its machines and its services. Here the packets come from outside, and one table judges them.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::config::Config;
use crate::error::Error;
use crate::program;

/// Ranges that builds do not reach: this host, private, shared, link-local, multicast, reserved.
const CLOSED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
    172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";
/// Connections that one builder's builds may have open.
const CONNECTIONS_MAX: u32 = 4096;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Where resolvers are named; the second is for hosts whose first names only their own loopback.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Resolvers that are taken over.
const RESOLVERS_MAX: usize = 3;

/// Returns the resolvers that builds may ask: those of the host that are not on its loopback.
pub(crate) fn resolvers() -> Vec<Ipv4Addr> {
    RESOLVER_FILES
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| resolvers_in(&text))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn resolvers_in(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .take(RESOLVERS_MAX)
        .collect()
}

/// Returns the whole table as input of `nft -f -`; loading it again replaces it in one step.
fn ruleset(config: &Config, resolvers: &[Ipv4Addr]) -> String {
    let name = &config.instance;
    let pool = config.addresses;
    let mut open = String::new();
    for resolver in resolvers {
        for protocol in ["udp", "tcp"] {
            open.push_str("    ip daddr ");
            open.push_str(&resolver.to_string());
            open.push(' ');
            open.push_str(protocol);
            open.push_str(" dport 53 accept\n");
        }
    }
    for network in &config.open_networks {
        open.push_str("    ip daddr ");
        open.push_str(network);
        open.push_str(" accept\n");
    }
    format!(
        "table inet {name} {{}}
delete table inet {name}
table inet {name} {{
  set connections {{ type ifname; size 64; flags dynamic; }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{name}*\" drop
  }}
  chain from_builds {{
    meta nfproto ipv6 drop
    ip saddr != {pool}/24 drop
    ct state established,related accept
    ct state != new drop
    add @connections {{ iifname ct count over {CONNECTIONS_MAX} }} drop
    oifname \"{name}*\" drop
    tcp dport 25 reject with icmpx admin-prohibited
    tcp flags syn tcp option maxseg size set rt mtu
{open}    ip daddr {{ {CLOSED} }} reject with icmpx admin-prohibited
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname \"{name}*\" goto from_builds
    oifname \"{name}*\" ct state established,related accept
    oifname \"{name}*\" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool}/24 oifname != \"{name}*\" masquerade
  }}
}}
"
    )
}

/// Loads the rules. Runs at the builder's start, before any cable exists.
pub(crate) async fn open(config: &Config) -> Result<(), Error> {
    program::run("nft", &["-f", "-"], &ruleset(config, &resolvers())).await?;
    let path = Path::new(FORWARDING);
    let forwards = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    if forwards.trim() == "0" {
        std::fs::write(path, "1\n").map_err(Error::file("write", path))?;
    }
    Ok(())
}

/// Removes the rules. Cables end with the namespace they lead into.
pub(crate) async fn close(config: &Config) -> Result<(), Error> {
    let name = &config.instance;
    let text = format!("table inet {name} {{}}\ndelete table inet {name}\n");
    program::run("nft", &["-f", "-"], &text).await.map(drop)
}

/// Lays the cable of slot `slot` into the network namespace of process `pid`.
pub(crate) async fn attach(config: &Config, slot: usize, pid: u32) -> Result<(), Error> {
    let name = format!("{}{slot}", config.instance);
    let (host, cage) = addresses(config, slot);
    // One left by a builder that was killed would be in the way; usually there is none.
    let _absent = program::run("ip", &["link", "delete", &name], "").await;
    let outside = format!(
        "link add {name} type veth peer name eth0 netns {pid}\n\
         addr add {host}/30 dev {name}\nlink set {name} up\n"
    );
    program::run("ip", &["-batch", "-"], &outside).await?;
    let inside = format!(
        "link set lo up\naddr add {cage}/30 dev eth0\nlink set eth0 up\nroute add default via {host}\n"
    );
    let target = pid.to_string();
    program::run("nsenter", &["--target", &target, "--net", "ip", "-batch", "-"], &inside).await?;
    Ok(())
}

/// Returns the host's and the cage's address of a slot: a /30 of the pool each.
fn addresses(config: &Config, slot: usize) -> (Ipv4Addr, Ipv4Addr) {
    let offset = u32::try_from(slot).unwrap_or(0) % 64 * 4;
    let first = config.addresses.to_bits() + offset;
    (Ipv4Addr::from_bits(first + 1), Ipv4Addr::from_bits(first + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_the_hosts_loopback_are_left_out() {
        let text =
            "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n";
        assert_eq!(resolvers_in(text), [Ipv4Addr::new(192, 0, 2, 1)]);
    }

    #[test]
    fn slots_do_not_share_addresses() {
        let config = Config::new("/x".into(), String::new());
        let mut seen = std::collections::BTreeSet::new();
        for slot in 0..crate::config::BUILDS_AT_ONCE_MAX {
            let (host, cage) = addresses(&config, slot);
            assert!(seen.insert(host) && seen.insert(cage));
            assert_eq!(host.octets()[..3], config.addresses.octets()[..3]);
        }
    }
}
