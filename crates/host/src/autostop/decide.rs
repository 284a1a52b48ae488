//! The decision about machines that can do each other's work.
//!
//! Never about more than one at a time: what the others have to do then is seen first.

use std::cmp::Reverse;

use perch_types::MachineId;

use super::Way;

/// The shortest time until another look.
const AGAIN_MS_MIN: u64 = 1_000;
/// How many times in the idle time it is looked whether a machine that is to spare has nothing
/// under way right now.
const LOOKS: u64 = 30;

/// A machine that serves requests, or is to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Which.
    pub(crate) id: MachineId,
    /// Whether it does; until then the times below begin when its patience has ended.
    pub(crate) is_ready: bool,
    /// What becomes of it when nothing uses it.
    pub(crate) way: Option<Way>,
    /// How many of its kind keep running.
    pub(crate) least: u32,
    /// Requests and connections under way to it.
    pub(crate) in_flight: u32,
    /// How long nothing was under way to it; at most as long as it serves.
    pub(crate) idle_ms: u64,
    /// How long it was below its soft limit; at most as long as it serves.
    pub(crate) calm_ms: u64,
    /// How long it serves.
    pub(crate) up_ms: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// A machine that is to rest, and how.
    pub(crate) act: Option<(MachineId, Way)>,
    /// Whether it had work lately that others now have to do.
    pub(crate) hands_over: bool,
    /// When another look makes sense; nothing if only a change of a machine can make it so.
    pub(crate) again_ms: Option<u64>,
}

/// Decides about machines of one kind. `rests_ms` is how long since one of them last handed its
/// work over to the others.
///
/// Of one machine alone nothing may have been under way for the idle time. Of several as many are
/// to spare as there are more than those that were at their soft limit in that time, and one; but
/// none is taken while anything is under way to it. Those that are not ready go first, and count
/// for nothing where it is asked what the others can do.
pub(crate) fn decide(members: &[Member], idle_ms: u64, rests_ms: u64) -> Verdict {
    let least = members.iter().map(|member| member.least).max().unwrap_or_default();
    let least = usize::try_from(least).unwrap_or(usize::MAX);
    let (serving, mut deaf): (Vec<Member>, Vec<Member>) =
        members.iter().cloned().partition(|member| member.is_ready);
    if members.len() <= least {
        deaf.clear();
    }
    if let Some(act) = longest(&deaf, |one| one.idle_ms >= idle_ms) {
        return Verdict { act: Some(act), hands_over: false, again_ms: Some(AGAIN_MS_MIN) };
    }
    let verdict = among(&serving, least, idle_ms, rests_ms);
    let may_rest = deaf.iter().filter(|one| one.way.is_some());
    let left = may_rest.map(|one| idle_ms.saturating_sub(one.idle_ms).max(AGAIN_MS_MIN)).min();
    let again_ms = verdict.again_ms.into_iter().chain(left).min();
    Verdict { again_ms, ..verdict }
}

/// Decides about those that are ready.
fn among(members: &[Member], least: usize, idle_ms: u64, rests_ms: u64) -> Verdict {
    let count = members.len();
    let may_rest = members.iter().any(|member| member.way.is_some());
    if !may_rest || count <= least {
        return Verdict { act: None, hands_over: false, again_ms: None };
    }
    let full: Vec<&Member> = members.iter().filter(|one| one.calm_ms < idle_ms).collect();
    let to_spare = if count == 1 { 1 } else { count.saturating_sub(full.len() + 1) };
    if to_spare == 0 {
        let left = full.iter().map(|one| idle_ms.saturating_sub(one.calm_ms)).min();
        let again_ms = left.unwrap_or(idle_ms).max(AGAIN_MS_MIN);
        return Verdict { act: None, hands_over: false, again_ms: Some(again_ms) };
    }
    let unused = longest(members, |one| one.idle_ms >= idle_ms);
    let may_hand_over = count > 1 && rests_ms >= idle_ms;
    let spare = longest(members, |one| may_hand_over && one.up_ms >= idle_ms);
    let hands_over = unused.is_none();
    match unused.or(spare) {
        Some(act) => Verdict { act: Some(act), hands_over, again_ms: Some(AGAIN_MS_MIN) },
        None => {
            let again_ms = Some(again(members, idle_ms, rests_ms));
            Verdict { act: None, hands_over: false, again_ms }
        }
    }
}

/// Returns the machine that was unused for longest, of those to which nothing is under way.
fn longest(members: &[Member], may: impl Fn(&Member) -> bool) -> Option<(MachineId, Way)> {
    let free = members.iter().filter(|one| one.in_flight == 0 && may(one));
    let found = free
        .filter_map(|one| Some((one, one.way?)))
        .max_by_key(|(one, _)| (one.idle_ms, Reverse(&one.id)));
    found.map(|(one, way)| (one.id.clone(), way))
}

/// Returns in how long a machine may be unused for long enough, or free to hand its work over.
fn again(members: &[Member], idle_ms: u64, rests_ms: u64) -> u64 {
    let left = |passed_ms: u64| idle_ms.saturating_sub(passed_ms);
    let own = members.iter().filter(|one| one.way.is_some());
    let unused = own.clone().map(|one| left(one.idle_ms)).min().unwrap_or(idle_ms);
    let mut again_ms = unused;
    if members.len() > 1 {
        let spare = own.map(|one| left(one.up_ms)).min().unwrap_or(idle_ms).max(left(rests_ms));
        // It could be now, if something had not happened to be under way.
        again_ms = again_ms.min(spare.max(idle_ms / LOOKS));
    }
    again_ms.max(AGAIN_MS_MIN)
}
