//! The state machine of an order: what is done next, and what follows from how it went.
//!
//! Never does anything, reads a clock or draws lots: those come in. What is returned is written
//! down before its effect; so whatever ends in between, the order goes on where it was.
//!
//! | step | what is done | then |
//! |---|---|---|
//! | `due` | the limits are asked for a place, and it is written down | `placing` |
//! | `placing` | the order is placed; after a crash a place is taken again | `placed` |
//! | `placed` | a way to show whose the name is is chosen, its answer written down for all edges | `telling`, or `finalizing` when the issuer remembers |
//! | `telling` | this server's edge answers, so the issuer is told | `validating` |
//! | `validating` | the issuer is asked until it is satisfied; a key is made and written down | `finalizing` |
//! | `finalizing` | the request is sent, once; the certificate is had, and written down | `due`, at the time of renewal |
//!
//! A fault that may pass is tried again after a growing pause. Any other ends the order: the next
//! one is due after a pause that grows from one failure to the next.

use std::time::Duration;

use perch_types::certificate_docs::{
    AcmeAccount, CertificateOrder, ChallengeAnswer, ERROR_CHARS_MAX, ERRORS_MAX, Leaf, OrderStep,
};
use perch_types::certificates::CertificateValidationError;
use perch_types::{OrgSlug, Timestamp};

use crate::issuer::Renewal;

mod skew;
mod ways;

use self::ways::no_record;

pub use self::skew::{ACCOUNT_PAUSE_MAX, is_ahead};
pub use self::ways::{Missing, Ways, choose};

const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 24 * HOUR_S;

/// Limits of orders. Each is well under what public issuers allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Certificates of one host name within [`Limits::HOSTNAME_WINDOW_S`].
    pub hostname_issued_max: usize,
    /// Orders of one host name that fail within [`Limits::FAILED_WINDOW_S`].
    pub hostname_failed_max: usize,
    /// Orders of one account within [`Limits::ACCOUNT_WINDOW_S`]; a part of them is kept for
    /// renewals.
    pub account_orders_max: usize,
    /// Of those, orders of one organization after which it has no first certificate.
    pub org_orders_max: usize,
    /// Of those, orders of one organization after which it has no renewal either.
    pub org_renewals_max: usize,
    /// Certificates of all host names of one registered domain within
    /// [`Limits::DOMAIN_WINDOW_S`]; renewals are not held back by it.
    pub domain_issued_max: usize,
    /// Orders of this server under way at once.
    pub server_at_once_max: usize,
    /// Orders that this server places within [`Limits::SERVER_WINDOW_S`]; a part of them is kept
    /// for renewals.
    pub server_orders_max: usize,
    /// How long one step of an order may take.
    pub step_max: Duration,
}

impl Limits {
    /// See [`Limits::hostname_issued_max`].
    pub const HOSTNAME_WINDOW_S: i64 = 7 * DAY_S;
    /// See [`Limits::hostname_failed_max`].
    pub const FAILED_WINDOW_S: i64 = HOUR_S;
    /// See [`Limits::account_orders_max`].
    pub const ACCOUNT_WINDOW_S: i64 = 3 * HOUR_S;
    /// See [`Limits::domain_issued_max`].
    pub const DOMAIN_WINDOW_S: i64 = 7 * DAY_S;
    /// See [`Limits::server_orders_max`].
    pub const SERVER_WINDOW_S: i64 = 60;
    /// The part of the limits of all organizations together that is kept for renewals.
    pub const RENEWALS_PART: usize = 4;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hostname_issued_max: 4,
            hostname_failed_max: 4,
            account_orders_max: 200,
            org_orders_max: 20,
            org_renewals_max: 60,
            domain_issued_max: 40,
            server_at_once_max: 8,
            server_orders_max: 30,
            step_max: Duration::from_secs(5 * 60),
        }
    }
}

/// How often a step is tried whose fault may pass.
const TRIES_MAX: u32 = 12;
/// How often the issuer is asked whether it is satisfied.
const POLLS_MAX: u32 = 40;
/// The pauses between tries: doubled from the first to the last.
const TRY_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
const POLL_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long it is waited after the first, second, … failure in a row.
const FAILURE_PAUSES: [Duration; 5] = [
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(6 * 60 * 60),
    Duration::from_secs(24 * 60 * 60),
];
/// How long it is waited when an issuer has enough and does not say for how long.
const RATE_LIMIT_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The longest that an issuer is believed about that.
const RATE_LIMIT_PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How much later than it may an order that is held goes on at most: not all do at once.
const HELD_SPREAD_MS: i64 = 60_000;
/// How soon a certificate is renewed at most, whatever its time.
const RENEWED_MIN: Duration = Duration::from_secs(60 * 60);
/// How often an issuer is asked by when to renew, when it says nothing about that.
const RENEWAL_ASKED: Duration = Duration::from_secs(6 * 60 * 60);
/// The shortest and the longest pause that an issuer is believed about that.
const RENEWAL_ASKED_MIN: Duration = Duration::from_secs(60 * 60);
const RENEWAL_ASKED_MAX: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// How long a host name without any address is left before it is looked at again, growing.
const NO_ADDRESS_PAUSE: (Duration, Duration) =
    (Duration::from_secs(30), Duration::from_secs(60 * 60));
/// Times that are kept of what was issued and what failed.
const TIMES_MAX: usize = 8;

/// Why something at the issuer did not go as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It may go the next time.
    Passing(String),
    /// The issuer refuses: a stable word, and its reason.
    Refused(String, String),
    /// The issuer has enough, for so long if it says that.
    Enough(Option<Duration>, String),
    /// The issuer knows no such order any more.
    Gone(String),
}

/// What to do with an order that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Ask the limits for a place.
    Reserve,
    /// Place it.
    Place,
    /// Choose how to show whose the host name is.
    Choose,
    /// Tell the issuer, once this server's edge answers or the record is seen.
    Tell,
    /// Ask whether the issuer is satisfied.
    Look,
    /// Have the certificate.
    Finalize,
    /// Ask by when to renew.
    AskWhen,
    /// Find out anew when to renew: the clock was ahead when that was written down.
    Reckon,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It has a place.
    Reserved,
    /// It has none before that, for this reason.
    Held(Held),
    /// The host name has no address.
    NoAddress,
    /// It is placed, there.
    Placed(String),
    /// This answer is given.
    Chosen(ChallengeAnswer),
    /// None of the ways that the issuer offers can be gone.
    NoWay(String),
    /// The record that somebody has to set is not seen.
    NoRecord(Missing),
    /// This server's edge does not answer yet.
    NotAnswered,
    /// The issuer was told.
    Told,
    /// The issuer is not done.
    Unfinished,
    /// The issuer is satisfied, and this is the key, sealed.
    Satisfied(String),
    /// The certificate is there.
    Issued(Leaf),
    /// By when to renew; nothing when the issuer does not say.
    Renewal(Option<Renewal>),
    /// The issuer could not be asked by when to renew.
    NotAsked,
    /// The certificate that is there, if there is one: when it is renewed is found out anew.
    Reckoned(Option<Leaf>),
    /// Somebody asks to look again.
    Nudged,
    /// Something went wrong.
    Fault(Fault),
}

/// Why an order has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Until when.
    pub until: Timestamp,
    /// The limit, for programs.
    pub limit: &'static str,
}

/// Returns when something is to be done.
#[must_use]
pub fn wake_at(order: &CertificateOrder, now: Timestamp) -> Timestamp {
    if is_ahead(order, now) {
        return now.plus(skew::AHEAD_PAUSE);
    }
    match (order.step, order.ask_again) {
        (OrderStep::Due, Some(ask)) => order.due.min(ask),
        _ => order.due,
    }
}

/// Returns what to do with an order at `now`; nothing while it waits. `reserved` says that the
/// place of one that is being placed was taken by who asks, in this life.
#[must_use]
pub fn act(order: &CertificateOrder, now: Timestamp, reserved: bool) -> Option<Act> {
    let is_ahead = is_ahead(order, now);
    if !is_ahead && wake_at(order, now) > now {
        return None;
    }
    Some(match order.step {
        OrderStep::Due if is_ahead && is_renewal(order) => Act::Reckon,
        OrderStep::Due if !is_ahead && order.due > now => Act::AskWhen,
        OrderStep::Placing if reserved => Act::Place,
        OrderStep::Due | OrderStep::Placing => Act::Reserve,
        OrderStep::Placed => Act::Choose,
        OrderStep::Telling => Act::Tell,
        OrderStep::Validating => Act::Look,
        OrderStep::Finalizing => Act::Finalize,
    })
}

/// What was ordered before, of the account and of this server.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The account, if there is one.
    pub account: Option<&'a AcmeAccount>,
    /// Whose the order is; nothing when it is the platform's own, which has a place whenever a
    /// renewal has.
    pub org: Option<&'a OrgSlug>,
    /// When this server placed orders, in seconds since 1970, newest last.
    pub placed: &'a [i64],
}

/// Returns whether an order renews a certificate.
#[must_use]
pub const fn is_renewal(order: &CertificateOrder) -> bool {
    !order.issued.is_empty()
}

/// Returns the organization that an order counts for. A place that is taken anew, because the
/// issuer was away, is the one that was counted already.
fn counted<'a>(order: &CertificateOrder, org: Option<&'a OrgSlug>) -> Option<&'a OrgSlug> {
    org.filter(|_| order.step != OrderStep::Placing)
}

/// Returns whether an order may be placed now, by what was ordered before.
///
/// # Errors
/// Which limit is in the way, and until when.
pub fn may_place(
    order: &CertificateOrder,
    Before { account, org, placed }: Before<'_>,
    (limits, now): (&Limits, Timestamp),
) -> Result<(), Held> {
    if let Some(until) = skew::limited_until(order, account, now) {
        return Err(Held { until, limit: "rate_limited" });
    }
    let ordered = account.map(|account| account.ordered.as_slice()).unwrap_or_default();
    let of_org = account.zip(counted(order, org));
    let of_org = of_org.and_then(|(account, org)| account.ordered_by.get(org));
    let of_org = of_org.map(Vec::as_slice).unwrap_or_default();
    let is_first = !is_renewal(order) && org.is_some();
    let most = |max: usize| if is_first { max - max / Limits::RENEWALS_PART } else { max };
    let of_org_max = if is_first { limits.org_orders_max } else { limits.org_renewals_max };
    for (times, window, max, limit) in [
        (
            order.failed.as_slice(),
            Limits::FAILED_WINDOW_S,
            limits.hostname_failed_max,
            "hostname_failed",
        ),
        (
            order.issued.as_slice(),
            Limits::HOSTNAME_WINDOW_S,
            limits.hostname_issued_max,
            "hostname_issued",
        ),
        (of_org, Limits::ACCOUNT_WINDOW_S, of_org_max, "org_orders"),
        (ordered, Limits::ACCOUNT_WINDOW_S, most(limits.account_orders_max), "account_orders"),
        (placed, Limits::SERVER_WINDOW_S, most(limits.server_orders_max), "server_orders"),
    ] {
        if let Some(until) = full_until(times, window, max, now) {
            return Err(Held { until, limit });
        }
    }
    Ok(())
}

/// Returns whether the first certificate of a host name may be had now, by when certificates were
/// issued for others of its registered domain, in seconds since 1970, oldest first.
///
/// # Errors
/// Until when not.
pub fn domain_has_place(
    order: &CertificateOrder,
    others: &[i64],
    (limits, now): (&Limits, Timestamp),
) -> Result<(), Held> {
    if is_renewal(order) {
        return Ok(());
    }
    match full_until(others, Limits::DOMAIN_WINDOW_S, limits.domain_issued_max, now) {
        Some(until) => Err(Held { until, limit: "domain_issued" }),
        None => Ok(()),
    }
}

/// Returns until when a window holds as many moments as it may.
fn full_until(times: &[i64], window: i64, max: usize, now: Timestamp) -> Option<Timestamp> {
    let since = now.unix_s().saturating_sub(window);
    let is_recent = |time: &i64| *time > since && !skew::has_not_come(*time, now);
    let recent: Vec<i64> = times.iter().copied().filter(is_recent).collect();
    let oldest = recent.len().checked_sub(max).and_then(|index| recent.get(index))?;
    let until = oldest.saturating_add(window).saturating_add(1);
    Some(Timestamp::from_unix_ms(until.saturating_mul(1_000)))
}

/// Adds a moment to those that are kept of an account; older ones than the window go.
pub fn note_placed(times: &mut Vec<i64>, now: Timestamp, window: i64) {
    let since = now.unix_s().saturating_sub(window);
    times.retain(|time| *time > since && !skew::has_not_come(*time, now));
    times.push(now.unix_s());
}

/// Adds an order to those that are kept of an account.
pub fn note_ordered(
    account: &mut AcmeAccount,
    (order, org): (&CertificateOrder, Option<&OrgSlug>),
    now: Timestamp,
) {
    note_placed(&mut account.ordered, now, Limits::ACCOUNT_WINDOW_S);
    let since = now.unix_s().saturating_sub(Limits::ACCOUNT_WINDOW_S);
    account.ordered_by.retain(|_, times| {
        times.retain(|time| *time > since && !skew::has_not_come(*time, now));
        !times.is_empty()
    });
    if let Some(org) = counted(order, org) {
        account.ordered_by.entry(org.clone()).or_default().push(now.unix_s());
    }
}

/// Returns what an order is after something happened. `random` spreads what would else come all
/// at once.
#[must_use]
pub fn advance(
    mut order: CertificateOrder,
    event: Event,
    now: Timestamp,
    random: u64,
) -> CertificateOrder {
    let is_nudged = event == Event::Nudged;
    skew::forget_waits(&mut order, now);
    match event {
        Event::Reserved => {
            // What is not known of yet is renewed, so what is known of it stays.
            let kept = order.clone();
            order = CertificateOrder::new(kept.app_id, now);
            order.step = OrderStep::Placing;
            // A place that is taken anew for the same order does not begin its tries anew.
            order.tries = if kept.step == OrderStep::Placing { kept.tries } else { 0 };
            order.failures = kept.failures;
            (order.issued, order.failed, order.errors) = (kept.issued, kept.failed, kept.errors);
        }
        Event::Held(Held { until, limit }) => {
            order.step = OrderStep::Due;
            let spread = part_of(HELD_SPREAD_MS, random);
            order.due = Timestamp::from_unix_ms(until.unix_ms().saturating_add(spread));
            order.rate_limited_until = Some(until);
            let what = format!("no order is placed before {until}: limit `{limit}`");
            note(&mut order, now, (limit, what), "wait; nothing has to be done");
        }
        Event::NoAddress => {
            order.step = OrderStep::Due;
            again(&mut order, now, NO_ADDRESS_PAUSE);
            let what = "the host name has no address".to_owned();
            let todo = "set the A, AAAA or CNAME record, then `perch certs check`";
            note(&mut order, now, ("dns_not_configured", what), todo);
        }
        Event::Placed(url) => {
            order.url = Some(url);
            step(&mut order, OrderStep::Placed, now);
        }
        Event::Chosen(answer) => {
            order.answer = Some(answer);
            step(&mut order, OrderStep::Telling, now);
        }
        Event::NoWay(offered) => {
            let what = format!("the issuer offers only {offered}");
            fail(&mut order, now, ("no_challenge", what), "choose another issuer");
        }
        Event::NoRecord(missing) => no_record(&mut order, now, &missing),
        Event::NotAnswered => again(&mut order, now, POLL_PAUSE),
        Event::Told => step(&mut order, OrderStep::Validating, now.plus(POLL_PAUSE.0)),
        Event::Unfinished if order.tries >= POLLS_MAX => {
            let what = "the issuer did not come to an end".to_owned();
            fail(&mut order, now, ("timeout", what), "wait; it is ordered again");
        }
        Event::Unfinished => again(&mut order, now, POLL_PAUSE),
        Event::Satisfied(sealed_key) => {
            (order.sealed_key, order.answer) = (Some(sealed_key), None);
            step(&mut order, OrderStep::Finalizing, now);
        }
        Event::Issued(leaf) => issued(&mut order, &leaf, now, random),
        Event::Renewal(renewal) => renew(&mut order, renewal, now, random),
        Event::NotAsked => order.ask_again = Some(now.plus(RENEWAL_ASKED)),
        Event::Reckoned(leaf) => skew::reckon(&mut order, leaf.as_ref(), now, random),
        Event::Nudged => nudge(&mut order, now),
        Event::Fault(fault) => faulted(&mut order, fault, now),
    }
    // A nudge says so itself where it sets a time: what it leaves is no truer than before.
    if !is_nudged {
        order.written = Some(now);
    }
    order
}

fn step(order: &mut CertificateOrder, step: OrderStep, due: Timestamp) {
    (order.step, order.due, order.tries) = (step, due, 0);
}

/// Has the same step done again after a pause that doubles with each try.
fn again(order: &mut CertificateOrder, now: Timestamp, (first, last): (Duration, Duration)) {
    let factor = 1_u32.checked_shl(order.tries.min(31)).unwrap_or(u32::MAX);
    order.due = now.plus(first.saturating_mul(factor).min(last));
    order.tries = order.tries.saturating_add(1);
}

fn issued(order: &mut CertificateOrder, leaf: &Leaf, now: Timestamp, random: u64) {
    push(&mut order.issued, now);
    (order.failures, order.rate_limited_until) = (0, None);
    (order.url, order.answer, order.sealed_key) = (None, None, None);
    order.errors.clear();
    order.ask_again = leaf.renewal_id.is_some().then_some(now);
    // One that was issued with little time left is not renewed again at once.
    let left = leaf.not_after.unix_ms().saturating_sub(now.unix_ms()).max(0).unsigned_abs();
    let least = now.plus(Duration::from_millis(left / 3).max(RENEWED_MIN));
    step(order, OrderStep::Due, renew_at(leaf, random).max(least));
}

/// Returns when a certificate is renewed unless its issuer says when: after two thirds of its
/// time, up to a thirtieth of it earlier.
#[must_use]
pub fn renew_at(leaf: &Leaf, random: u64) -> Timestamp {
    let (begin, end) = (leaf.not_before.unix_ms(), leaf.not_after.unix_ms());
    let life = end.saturating_sub(begin).max(0);
    let at = begin.saturating_add(life.saturating_mul(2) / 3);
    Timestamp::from_unix_ms(at.saturating_sub(part_of(life / 30, random)))
}

fn part_of(most: i64, random: u64) -> i64 {
    let most = most.unsigned_abs().saturating_add(1);
    i64::try_from(random.checked_rem(most).unwrap_or_default()).unwrap_or_default()
}

fn renew(order: &mut CertificateOrder, told: Option<Renewal>, now: Timestamp, random: u64) {
    let Some(Renewal { start, end, again }) = told else {
        order.ask_again = None;
        return;
    };
    let (least, most) = (now.plus(RENEWAL_ASKED_MIN), now.plus(RENEWAL_ASKED_MAX));
    let asked = again.unwrap_or_else(|| now.plus(RENEWAL_ASKED));
    order.ask_again = Some(asked.clamp(least, most));
    let window = end.unix_ms().saturating_sub(start.unix_ms()).max(0);
    let at = start.unix_ms().saturating_add(part_of(window, random));
    let at = Timestamp::from_unix_ms(at);
    // A moment in the window that was chosen before stays chosen.
    if !(start..=end).contains(&order.due) {
        order.due = at.max(now);
    }
}

fn nudge(order: &mut CertificateOrder, now: Timestamp) {
    let waits_for_people = order.step == OrderStep::Telling || order.failures > 0;
    let is_wanted = order.step == OrderStep::Due && order.issued.is_empty();
    // Limits are asked all the same before anything is placed.
    if (waits_for_people || is_wanted) && order.due > now {
        (order.due, order.written) = (now, Some(now));
    }
}

fn faulted(order: &mut CertificateOrder, fault: Fault, now: Timestamp) {
    match fault {
        Fault::Passing(what) if order.tries < TRIES_MAX => {
            again(order, now, TRY_PAUSE);
            note(order, now, ("issuer_unavailable", what), "wait; it is tried again");
        }
        Fault::Passing(what) => {
            fail(order, now, ("issuer_unavailable", what), "wait; it is ordered again");
        }
        Fault::Refused(code, what) => {
            let todo = "see that requests to the host name reach the app, then `perch certs check`";
            fail(order, now, (&code, what), todo);
        }
        Fault::Gone(what) => {
            fail(order, now, ("order_gone", what), "wait; it is ordered again");
        }
        Fault::Enough(pause, what) => {
            let pause = pause.unwrap_or(RATE_LIMIT_PAUSE).min(RATE_LIMIT_PAUSE_MAX);
            let until = now.plus(pause.max(FAILURE_PAUSES[0]));
            forget(order);
            step(order, OrderStep::Due, until);
            order.rate_limited_until = Some(until);
            note(order, now, ("rate_limited", what), "wait; it is ordered again then");
        }
    }
}

/// Ends an order without a certificate; the next is due after a pause.
fn fail(order: &mut CertificateOrder, now: Timestamp, fault: (&str, String), todo: &str) {
    push(&mut order.failed, now);
    let index = usize::try_from(order.failures).unwrap_or(usize::MAX);
    let pause = FAILURE_PAUSES[index.min(FAILURE_PAUSES.len() - 1)];
    order.failures = order.failures.saturating_add(1);
    forget(order);
    step(order, OrderStep::Due, now.plus(pause));
    note(order, now, fault, todo);
}

fn forget(order: &mut CertificateOrder) {
    (order.url, order.answer, order.sealed_key) = (None, None, None);
}

fn push(times: &mut Vec<i64>, now: Timestamp) {
    times.push(now.unix_s());
    let over = times.len().saturating_sub(TIMES_MAX);
    times.drain(..over);
}

/// Writes down what went wrong, the newest first; the same again replaces what it said before.
fn note(order: &mut CertificateOrder, now: Timestamp, (code, what): (&str, String), todo: &str) {
    order.errors.retain(|error| error.code != code);
    let error = CertificateValidationError {
        code: code.to_owned(),
        message: what.chars().filter(|one| !one.is_control()).take(ERROR_CHARS_MAX).collect(),
        remediation: todo.to_owned(),
        timestamp: now,
    };
    order.errors.insert(0, error);
    order.errors.truncate(ERRORS_MAX);
}

#[cfg(test)]
mod tests;
