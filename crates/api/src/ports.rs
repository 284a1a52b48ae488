//! Raw ports of apps (contract 4.1): claimed with the version of a machine that names them, and
//! released when none does any more.
//!
//! Never opens one: the edge does. A claim is written in one transaction with the placement, by
//! compare-and-set, so that a port has one app, and a refused request leaves no claim behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perch_store::{Expected, Op, Versioned, compare, delete_doc, delete_op, list_docs, put_op};
use perch_types::directory::{AppDoc, PlacementDoc};
use perch_types::ports::{self, Named, PortClaim, RAW_PORTS_MAX, RawPort};
use perch_types::service::Protocol;
use perch_types::{AppName, Code, MachineConfig, MachineId, OrgSlug};
use tokio::sync::MutexGuard;

use crate::config::Shared;
use crate::documents::{self, Beside};
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// Raw ports of one app.
const PORTS_OF_APP_MAX: usize = 64;
/// How long a claim stays that no machine uses: a creation or a change is done by then.
const UNUSED_KEPT: Duration = Duration::from_secs(10 * 60);
/// How old a claim may be without being written anew by a change that names its port. Less than
/// [`UNUSED_KEPT`]: what was written so lately is not released, whatever the collector read before.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// Which ports apps can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRules {
    /// The lowest: the edge may bind none below.
    pub first: u16,
    /// The platform's own, by any protocol.
    pub reserved: BTreeSet<u16>,
}

impl Default for PortRules {
    fn default() -> Self {
        Self { first: 1024, reserved: BTreeSet::from([53, 80, 443]) }
    }
}

impl PortRules {
    /// Refuses a port that no app can have.
    fn check(&self, Named { path, port: (_, port) }: &Named) -> Result<(), Failure> {
        let refuse = |text: String| Err(Failure::new(Code::InvalidValue, text));
        if self.reserved.contains(port) {
            let text =
                format!("{path}.port: {port} is the platform's own without the handler http");
            return refuse(text);
        }
        if *port < self.first {
            let first = self.first;
            return refuse(format!("{path}.port: {port} is not {first} to 65535 without http"));
        }
        Ok(())
    }
}

type Claims = BTreeMap<RawPort, Versioned<PortClaim>>;

/// Takes the turn of those who claim ports, if a configuration names any. It is held until the
/// claims are written; against another api the directory's compares decide.
pub(crate) async fn turn<'a>(
    shared: &'a Shared,
    config: &MachineConfig,
) -> Option<MutexGuard<'a, ()>> {
    match ports::of_config(config).next() {
        Some(_) => Some(shared.claiming.lock().await),
        None => None,
    }
}

/// Adds the claims of the ports that a configuration names to what is written with it.
pub(crate) async fn claim(
    shared: &Shared,
    app: &AppDoc,
    config: &MachineConfig,
    beside: &mut Beside,
) -> Result<(), Failure> {
    let named: Vec<Named> = ports::of_config(config).collect();
    if named.is_empty() {
        return Ok(());
    }
    let claims = all(shared).await?;
    let is_own = |claim: &PortClaim| claim.org == app.org && claim.app_id == app.id;
    let own = claims.values().filter(|it| is_own(&it.document)).count();
    let (mut new, now) = (0, shared.clock.now());
    for it in &named {
        shared.port_rules.check(it)?;
        let expected = match claims.get(&it.port) {
            Some(claim) if !is_own(&claim.document) => return Err(taken(it)),
            Some(claim) => {
                let expected = Expected::Revision(claim.revision);
                if claim.document.claimed_at.plus(FRESH) > now {
                    beside.compares.extend(compare::<PortClaim>(&it.port, expected));
                    continue;
                }
                expected
            }
            None => {
                new += 1;
                Expected::Absent
            }
        };
        let claim = PortClaim {
            org: app.org.clone(),
            app: app.name.clone(),
            app_id: app.id.clone(),
            claimed_at: now,
        };
        beside.compares.extend(compare::<PortClaim>(&it.port, expected));
        beside.ops.push(put_op(&it.port, &claim).map_err(fault("write a port's claim"))?);
    }
    room(&named, own + new, claims.len() + new)
}

/// Refuses more ports than an app, or all of them, may have.
fn room(named: &[Named], of_app: usize, of_all: usize) -> Result<(), Failure> {
    let path = named.first().map_or("config.services", |it| it.path.as_str());
    if of_app > PORTS_OF_APP_MAX {
        let rule = "without the handler http";
        let text = format!(
            "{path}.port: the app would have {of_app} ports {rule}, more than {PORTS_OF_APP_MAX}"
        );
        return Err(Failure::new(Code::InvalidValue, text));
    }
    if of_all > RAW_PORTS_MAX {
        let text = format!("{path}.port: the apps of this server have {RAW_PORTS_MAX} such ports");
        return Err(Failure::new(Code::InsufficientCapacity, text));
    }
    Ok(())
}

/// Says that a port is another app's, and not whose.
fn taken(Named { path, port: (protocol, port) }: &Named) -> Failure {
    let protocol = protocol.as_str();
    let text = format!("{path}.port: another app of this server has {protocol} port {port}");
    Failure::new(Code::PortTaken, text).with_hint("choose another port")
}

async fn all(shared: &Shared) -> Result<Claims, Error> {
    let found = list_docs::<PortClaim>(shared.store.as_ref()).await;
    let found = found.map_err(fault("list claims of ports"))?;
    for unreadable in &found.unreadable {
        tracing::error!(key = unreadable.key, error = %unreadable.error, "claim not readable");
    }
    let documents = found.documents.into_iter();
    Ok(documents.filter_map(|(key, it)| Some((PortClaim::port_of(&key)?, it))).collect())
}

/// Returns the operations that release the ports of an app that is gone.
pub(crate) async fn release_ops(
    store: &dyn perch_store::Store,
    org: &OrgSlug,
    app_id: &str,
) -> Result<Vec<Op>, Error> {
    let found = list_docs::<PortClaim>(store).await.map_err(fault("list claims of ports"))?;
    let own = |claim: &PortClaim| claim.org == *org && claim.app_id == app_id;
    let documents = found.documents.into_iter().filter(|(_, it)| own(&it.document));
    Ok(documents
        .filter_map(|(key, _)| PortClaim::port_of(&key))
        .map(|port| delete_op::<PortClaim>(&port))
        .collect())
}

/// Releases ports that no machine of their app names any more.
pub(crate) async fn collect(
    shared: &Shared,
    placements: &[(OrgSlug, MachineId, PlacementDoc)],
) -> Result<(), Error> {
    let now = shared.clock.now();
    let mut old = all(shared).await?;
    old.retain(|_, claim| claim.document.claimed_at.plus(UNUSED_KEPT) <= now);
    if old.is_empty() {
        return Ok(());
    }
    let apps: BTreeSet<(OrgSlug, AppName)> = old
        .values()
        .map(|claim| (claim.document.org.clone(), claim.document.app.clone()))
        .collect();
    for (org, app) in apps {
        let of_app: Vec<_> =
            placements.iter().filter(|it| it.0 == org && it.2.app == app).collect();
        // What cannot be read may name any of them.
        let Some(used) = used(shared, &of_app).await? else { continue };
        for (port, claim) in &old {
            let is_theirs = (&claim.document.org, &claim.document.app) == (&org, &app);
            if is_theirs && !used.contains(port) {
                release(shared, port, claim).await?;
            }
        }
    }
    Ok(())
}

/// Returns the ports that machines name, those that their hosts say they run included.
async fn used(
    shared: &Shared,
    placements: &[&(OrgSlug, MachineId, PlacementDoc)],
) -> Result<Option<BTreeSet<RawPort>>, Error> {
    let mut used = BTreeSet::new();
    let view = shared.view.load();
    for (org, id, placement) in placements {
        let config = documents::config(shared.store.as_ref(), org, id, placement).await?;
        let Some(config) = config else { return Ok(None) };
        used.extend(ports::of_services(&config.config.services));
        if let Some(machine) = view.machine(id) {
            used.extend(ports::of_services(&machine.services));
        }
    }
    Ok(Some(used))
}

async fn release(
    shared: &Shared,
    port: &(Protocol, u16),
    claim: &Versioned<PortClaim>,
) -> Result<(), Error> {
    let expected = Expected::Revision(claim.revision);
    match delete_doc::<PortClaim>(shared.store.as_ref(), port, expected).await {
        // A machine was asked for in between that names it.
        Err(perch_store::Error::Conflict { .. }) => Ok(()),
        done => done.map(drop).map_err(fault("release a port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_ports_are_nobodys() {
        let rules = PortRules { reserved: BTreeSet::from([4280]), ..PortRules::default() };
        let check = |port| {
            let named = Named { path: "config.services[0].ports[0]".into(), port };
            rules.check(&named).map_err(|failure| failure.error().error.clone())
        };
        check((Protocol::Tcp, 1024)).unwrap();
        check((Protocol::Udp, 65_535)).unwrap();
        for (port, want) in [
            ((Protocol::Tcp, 4280), "4280 is the platform's own"),
            ((Protocol::Udp, 4280), "4280 is the platform's own"),
            ((Protocol::Tcp, 1023), "1023 is not 1024 to 65535"),
        ] {
            assert!(check(port).unwrap_err().contains(want), "{port:?}");
        }
    }
}
