//! The text of one machine's own firewall: what its app's network policies leave open.
//!
//! Never judges a packet that the host's table refuses: it only takes away. It lies in the
//! machine's namespace, over which no program in the machine has power, and goes with it.

use std::fmt::Write as _;

use perch_types::network_policy::{Allowed, PolicyPort, PolicyProtocol};

use super::address::{Pool, RESOLVER_V6};

/// The table in the machine's namespace.
const TABLE: &str = "perch_policy";

/// Returns the input of `nft -f -`, which replaces what was there before. The host itself, and so
/// the edge, checks and the resolver, is always reached and reaches the machine.
pub(super) fn ruleset(allowed: &Allowed, pool: Pool) -> String {
    let host = pool.resolver();
    let mut text = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
    let mut chains = String::new();
    let directions = [
        ("ingress", "input", "iif", "saddr", &allowed.ingress, "counter drop"),
        (
            "egress",
            "output",
            "oif",
            "daddr",
            &allowed.egress,
            "counter reject with icmpx admin-prohibited",
        ),
    ];
    for (chain, hook, interface, side, ports, otherwise) in directions {
        let Some(ports) = ports else { continue };
        let mut open = String::new();
        for protocol in [PolicyProtocol::Tcp, PolicyProtocol::Udp] {
            let numbers = numbers(ports.iter(), protocol);
            if !numbers.is_empty() {
                let word = protocol.as_str();
                let _infallible =
                    writeln!(open, "    {word} dport {{ {} }} accept", numbers.join(", "));
            }
        }
        let _infallible = writeln!(
            chains,
            "  chain {chain} {{
    type filter hook {hook} priority filter; policy drop;
    {interface} lo accept
    ct state established,related accept
    ip {side} {host} accept
    ip6 {side} {RESOLVER_V6} accept
{open}    {otherwise}
  }}"
        );
    }
    let _infallible = write!(text, "table inet {TABLE} {{\n{chains}}}\n");
    text
}

fn numbers<'a>(
    ports: impl Iterator<Item = &'a PolicyPort>,
    protocol: PolicyProtocol,
) -> Vec<String> {
    ports.filter(|it| it.protocol == protocol).map(|it| it.port.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_direction_with_a_rule_is_closed_but_for_it() {
        let port = |protocol, port| PolicyPort { protocol, port };
        let allowed = Allowed {
            ingress: Some(BTreeSet::from([
                port(PolicyProtocol::Tcp, 443),
                port(PolicyProtocol::Tcp, 80),
                port(PolicyProtocol::Udp, 53),
            ])),
            egress: None,
        };
        insta::assert_snapshot!(ruleset(&allowed, Pool::default()), @"
        table inet perch_policy {}
        delete table inet perch_policy
        table inet perch_policy {
          chain ingress {
            type filter hook input priority filter; policy drop;
            iif lo accept
            ct state established,related accept
            ip saddr 10.209.0.1 accept
            ip6 saddr fdaa::3 accept
            tcp dport { 80, 443 } accept
            udp dport { 53 } accept
            counter drop
          }
        }
        ");
        let closed = Allowed { ingress: None, egress: Some(BTreeSet::new()) };
        let text = ruleset(&closed, Pool::default());
        assert!(text.contains("chain egress") && !text.contains("dport"), "{text}");
        assert!(!text.contains("chain ingress"), "{text}");
    }
}
