//! The public port that a connection came to: which one that is, and whose.
//!
//! Never says what is done there: that is for the app's port to say.

use std::sync::Arc;
use std::time::Duration;

use perch_types::ports::{PUBLIC_HTTP_PORT, PUBLIC_HTTPS_PORT};
use perch_types::service::{Handler, Port, Protocol, Service};

use crate::Shared;
use crate::live::{AppKey, Target};

/// What no app can list.
const NOWHERE: u16 = 0;

/// A public port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gate {
    /// What apps are told.
    pub(crate) told: u16,
    /// What their services call it.
    pub(crate) public: u16,
    /// The apps that have claimed it; without any it is everybody's.
    holders: Option<Arc<[AppKey]>>,
}

impl Gate {
    /// The port of plain HTTP for all apps, wherever it is bound.
    pub(crate) const fn http(bound: u16) -> Self {
        Self { told: bound, public: PUBLIC_HTTP_PORT, holders: None }
    }

    /// The port of TLS for all apps, wherever it is bound.
    pub(crate) const fn https(bound: u16) -> Self {
        Self { told: bound, public: PUBLIC_HTTPS_PORT, holders: None }
    }

    /// A port that some apps have claimed.
    pub(crate) const fn claimed(port: u16, holders: Arc<[AppKey]>) -> Self {
        Self { told: port, public: port, holders: Some(holders) }
    }

    /// Returns whether no app has it to itself.
    pub(crate) const fn is_everybodys(&self) -> bool {
        self.holders.is_none()
    }

    /// Returns whether who comes here may be led to an app, or to nobody's name.
    pub(crate) fn admits(&self, app: Option<&AppKey>) -> bool {
        match &self.holders {
            None => true,
            Some(holders) => app.is_some_and(|app| holders.contains(app)),
        }
    }

    /// Returns the one app that has claimed it: whom a client wants that says nothing.
    pub(crate) fn only(&self) -> Option<&AppKey> {
        match self.holders.as_deref() {
            Some([only]) => Some(only),
            _ => None,
        }
    }

    /// Returns at which public port an app answers what another app has sent on to it: at this one,
    /// if it lists that; else at the usual one of HTTPS or of HTTP, or at the first that it lists.
    /// What came in the clear never goes to where the app ends TLS, but nowhere.
    pub(crate) fn sent_on(&self, machines: &[Arc<Target>], over_tls: bool) -> u16 {
        let ports = || {
            let services = machines.iter().flat_map(|target| &target.record.services);
            let ports = services.flat_map(|service| &service.ports);
            ports.filter(|port| !port.is_raw() && !port.range().is_empty())
        };
        let fits = |port: &&Port| over_tls || !port.handlers.contains(&Handler::Tls);
        let usual = if over_tls { PUBLIC_HTTPS_PORT } else { PUBLIC_HTTP_PORT };
        for wanted in [self.public, usual] {
            if ports().filter(fits).any(|port| port.range().contains(&wanted)) {
                return wanted;
            }
        }
        ports().find(fits).map_or(NOWHERE, |port| *port.range().start())
    }

    /// Returns what an app's port says; of whatever machine says it first, as all of a release that
    /// list it say the same. Not all may list it.
    pub(crate) fn said<T>(
        &self,
        shared: &Shared,
        app: &AppKey,
        read: impl FnOnce(&Port) -> T,
    ) -> Option<T> {
        let machines = shared.live.machines_of(app);
        let machines = machines.as_deref().unwrap_or_default();
        let here = machines.iter().flat_map(|target| &target.record.services);
        if let Some(port) = self.listed(here) {
            return Some(read(port));
        }
        // Perhaps it has some on other hosts that do.
        let view = shared.view.load();
        let records = view.machines_of(&app.org, &app.name);
        self.listed(records.flat_map(|record| &record.services)).map(read)
    }

    /// Returns this port as the first service has it that lists it.
    fn listed<'a>(&self, services: impl Iterator<Item = &'a Service>) -> Option<&'a Port> {
        let mut ports = services
            .filter(|service| service.protocol == Protocol::Tcp)
            .flat_map(|service| &service.ports);
        ports.find(|port| port.range().contains(&self.public))
    }
}

/// Waits until the host has said what machines there are, and at most so long.
pub(crate) async fn known(shared: &Shared, limit: Duration) {
    if shared.live.is_known() {
        return;
    }
    let mut changes = shared.live.changes();
    let known = async {
        while !shared.live.is_known() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // If it does not come, apps have no machine that is known.
    tokio::time::timeout(limit, known).await.ok();
}

#[cfg(test)]
mod tests {
    use perch_types::{MachineState, OrgSlug};
    use tokio::time::Instant;

    use super::*;
    use crate::live::Load;
    use crate::live::tests::record;

    fn app(name: &str) -> AppKey {
        AppKey { org: OrgSlug::personal(), name: name.parse().unwrap() }
    }

    #[test]
    fn e1_a_claimed_port_leads_to_those_who_claimed_it() {
        let all = Gate::https(8443);
        let one = Gate::claimed(9000, Arc::from([app("web")]));
        let two = Gate::claimed(9000, Arc::from([app("web"), app("other")]));
        for (gate, asked, want) in [
            (&all, Some("web"), true),
            (&all, None, true),
            (&one, Some("web"), true),
            (&one, Some("other"), false),
            (&one, None, false),
            (&two, Some("other"), true),
            (&two, Some("third"), false),
            (&two, None, false),
        ] {
            assert_eq!(gate.admits(asked.map(app).as_ref()), want, "{gate:?} {asked:?}");
        }
        assert_eq!((all.told, all.public, one.told, one.public), (8443, 443, 9000, 9000));
        assert_eq!((all.only(), one.only(), two.only()), (None, Some(&app("web")), None));
        assert!(all.is_everybodys() && !one.is_everybodys());
    }

    #[test]
    fn what_is_sent_on_goes_to_the_same_port_or_to_one_that_the_other_app_has() {
        let machine = |ports: &str| {
            let mut record = record(1, "other", MachineState::Started);
            let service = format!(r#"[{{"internal_port":1,"ports":{ports}}}]"#);
            record.services = serde_json::from_str(&service).unwrap();
            Arc::new(Target { record, load: Arc::new(Load::default()), since: Instant::now() })
        };
        let gate = Gate::claimed(8080, Arc::from([app("web")]));
        let both = r#"[{"port":80,"handlers":["http"]},{"port":443,"handlers":["tls","http"]}]"#;
        for (ports, in_the_clear, over_tls) in [
            (r#"[{"port":80,"handlers":["http"]},{"port":8080,"handlers":["http"]}]"#, 8080, 8080),
            (r#"[{"start_port":8079,"end_port":8081,"handlers":["http"]}]"#, 8080, 8080),
            (both, 80, 443),
            (r#"[{"port":7000},{"port":80,"handlers":["http"]}]"#, 80, 80),
            (r#"[{"port":9443,"handlers":["tls","http"]}]"#, NOWHERE, 9443),
            (r#"[{"port":8080,"handlers":["tls","http"]}]"#, NOWHERE, 8080),
            (r#"[{"port":8080,"handlers":["tls","http"]},{"port":80}]"#, NOWHERE, 8080),
            (
                r#"[{"port":8080,"handlers":["tls","http"]},{"port":81,"handlers":["http"]}]"#,
                81,
                8080,
            ),
            (r#"[{"port":9000,"handlers":["http"]}]"#, 9000, 9000),
            (r#"[{"port":8080}]"#, NOWHERE, NOWHERE),
            ("[]", NOWHERE, NOWHERE),
        ] {
            let machines = [machine(ports)];
            let found = [false, true].map(|is_secure| gate.sent_on(&machines, is_secure));
            assert_eq!(found, [in_the_clear, over_tls], "{ports}");
        }
        assert_eq!(Gate::http(8080).sent_on(&[machine(both)], false), 80);
    }
}
