//! What is under way to machines, as those say who send requests to them.
//!
//! Never takes silence for rest: a machine counts as unused only while every one of them has said
//! what is under way, and is asked once more before it is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perch_types::MachineId;
use tokio::sync::watch;

/// How many edges may send requests to the machines of a host; while there are more nothing counts
/// as unused.
const EDGES_MAX: usize = 16;
/// How long an edge may take to say whether a machine is unused.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of requests under way.
#[derive(Debug)]
pub struct Loads {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    edges: BTreeMap<u64, EdgeLoads>,
    /// Those who send requests and do not say what is under way.
    strangers: usize,
    /// The number of the newest question.
    asked: u64,
    questions: BTreeMap<u64, Question>,
}

/// What one edge has said.
#[derive(Debug, Default)]
struct EdgeLoads {
    /// Its watches: while one breaks and comes again there may be two.
    watches: usize,
    /// Since when all of it is known, by the boot clock.
    known_ms: Option<u64>,
    machines: BTreeMap<MachineId, Load>,
}

/// What was said of a machine.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    in_flight: u32,
    active_ms: u64,
    full_ms: Option<u64>,
}

/// Whether a machine is unused.
#[derive(Debug)]
struct Question {
    waits_for: BTreeSet<u64>,
    is_busy: bool,
}

/// What is said of a machine at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which.
    pub id: MachineId,
    /// Requests and connections under way.
    pub in_flight: u32,
    /// Whether it was at its soft limit since the last time.
    pub was_full: bool,
}

/// What all edges together say of a machine. Moments are the boot clock's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Requests and connections under way.
    pub in_flight: u32,
    /// When something was under way last, or since when that is known.
    pub active_ms: u64,
    /// When it was at its soft limit last, as far as is known.
    pub full_ms: Option<u64>,
}

/// One who sends requests, until this is dropped.
#[derive(Debug)]
#[must_use = "what it says is forgotten once this is dropped"]
pub struct Member {
    edge: Option<u64>,
    state: watch::Sender<State>,
}

impl Default for Loads {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Loads {
    /// Notes one who sends requests; from now on nothing is known until it has said everything.
    pub fn join(&self, edge: Option<u64>) -> Member {
        let mut known = edge;
        self.state.send_modify(|state| {
            let has_room = state.edges.len() < EDGES_MAX;
            known = edge.filter(|edge| has_room || state.edges.contains_key(edge));
            match known {
                Some(edge) => {
                    let loads = state.edges.entry(edge).or_default();
                    loads.watches += 1;
                    loads.known_ms = None;
                }
                None => state.strangers += 1,
            }
        });
        Member { edge: known, state: self.state.clone() }
    }

    /// Notes what an edge says. With `all` it has nothing under way to other machines.
    pub fn note(&self, edge: u64, all: bool, said: Vec<Said>, now_ms: u64) {
        self.state.send_modify(|state| {
            let Some(loads) = state.edges.get_mut(&edge) else { return };
            if all {
                loads.machines.clear();
                loads.known_ms = Some(now_ms);
            }
            for one in said {
                let load = loads.machines.entry(one.id).or_default();
                load.in_flight = one.in_flight;
                load.active_ms = now_ms;
                if one.was_full {
                    load.full_ms = Some(now_ms);
                }
            }
        });
    }

    /// Forgets a machine.
    pub fn forget(&self, id: &MachineId) {
        self.state.send_if_modified(|state| {
            let mut found = false;
            for loads in state.edges.values_mut() {
                found |= loads.machines.remove(id).is_some();
            }
            found
        });
    }

    /// Returns what is known of a machine; nothing while somebody has not said it.
    #[must_use]
    pub fn usage(&self, id: &MachineId) -> Option<Usage> {
        let state = self.state.borrow();
        if state.strangers > 0 || state.edges.is_empty() {
            return None;
        }
        let mut usage = Usage { in_flight: 0, active_ms: 0, full_ms: None };
        for edge in state.edges.values() {
            let known_ms = edge.known_ms?;
            let load = edge.machines.get(id).copied().unwrap_or_default();
            usage.in_flight = usage.in_flight.saturating_add(load.in_flight);
            usage.active_ms = usage.active_ms.max(load.active_ms).max(known_ms);
            usage.full_ms = usage.full_ms.max(load.full_ms);
        }
        Some(usage)
    }

    /// Opens a question to all edges; returns its number.
    #[must_use = "a question that nobody waits for is never closed"]
    pub fn ask(&self) -> u64 {
        let mut number = 0;
        self.state.send_modify(|state| {
            state.asked += 1;
            number = state.asked;
            let waits_for = state.edges.keys().copied().collect();
            let is_busy = state.strangers > 0 || state.edges.is_empty();
            state.questions.insert(number, Question { waits_for, is_busy });
        });
        number
    }

    /// Notes an edge's answer.
    pub fn answer(&self, edge: u64, question: u64, is_idle: bool) {
        self.state.send_if_modified(|state| {
            let Some(question) = state.questions.get_mut(&question) else {
                return false;
            };
            question.is_busy |= question.waits_for.remove(&edge) && !is_idle;
            true
        });
    }

    /// Waits for the answers to a question and closes it; returns whether all of them say that the
    /// machine is unused.
    pub async fn answered(&self, number: u64) -> bool {
        let mut state = self.state.subscribe();
        let judge = |state: &State| {
            state.questions.get(&number).is_none_or(|it| it.is_busy || it.waits_for.is_empty())
        };
        let waiting = state.wait_for(judge);
        let heard = tokio::time::timeout(REST_TIMEOUT, waiting).await.is_ok();
        let mut is_idle = false;
        self.state.send_if_modified(|state| {
            let question = state.questions.remove(&number);
            is_idle = heard && question.is_some_and(|it| !it.is_busy && it.waits_for.is_empty());
            false
        });
        is_idle
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let edge = self.edge;
        self.state.send_modify(|state| {
            let Some(edge) = edge else {
                state.strangers = state.strangers.saturating_sub(1);
                return;
            };
            if let Some(loads) = state.edges.get_mut(&edge) {
                loads.watches = loads.watches.saturating_sub(1);
                if loads.watches > 0 {
                    return;
                }
            }
            state.edges.remove(&edge);
            // Whoever comes after it may have requests under way.
            for question in state.questions.values_mut() {
                question.is_busy |= question.waits_for.contains(&edge);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(bits: u64) -> MachineId {
        MachineId::from_bits(bits)
    }

    fn said(bits: u64, in_flight: u32, was_full: bool) -> Said {
        Said { id: id(bits), in_flight, was_full }
    }

    #[test]
    fn nothing_is_known_until_every_edge_has_said_everything() {
        let loads = Loads::default();
        assert_eq!(loads.usage(&id(1)), None, "nobody counts");
        let first = loads.join(Some(7));
        loads.note(7, false, vec![said(1, 0, false)], 10);
        assert_eq!(loads.usage(&id(1)), None, "it was not all");
        loads.note(7, true, vec![said(1, 2, true)], 20);
        let of_one = Usage { in_flight: 2, active_ms: 20, full_ms: Some(20) };
        assert_eq!(loads.usage(&id(1)), Some(of_one));
        assert_eq!(
            loads.usage(&id(2)),
            Some(Usage { in_flight: 0, active_ms: 20, full_ms: None }),
            "what is not named is unused since all is known"
        );
        let second = loads.join(Some(8));
        assert_eq!(loads.usage(&id(1)), None);
        loads.note(8, true, vec![said(1, 3, false)], 30);
        let of_both = Usage { in_flight: 5, active_ms: 30, full_ms: Some(20) };
        assert_eq!(loads.usage(&id(1)), Some(of_both));
        let stranger = loads.join(None);
        assert_eq!(loads.usage(&id(1)), None, "nobody knows what it sends");
        drop((stranger, second));
        assert_eq!(loads.usage(&id(1)), Some(of_one));
        // Its watch broke and came again.
        let again = loads.join(Some(7));
        assert_eq!(loads.usage(&id(1)), None);
        drop(first);
        loads.note(7, true, Vec::new(), 40);
        let idle = Usage { in_flight: 0, active_ms: 40, full_ms: None };
        assert_eq!(loads.usage(&id(1)), Some(idle));
        loads.note(7, false, vec![said(1, 1, false)], 50);
        loads.forget(&id(1));
        assert_eq!(loads.usage(&id(1)), Some(idle));
        drop(again);
        assert_eq!(loads.usage(&id(1)), None);
        loads.note(7, true, Vec::new(), 60);
        assert_eq!(loads.usage(&id(1)), None, "it is gone");
    }

    #[test]
    fn one_edge_too_many_is_a_stranger() {
        let loads = Loads::default();
        let members: Vec<Member> = (0..17).map(|edge| loads.join(Some(edge))).collect();
        (0..17).for_each(|edge| loads.note(edge, true, Vec::new(), 1));
        assert_eq!(loads.usage(&id(1)), None);
        drop(members);
        let _one = loads.join(Some(1));
        loads.note(1, true, Vec::new(), 1);
        assert!(loads.usage(&id(1)).is_some());
    }

    #[tokio::test]
    async fn a_machine_is_unused_only_if_all_say_so() {
        let loads = Loads::default();
        assert!(!loads.answered(loads.ask()).await, "nobody was asked");
        let (first, second) = (loads.join(Some(1)), loads.join(Some(2)));
        for (answers, want) in
            [([true, true], true), ([true, false], false), ([false, true], false)]
        {
            let question = loads.ask();
            loads.answer(1, question, answers[0]);
            // Another's, and one that nobody asked.
            loads.answer(9, question, false);
            loads.answer(2, question + 1, false);
            loads.answer(2, question, answers[1]);
            assert_eq!(loads.answered(question).await, want, "{answers:?}");
        }
        let question = loads.ask();
        loads.answer(1, question, true);
        drop(second);
        assert!(!loads.answered(question).await, "one went without a word");
        assert!(loads.state.borrow().questions.is_empty());
        drop(first);
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for_for_ever() {
        let loads = Loads::default();
        let _edge = loads.join(Some(1));
        assert!(!loads.answered(loads.ask()).await);
    }
}
