//! The answer to one question about a name of the platform, from the view alone.
//!
//! Never waits, never draws lots: order is by id, and turning it is the server's business.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use perch_types::address::network_of;
use perch_types::directory::MachineRecord;
use perch_types::view::View;
use perch_types::{AppName, MachineState, OrgSlug, Region};

/// The metadata key that names a machine's process group.
const PROCESS_GROUP: [&str; 2] = ["fly_process_group", "process_group"];

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// The organization whose names it may know.
    pub org: OrgSlug,
    /// The private network it is in.
    pub network_id: u32,
    /// Where it runs.
    pub region: Region,
}

impl Asking {
    /// Returns who asks from an address, `None` if the view knows no machine there.
    #[must_use]
    pub fn at(view: &View, source: IpAddr) -> Option<Self> {
        let machine = view.machine_at(source.to_canonical())?;
        Some(Self {
            org: machine.org.clone(),
            network_id: network_of(machine.private_ip)?,
            region: machine.region.clone(),
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AAAA.
    Address,
    /// TXT.
    Text,
    /// PTR.
    Pointer,
    /// Any other type.
    Other,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// AAAA records.
    Addresses(Vec<Ipv6Addr>),
    /// One TXT record.
    Text(String),
    /// One PTR record.
    Pointer(String),
    /// The name is there and has no such record.
    NoData,
    /// There is no such name.
    NoName,
    /// Not a name of the platform.
    Forward,
}

/// Returns the answer to a name given by its labels in lower case, without the root's
/// (contract 5.2).
#[must_use]
pub fn answer(view: &View, asking: Option<&Asking>, labels: &[&str], kind: Kind) -> Option<Answer> {
    match labels {
        [rest @ .., "internal"] => asking.map(|asking| internal(view, asking, rest, kind)),
        // A private address of the edge, for which there is no record yet.
        [.., "flycast"] => Some(Answer::NoName),
        [.., "arpa"] => reverse(view, asking, labels, kind),
        // Names that mean something only on the machine or its network (RFC 6761, RFC 6762).
        [] | [_] | [.., "local" | "localhost" | "invalid" | "test" | "onion"] => {
            Some(Answer::NoName)
        }
        _ => Some(Answer::Forward),
    }
}

fn internal(view: &View, asking: &Asking, labels: &[&str], kind: Kind) -> Answer {
    let scope = Scope { view, asking };
    match labels {
        [] => Answer::NoData,
        ["_apps"] => text(kind, || scope.apps()),
        ["_peer"] => text(kind, String::new),
        ["_instances"] => text(kind, || scope.instances(false)),
        ["all", "_instances"] => text(kind, || scope.instances(true)),
        [rest @ .., app] => match app.parse() {
            Ok(app) if scope.has(&app) => scope.of_app(&app, rest, kind),
            _ => Answer::NoName,
        },
    }
}

/// What one machine may know.
struct Scope<'a> {
    view: &'a View,
    asking: &'a Asking,
}

impl<'a> Scope<'a> {
    fn has(&self, app: &AppName) -> bool {
        self.view.app(app).is_some_and(|app| {
            app.org == self.asking.org && app.network_id == self.asking.network_id
        }) || self.registered(app).next().is_some()
    }

    /// The machines of an app that have names, whatever their state.
    fn registered(&self, app: &AppName) -> impl Iterator<Item = &'a MachineRecord> {
        let machines = self.view.machines_of(&self.asking.org, app);
        machines.filter(|machine| self.sees(machine))
    }

    fn sees(&self, machine: &MachineRecord) -> bool {
        machine.org == self.asking.org
            && network_of(machine.private_ip) == Some(self.asking.network_id)
            && !machine.skip_dns
            && machine.state != MachineState::Destroyed
    }

    fn of_app(&self, app: &AppName, labels: &[&str], kind: Kind) -> Answer {
        let addresses = |wanted: &dyn Fn(&MachineRecord) -> bool| {
            addresses_of(kind, self.registered(app).filter(|machine| wanted(machine)))
        };
        match labels {
            [] | ["global"] => addresses(&|_| true),
            ["vms"] => text(kind, || vms(self.registered(app).filter(|m| started(m)))),
            ["all", "vms"] => text(kind, || vms(self.registered(app))),
            ["regions"] => text(kind, || regions(self.registered(app).filter(|m| started(m)))),
            ["all", "regions"] => text(kind, || regions(self.registered(app))),
            [top, "nearest", "of"] => match top.strip_prefix("top").map(str::parse) {
                Some(Ok(count)) => self.nearest(kind, app, count),
                _ => Answer::NoName,
            },
            [id, "vm"] => named(addresses(&|machine| machine.id.as_str() == *id)),
            [group, "process"] => {
                addresses(&|machine| PROCESS_GROUP.iter().any(|key| has_value(machine, key, group)))
            }
            [value @ .., key, "kv", "_metadata"] if !value.is_empty() => {
                let value = value.join(".");
                addresses(&|machine| {
                    machine.metadata.keys().any(|known| known.eq_ignore_ascii_case(key))
                        && has_value(machine, key, &value)
                })
            }
            [region] => named(addresses(&|machine| machine.region.as_str() == *region)),
            _ => Answer::NoName,
        }
    }

    /// Those of the asking machine's region, then the others by the name of their region.
    fn nearest(&self, kind: Kind, app: &AppName, count: usize) -> Answer {
        let mut machines: Vec<_> = self.registered(app).filter(|m| started(m)).collect();
        machines.sort_by_key(|machine| {
            (machine.region != self.asking.region, machine.region.clone(), machine.id.clone())
        });
        addresses_of(kind, machines.into_iter().take(count))
    }

    fn apps(&self) -> String {
        let apps = self
            .view
            .apps()
            .filter(|app| app.org == self.asking.org && app.network_id == self.asking.network_id)
            .map(|app| app.name.as_str());
        apps.collect::<Vec<_>>().join(",")
    }

    fn instances(&self, all: bool) -> String {
        let machines = self.view.machines().filter(|m| self.sees(m) && (all || started(m)));
        let entries = machines.map(|machine| {
            let MachineRecord { id, app, private_ip, region, .. } = machine;
            format!("instance={id},app={app},ip={private_ip},region={region}")
        });
        entries.collect::<Vec<_>>().join(";")
    }
}

/// Only started machines have addresses in names.
fn addresses_of<'a>(kind: Kind, machines: impl Iterator<Item = &'a MachineRecord>) -> Answer {
    let found: Vec<_> =
        machines.filter(|machine| started(machine)).map(|machine| machine.private_ip).collect();
    match kind {
        _ if found.is_empty() => Answer::NoData,
        Kind::Address => Answer::Addresses(found),
        Kind::Text | Kind::Pointer | Kind::Other => Answer::NoData,
    }
}

fn started(machine: &MachineRecord) -> bool {
    machine.state == MachineState::Started
}

/// Names are compared without case (RFC 4343), so values are too.
fn has_value(machine: &MachineRecord, key: &str, value: &str) -> bool {
    machine
        .metadata
        .iter()
        .any(|(known, held)| known.eq_ignore_ascii_case(key) && held.eq_ignore_ascii_case(value))
}

fn text(kind: Kind, compute: impl FnOnce() -> String) -> Answer {
    if kind == Kind::Text { Answer::Text(compute()) } else { Answer::NoData }
}

/// A name that is made of what was found is not there if nothing was.
fn named(answer: Answer) -> Answer {
    if answer == Answer::NoData { Answer::NoName } else { answer }
}

fn vms<'a>(machines: impl Iterator<Item = &'a MachineRecord>) -> String {
    let entries = machines.map(|machine| format!("{} {}", machine.id, machine.region));
    entries.collect::<Vec<_>>().join(",")
}

fn regions<'a>(machines: impl Iterator<Item = &'a MachineRecord>) -> String {
    let regions: BTreeSet<_> = machines.map(|machine| machine.region.as_str()).collect();
    regions.into_iter().collect::<Vec<_>>().join(",")
}

/// Reverse names of private addresses stay here (RFC 6303); those of machines that the asking
/// one may know have an answer.
fn reverse(view: &View, asking: Option<&Asking>, labels: &[&str], kind: Kind) -> Option<Answer> {
    let Some(address) = reverse_address(labels) else {
        let private = matches!(
            labels,
            [.., "d", "f", "ip6", "arpa"] | [.., "10", "in-addr", "arpa"] | [.., "home", "arpa"]
        );
        return Some(if private { Answer::NoName } else { Answer::Forward });
    };
    if crate::upstream::is_public(address) {
        return Some(Answer::Forward);
    }
    let asking = asking?;
    let scope = Scope { view, asking };
    Some(match view.machine_at(address).filter(|machine| scope.sees(machine)) {
        Some(machine) if kind == Kind::Pointer => {
            Answer::Pointer(format!("{}.vm.{}.internal.", machine.id, machine.app))
        }
        Some(_) => Answer::NoData,
        None => Answer::NoName,
    })
}

fn reverse_address(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [octets @ .., "in-addr", "arpa"] => {
            let octets: Result<Vec<u8>, _> = octets.iter().rev().map(|text| text.parse()).collect();
            <[u8; 4]>::try_from(octets.ok()?).ok().map(IpAddr::from)
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => nibbles
            .iter()
            .rev()
            .try_fold(0_u128, |bits, nibble| {
                let digit = u128::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
                Some((bits << 4) | digit)
            })
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
