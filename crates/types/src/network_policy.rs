//! Network policies of an app (contract 1.11): what its machines may reach and be reached at.
//!
//! Never a rule of a firewall: hosts make those. Without a rule in a direction everything is as the
//! machine's network is; with one nothing passes in it but what rules allow.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::directory::Document;
use crate::id::{AppName, MachineId, OrgSlug};
use crate::time::Timestamp;

/// Policies of one app.
pub const POLICIES_MAX: usize = 32;
/// Rules of one policy.
pub const RULES_MAX: usize = 16;
/// Ports of one rule.
pub const PORTS_MAX: usize = 32;
/// Machines, or labels, that one selector names.
pub const SELECTED_MAX: usize = 64;
/// The longest name in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Body of a policy that is made, or changed when it has an id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetNetworkPolicy {
    /// Which to change; nothing makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A name to tell it from others.
    pub name: String,
    /// Whose traffic it is about.
    pub selector: PolicySelector,
    /// What may pass.
    pub rules: Vec<PolicyRule>,
}

/// Machines of the app: exactly one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicySelector {
    /// All of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
    /// Those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<SelectedMachine>>,
    /// Those that have all of these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A machine that a policy is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectedMachine {
    /// Its id.
    pub id: String,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// Let it pass.
    #[default]
    Allow,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDirection {
    /// To the machine.
    #[default]
    Ingress,
    /// From the machine.
    Egress,
}

/// Over what.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PolicyProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl PolicyProtocol {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What may pass in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyRule {
    /// What the rule does.
    pub action: PolicyAction,
    /// Which way.
    pub direction: PolicyDirection,
    /// At which ports of the side that is reached.
    pub ports: Vec<PolicyPort>,
}

/// A port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct PolicyPort {
    /// Over what.
    pub protocol: PolicyProtocol,
    /// Its number, from 1 on.
    pub port: u16,
}

/// A policy as it is kept and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whose traffic it is about.
    pub selector: PolicySelector,
    /// What may pass.
    pub rules: Vec<PolicyRule>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What every key of an app's policies starts with.
#[must_use]
pub fn prefix(org: &OrgSlug, app: &AppName) -> String {
    format!("{}{org}/{app}/", NetworkPolicy::PREFIX)
}

impl Document for NetworkPolicy {
    type Key = (OrgSlug, AppName, String);
    const PREFIX: &'static str = "network_policies/";
    const PARTS: usize = 3;

    fn key((org, app, id): &Self::Key) -> String {
        format!("{}{id}", prefix(org, app))
    }
}

/// What may pass to and from one machine; nothing said is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// To the machine.
    pub ingress: Option<BTreeSet<PolicyPort>>,
    /// From the machine.
    pub egress: Option<BTreeSet<PolicyPort>>,
}

impl Allowed {
    /// Puts an app's policies together for one machine.
    #[must_use]
    pub fn of(
        policies: &[NetworkPolicy],
        machine: &MachineId,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        let mut allowed = Self::default();
        for policy in policies.iter().filter(|policy| policy.selector.selects(machine, labels)) {
            for rule in &policy.rules {
                let direction = match rule.direction {
                    PolicyDirection::Ingress => &mut allowed.ingress,
                    PolicyDirection::Egress => &mut allowed.egress,
                };
                direction.get_or_insert_default().extend(&rule.ports);
            }
        }
        allowed
    }

    /// Returns whether everything may pass.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

impl PolicySelector {
    fn selects(&self, machine: &MachineId, labels: &BTreeMap<String, String>) -> bool {
        let named = self.machines.iter().flatten().any(|it| it.id == machine.as_str());
        let labelled = self.metadata.as_ref().is_some_and(|wanted| {
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        self.all == Some(true) || named || labelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(selector: serde_json::Value, rules: &[(PolicyDirection, u16)]) -> NetworkPolicy {
        let rule = |(direction, port): &(PolicyDirection, u16)| PolicyRule {
            direction: *direction,
            ports: vec![PolicyPort { port: *port, ..PolicyPort::default() }],
            ..PolicyRule::default()
        };
        NetworkPolicy {
            id: "np_1".to_owned(),
            name: "a".to_owned(),
            selector: serde_json::from_value(selector).unwrap(),
            rules: rules.iter().map(rule).collect(),
            created_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        }
    }

    #[test]
    fn policies_add_up_for_the_machines_that_they_select() {
        use PolicyDirection::{Egress, Ingress};
        let machine = MachineId::from_bits(7);
        let labels = BTreeMap::from([
            ("role".to_owned(), "db".to_owned()),
            ("tier".to_owned(), "one".to_owned()),
        ]);
        let ports = |policies: &[NetworkPolicy]| {
            let allowed = Allowed::of(policies, &machine, &labels);
            let shown = |direction: Option<BTreeSet<PolicyPort>>| {
                direction.map(|ports| ports.iter().map(|it| it.port).collect::<Vec<_>>())
            };
            (shown(allowed.ingress), shown(allowed.egress))
        };
        let all = serde_json::json!({"all": true});
        let this = serde_json::json!({"machines": [{"id": "00000000000007"}]});
        let other = serde_json::json!({"machines": [{"id": "00000000000008"}]});
        let both = serde_json::json!({"metadata": {"role": "db", "tier": "one"}});
        let wrong = serde_json::json!({"metadata": {"role": "db", "tier": "two"}});
        let none = serde_json::json!({"metadata": {}, "machines": [], "all": false});
        assert_eq!(ports(&[]), (None, None));
        assert_eq!(ports(&[policy(all.clone(), &[(Ingress, 80)])]), (Some(vec![80]), None));
        let two = [policy(all, &[(Ingress, 80), (Egress, 53)]), policy(this, &[(Ingress, 22)])];
        assert_eq!(ports(&two), (Some(vec![22, 80]), Some(vec![53])));
        assert_eq!(ports(&[policy(both, &[(Egress, 1)])]), (None, Some(vec![1])));
        for selector in [other, wrong, none] {
            assert_eq!(ports(&[policy(selector, &[(Ingress, 80)])]), (None, None));
        }
    }
}
