//! Who sends requests to machines here, and which machines none is under way to any more.
//!
//! Never holds a machine's end up when nobody sends requests, and never without a limit.

use std::collections::BTreeMap;

use perch_types::MachineId;
use perch_types::host::Drained;
use tokio::sync::watch;

/// What is known of requests under way.
#[derive(Debug)]
pub struct Drains {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who sends requests and will say when none is under way: how many watches of each edge, and
    /// of those without a number.
    senders: BTreeMap<Option<u64>, usize>,
    /// The newest record with which a machine was said to be drained, by its counter, of each edge.
    /// What was said without a number counts for all.
    drained: BTreeMap<MachineId, BTreeMap<Option<u64>, u64>>,
}

impl State {
    fn is_drained(&self, id: &MachineId, counter: u64) -> bool {
        let said = self.drained.get(id);
        self.senders.keys().copied().all(|sender| {
            said.into_iter().flatten().any(|(edge, newest)| {
                // Any word will do for one that gave no number.
                *newest >= counter && (*edge == sender || edge.is_none() || sender.is_none())
            })
        })
    }
}

/// One that sends requests, until this is dropped.
#[derive(Debug)]
#[must_use = "nobody waits for the sender once this is dropped"]
pub struct Sender {
    state: watch::Sender<State>,
    edge: Option<u64>,
}

impl Default for Drains {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Drains {
    /// Notes one that sends requests, with the number of its edge.
    pub fn join(&self, edge: Option<u64>) -> Sender {
        self.state.send_modify(|state| {
            let watches = state.senders.entry(edge).or_default();
            *watches = watches.saturating_add(1);
        });
        Sender { state: self.state.clone(), edge }
    }

    /// Notes that no request is under way to a machine that was seen in this generation.
    pub fn note(&self, id: &MachineId, drained: Drained) {
        let Drained { generation, edge } = drained;
        self.state.send_modify(|state| {
            // Nobody waits for one that does not watch, and nobody would forget what it said.
            if edge.is_some() && !state.senders.contains_key(&edge) {
                return;
            }
            let newest = state.drained.entry(id.clone()).or_default().entry(edge).or_default();
            *newest = generation.counter.max(*newest);
        });
    }

    /// Forgets a machine.
    pub fn forget(&self, id: &MachineId) {
        self.state.send_if_modified(|state| state.drained.remove(id).is_some());
    }

    /// Waits until all who send requests have said that a machine is drained which was published
    /// not to be ready with this counter.
    pub async fn wait(&self, id: &MachineId, counter: u64) {
        let mut state = self.state.subscribe();
        // The sender lives as long as this does, so the wait ends well.
        drop(state.wait_for(|state| state.is_drained(id, counter)).await.map(drop));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.state.send_modify(|state| {
            let watches = state.senders.entry(self.edge).or_default();
            *watches = watches.saturating_sub(1);
            if *watches > 0 {
                return;
            }
            state.senders.remove(&self.edge);
            if self.edge.is_some() {
                // It says all anew when it comes again.
                state.drained.retain(|_, said| {
                    said.remove(&self.edge);
                    !said.is_empty()
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perch_types::directory::Generation;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn said(counter: u64, edge: Option<u64>) -> Drained {
        Drained { generation: Generation { incarnation: 1, counter }, edge }
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_word_about_that_record_or_with_the_last_sender() {
        let (drains, id) = (Drains::default(), MachineId::from_bits(1));
        tokio::time::timeout(SOON, drains.wait(&id, 7)).await.unwrap();
        let sender = drains.join(None);
        let at = |counter| said(counter, None);
        drains.note(&id, at(6));
        let mut wait = Box::pin(drains.wait(&id, 7));
        assert!(futures_util::poll!(&mut wait).is_pending(), "that was of an earlier record");
        drains.note(&MachineId::from_bits(2), at(9));
        assert!(futures_util::poll!(&mut wait).is_pending(), "that was another machine");
        drains.note(&id, at(8));
        tokio::time::timeout(SOON, wait).await.unwrap();
        let wait = drains.wait(&id, 9);
        drop(sender);
        tokio::time::timeout(SOON, wait).await.unwrap();
    }

    #[tokio::test]
    async fn each_edge_answers_for_itself_until_it_is_gone() {
        let (drains, id) = (Drains::default(), MachineId::from_bits(1));
        let (old, new) = (drains.join(Some(1)), drains.join(Some(2)));
        let again = drains.join(Some(2));
        drains.note(&id, said(7, Some(3)));
        drains.note(&id, said(7, Some(2)));
        let mut wait = Box::pin(drains.wait(&id, 7));
        assert!(futures_util::poll!(&mut wait).is_pending(), "the old one has not said it");
        drop(old);
        tokio::time::timeout(SOON, wait).await.unwrap();
        // What it said holds for as long as it has a watch.
        drop(new);
        tokio::time::timeout(SOON, drains.wait(&id, 7)).await.unwrap();
        let other = drains.join(Some(1));
        drains.note(&id, said(7, Some(1)));
        tokio::time::timeout(SOON, drains.wait(&id, 7)).await.unwrap();
        drop((again, other));
        assert!(drains.state.borrow().drained.is_empty(), "nobody is left who said it");
        // One that knows of no numbers speaks for all.
        let (_one, _two) = (drains.join(Some(1)), drains.join(Some(2)));
        drains.note(&id, said(8, None));
        tokio::time::timeout(SOON, drains.wait(&id, 8)).await.unwrap();
    }
}
