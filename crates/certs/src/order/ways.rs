//! By which way it is shown whose a host name is, and what follows while a record of it is missing.
//!
//! Never asks DNS: what is seen comes in. Pure.

use std::time::Duration;

use perch_types::Timestamp;
use perch_types::certificate_docs::{
    CertificateOrder, ChallengeAnswer, ChallengeMethod, OrderStep,
};
use perch_types::certificates::WILDCARD;

use super::{again, fail, note, step};

/// How often it is looked for a record that somebody has to set: for five days.
pub(super) const RECORD_POLLS_MAX: u32 = 1_440;
/// The same where there are other ways: for half an hour.
pub(super) const OTHERS_POLLS_MAX: u32 = 12;
/// The pauses between two looks.
const RECORD_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What is known of a record that is not seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// What is seen instead.
    pub seen: Vec<String>,
    /// Where CNAME records at its name lead.
    pub leads: Vec<String>,
    /// Where one may lead instead, to the platform's zone; empty where there is none.
    pub target: String,
    /// Whether it can be shown in other ways whose the host name is.
    pub has_others: bool,
}

/// By which ways, beside a request, it can be shown whose a host name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ways {
    /// The edge answers with TLS at the public port.
    pub tls: bool,
    /// The name of DNS-01 leads to the platform's zone.
    pub zone: bool,
}

/// Chooses one of the answers for the ways that an issuer offers; another one after each failure.
/// Only a record of DNS can show that all names below another are somebody's.
#[must_use]
pub fn choose<'a>(
    hostname: &str,
    answers: &'a [ChallengeAnswer],
    Ways { tls, zone }: Ways,
    failures: u32,
) -> Option<&'a ChallengeAnswer> {
    let is_single = !hostname.starts_with(WILDCARD);
    let ways = [
        (zone || !is_single, ChallengeMethod::Dns),
        (is_single, ChallengeMethod::Http),
        (is_single && tls, ChallengeMethod::TlsAlpn),
    ];
    let ways = ways.iter().filter_map(|(is_there, way)| is_there.then_some(way));
    let of = |way: &ChallengeMethod| answers.iter().find(|answer| answer.method == *way);
    let offered: Vec<_> = ways.filter_map(of).collect();
    let turn = usize::try_from(failures).unwrap_or(usize::MAX);
    turn.checked_rem(offered.len()).and_then(|index| offered.get(index)).copied()
}

/// Has the record looked for again, and says what to set; gives up in the end.
pub(super) fn no_record(order: &mut CertificateOrder, now: Timestamp, missing: &Missing) {
    let Some(answer) = order.answer.clone() else {
        return step(order, OrderStep::Placed, now);
    };
    let Missing { seen, leads, target, has_others } = missing;
    let cnames = leads.iter().map(|to| format!("CNAME {to}"));
    let seen: Vec<String> = cnames.chain(seen.iter().cloned()).collect();
    let seen = if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") };
    let what = format!("the TXT record `{}` is not there; seen is: {seen}", answer.txt);
    let todo = match leads.iter().any(|to| to.eq_ignore_ascii_case(target)) {
        _ if target.is_empty() => {
            "set the TXT record of `dns_requirements.acme_challenge`; it is looked for"
        }
        false => {
            "set the CNAME record of `dns_requirements.acme_challenge` once, or its TXT record for \
             this order; it is looked for"
        }
        true => {
            "the CNAME record is there: have the server's operator see that the NS records of \
             `acme.zone` lead to `acme.dns`, and that UDP and TCP get through"
        }
    };
    if order.tries >= if *has_others { OTHERS_POLLS_MAX } else { RECORD_POLLS_MAX } {
        return fail(order, now, ("dns_record_missing", what), todo);
    }
    again(order, now, RECORD_PAUSE);
    note(order, now, ("dns_record_missing", what), todo);
}
