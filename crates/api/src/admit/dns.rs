//! Names of a machine and where it asks for those of others (contract 1.13).
//!
//! Never asks for one.

use std::net::IpAddr;

use perch_types::machine_config::{DnsConfig, DnsOption};

use super::refuse;
use crate::reply::Failure;

/// Resolvers: a resolver library reads no more of them.
const NAMESERVERS_MAX: usize = 3;
/// Domains to search.
const SEARCHES_MAX: usize = 16;
/// Options.
const OPTIONS_MAX: usize = 16;
/// The longest name or value of an option.
const OPTION_BYTES_MAX: usize = 32;
/// The longest host name: the kernel's, and a label's of DNS.
const HOSTNAME_BYTES_MAX: usize = 63;
/// The longest name of DNS.
const NAME_BYTES_MAX: usize = 253;

/// Checks `config.dns`.
pub(super) fn check(dns: &DnsConfig) -> Result<(), Failure> {
    at_most("config.dns.nameservers", dns.nameservers.len(), NAMESERVERS_MAX)?;
    for (index, server) in dns.nameservers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let shown = shown(server);
            return refuse(format!(
                "config.dns.nameservers[{index}]: `{shown}` is not an IP address"
            ));
        }
    }
    at_most("config.dns.searches", dns.searches.len(), SEARCHES_MAX)?;
    for (index, search) in dns.searches.iter().enumerate() {
        name(&format!("config.dns.searches[{index}]"), search)?;
    }
    at_most("config.dns.options", dns.options.len(), OPTIONS_MAX)?;
    for (index, one) in dns.options.iter().enumerate() {
        option(&format!("config.dns.options[{index}]"), one)?;
    }
    if !dns.hostname.is_empty() {
        let path = "config.dns.hostname";
        name(path, &dns.hostname)?;
        if dns.hostname.len() > HOSTNAME_BYTES_MAX {
            let bytes = dns.hostname.len();
            return refuse(format!("{path}: {bytes} bytes are more than {HOSTNAME_BYTES_MAX}"));
        }
    }
    if !dns.hostname_fqdn.is_empty() {
        name("config.dns.hostname_fqdn", &dns.hostname_fqdn)?;
    }
    Ok(())
}

fn at_most(path: &str, count: usize, max: usize) -> Result<(), Failure> {
    if count > max {
        return refuse(format!("{path}: {count} are more than {max}"));
    }
    Ok(())
}

/// Checks a name of DNS, which may end with a dot.
fn name(path: &str, name: &str) -> Result<(), Failure> {
    let inner = name.strip_suffix('.').unwrap_or(name);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| {
        (1..=HOSTNAME_BYTES_MAX).contains(&label.len())
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if inner.len() <= NAME_BYTES_MAX && inner.split('.').all(is_label) {
        return Ok(());
    }
    let shown = shown(name);
    refuse(format!(
        "{path}: `{shown}` is not labels of letters, digits and dashes with dots between"
    ))
}

fn option(path: &str, option: &DnsOption) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let word = |text: &str| text.len() <= OPTION_BYTES_MAX && text.chars().all(plain);
    let rule = format!("at most {OPTION_BYTES_MAX} letters, digits and dashes");
    if option.name.is_empty() {
        return refuse(format!("{path}.name: is missing"));
    }
    for (key, text) in [("name", &option.name), ("value", &option.value)] {
        if !word(text) {
            return refuse(format!("{path}.{key}: `{}` is not {rule}", shown(text)));
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
