//! What a machine is called and where it asks for names: the texts of three files below `/etc`.
//!
//! Never writes them: init does.

use std::fmt::Write as _;

use perch_types::MachineId;
use perch_types::machine_config::{DnsConfig, MachineConfig};

use super::guest::Surroundings;

/// The name of the machine's address in its private network (contract 5.4).
const LOCAL_6PN: &str = "fly-local-6pn";
/// The name of the address that a program listens at for datagrams from outside (contract 5.4).
const GLOBAL_SERVICES: &str = "fly-global-services";

/// Returns a machine's host name: its id unless it was given one.
#[must_use]
pub fn hostname(id: &MachineId, config: &MachineConfig) -> String {
    match &config.dns {
        Some(DnsConfig { hostname, .. }) if !hostname.is_empty() => {
            hostname.strip_suffix('.').unwrap_or(hostname).to_owned()
        }
        _ => id.to_string(),
    }
}

/// Returns the text of `/etc/hosts`. The first name of a line is the canonical one.
#[must_use]
pub fn hosts(id: &MachineId, config: &MachineConfig, around: &Surroundings) -> String {
    let fqdn = config.dns.as_ref().map(|dns| dns.hostname_fqdn.as_str()).unwrap_or_default();
    let mut own: Vec<String> = Vec::new();
    for name in
        [fqdn.strip_suffix('.').unwrap_or(fqdn).to_owned(), hostname(id, config), id.to_string()]
    {
        if !name.is_empty() && !own.contains(&name) {
            own.push(name);
        }
    }
    let own = own.join(" ");
    let Surroundings { private_ip, private_ipv4, .. } = around;
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         {private_ip}\t{LOCAL_6PN}\n\
         {private_ipv4}\t{GLOBAL_SERVICES}\n\
         {private_ipv4}\t{own}\n"
    )
}

/// Returns the text of `/etc/resolv.conf`: the platform's resolvers unless others were named.
#[must_use]
pub fn resolv_conf(config: &MachineConfig, around: &Surroundings) -> String {
    let none = DnsConfig::default();
    let dns = config.dns.as_ref().unwrap_or(&none);
    let mut servers = dns.nameservers.clone();
    if servers.is_empty() {
        servers.extend(around.resolvers.iter().map(ToString::to_string));
    }
    let mut text = String::new();
    // Writing to a String has no way to go wrong.
    for server in &servers {
        let _infallible = writeln!(text, "nameserver {server}");
    }
    if !dns.searches.is_empty() {
        let _infallible = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for option in &dns.options {
        let _infallible = match option.value.as_str() {
            "" => writeln!(text, "options {}", option.name),
            value => writeln!(text, "options {}:{value}", option.name),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::guest::tests::around;

    fn config(dns: &str) -> MachineConfig {
        serde_json::from_str(&format!(r#"{{"dns": {dns}}}"#)).unwrap()
    }

    #[test]
    fn names_are_the_machines_id_unless_others_were_given() {
        let id: MachineId = "00000000000abc".parse().unwrap();
        for (dns, name, line) in [
            ("null", "00000000000abc", "00000000000abc"),
            (r#"{"hostname": "db"}"#, "db", "db 00000000000abc"),
            (
                r#"{"hostname": "db", "hostname_fqdn": "db.example.com."}"#,
                "db",
                "db.example.com db 00000000000abc",
            ),
            (
                r#"{"hostname_fqdn": "db.example.com"}"#,
                "00000000000abc",
                "db.example.com 00000000000abc",
            ),
        ] {
            let config = config(dns);
            assert_eq!(hostname(&id, &config), name);
            let hosts = hosts(&id, &config, &around());
            assert_eq!(hosts.lines().last(), Some(format!("10.209.0.16\t{line}").as_str()));
            for line in ["fdaa::1:2\tfly-local-6pn", "10.209.0.16\tfly-global-services"] {
                assert!(hosts.lines().any(|found| found == line), "{hosts}");
            }
        }
    }

    #[test]
    fn resolvers_are_the_platforms_unless_others_were_named() {
        for (dns, text) in [
            ("null", "nameserver fdaa::3\nnameserver 10.209.0.1\n"),
            (
                r#"{"nameservers": ["9.9.9.9"], "searches": ["a.internal", "b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}"#,
                "nameserver 9.9.9.9\nsearch a.internal b\noptions ndots:2\noptions rotate\n",
            ),
            (
                r#"{"searches": ["internal"]}"#,
                "nameserver fdaa::3\nnameserver 10.209.0.1\nsearch internal\n",
            ),
        ] {
            assert_eq!(resolv_conf(&config(dns), &around()), text);
        }
    }
}
