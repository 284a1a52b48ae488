//! The text of the firewall: one nftables table, made whole from the configuration.
//!
//! Never mentions a machine. A packet is judged by the group of the interfaces it crosses, by
//! the routing table (a source is genuine if the way back to it is the way it came) and by the
//! pair of networks it joins, so that attaching a machine changes no rule.

use std::fmt::Write as _;

use super::address::{Prefix, RESOLVER_V6};
use super::config::NetworkConfig;

/// The set of pairs (network, network) between which machines may talk.
pub(super) const SAME_NETWORK: &str = "same_network";

/// What no machine reaches by way of its host (N6): private, shared, local, test and multicast
/// ranges, whatever network of the host they may be.
const CLOSED_V4: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// The same for IPv6, where everything outside of 2000::/3 is closed already: transition
/// prefixes, which embed IPv4 addresses and so lead around [`CLOSED_V4`].
const CLOSED_V6: [&str; 2] = ["2001::/32", "2002::/16"];

/// Packets a second that are answered with an ICMP error instead of being dropped in silence.
const REJECTS_PER_SECOND: u32 = 100;
/// Echo requests a second that the host answers to all machines together.
const PINGS_PER_SECOND: u32 = 50;

/// Returns the whole table as input of `nft -f -`, which replaces in one transaction what was
/// there before. `networks` are the pairs' prefixes known at this time.
pub(super) fn ruleset(config: &NetworkConfig, networks: impl Iterator<Item = u32>) -> String {
    let table = &config.instance;
    let sets = sets(config, networks);
    let pin = pin(config);
    let input = input(config);
    let forward = forward(config);
    let nat = nat(config);
    format!(
        "table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n\
         {sets}{pin}{input}{forward}{nat}}}\n"
    )
}

/// Returns the input of `nft -f -` that removes the table, whether it is there or not.
pub(super) fn removal(config: &NetworkConfig) -> String {
    let table = &config.instance;
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

fn sets(config: &NetworkConfig, networks: impl Iterator<Item = u32>) -> String {
    let pairs: Vec<String> = networks
        .map(perch_types::address::network_prefix)
        .map(|prefix| format!("{prefix} . {prefix}"))
        .collect();
    let pairs = elements(&pairs);
    let split = |prefixes: &[Prefix], v4: bool| -> Vec<String> {
        prefixes
            .iter()
            .filter(|prefix| prefix.address().is_ipv4() == v4)
            .map(Prefix::to_string)
            .collect()
    };
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let closed_v4 = elements(&[owned(&CLOSED_V4), split(&config.closed, true)].concat());
    let closed_v6 = elements(&[owned(&CLOSED_V6), split(&config.closed, false)].concat());
    let opened_v4 = elements(&split(&config.opened, true));
    let opened_v6 = elements(&split(&config.opened, false));
    format!(
        "  set {SAME_NETWORK} {{ type ipv6_addr . ipv6_addr; {pairs}}}
  set connections {{ type iface_index; size 65536; flags dynamic; }}
  set closed_v4 {{ type ipv4_addr; flags interval; auto-merge; {closed_v4}}}
  set closed_v6 {{ type ipv6_addr; flags interval; auto-merge; {closed_v6}}}
  set opened_v4 {{ type ipv4_addr; flags interval; auto-merge; {opened_v4}}}
  set opened_v6 {{ type ipv6_addr; flags interval; auto-merge; {opened_v6}}}
"
    )
}

fn elements(list: &[String]) -> String {
    if list.is_empty() { String::new() } else { format!("elements = {{ {} }} ", list.join(", ")) }
}

/// Before connection tracking, so that nothing forged costs an entry: a source that is not
/// routed back through the interface it came by is forged (N2). Neighbour discovery, router
/// advertisements and multicast have no use on a point-to-point link without neighbours (N1).
/// Questions to the resolver are not tracked: they would be the cheapest way to fill the table.
fn pin(config: &NetworkConfig) -> String {
    let group = config.interface_group;
    let resolver = config.pool.resolver();
    format!(
        "  chain pin {{
    type filter hook prerouting priority raw; policy accept;
    iifgroup != {group} accept
    fib saddr . iif oif 0 counter drop
    ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} drop
    ip6 daddr {{ ff00::/8, fe80::/10 }} drop
    ip daddr {resolver} udp dport 53 notrack
    ip6 daddr {RESOLVER_V6} udp dport 53 notrack
  }}
  chain untracked_answers {{
    type filter hook output priority raw; policy accept;
    oifgroup != {group} accept
    ip saddr {resolver} udp sport 53 notrack
    ip6 saddr {RESOLVER_V6} udp sport 53 notrack
  }}
"
    )
}

/// To the host itself (N3): the resolver, answers to what the host asked, and the ports that are
/// public anyway at the host's public addresses. Nobody but machines and the host reaches the
/// resolver's addresses.
fn input(config: &NetworkConfig) -> String {
    let group = config.interface_group;
    let resolver = config.pool.resolver();
    let connections_max = config.connections_max;
    let mut public = String::new();
    if !config.public_ports.is_empty() {
        let ports: Vec<String> = config.public_ports.iter().map(u16::to_string).collect();
        let ports = ports.join(", ");
        let _infallible = writeln!(
            public,
            "    ip daddr != @closed_v4 tcp dport {{ {ports} }} accept\n    \
             ip6 daddr 2000::/3 ip6 daddr != @closed_v6 tcp dport {{ {ports} }} accept"
        );
    }
    format!(
        "  chain from_machines_to_host {{
    ip daddr {resolver} udp dport 53 accept
    ip6 daddr {RESOLVER_V6} udp dport 53 accept
    ct state established,related accept
    ct state != new counter drop
    add @connections {{ iif ct count over {connections_max} }} counter drop
    ip daddr {resolver} tcp dport 53 accept
    ip6 daddr {RESOLVER_V6} tcp dport 53 accept
    ip daddr {resolver} icmp type echo-request limit rate {PINGS_PER_SECOND}/second accept
    ip6 daddr {RESOLVER_V6} icmpv6 type echo-request limit rate {PINGS_PER_SECOND}/second accept
{public}    counter drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifgroup {group} jump from_machines_to_host
    iifgroup {group} drop
    iif != lo ip daddr {resolver} drop
    iif != lo ip6 daddr {RESOLVER_V6} drop
  }}
"
    )
}

/// Through the host. What is refused between machines looks like an address that nobody has;
/// what is refused to the outside says so at once, because a timeout costs its developer an hour.
fn forward(config: &NetworkConfig) -> String {
    let group = config.interface_group;
    let connections_max = config.connections_max;
    format!(
        "  chain no_such_address {{
    meta nfproto ipv4 limit rate {REJECTS_PER_SECOND}/second reject with icmp host-unreachable
    meta nfproto ipv6 limit rate {REJECTS_PER_SECOND}/second reject with icmpv6 no-route
    drop
  }}
  chain prohibited {{
    counter
    limit rate {REJECTS_PER_SECOND}/second reject with icmpx admin-prohibited
    drop
  }}
  chain between_machines {{
    ip6 saddr & ffff:ffff:ffff:: . ip6 daddr & ffff:ffff:ffff:: @{SAME_NETWORK} accept
    counter goto no_such_address
  }}
  chain from_machines {{
    ct state established,related accept
    ct state != new counter drop
    add @connections {{ iif ct count over {connections_max} }} counter drop
    oifgroup {group} goto between_machines
    ip daddr @closed_v4 ip daddr != @opened_v4 goto prohibited
    ip6 daddr != 2000::/3 ip6 daddr != @opened_v6 goto prohibited
    ip6 daddr @closed_v6 ip6 daddr != @opened_v6 goto prohibited
    tcp dport 25 goto prohibited
    tcp flags syn tcp option maxseg size set rt mtu
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifgroup {group} goto from_machines
    oifgroup {group} ct state established,related accept
    oifgroup {group} counter drop
  }}
"
    )
}

fn nat(config: &NetworkConfig) -> String {
    let group = config.interface_group;
    let pool = config.pool.prefix();
    format!(
        "  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifgroup != {group} oif != lo masquerade fully-random
    ip6 saddr fdaa::/16 oifgroup != {group} oif != lo masquerade fully-random
  }}
"
    )
}
