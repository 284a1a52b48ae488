//! The best of an app's machines that have room. Pure.
//!
//! Never over a hard limit, and never a herd to one machine but where a session stays.

use perch_types::labels::WEIGHT_FULL;
use perch_types::service::SOFT_LIMIT_DEFAULT;

use super::{Ask, Candidate, hard_limit, load};

/// The best of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best<'a> {
    pub(super) one: Candidate<'a>,
    /// Whether even one that has to be started is better: it only fails.
    pub(super) is_broken: bool,
    /// Whether it is over its soft limit, as all that could be had in its place.
    pub(super) is_over: bool,
}

/// Returns the best of those that have room.
///
/// The preferred one if there is one; else of the nearest, those under the soft limit if any are,
/// and of these the less loaded of two that the lot chooses (the power of two choices): as good as
/// the least loaded of all, and no herd runs to one machine. A session goes to the machine that it
/// goes with best, whatever its soft limit: the same one for as long as that is ready and has room,
/// and when it is gone only its own sessions go elsewhere (rendezvous hashing).
pub(super) fn best<'a>(
    ready: impl Iterator<Item = Candidate<'a>>,
    ask: &Ask<'_>,
) -> Option<Best<'a>> {
    let mut tier = None;
    let mut lot = Lot::default();
    for one in ready {
        let load = load(one.target, one.service);
        // One that has its place there takes no other.
        let is_in = ask.stay == Some(one.index);
        if !is_in && hard_limit(one.service).is_some_and(|hard| load >= hard) {
            continue;
        }
        if ask.direction.prefers(&one.target.record) {
            return Some(Best { one, is_broken: false, is_over: false });
        }
        let soft = one.service.concurrency.as_ref().and_then(|limits| limits.soft_limit);
        let is_over = load >= soft.unwrap_or(SOFT_LIMIT_DEFAULT);
        let health = &one.target.load.health;
        let faults = u8::from(health.is_ejected(ask.now)) + u8::from(health.is_broken(ask.now));
        let is_session = ask.sticky.is_some();
        // Of equals those of this host: that saves a hop. A session has one place for all edges.
        let is_far = one.target.load.is_far && !is_session;
        let its = (faults, one.rank, sits_out(&one, ask), is_over && !is_session, is_far);
        match tier {
            Some(best) if its > best => continue,
            Some(best) if its == best => {}
            _ => {
                tier = Some(its);
                lot = Lot::default();
            }
        }
        lot.put(Entry { one, load, is_over }, ask);
    }
    let Entry { one, is_over, .. } = lot.drawn(ask)?;
    Some(Best { one, is_broken: one.target.load.health.is_broken(ask.now), is_over })
}

/// Returns whether a machine of less weight than others leaves this request to them.
fn sits_out(one: &Candidate<'_>, ask: &Ask<'_>) -> bool {
    let weight = one.target.load.weight();
    // A session has to find the same answer each time, and not the one that its place depends on.
    let seed = !ask.sticky.unwrap_or(ask.random);
    weight < WEIGHT_FULL
        && mixed(seed, one.target.record.id.bits()) % u64::from(WEIGHT_FULL) >= u64::from(weight)
}

/// One that has room.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    one: Candidate<'a>,
    load: u32,
    is_over: bool,
}

/// Those that are equally good, as far as they are needed.
#[derive(Debug, Default)]
struct Lot<'a> {
    first: Option<Entry<'a>>,
    second: Option<Entry<'a>>,
    seen: u64,
    /// How well the session goes with the first.
    score: u64,
}

impl<'a> Lot<'a> {
    fn put(&mut self, entry: Entry<'a>, ask: &Ask<'_>) {
        if let Some(session) = ask.sticky {
            let score = mixed(session, entry.one.target.record.id.bits());
            if self.first.is_none() || score > self.score {
                (self.first, self.score) = (Some(entry), score);
            }
            return;
        }
        // Each of them ends up among the two with the same chance.
        let seen = self.seen;
        let place = if seen < 2 { seen } else { mixed(ask.random, seen) % (seen + 1) };
        self.seen += 1;
        match place {
            0 => self.first = Some(entry),
            1 => self.second = Some(entry),
            _ => {}
        }
    }

    fn drawn(self, ask: &Ask<'_>) -> Option<Entry<'a>> {
        let (Some(first), Some(second)) = (self.first, self.second) else {
            return self.first.or(self.second);
        };
        let by_lot = ask.random & 1 == 1;
        let (first, second) = if by_lot { (second, first) } else { (first, second) };
        Some(if second.load < first.load { second } else { first })
    }
}

/// Returns another number for each step of a count (splitmix64).
pub(crate) const fn mixed(random: u64, step: u64) -> u64 {
    let mut mixed = random ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use perch_types::MachineState;
    use tokio::time::Instant;

    use super::super::tests::{ask, started, target};
    use super::super::{Pick, pick};
    use super::*;
    use crate::direction::Direction;
    use crate::live::Target;
    use crate::outlier::Failure;

    /// Returns how many of `count` requests, or sessions, each machine gets.
    fn shares(machines: &[Arc<Target>], count: u64, is_sticky: bool) -> Vec<u64> {
        let (direction, now) = (Direction::default(), Instant::now());
        let mut shares = vec![0; machines.len()];
        for lot in 0..count {
            let random = mixed(11, lot);
            let sticky = is_sticky.then_some(random);
            match pick(machines, &Ask { random, sticky, ..ask(&direction, &[], now) }) {
                Pick::Ready(index) => shares[index] += 1,
                other => panic!("{other:?}"),
            }
        }
        shares
    }

    #[test]
    fn a_machine_of_less_weight_gets_less_and_one_of_none_nothing() {
        for is_sticky in [false, true] {
            let machines = started(&[1, 1, 1]);
            machines[1].load.set_weight(10);
            let got = shares(&machines, 6000, is_sticky);
            // A tenth of the third that it would get.
            assert!((120..280).contains(&got[1]), "{is_sticky}: {got:?}");
            assert!(got[0].abs_diff(got[2]) < 400, "{is_sticky}: {got:?}");
            machines[1].load.set_weight(0);
            assert_eq!(shares(&machines, 500, is_sticky)[1], 0, "{is_sticky}");
            // It is all there is.
            assert_eq!(shares(&machines[1..2], 500, is_sticky), [500], "{is_sticky}");
        }
    }

    #[test]
    fn a_session_stays_with_its_machine_and_others_stay_when_one_goes() {
        let machines = started(&[0, 1, 2]);
        let (direction, now) = (Direction::default(), Instant::now());
        let of = |session: u64, random: u64, left_alone: &[usize]| {
            let session = Some(mixed(3, session));
            let ask = Ask { random, sticky: session, ..ask(&direction, left_alone, now) };
            pick(&machines, &ask)
        };
        let mut shares = [0_u32; 3];
        for session in 0..300 {
            let first = of(session, 1, &[]);
            for random in 2..6 {
                assert_eq!(of(session, mixed(9, random), &[]), first, "whatever is loaded more");
            }
            let Pick::Ready(index) = first else { panic!("{first:?}") };
            shares[index] += 1;
            let without = of(session, 1, &[1]);
            if index == 1 {
                assert!(matches!(without, Pick::Ready(0 | 2)), "{without:?}");
            } else {
                assert_eq!(without, first, "it does not move for another");
            }
        }
        assert!(shares.iter().all(|share| *share > 60), "{shares:?}");
    }

    #[test]
    fn a_session_goes_elsewhere_when_its_machine_is_full_or_fails() {
        let (direction, now) = (Direction::default(), Instant::now());
        let of = |machines: &[Arc<Target>], session: u64| {
            let sticky = Some(session);
            pick(machines, &Ask { sticky, ..ask(&direction, &[], now) })
        };
        for session in 0..20 {
            // Over its soft limit it still is the session's.
            let over = of(&started(&[4, 4]), session);
            assert_eq!(of(&started(&[4, 0]), session), over);
            assert_eq!(of(&started(&[0, 4]), session), over);
            assert_eq!(of(&started(&[8, 0]), session), Pick::Ready(1));
            let full = started(&[8, 8]);
            let (sticky, stay) = (Some(session), Some(1));
            let stays = Ask { sticky, stay, ..ask(&direction, &[], now) };
            assert_eq!(pick(&full, &stays), Pick::Ready(1), "it has its place");
            let failing = started(&[0, 0]);
            (0..5).for_each(|_| failing[0].load.health.failed(now, Failure::Error));
            assert_eq!(of(&failing, session), Pick::Ready(1));
        }
    }

    #[test]
    fn another_is_started_only_where_it_helps_all_over_their_soft_limit() {
        use MachineState::{Started, Starting, Stopped};
        let (direction, now) = (Direction::default(), Instant::now());
        let limits = r#"{"soft_limit":2}"#;
        for (name, machines, want) in [
            ("under", vec![(Started, 1), (Stopped, 0)], Pick::Ready(0)),
            ("one of two is over", vec![(Started, 2), (Started, 1), (Stopped, 0)], Pick::Ready(1)),
            (
                "without a hard limit too",
                vec![(Started, 9), (Stopped, 0)],
                Pick::ReadyAndWake(0, 1),
            ),
            ("one is coming", vec![(Started, 9), (Stopped, 0), (Starting, 0)], Pick::Ready(0)),
            ("none sleeps", vec![(Started, 9)], Pick::Ready(0)),
        ] {
            let machines: Vec<_> = machines
                .into_iter()
                .enumerate()
                .map(|(id, (state, load))| target(id as u64, state, load, limits))
                .collect();
            assert_eq!(pick(&machines, &ask(&direction, &[], now)), want, "{name}");
        }
        let both = [target(1, Started, 9, limits), target(2, Stopped, 0, limits)];
        both[1].load.health.start_refused(now);
        assert_eq!(pick(&both, &ask(&direction, &[], now)), Pick::Ready(0), "its host refused it");
        let later = now + std::time::Duration::from_secs(60);
        assert_eq!(pick(&both, &ask(&direction, &[], later)), Pick::ReadyAndWake(0, 1));
    }

    #[test]
    fn what_only_answers_badly_wakes_nobody_and_is_asked_before_what_does_not_answer() {
        let (direction, now) = (Direction::default(), Instant::now());
        let machines = started(&[0, 3]);
        let fail = |target: &Target, failure| {
            (0..5).for_each(|_| target.load.health.failed(now, failure));
        };
        fail(&machines[0], Failure::Deaf);
        fail(&machines[1], Failure::Error);
        assert_eq!(pick(&machines, &ask(&direction, &[], now)), Pick::Ready(1));
        let mut more = machines;
        more.push(target(3, MachineState::Stopped, 0, r#"{"soft_limit":4}"#));
        assert_eq!(pick(&more, &ask(&direction, &[], now)), Pick::Ready(1), "none is woken");
    }

    #[test]
    fn of_sleeping_machines_one_whose_start_was_refused_is_the_last() {
        let (direction, now) = (Direction::default(), Instant::now());
        let both =
            [target(1, MachineState::Stopped, 0, "{}"), target(2, MachineState::Stopped, 0, "{}")];
        assert_eq!(pick(&both, &ask(&direction, &[], now)), Pick::Wake(0));
        both[0].load.health.start_refused(now);
        assert_eq!(pick(&both, &ask(&direction, &[], now)), Pick::Wake(1));
        assert_eq!(pick(&both, &ask(&direction, &[1], now)), Pick::Wake(0));
    }
}
