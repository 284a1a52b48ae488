//! Who sends requests to machines here, and which machines none is under way to any more.
//!
//! Never holds a machine's end up when nobody sends requests, and never without a limit.

use std::collections::BTreeMap;

use perch_types::MachineId;
use perch_types::directory::Generation;
use tokio::sync::watch;

/// What is known of requests under way.
#[derive(Debug)]
pub struct Drains {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who sends requests and will say when none is under way.
    senders: usize,
    /// The newest record with which a machine was said to be drained, by its counter.
    drained: BTreeMap<MachineId, u64>,
}

/// One that sends requests, until this is dropped.
#[derive(Debug)]
#[must_use = "nobody waits for the sender once this is dropped"]
pub struct Sender {
    state: watch::Sender<State>,
}

impl Default for Drains {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Drains {
    /// Notes one that sends requests.
    pub fn join(&self) -> Sender {
        self.state.send_modify(|state| state.senders += 1);
        Sender { state: self.state.clone() }
    }

    /// Notes that no request is under way to a machine that was seen in this generation.
    pub fn note(&self, id: &MachineId, generation: Generation) {
        self.state.send_modify(|state| {
            let newest = state.drained.entry(id.clone()).or_default();
            *newest = generation.counter.max(*newest);
        });
    }

    /// Forgets a machine.
    pub fn forget(&self, id: &MachineId) {
        self.state.send_if_modified(|state| state.drained.remove(id).is_some());
    }

    /// Waits until a machine is drained that was published not to be ready with this counter, or
    /// nobody sends requests.
    pub async fn wait(&self, id: &MachineId, counter: u64) {
        let mut state = self.state.subscribe();
        let is_drained = |state: &State| {
            state.senders == 0 || state.drained.get(id).is_some_and(|newest| *newest >= counter)
        };
        // The sender lives as long as this does, so the wait ends well.
        drop(state.wait_for(is_drained).await.map(drop));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.senders = state.senders.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_wait_ends_with_the_word_about_that_record_or_with_the_last_sender() {
        let (drains, id) = (Drains::default(), MachineId::from_bits(1));
        tokio::time::timeout(SOON, drains.wait(&id, 7)).await.unwrap();
        let sender = drains.join();
        let at = |counter| Generation { incarnation: 1, counter };
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
}
