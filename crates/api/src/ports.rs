//! Public ports of apps (contract 4.1): claimed with the version of a machine that names them, and
//! released when none does any more.
//!
//! Never opens one: the edge does. A claim is written in one transaction with the placement, by
//! compare-and-set, so that a port has one app, or those whose clients name them, and a refused
//! request leaves no claim behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perch_store::{
    Compare, Expected, Op, Versioned, compare, delete_doc, delete_op, list_docs, put_doc, put_op,
};
use perch_types::directory::{AppDoc, PlacementDoc};
use perch_types::ports::{
    self, HOLDERS_MAX, Holder, Named, PortClaim, RAW_PORTS_MAX, RESERVED, RawPort,
};
use perch_types::{AppName, Code, MachineConfig, MachineId, OrgSlug, Timestamp};
use tokio::sync::MutexGuard;

use crate::config::Shared;
use crate::documents::{self, Beside};
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// Claimed ports of one app.
const PORTS_OF_APP_MAX: usize = 64;
/// Claimed ports of all apps of one organization: a quarter of those of all.
const PORTS_OF_ORG_MAX: usize = RAW_PORTS_MAX / 4;
/// Places at a shared port that anybody's apps take; those beyond are for organizations that have
/// few.
const PLACES_FREE_MAX: usize = HOLDERS_MAX / 2;
/// Places of such an organization there.
const PLACES_OF_ORG_MAX: usize = 2;
/// How long a claim stays that no machine uses: a creation or a change is done by then.
const UNUSED_KEPT: Duration = Duration::from_secs(10 * 60);
/// How old a claim may be without being written anew by a change that names its port. Less than
/// [`UNUSED_KEPT`]: what was written so lately is not released, whatever the collector read before.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// Which ports no app can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRules {
    /// By any protocol, each with what it is kept for.
    pub reserved: BTreeMap<u16, &'static str>,
}

impl Default for PortRules {
    fn default() -> Self {
        Self { reserved: BTreeMap::from(RESERVED) }
    }
}

impl PortRules {
    /// Refuses a port that no app can have.
    fn check(&self, named: &Named) -> Result<(), Failure> {
        let (path, port) = (&named.path, named.port.1);
        let Some(kept_for) = self.reserved.get(&port) else { return Ok(()) };
        let failure = Failure::new(
            Code::InvalidValue,
            format!("{path}.port: {port} is kept for {kept_for} on this server"),
        );
        Err(match port {
            ports::PUBLIC_HTTP_PORT => failure.with_hint("80 is for tcp with the handler http"),
            ports::PUBLIC_HTTPS_PORT => failure.with_hint("443 is for tcp with the handler tls"),
            _ => failure.with_hint("choose another port"),
        })
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

/// What a claim becomes when an app asks for its port.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// It is written like this.
    Written(PortClaim),
    /// It stays as it is.
    Kept,
    /// The port is another's.
    Taken,
    /// So many share it that no more can.
    Crowded,
}

/// Decides what becomes of a claim.
fn ask(claim: Option<&PortClaim>, app: &Holder, by_name: bool) -> Asked {
    let own = || PortClaim { holder: app.clone(), by_name, others: Vec::new() };
    let Some(claim) = claim else { return Asked::Written(own()) };
    let known = claim.holders().find(|it| it.is_same(app));
    let is_fresh = known.is_some_and(|it| it.claimed_at.plus(FRESH) > app.claimed_at);
    let Some(mut left) = claim.kept(|it| !it.is_same(app)) else {
        let is_as_it_was = is_fresh && claim.by_name == by_name;
        return if is_as_it_was { Asked::Kept } else { Asked::Written(own()) };
    };
    if !(claim.by_name && by_name) {
        return Asked::Taken;
    }
    if is_fresh {
        return Asked::Kept;
    }
    if known.is_none() && !has_place(&left, &app.org) {
        return Asked::Crowded;
    }
    left.others.push(app.clone());
    Asked::Written(left)
}

/// Returns whether one more app of an organization can share a port: none takes all places.
fn has_place(claim: &PortClaim, org: &OrgSlug) -> bool {
    let all = claim.holders().count();
    let of_org = claim.holders().filter(|it| it.org == *org).count();
    all < PLACES_FREE_MAX || (all < HOLDERS_MAX && of_org < PLACES_OF_ORG_MAX)
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
    let asking = Holder {
        org: app.org.clone(),
        app: app.name.clone(),
        app_id: app.id.clone(),
        claimed_at: shared.clock.now(),
    };
    let of_app = Count::of(&claims, &named, |it| it.is_same(&asking));
    let of_org = Count::of(&claims, &named, |it| it.org == asking.org);
    let of_all = Count::of(&claims, &named, |_| true);
    for it in &named {
        shared.port_rules.check(it)?;
        let known = claims.get(&it.port);
        let expected = match known {
            Some(claim) => Expected::Revision(claim.revision),
            None => Expected::Absent,
        };
        let compared = compare::<PortClaim>(&it.port, expected);
        match ask(known.map(|claim| &claim.document), &asking, it.by_name) {
            Asked::Taken => return Err(taken(it)),
            Asked::Crowded => return Err(crowded(it)),
            Asked::Kept => beside.compares.extend(compared),
            Asked::Written(claim) => {
                beside.compares.extend(compared);
                beside.ops.push(put_op(&it.port, &claim).map_err(fault("write a port's claim"))?);
            }
        }
    }
    room(&named, &asking.org, [of_app, of_org, of_all])
}

/// Claimed ports of somebody.
#[derive(Debug, Clone, Copy)]
struct Count {
    had: usize,
    more: usize,
}

impl Count {
    /// Counts those that somebody has, and those of `named` that come to them.
    fn of(claims: &Claims, named: &[Named], is_theirs: impl Fn(&Holder) -> bool) -> Self {
        let has = |claim: &PortClaim| claim.holders().any(&is_theirs);
        let had = claims.values().filter(|it| has(&it.document)).count();
        let is_new = |it: &&Named| claims.get(&it.port).is_none_or(|claim| !has(&claim.document));
        Self { had, more: named.iter().filter(is_new).count() }
    }

    fn together(self) -> usize {
        self.had + self.more
    }

    /// Returns whether they would become too many; what they have already they keep.
    fn is_over(self, most: usize) -> bool {
        self.more > 0 && self.together() > most
    }
}

/// Refuses more ports than an app, its organization, or all of them, may have.
fn room(named: &[Named], org: &OrgSlug, counts: [Count; 3]) -> Result<(), Failure> {
    let path = named.first().map_or("config.services", |it| it.path.as_str());
    let [of_app, of_org, of_all] = counts;
    let rule = "ports of its own";
    if of_app.is_over(PORTS_OF_APP_MAX) {
        let of_app = of_app.together();
        let text = format!(
            "{path}.port: the app would have {of_app} {rule}, more than {PORTS_OF_APP_MAX}"
        );
        return Err(Failure::new(Code::InvalidValue, text));
    }
    if of_org.is_over(PORTS_OF_ORG_MAX) {
        let of_org = of_org.together();
        let text = format!(
            "{path}.port: `{org}` would have {of_org} {rule}, more than {PORTS_OF_ORG_MAX}"
        );
        return Err(Failure::new(Code::InvalidValue, text));
    }
    if of_all.is_over(RAW_PORTS_MAX) {
        let text =
            format!("{path}.port: the apps of this server have {RAW_PORTS_MAX} ports of their own");
        return Err(Failure::new(Code::InsufficientCapacity, text));
    }
    Ok(())
}

/// Says that a port is another app's, and not whose.
fn taken(Named { path, port: (protocol, port), by_name }: &Named) -> Failure {
    let protocol = protocol.as_str();
    let text = format!("{path}.port: another app of this server has {protocol} port {port}");
    let hint = if *by_name {
        "choose another port"
    } else {
        "choose another port; one at which all have the handler tls can be shared"
    };
    Failure::new(Code::PortTaken, text).with_hint(hint)
}

/// Says that too many apps share a port.
fn crowded(Named { path, port: (_, port), .. }: &Named) -> Failure {
    let text = format!("{path}.port: too many apps share port {port} already");
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

/// Returns what releases the ports of an app that is gone, each claim as it was read.
pub(crate) async fn release_ops(
    store: &dyn perch_store::Store,
    org: &OrgSlug,
    app_id: &str,
) -> Result<Vec<(Option<Compare>, Op)>, Error> {
    let found = list_docs::<PortClaim>(store).await.map_err(fault("list claims of ports"))?;
    let is_own = |it: &Holder| it.is(org, app_id);
    let mut all = Vec::new();
    for (key, claim) in found.documents {
        let Some(port) = PortClaim::port_of(&key) else { continue };
        if !claim.document.holders().any(is_own) {
            continue;
        }
        let op = match claim.document.kept(|it| !is_own(it)) {
            Some(left) => put_op(&port, &left).map_err(fault("release a port"))?,
            None => delete_op::<PortClaim>(&port),
        };
        all.push((compare::<PortClaim>(&port, Expected::Revision(claim.revision)), op));
    }
    Ok(all)
}

/// Releases ports that no machine of their app names any more.
pub(crate) async fn collect(
    shared: &Shared,
    placements: &[(OrgSlug, MachineId, PlacementDoc)],
) -> Result<(), Error> {
    let now = shared.clock.now();
    let mut old = all(shared).await?;
    old.retain(|_, claim| claim.document.holders().any(|it| is_old(it, now)));
    if old.is_empty() {
        return Ok(());
    }
    let holders = old.values().flat_map(|claim| claim.document.holders());
    let apps: BTreeSet<(OrgSlug, AppName)> =
        holders.map(|it| (it.org.clone(), it.app.clone())).collect();
    let mut used_by = BTreeMap::new();
    for app in apps {
        let of_app: Vec<_> =
            placements.iter().filter(|it| it.0 == app.0 && it.2.app == app.1).collect();
        let used = used(shared, &of_app).await?;
        used_by.insert(app, used);
    }
    for (port, claim) in &old {
        // What cannot be read may name any of them.
        let is_used = |it: &Holder| {
            let used = used_by.get(&(it.org.clone(), it.app.clone())).and_then(Option::as_ref);
            used.is_none_or(|used| used.contains(port))
        };
        let left = claim.document.kept(|it| !is_old(it, now) || is_used(it));
        if left.as_ref() != Some(&claim.document) {
            release(shared, port, claim, left.as_ref()).await?;
        }
    }
    Ok(())
}

fn is_old(holder: &Holder, now: Timestamp) -> bool {
    holder.claimed_at.plus(UNUSED_KEPT) <= now
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

/// Leaves a port to those who are left, if there are any.
async fn release(
    shared: &Shared,
    port: &RawPort,
    claim: &Versioned<PortClaim>,
    left: Option<&PortClaim>,
) -> Result<(), Error> {
    let (store, expected) = (shared.store.as_ref(), Expected::Revision(claim.revision));
    let done = match left {
        Some(left) => put_doc(store, port, left, expected).await.map(drop),
        None => delete_doc::<PortClaim>(store, port, expected).await.map(drop),
    };
    match done {
        // A machine was asked for in between that names it.
        Err(perch_store::Error::Conflict { .. }) => Ok(()),
        done => done.map_err(fault("release a port")),
    }
}

#[cfg(test)]
mod tests {
    use perch_types::service::Protocol;

    use super::*;

    fn named(port: RawPort) -> Named {
        Named { path: "config.services[0].ports[0]".into(), port, by_name: false }
    }

    fn app_of(org: &str, id: &str) -> Holder {
        Holder {
            org: org.parse().unwrap(),
            app: "web".parse().unwrap(),
            app_id: id.to_owned(),
            claimed_at: Timestamp::from_unix_ms(0),
        }
    }

    #[test]
    fn the_platforms_ports_are_nobodys_and_low_ones_are_not_the_platforms() {
        let mut rules = PortRules::default();
        rules.reserved.insert(4280, "the api");
        for port in [1, 25, 110, 993, 1024, 65_535] {
            rules.check(&named((Protocol::Tcp, port))).unwrap();
        }
        for (port, want) in [
            ((Protocol::Tcp, 4280), "4280 is kept for the api"),
            ((Protocol::Udp, 4280), "4280 is kept for the api"),
            ((Protocol::Tcp, 22), "22 is kept for ssh"),
            ((Protocol::Udp, 53), "53 is kept for dns"),
            ((Protocol::Tcp, 443), "443 is kept for https"),
            ((Protocol::Udp, 546), "546 is kept for dhcpv6"),
        ] {
            let failure = rules.check(&named(port)).unwrap_err();
            assert!(failure.error().error.contains(want), "{port:?}");
        }
    }

    #[test]
    fn a_port_is_shared_only_by_those_whose_clients_name_them() {
        let app = |id: &str, at_s: i64| {
            let claimed_at = Timestamp::from_unix_ms(at_s * 1000);
            Holder { claimed_at, ..app_of("personal", id) }
        };
        let claim = |by_name, holders: &[&Holder]| PortClaim {
            holder: holders[0].clone(),
            by_name,
            others: holders[1..].iter().copied().cloned().collect(),
        };
        let (a, b) = (app("a", 0), app("b", 0));
        let late = app("a", 600);
        let many: Vec<Holder> = (0..HOLDERS_MAX).map(|id| app(&id.to_string(), 0)).collect();
        let full: Vec<&Holder> = many.iter().collect();
        let written = Asked::Written;
        for (name, before, asks, by_name, want) in [
            ("free", None, &a, true, written(claim(true, &[&a]))),
            ("its own", Some(claim(false, &[&a])), &a, false, Asked::Kept),
            (
                "its own, long ago",
                Some(claim(false, &[&a])),
                &late,
                false,
                written(claim(false, &[&late])),
            ),
            (
                "its own, otherwise",
                Some(claim(false, &[&a])),
                &a,
                true,
                written(claim(true, &[&a])),
            ),
            ("another's", Some(claim(false, &[&a])), &b, true, Asked::Taken),
            ("another's by name", Some(claim(true, &[&a])), &b, false, Asked::Taken),
            ("both by name", Some(claim(true, &[&a])), &b, true, written(claim(true, &[&a, &b]))),
            ("shared", Some(claim(true, &[&a, &b])), &a, true, Asked::Kept),
            (
                "shared, long ago",
                Some(claim(true, &[&a, &b])),
                &late,
                true,
                written(claim(true, &[&b, &late])),
            ),
            ("not any more", Some(claim(true, &[&a, &b])), &a, false, Asked::Taken),
            ("by too many", Some(claim(true, &full)), &a, true, Asked::Crowded),
        ] {
            assert_eq!(ask(before.as_ref(), asks, by_name), want, "{name}");
        }
    }

    #[test]
    fn no_organization_takes_every_place_at_a_shared_port() {
        let shared_by = |orgs: &[(&str, usize)]| {
            let apps = orgs.iter().flat_map(|(org, count)| {
                (0..*count).map(move |id| app_of(org, &format!("{org}{id}")))
            });
            let mut apps: Vec<Holder> = apps.collect();
            PortClaim { holder: apps.remove(0), by_name: true, others: apps }
        };
        let half = PLACES_FREE_MAX;
        for (name, orgs, want) in [
            ("most of few", &[("many", half - 1)][..], true),
            ("more than its part", &[("many", half)], false),
            ("one of many", &[("others", half), ("many", 1)], true),
            ("two of many", &[("others", half), ("many", 2)], false),
            ("one of all", &[("others", HOLDERS_MAX - 1)], true),
            ("all are taken", &[("others", HOLDERS_MAX)], false),
        ] {
            let asked = ask(Some(&shared_by(orgs)), &app_of("many", "new"), true);
            assert_eq!(matches!(asked, Asked::Written(_)), want, "{name}");
            assert_eq!(asked == Asked::Crowded, !want, "{name}");
        }
        // Whoever has a place keeps it, however long ago it was taken.
        let full = shared_by(&[("many", HOLDERS_MAX)]);
        let late = Holder {
            claimed_at: Timestamp::from_unix_ms(0).plus(FRESH),
            ..app_of("many", "many7")
        };
        assert!(matches!(ask(Some(&full), &late, true), Asked::Written(_)));
    }

    #[test]
    fn an_organization_keeps_the_ports_it_has_and_gets_no_more_than_its_part() {
        let count = u16::try_from(PORTS_OF_ORG_MAX).unwrap();
        let claims: Claims = (1..=count)
            .map(|port| {
                let holder = app_of("many", &format!("app-{}", port % 8));
                let document = PortClaim { holder, by_name: false, others: Vec::new() };
                ((Protocol::Udp, port), Versioned { document, revision: perch_store::Revision(1) })
            })
            .collect();
        let asks = |org: &str, ports: std::ops::RangeInclusive<u16>| {
            let named: Vec<Named> = ports.map(|port| named((Protocol::Udp, port))).collect();
            let (asking, none) = (app_of(org, "app-9"), Count { had: 0, more: 0 });
            let of_org = Count::of(&claims, &named, |it| it.org == asking.org);
            room(&named, &asking.org, [none, of_org, none])
        };
        asks("many", 1..=count).unwrap();
        asks("few", count + 1..=count + 1).unwrap();
        let failure = asks("many", count..=count + 1).unwrap_err();
        let want = "`many` would have 257 ports of its own, more than 256";
        assert!(failure.error().error.contains(want), "{}", failure.error().error);
    }
}
