//! From where an organization lets requests be sent on to its apps (`fly-replay`, contract 4.3).
//!
//! Never the word of the one that sends a request on: who gets it says whether it may come.

use serde::{Deserialize, Serialize};

use crate::OrgSlug;
use crate::directory::{AppDoc, Document};

/// Organizations that another one names.
pub const SOURCES_MAX: usize = 64;

/// From where requests may be sent on to an organization's apps, beside their own network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaySources {
    /// Whether the organization's own apps may send requests on to one another over the borders of
    /// their networks.
    #[serde(default)]
    pub allow_all_cross_network_replays: bool,
    /// Other organizations whose apps may send requests on to this one's.
    #[serde(default)]
    pub allowed_replay_source_org_slugs: Vec<OrgSlug>,
}

impl Document for ReplaySources {
    type Key = (OrgSlug,);
    const PREFIX: &'static str = "replay_sources/";
    const PARTS: usize = 1;

    fn key((org,): &Self::Key) -> String {
        format!("{}{org}", Self::PREFIX)
    }
}

impl ReplaySources {
    /// Returns whether an app may send requests on to one of the organization that says this.
    #[must_use]
    pub fn allow(&self, from: &AppDoc, to: &AppDoc) -> bool {
        if from.org == to.org {
            from.network == to.network || self.allow_all_cross_network_replays
        } else {
            self.allowed_replay_source_org_slugs.contains(&from.org)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    fn app(org: &str, network: &str) -> AppDoc {
        AppDoc {
            id: "app_one".to_owned(),
            number: 1,
            name: "web".parse().unwrap(),
            org: org.parse().unwrap(),
            network: network.to_owned(),
            network_id: 1,
            role: None,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn requests_come_from_the_own_network_and_from_where_the_organization_says() {
        let none = ReplaySources::default();
        let networks =
            ReplaySources { allow_all_cross_network_replays: true, ..ReplaySources::default() };
        let other = ReplaySources {
            allowed_replay_source_org_slugs: vec!["other".parse().unwrap()],
            ..ReplaySources::default()
        };
        let to = app("personal", "default");
        for (org, network, want) in [
            // Nothing said, networks, one other organization.
            ("personal", "default", [true, true, true]),
            ("personal", "apart", [false, true, false]),
            // Networks of two organizations have nothing to do with each other.
            ("other", "default", [false, false, true]),
            ("other", "apart", [false, false, true]),
            ("third", "default", [false, false, false]),
        ] {
            let from = app(org, network);
            let said = [&none, &networks, &other].map(|sources| sources.allow(&from, &to));
            assert_eq!(said, want, "{org} {network}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_allowed() {
        let read: ReplaySources = serde_json::from_str("{}").unwrap();
        assert_eq!(read, ReplaySources::default());
        assert_eq!(ReplaySources::key(&(OrgSlug::personal(),)), "replay_sources/personal");
    }
}
