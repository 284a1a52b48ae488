//! One start of a machine: how the host is asked for it, and for whom it counts.
//!
//! Never takes a silent host for one that refuses.

use std::time::Duration;

use perch_client::HostClient;
use perch_types::directory::{Generation, MachineRecord};
use perch_types::host::Command;
use perch_types::{Code, MachineId};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::{Outcome, REFUSED_PAUSE};

/// How many starts the host is asked for at a time; more wait for their turn.
pub(super) const ASKS_MAX: usize = 128;
/// The first pause after an answer of the host that was lost, doubled each time, and the longest.
const LOST_PAUSE: Duration = Duration::from_millis(100);
const LOST_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A start that was asked for, under way or done.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) outcome: watch::Receiver<Outcome>,
    pub(super) since: Instant,
}

impl Start {
    /// Returns whether a look at `record` may join this start instead of asking for another.
    pub(super) fn covers(&self, record: &MachineRecord, hold_max: Duration) -> bool {
        let outcome = *self.outcome.borrow();
        match outcome {
            // One whose task is gone has none to come.
            Outcome::Pending => self.outcome.has_changed().is_ok(),
            // The watch is behind the answer to the start. Not for ever: a host that lost what
            // it promised would else never be asked again.
            Outcome::Accepted(after) => {
                record.generation <= after && self.since.elapsed() < hold_max
            }
            // Nor is it asked at once by each of those who wait.
            Outcome::Refused(seen) => {
                record.generation <= seen && self.since.elapsed() < REFUSED_PAUSE
            }
        }
    }
}

/// Asks the host to start a machine that was `seen` asleep; again for as long as requests are held,
/// if no answer comes: the host may be at its restart, and only its word refuses.
pub(super) async fn ask(
    host: &HostClient,
    asks: &Semaphore,
    (id, seen): (&MachineId, Generation),
    hold_max: Duration,
) -> Outcome {
    let late = Instant::now() + hold_max;
    let mut pause = LOST_PAUSE;
    loop {
        let told = {
            // Nobody closes it.
            let _turn = asks.acquire().await;
            host.command(id, &Command::Start).await
        };
        let error = match told {
            Ok(accepted) => return Outcome::Accepted(accepted.machine.generation.max(seen)),
            // Somebody else started it in between, or this did and the answer was lost.
            Err(error) if error.code() == Some(Code::WrongState) => {
                return Outcome::Accepted(seen);
            }
            Err(error) => error,
        };
        if error.code().is_some() || Instant::now() + pause >= late {
            tracing::warn!(machine = %id, %error, "machine not woken");
            return Outcome::Refused(seen);
        }
        tracing::debug!(machine = %id, %error, "start is asked for again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOST_PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use perch_types::MachineState;

    use super::*;
    use crate::live::tests::record;

    #[test]
    fn a_start_covers_those_who_come_while_its_outcome_is_due_or_is_news() {
        let hold_max = Duration::from_secs(60);
        let at = |counter| Generation { incarnation: 1, counter };
        let seen = record(1, "web", MachineState::Stopped);
        assert_eq!(seen.generation, at(1));
        for (outcome, is_under_way, expected) in [
            (Outcome::Pending, true, true),
            // Its task ended without a word.
            (Outcome::Pending, false, false),
            (Outcome::Accepted(at(1)), false, true),
            (Outcome::Accepted(at(0)), false, false),
            (Outcome::Refused(at(1)), false, true),
            (Outcome::Refused(at(0)), false, false),
        ] {
            let (sender, receiver) = watch::channel(outcome);
            let start = Start { outcome: receiver, since: Instant::now() };
            let sender = is_under_way.then_some(sender);
            assert_eq!(start.covers(&seen, hold_max), expected, "{outcome:?} {is_under_way}");
            drop(sender);
        }
    }
}
