//! What was issued under each registered domain: issuers count by it.
//!
//! Never a list of who may register what: the domain is guessed, and where that is wrong several
//! share one count, so that an issuer's limit is kept all the same. Known from orders: what was
//! issued for those that are gone counts until this server starts anew. Pure.

use std::collections::BTreeMap;

use perch_types::certificate_docs::{CertificateOrder, OrderStep};
use perch_types::certificates::below_wildcard;
use perch_types::{OrgSlug, Timestamp};

use crate::order::Limits;

/// Labels below a country's under which names are registered, as in `shop.co.uk`.
const REGISTRIES: [&str; 8] = ["ac", "co", "com", "edu", "gov", "net", "or", "org"];

/// Returns the registered domain of a host name.
pub(crate) fn registered(hostname: &str) -> &str {
    let name = below_wildcard(hostname);
    let mut labels = name.rsplit('.');
    let (last, second) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let count = if last.len() == 2 && REGISTRIES.contains(&second) { 3 } else { 2 };
    let length: usize = name.rsplit('.').take(count).map(|label| label.len() + 1).sum();
    name.get(name.len().saturating_sub(length.saturating_sub(1))..).unwrap_or(name)
}

/// Orders by registered domain and host name.
#[derive(Debug, Default)]
pub(crate) struct Domains(BTreeMap<String, BTreeMap<String, Known>>);

#[derive(Debug, Default)]
struct Known {
    /// When certificates were issued, in seconds since 1970.
    issued: Vec<i64>,
    under_way: UnderWay,
    is_gone: bool,
}

/// Whether an order goes on now.
#[derive(Debug, Default)]
enum UnderWay {
    #[default]
    No,
    /// The issuer does not know yet whether whoever orders has the host name: anybody may order
    /// one for a name of somebody else's, so it counts for the organization that does alone.
    Unproven(OrgSlug),
    /// The issuer is satisfied.
    Proven,
}

impl UnderWay {
    fn counts_for(&self, org: &OrgSlug) -> bool {
        match self {
            Self::No => false,
            Self::Unproven(of) => of == org,
            Self::Proven => true,
        }
    }
}

impl Domains {
    pub(crate) fn clear(&mut self) {
        self.0.retain(|_, names| {
            names.retain(|_, known| {
                known.is_gone = true;
                known.under_way = UnderWay::No;
                !known.issued.is_empty()
            });
            !names.is_empty()
        });
    }

    pub(crate) fn put(&mut self, (org, hostname): (OrgSlug, &str), order: &CertificateOrder) {
        let names = self.0.entry(registered(hostname).to_owned()).or_default();
        let under_way = match order.step {
            OrderStep::Due => UnderWay::No,
            OrderStep::Finalizing => UnderWay::Proven,
            OrderStep::Placing | OrderStep::Placed | OrderStep::Telling | OrderStep::Validating => {
                UnderWay::Unproven(org)
            }
        };
        let known = Known { issued: order.issued.clone(), under_way, is_gone: false };
        names.insert(hostname.to_owned(), known);
    }

    /// Takes note that an order is gone. What was issued for it counts on.
    pub(crate) fn ended(&mut self, hostname: &str) {
        let names = self.0.get_mut(registered(hostname));
        if let Some(known) = names.and_then(|names| names.get_mut(hostname)) {
            (known.under_way, known.is_gone) = (UnderWay::No, true);
        }
    }

    /// Returns when certificates were issued for other host names of the same domain, oldest
    /// first; an order under way counts as issued now, one of another organization only once the
    /// issuer knows whose the host name is. What is older than the window goes.
    pub(crate) fn others(&mut self, (org, hostname): (&OrgSlug, &str), now: Timestamp) -> Vec<i64> {
        let (domain, since) = (registered(hostname), now.unix_s() - Limits::DOMAIN_WINDOW_S);
        let Some(names) = self.0.get_mut(domain) else { return Vec::new() };
        names.retain(|_, known| {
            known.issued.retain(|time| *time > since);
            !(known.is_gone && known.issued.is_empty())
        });
        let mut times: Vec<i64> = Vec::new();
        for (_, known) in names.iter().filter(|(name, _)| *name != hostname) {
            times.extend(&known.issued);
            times.extend(known.under_way.counts_for(org).then(|| now.unix_s()));
        }
        if names.is_empty() {
            self.0.remove(domain);
        }
        times.sort_unstable();
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_800_000_000_000 + seconds * 1_000)
    }

    fn order(step: OrderStep, issued: &[i64]) -> CertificateOrder {
        let mut order = CertificateOrder::new("app_1".to_owned(), at(0));
        (order.step, order.issued) = (step, issued.to_vec());
        order
    }

    #[test]
    fn names_are_counted_by_what_was_registered() {
        for (hostname, want) in [
            ("shop.example", "shop.example"),
            ("a.b.shop.example", "shop.example"),
            ("*.shop.example", "shop.example"),
            ("a.shop.co.uk", "shop.co.uk"),
            ("shop.co.uk", "shop.co.uk"),
            ("co.uk", "co.uk"),
            ("a.com.example", "com.example"),
            ("a.b.com.example", "com.example"),
            ("shop.de", "shop.de"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(registered(hostname), want, "{hostname}");
        }
    }

    fn ours() -> OrgSlug {
        OrgSlug::personal()
    }

    #[test]
    fn others_of_the_same_domain_count_while_the_window_lasts() {
        let mut domains = Domains::default();
        let old = at(-Limits::DOMAIN_WINDOW_S).unix_s();
        domains.put((ours(), "a.shop.example"), &order(OrderStep::Due, &[old, at(-5).unix_s()]));
        domains.put((ours(), "b.shop.example"), &order(OrderStep::Placed, &[]));
        domains.put((ours(), "c.shop.example"), &order(OrderStep::Due, &[]));
        domains.put((ours(), "a.other.example"), &order(OrderStep::Due, &[at(-1).unix_s()]));
        let (before, now) = (at(-5).unix_s(), at(0).unix_s());
        assert_eq!(domains.others((&ours(), "c.shop.example"), at(0)), [before, now]);
        assert_eq!(
            domains.others((&ours(), "a.shop.example"), at(0)),
            [now],
            "its own do not count"
        );
        // What is removed and ordered again is not forgotten.
        domains.ended("a.shop.example");
        domains.ended("b.shop.example");
        assert_eq!(domains.others((&ours(), "c.shop.example"), at(0)), [before]);
        domains.clear();
        assert_eq!(domains.others((&ours(), "c.shop.example"), at(0)), [before]);
        let later = at(Limits::DOMAIN_WINDOW_S);
        assert!(domains.others((&ours(), "c.shop.example"), later).is_empty());
        assert!(domains.others((&ours(), "c.other.example"), later).is_empty());
        assert!(domains.0.is_empty(), "{domains:?}");
    }

    #[test]
    fn what_strangers_order_and_do_not_prove_takes_no_place_of_a_domain() {
        let theirs: OrgSlug = "strangers".parse().unwrap();
        let now = at(0).unix_s();
        for (step, for_us, for_them) in [
            (OrderStep::Due, 0, 0),
            (OrderStep::Placing, 0, 1),
            (OrderStep::Placed, 0, 1),
            (OrderStep::Telling, 0, 1),
            (OrderStep::Validating, 0, 1),
            (OrderStep::Finalizing, 1, 1),
        ] {
            let mut domains = Domains::default();
            domains.put((theirs.clone(), "a.shop.example"), &order(step, &[]));
            for (org, want) in [(&ours(), for_us), (&theirs, for_them)] {
                let found = domains.others((org, "b.shop.example"), at(0));
                assert_eq!(found, vec![now; want], "{step:?} {org}");
            }
        }
    }
}
