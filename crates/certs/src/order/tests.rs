use std::collections::BTreeMap;

use super::ways::{OTHERS_POLLS_MAX, RECORD_POLLS_MAX};
use super::*;
use perch_types::certificate_docs::{ChallengeMethod, RenewalId};
use perch_types::certificates::KeyKind;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_800_000_000_000 + seconds * 1_000)
}

fn new() -> CertificateOrder {
    CertificateOrder::new("app_1".to_owned(), at(0))
}

fn answer(method: ChallengeMethod) -> ChallengeAnswer {
    ChallengeAnswer {
        method,
        token: "token".to_owned(),
        key_authorization: "token.thumb".to_owned(),
        txt: "digest".to_owned(),
    }
}

fn leaf() -> Leaf {
    Leaf {
        kind: KeyKind::Ecdsa,
        issuer: "Honest".to_owned(),
        not_before: at(0),
        not_after: at(90 * DAY_S),
        renewal_id: Some(RenewalId { authority: "a".to_owned(), serial: "b".to_owned() }),
    }
}

fn at_step(step: OrderStep) -> CertificateOrder {
    let mut order = new();
    order.step = step;
    if step != OrderStep::Due && step != OrderStep::Placing {
        order.url = Some("https://issuer.example/1".to_owned());
    }
    if step == OrderStep::Telling || step == OrderStep::Validating {
        order.answer = Some(answer(ChallengeMethod::Http));
    }
    if step == OrderStep::Finalizing {
        order.sealed_key = Some("sealed".to_owned());
    }
    order
}

const STEPS: [OrderStep; 6] = [
    OrderStep::Due,
    OrderStep::Placing,
    OrderStep::Placed,
    OrderStep::Telling,
    OrderStep::Validating,
    OrderStep::Finalizing,
];

fn refused() -> Event {
    Event::Fault(Fault::Refused("unauthorized".to_owned(), "no".to_owned()))
}

fn passing() -> Event {
    Event::Fault(Fault::Passing("silence".to_owned()))
}

#[test]
fn an_order_goes_from_step_to_step() {
    let mut order = new();
    for (event, acted, step) in [
        (Event::Reserved, Act::Reserve, OrderStep::Placing),
        (Event::Placed("https://issuer.example/1".to_owned()), Act::Place, OrderStep::Placed),
        (Event::Chosen(answer(ChallengeMethod::Http)), Act::Choose, OrderStep::Telling),
        (Event::Told, Act::Tell, OrderStep::Validating),
        (Event::Unfinished, Act::Look, OrderStep::Validating),
        (Event::Satisfied("sealed".to_owned()), Act::Look, OrderStep::Finalizing),
        (Event::Unfinished, Act::Finalize, OrderStep::Finalizing),
        (Event::Issued(leaf()), Act::Finalize, OrderStep::Due),
    ] {
        let now = order.due;
        assert_eq!(act(&order, now, true), Some(acted));
        order = advance(order, event, now, 0);
        assert_eq!(order.step, step);
        assert_eq!(
            order.answer.is_some(),
            matches!(step, OrderStep::Telling | OrderStep::Validating)
        );
        assert_eq!(order.sealed_key.is_some(), step == OrderStep::Finalizing);
        assert_eq!(order.url.is_some(), !matches!(step, OrderStep::Due | OrderStep::Placing));
    }
    assert_eq!(order.due, at(60 * DAY_S));
    assert_eq!(order.issued.len(), 1);
    // By when to renew is asked at once, and the time itself is far.
    let now = order.ask_again.unwrap();
    assert_eq!(act(&order, now, false), Some(Act::AskWhen));
    order = advance(order, Event::Renewal(None), now, 0);
    assert_eq!((act(&order, now, false), wake_at(&order, now)), (None, at(60 * DAY_S)));
    assert_eq!(act(&order, at(60 * DAY_S), false), Some(Act::Reserve));
}

#[test]
fn a_place_that_another_life_took_is_taken_again() {
    let order = at_step(OrderStep::Placing);
    assert_eq!(act(&order, at(0), false), Some(Act::Reserve));
    assert_eq!(act(&order, at(0), true), Some(Act::Place));
    for step in STEPS {
        let mut order = at_step(step);
        order.due = at(1);
        assert_eq!(act(&order, at(0), true), None, "{step:?}");
    }
}

/// Whatever goes wrong at any step: an order that ends keeps nothing of itself, the next is due
/// later, and each failure makes it later still.
#[test]
fn failures_at_every_step_end_the_order_and_grow_further_apart() {
    for step in STEPS {
        let mut order = at_step(step);
        let mut now = at(0);
        let mut pauses = Vec::new();
        for count in 1..=8_u32 {
            order.step = step;
            order = advance(order, refused(), now, 0);
            assert_eq!((order.step, order.failures), (OrderStep::Due, count), "{step:?}");
            assert_eq!((&order.url, &order.answer, &order.sealed_key), (&None, &None, &None));
            assert_eq!(order.errors[0].code, "unauthorized");
            pauses.push(order.due.unix_s() - now.unix_s());
            now = order.due;
        }
        assert_eq!(pauses, [60, 600, 3_600, 21_600, 86_400, 86_400, 86_400, 86_400], "{step:?}");
        assert_eq!(order.errors.len(), 1, "the same error is there once");
    }
}

#[test]
fn what_may_pass_is_tried_again_and_given_up_at_last() {
    for step in STEPS {
        let mut order = at_step(step);
        let mut now = at(0);
        let mut pauses = Vec::new();
        while order.failures == 0 {
            order = advance(order, passing(), now, 0);
            pauses.push(order.due.unix_s() - now.unix_s());
            now = order.due;
            assert!(order.failures == 1 || order.step == step, "{step:?}");
        }
        let tries = usize::try_from(TRIES_MAX).unwrap();
        assert_eq!((pauses.len(), pauses[0], pauses[1]), (tries + 1, 2, 4), "{step:?}");
        assert!(pauses.iter().all(|pause| (2..=300).contains(pause)), "{pauses:?}");
        assert_eq!(order.step, OrderStep::Due);
    }
}

#[test]
fn an_order_that_cannot_be_placed_is_given_up_although_a_place_is_taken_each_time() {
    let mut order = new();
    let mut pauses = Vec::new();
    while order.failures == 0 {
        let now = order.due;
        assert_eq!(act(&order, now, false), Some(Act::Reserve));
        order = advance(order, Event::Reserved, now, 0);
        assert_eq!(act(&order, now, true), Some(Act::Place));
        order = advance(order, passing(), now, 0);
        pauses.push(order.due.unix_s() - now.unix_s());
    }
    assert_eq!(pauses[..4], [2, 4, 8, 16]);
    assert_eq!(pauses.len(), usize::try_from(TRIES_MAX).unwrap() + 1);
}

/// The order is the platform's own unless a test says whose it is.
fn before<'a>(account: Option<&'a AcmeAccount>, placed: &'a [i64]) -> Before<'a> {
    Before { account, org: None, placed }
}

fn account(ordered: &[i64]) -> AcmeAccount {
    AcmeAccount {
        directory: "https://issuer.example".to_owned(),
        sealed_key: String::new(),
        id: None,
        email: None,
        ordered: ordered.to_vec(),
        ordered_by: BTreeMap::new(),
        rate_limited_until: None,
    }
}

#[test]
fn an_issuer_that_has_enough_is_left_alone_and_nothing_counts_as_a_failure() {
    for (pause, want) in
        [(None, 3_600), (Some(0), 60), (Some(120), 120), (Some(100 * 86_400), 7 * 86_400)]
    {
        let fault = Fault::Enough(pause.map(Duration::from_secs), "too many".to_owned());
        let order = advance(at_step(OrderStep::Placing), Event::Fault(fault), at(0), 0);
        assert_eq!((order.step, order.failures), (OrderStep::Due, 0));
        assert_eq!((order.due, order.rate_limited_until), (at(want), Some(at(want))));
        let limits = &Limits::default();
        let held = may_place(&order, before(None, &[]), (limits, at(want - 1))).unwrap_err();
        assert_eq!(held, Held { until: at(want), limit: "rate_limited" });
        may_place(&order, before(None, &[]), (limits, at(want))).unwrap();
    }
}

#[test]
fn orders_that_are_held_do_not_go_on_all_at_once() {
    let due = |random| {
        let held = Held { until: at(60), limit: "server_orders" };
        let order = advance(new(), Event::Held(held), at(0), random);
        assert_eq!(order.rate_limited_until, Some(at(60)));
        assert!((at(60)..=at(120)).contains(&order.due), "{order:?}");
        order.due
    };
    assert_eq!(due(0), at(60));
    assert_ne!(due(12_345), due(54_321));
    due(u64::MAX);
}

/// A clock was ahead when an order was written down, and is set back.
#[test]
fn no_order_waits_for_as_long_as_a_clock_was_ahead() {
    for step in STEPS {
        let mut order = at_step(step);
        (order.due, order.written) = (at(DAY_S), Some(at(300)));
        assert_eq!((act(&order, at(0), true), wake_at(&order, at(0))), (None, at(DAY_S)));
        order.written = Some(at(301));
        assert!(act(&order, at(0), true).is_some(), "{step:?}");
        assert_eq!(wake_at(&order, at(0)), at(5), "{step:?}");
        // What it comes to is written down by the clock that is right, and waited for.
        order = advance(order, passing(), at(0), 0);
        assert_eq!((order.due, order.written), (at(2), Some(at(0))));
        assert_eq!(act(&order, at(0), true), None, "{step:?}");
    }
    let mut first = new();
    (first.due, first.written) = (at(DAY_S), Some(at(DAY_S)));
    assert_eq!(act(&first, at(0), false), Some(Act::Reserve));
    // Of one that has a certificate it is found out when that is renewed: not all are at once.
    let mut renewal = first;
    renewal.issued = vec![at(-9).unix_s()];
    renewal.ask_again = Some(at(99 * DAY_S));
    renewal.rate_limited_until = Some(at(DAY_S));
    assert_eq!(act(&renewal, at(0), false), Some(Act::Reckon));
    let reckoned = advance(renewal.clone(), Event::Reckoned(Some(leaf())), at(0), 0);
    assert_eq!((reckoned.due, reckoned.ask_again), (at(60 * DAY_S), Some(at(6 * HOUR_S))));
    assert_eq!((reckoned.written, reckoned.rate_limited_until), (Some(at(0)), None));
    assert_eq!(act(&reckoned, at(0), false), None);
    let gone = advance(renewal.clone(), Event::Reckoned(None), at(0), 0);
    assert_eq!(act(&gone, at(0), false), Some(Act::Reserve));
    // A nudge of it does not hide that; one of an order that failed has that go on.
    let nudged = advance(renewal.clone(), Event::Nudged, at(0), 0);
    assert_eq!((nudged.due, nudged.written), (renewal.due, renewal.written));
    renewal.failures = 1;
    let nudged = advance(renewal, Event::Nudged, at(0), 0);
    assert_eq!((nudged.due, nudged.written), (at(0), Some(at(0))));
}

#[test]
fn what_a_clock_that_was_ahead_counted_holds_nothing_back() {
    let far = at(300 * DAY_S);
    let many = vec![far.unix_s(); 300];
    let mut order = new();
    (order.failed, order.issued) = (many.clone(), many.clone());
    (order.rate_limited_until, order.written) = (Some(at(DAY_S)), Some(far));
    let limits = &Limits::default();
    let found = |order: &CertificateOrder, account: &AcmeAccount| {
        let found = may_place(order, before(Some(account), &many), (limits, at(0)));
        found.map_err(|held| held.until)
    };
    let mut account = account(&many);
    for (told, want) in [
        (None, Ok(())),
        (Some(far), Ok(())),
        (Some(at(DAY_S + 301)), Ok(())),
        (Some(at(DAY_S + 300)), Err(at(DAY_S + 300))),
        (Some(at(5)), Err(at(5))),
    ] {
        account.rate_limited_until = told;
        assert_eq!(found(&order, &account), want, "{told:?}");
    }
    account.rate_limited_until = None;
    order.written = Some(at(0));
    for (told, want) in [(Some(far), Ok(())), (Some(at(DAY_S)), Err(at(DAY_S)))] {
        order.rate_limited_until = told;
        assert_eq!(found(&order, &account), want, "{told:?}");
    }
    note_placed(&mut account.ordered, at(0), Limits::ACCOUNT_WINDOW_S);
    assert_eq!(account.ordered, [at(0).unix_s()]);
}

#[test]
fn each_limit_is_told_by_its_name_and_ends() {
    let limits = Limits {
        hostname_issued_max: 2,
        hostname_failed_max: 2,
        account_orders_max: 2,
        server_at_once_max: 1,
        server_orders_max: 2,
        ..Limits::default()
    };
    let now = at(0);
    let ago = |seconds: i64| now.unix_s() - seconds;
    let with = |issued: &[i64], failed: &[i64]| {
        let mut order = new();
        (order.issued, order.failed) = (issued.to_vec(), failed.to_vec());
        order
    };
    let (hour, day) = (HOUR_S, DAY_S);
    for (order, ordered, placed, want) in [
        (with(&[], &[]), vec![], vec![], Ok(())),
        (with(&[ago(2), ago(1)], &[]), vec![], vec![], Err(("hostname_issued", 7 * day - 1))),
        (with(&[ago(8 * day), ago(1)], &[]), vec![], vec![], Ok(())),
        (
            with(&[], &[ago(30), ago(20), ago(10)]),
            vec![],
            vec![],
            Err(("hostname_failed", hour - 19)),
        ),
        (with(&[], &[ago(2 * hour), ago(1)]), vec![], vec![], Ok(())),
        (with(&[], &[]), vec![ago(9), ago(8)], vec![], Err(("account_orders", 3 * hour - 8))),
        (with(&[], &[]), vec![ago(4 * hour), ago(8)], vec![], Ok(())),
        (with(&[], &[]), vec![], vec![ago(9), ago(8)], Err(("server_orders", 52))),
        (with(&[], &[]), vec![], vec![ago(61), ago(8)], Ok(())),
    ] {
        let account = account(&ordered);
        let found = may_place(&order, before(Some(&account), &placed), (&limits, now));
        let found = found.map_err(|held| (held.limit, held.until.unix_s() - now.unix_s()));
        assert_eq!(found, want, "{order:?} {ordered:?} {placed:?}");
        // Until then and no longer.
        if let Err((_, seconds)) = want {
            let then = at(seconds);
            may_place(&order, before(Some(&account), &placed), (&limits, then)).unwrap();
        }
    }
    let mut limited = account(&[]);
    limited.rate_limited_until = Some(at(5));
    let held = may_place(&new(), before(Some(&limited), &[]), (&limits, now)).unwrap_err();
    assert_eq!(held, Held { until: at(5), limit: "rate_limited" });
    let held = advance(new(), Event::Held(held), now, 0);
    assert_eq!((held.step, held.due, held.failures), (OrderStep::Due, at(5), 0));
}

#[test]
fn one_organization_leaves_places_to_others_and_all_leave_some_to_renewals() {
    let limits = Limits {
        account_orders_max: 8,
        org_orders_max: 2,
        org_renewals_max: 3,
        server_orders_max: 4,
        ..Limits::default()
    };
    let (ours, theirs): (OrgSlug, OrgSlug) = (OrgSlug::personal(), "strangers".parse().unwrap());
    let mut renewal = new();
    renewal.issued = vec![at(-60 * DAY_S).unix_s()];
    let found = |order: &CertificateOrder, account: &AcmeAccount, org, placed: &[i64]| {
        let before = Before { account: Some(account), org, placed };
        may_place(order, before, (&limits, at(0))).map_err(|held| held.limit)
    };
    let mut one = account(&[]);
    for (count, first, renewed) in [
        (0, Ok(()), Ok(())),
        (2, Err("org_orders"), Ok(())),
        (3, Err("org_orders"), Err("org_orders")),
    ] {
        while one.ordered.len() < count {
            note_ordered(&mut one, (&new(), Some(&ours)), at(0));
        }
        assert_eq!(found(&new(), &one, Some(&ours), &[]), first, "{count}");
        assert_eq!(found(&renewal, &one, Some(&ours), &[]), renewed, "{count}");
        // Neither others nor the platform itself wait for it.
        assert_eq!(found(&new(), &one, Some(&theirs), &[]), Ok(()), "{count}");
        assert_eq!(found(&new(), &one, None, &[]), Ok(()), "{count}");
    }
    let now = at(0).unix_s();
    for (ordered, placed, first, renewed) in [
        (5, 2, Ok(()), Ok(())),
        (6, 2, Err("account_orders"), Ok(())),
        (8, 2, Err("account_orders"), Err("account_orders")),
        (5, 3, Err("server_orders"), Ok(())),
        (5, 4, Err("server_orders"), Err("server_orders")),
    ] {
        let (all, placed) = (account(&vec![now; ordered]), vec![now; placed]);
        assert_eq!(found(&new(), &all, Some(&ours), &placed), first, "{ordered} {placed:?}");
        assert_eq!(found(&renewal, &all, Some(&ours), &placed), renewed, "{ordered} {placed:?}");
        assert_eq!(found(&new(), &all, None, &placed), renewed, "{ordered} {placed:?}");
    }
    // An issuer that is away has a place taken anew, which counts for the account alone.
    let again = at_step(OrderStep::Placing);
    assert_eq!(found(&again, &one, Some(&ours), &[]), Ok(()));
    note_ordered(&mut one, (&again, Some(&ours)), at(0));
    assert_eq!((one.ordered.len(), one.ordered_by[&ours].len()), (4, 3));
    // What is older than the window is not kept.
    note_ordered(&mut one, (&new(), None), at(Limits::ACCOUNT_WINDOW_S));
    assert_eq!((one.ordered.len(), one.ordered_by.len()), (1, 0));
}

#[test]
fn a_registered_domain_has_a_limit_of_its_own_that_holds_back_no_renewal() {
    let limits = Limits { domain_issued_max: 2, ..Limits::default() };
    let others = [at(-9).unix_s(), at(-5).unix_s(), at(-3).unix_s()];
    let held = domain_has_place(&new(), &others, (&limits, at(0))).unwrap_err();
    assert_eq!(held, Held { until: at(Limits::DOMAIN_WINDOW_S - 4), limit: "domain_issued" });
    domain_has_place(&new(), &others, (&limits, held.until)).unwrap();
    domain_has_place(&new(), others.get(..1).unwrap(), (&limits, at(0))).unwrap();
    let mut renewed = new();
    renewed.issued = vec![at(-60 * DAY_S).unix_s()];
    domain_has_place(&renewed, &others, (&limits, at(0))).unwrap();
}

#[test]
fn times_that_are_kept_have_a_bound() {
    let mut times = Vec::new();
    for second in 0..500 {
        note_placed(&mut times, at(second * 60), Limits::ACCOUNT_WINDOW_S);
    }
    assert_eq!(times.len(), 180);
    let mut order = new();
    for second in 0..50 {
        order = advance(order, refused(), at(second), 0);
        order = advance(order, Event::Issued(leaf()), at(second), 0);
    }
    assert_eq!((order.failed.len(), order.issued.len()), (TIMES_MAX, TIMES_MAX));
    for number in 0..50 {
        let fault = Fault::Refused(format!("word{number}"), "x".repeat(10_000));
        order = advance(order, Event::Fault(fault), at(number), 0);
    }
    assert_eq!(order.errors.len(), ERRORS_MAX);
    assert!(order.errors.iter().all(|error| error.message.len() <= ERROR_CHARS_MAX));
}

#[test]
fn a_way_is_chosen_that_the_issuer_offers_and_another_after_a_failure() {
    use ChallengeMethod::{Dns, Http, TlsAlpn};
    let ways = |tls, zone| Ways { tls, zone };
    for (hostname, offered, (tls, zone), failures, want) in [
        ("a.b", &[Http, TlsAlpn, Dns][..], (true, false), 0, Some(Http)),
        ("a.b", &[Http, TlsAlpn, Dns], (true, false), 1, Some(TlsAlpn)),
        ("a.b", &[Http, TlsAlpn, Dns], (true, false), 2, Some(Http)),
        ("a.b", &[Http, TlsAlpn, Dns], (false, false), 1, Some(Http)),
        ("a.b", &[TlsAlpn], (true, false), 5, Some(TlsAlpn)),
        ("a.b", &[TlsAlpn], (false, false), 0, None),
        ("a.b", &[Dns], (true, false), 0, None),
        ("a.b", &[], (true, false), 3, None),
        // A record that leads to the platform's zone is the surest.
        ("a.b", &[Http, TlsAlpn, Dns], (true, true), 0, Some(Dns)),
        ("a.b", &[Http, TlsAlpn, Dns], (true, true), 1, Some(Http)),
        ("a.b", &[Http, TlsAlpn, Dns], (true, true), 2, Some(TlsAlpn)),
        ("a.b", &[Http], (false, true), 0, Some(Http)),
        ("*.a.b", &[Http, TlsAlpn, Dns], (true, false), 1, Some(Dns)),
        ("*.a.b", &[Http, TlsAlpn, Dns], (true, true), 1, Some(Dns)),
        ("*.a.b", &[Http], (true, false), 0, None),
    ] {
        let answers: Vec<_> = offered.iter().map(|method| answer(*method)).collect();
        let found = choose(hostname, &answers, ways(tls, zone), failures);
        let found = found.map(|answer| answer.method);
        assert_eq!(found, want, "{hostname} {offered:?} {tls} {zone} {failures}");
    }
    let order = advance(at_step(OrderStep::Placed), Event::NoWay("dns-01".to_owned()), at(0), 0);
    assert_eq!((order.failures, order.errors[0].code.as_str()), (1, "no_challenge"));
}

#[test]
fn a_record_that_somebody_has_to_set_is_waited_for() {
    let mut order = at_step(OrderStep::Telling);
    order.answer = Some(answer(ChallengeMethod::Dns));
    let mut now = at(0);
    for _ in 0..20 {
        let missing = Missing { seen: vec!["other".to_owned()], ..Missing::default() };
        order = advance(order, Event::NoRecord(missing), now, 0);
        assert_eq!((order.step, order.failures), (OrderStep::Telling, 0));
        now = order.due;
    }
    let error = &order.errors[0];
    assert_eq!(error.code, "dns_record_missing");
    assert!(error.message.contains("`digest`") && error.message.contains("other"), "{error:?}");
    // Somebody who says that it is there now is believed at once.
    let then = Timestamp::from_unix_ms(now.unix_ms() - 1);
    assert_eq!(advance(order.clone(), Event::Nudged, then, 0).due, then);
    order.tries = RECORD_POLLS_MAX;
    order = advance(order, Event::NoRecord(Missing::default()), now, 0);
    assert_eq!((order.step, order.failures), (OrderStep::Due, 1));
}

#[test]
fn a_record_that_is_missing_says_what_to_set_and_is_waited_for_longest_when_it_is_the_only_way() {
    let target = "x.acme.example".to_owned();
    for (target, leads, has_others, tries, todo, is_waited_for) in [
        ("", &[][..], false, 0, "set the TXT record", true),
        (target.as_str(), &[], false, OTHERS_POLLS_MAX, "set the CNAME record", true),
        (target.as_str(), &["y.example"], false, 0, "set the CNAME record", true),
        (target.as_str(), &["X.acme.example"], false, 0, "the CNAME record is there", true),
        // Whoever can be asked otherwise is, soon.
        (
            target.as_str(),
            &["x.acme.example"],
            true,
            OTHERS_POLLS_MAX - 1,
            "the CNAME record",
            true,
        ),
        (target.as_str(), &["x.acme.example"], true, OTHERS_POLLS_MAX, "the CNAME record", false),
    ] {
        let mut order = at_step(OrderStep::Telling);
        (order.answer, order.tries) = (Some(answer(ChallengeMethod::Dns)), tries);
        let leads: Vec<String> = leads.iter().map(|to: &&str| (*to).to_owned()).collect();
        let missing =
            Missing { leads, target: target.to_owned(), has_others, ..Missing::default() };
        let seen =
            missing.leads.first().map_or_else(|| "nothing".to_owned(), |to| format!("CNAME {to}"));
        let order = advance(order, Event::NoRecord(missing), at(0), 0);
        assert_eq!(order.step == OrderStep::Telling, is_waited_for, "{order:?}");
        assert_eq!(order.failures, u32::from(!is_waited_for));
        let error = &order.errors[0];
        assert!(error.remediation.starts_with(todo) && error.message.ends_with(&seen), "{error:?}");
    }
}

#[test]
fn a_nudge_brings_forward_what_waits_for_people_and_no_renewal() {
    let failed = advance(at_step(OrderStep::Validating), refused(), at(0), 0);
    assert_eq!(advance(failed, Event::Nudged, at(1), 0).due, at(1));
    let nameless = advance(new(), Event::NoAddress, at(0), 0);
    assert_eq!(nameless.errors[0].code, "dns_not_configured");
    assert!(nameless.due > at(1));
    assert_eq!(advance(nameless, Event::Nudged, at(1), 0).due, at(1));
    let issued = advance(at_step(OrderStep::Finalizing), Event::Issued(leaf()), at(0), 0);
    assert_eq!(advance(issued.clone(), Event::Nudged, at(1), 0).due, issued.due);
}

#[test]
fn a_name_without_an_address_is_looked_at_less_and_less_often() {
    let mut order = new();
    let mut now = at(0);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        order = advance(order, Event::NoAddress, now, 0);
        pauses.push(order.due.unix_s() - now.unix_s());
        now = order.due;
    }
    assert_eq!(pauses[..4], [30, 60, 120, 240]);
    assert_eq!(pauses[9], 3_600);
    assert_eq!((order.failures, order.failed.len()), (0, 0));
}

#[test]
fn a_renewal_is_after_two_thirds_of_the_time_or_when_the_issuer_says() {
    let day = DAY_S;
    let late_leaf = Leaf { not_before: at(-80 * day), not_after: at(9 * day), ..leaf() };
    let order = advance(at_step(OrderStep::Finalizing), Event::Issued(late_leaf), at(0), 0);
    assert_eq!(order.due, at(3 * day), "what was issued late is not renewed at once");
    let (early, late) = (renew_at(&leaf(), u64::MAX), renew_at(&leaf(), 0));
    assert_eq!(late, at(60 * day));
    assert!((at(57 * day)..=at(60 * day)).contains(&early));
    let issued = advance(at_step(OrderStep::Finalizing), Event::Issued(leaf()), at(0), 0);
    let told = |start: i64, end: i64, again: Option<i64>| {
        let renewal = Renewal { start: at(start), end: at(end), again: again.map(at) };
        advance(issued.clone(), Event::Renewal(Some(renewal)), at(10), 12_345)
    };
    let order = told(30 * day, 31 * day, None);
    assert!((at(30 * day)..=at(31 * day)).contains(&order.due), "{order:?}");
    assert_eq!(order.ask_again, Some(at(10 + 6 * HOUR_S)));
    // It stays where it is as long as that is in the window.
    let renewal = Renewal { start: at(30 * day), end: at(31 * day), again: None };
    let same = advance(order.clone(), Event::Renewal(Some(renewal)), at(20), 999);
    assert_eq!(same.due, order.due);
    // A window that is over means now.
    assert_eq!(told(-day, -1, None).due, at(10));
    // Who could not be asked is asked later, and the time stays.
    let unasked = advance(issued.clone(), Event::NotAsked, at(10), 0);
    assert_eq!((unasked.due, unasked.ask_again), (issued.due, Some(at(10 + 6 * HOUR_S))));
    // When to ask again is believed within bounds.
    assert_eq!(told(0, 1, Some(11)).ask_again, Some(at(10 + HOUR_S)));
    assert_eq!(told(0, 1, Some(90 * day)).ask_again, Some(at(10 + 2 * day)));
    // A certificate that says no name for itself is not asked about.
    let nameless = Leaf { renewal_id: None, ..leaf() };
    let order = advance(at_step(OrderStep::Finalizing), Event::Issued(nameless), at(0), 0);
    assert_eq!(order.ask_again, None);
}

#[test]
fn an_issuer_that_does_not_come_to_an_end_is_given_up() {
    for step in [OrderStep::Validating, OrderStep::Finalizing] {
        let mut order = at_step(step);
        let mut now = at(0);
        let mut count = 0;
        while order.failures == 0 {
            order = advance(order, Event::Unfinished, now, 0);
            now = order.due;
            count += 1;
        }
        assert_eq!(count, POLLS_MAX + 1);
        assert_eq!(order.errors[0].code, "timeout");
    }
}
