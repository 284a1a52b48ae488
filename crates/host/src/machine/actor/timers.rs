//! What a machine's task does because it is time: restarts after a pause, runs of a schedule.
//!
//! Never counts a pause by the wall clock, which people and servers set; only a schedule follows
//! it, and a clock that jumps makes that run at most once.

use std::time::Duration;

use perch_types::schedule::spread_ms;

use super::Actor;
use super::begin::Why;
use crate::machine::restart::PAUSE_MS_MAX;
use crate::machine::state::State;

/// How long a schedule is slept over before the wall clock is looked at again.
const SCHEDULE_LOOK: Duration = Duration::from_secs(60);
/// Over how long runs that were missed while the agent was down are spread, in milliseconds.
const MISSED_SPREAD_MS: i64 = 60_000;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A parked run may try again.
    Unpark,
    /// The end of the boot may be journaled now.
    Unwritten,
    /// The command that waits first may begin now.
    Queue,
    /// The boot whose monitor could not be asked is looked for again.
    Adopt,
    /// A destroyed machine was kept long enough.
    Forget,
    /// The pause before a restart is over.
    Restart,
    /// Its schedule may want it to run.
    Schedule,
}

/// How a machine stands to its schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing is to be done for so many milliseconds.
    Waits(i64),
    /// The run of this slot is to be made.
    Due(i64),
    /// What is noted cannot be: the clock was wrong. From now on this slot counts as the last.
    Wrong(i64),
}

impl Actor {
    /// Returns what is due next without anybody asking, and how long until then.
    pub(super) fn until_due(&self) -> Option<(Duration, Due)> {
        if self.run.is_some() {
            return None;
        }
        let boot_ms = self.shared.effects.clock.boot_ms();
        let left = |due_ms: u64| Duration::from_millis(due_ms.saturating_sub(boot_ms));
        if self.parked.is_some() {
            return Some((left(self.unpark_boot_ms), Due::Unpark));
        }
        let again = [
            self.unwritten.as_ref().map(|(_, due_ms)| (left(*due_ms), Due::Unwritten)),
            self.queue_boot_ms.map(|due_ms| (left(due_ms), Due::Queue)),
            self.adopt_boot_ms.map(|due_ms| (left(due_ms), Due::Adopt)),
        ];
        let again = again.into_iter().flatten().min_by_key(|(left, _)| *left);
        let other = self.until_ordinary(boot_ms);
        again.into_iter().chain(other).min_by_key(|(left, _)| *left)
    }

    /// Returns what is due next of what comes without any fault.
    fn until_ordinary(&self, boot_ms: u64) -> Option<(Duration, Due)> {
        let left = |due_ms: u64| Duration::from_millis(due_ms.saturating_sub(boot_ms));
        if self.record.state == State::Destroyed {
            return Some((left(self.forget_boot_ms.unwrap_or(boot_ms)), Due::Forget));
        }
        if let Some(due_ms) = self.record.restart_boot_ms {
            // A moment of before the server's restart says nothing.
            let most = Duration::from_millis(PAUSE_MS_MAX);
            return Some((left(due_ms).min(most), Due::Restart));
        }
        Some((self.until_schedule()?, Due::Schedule))
    }

    /// Returns the moment that comes so much later, by the boot clock.
    pub(super) fn boot_ms_after(&self, pause_ms: u64) -> u64 {
        self.shared.effects.clock.boot_ms().saturating_add(pause_ms)
    }

    fn until_schedule(&self) -> Option<Duration> {
        Some(match self.standing()? {
            Standing::Waits(left_ms) => {
                let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
                left.min(SCHEDULE_LOOK)
            }
            Standing::Due(_) | Standing::Wrong(_) => Duration::ZERO,
        })
    }

    /// Returns how the machine stands to its schedule, if it has one.
    fn standing(&self) -> Option<Standing> {
        let schedule = self.record.version.config.schedule?;
        let clock = &self.shared.effects.clock;
        let slot = schedule.slot(&self.record.id, clock.now());
        let period_ms = slot.next_ms.saturating_sub(slot.current_ms);
        let Some(last) = self.record.schedule_ms else {
            return Some(Standing::Wrong(slot.current_ms));
        };
        if last > slot.next_ms.saturating_add(period_ms) {
            return Some(Standing::Wrong(slot.current_ms));
        }
        let now_ms = clock.now().unix_ms();
        if last >= slot.current_ms {
            return Some(Standing::Waits(slot.next_ms.saturating_sub(now_ms)));
        }
        // Missed by a whole while: not at once with all others that were.
        let is_missed = now_ms.saturating_sub(slot.current_ms) > MISSED_SPREAD_MS;
        let up_ms = clock.boot_ms().saturating_sub(self.began_boot_ms);
        let up_ms = i64::try_from(up_ms).unwrap_or(i64::MAX);
        let left_ms = spread_ms(&self.record.id, MISSED_SPREAD_MS).saturating_sub(up_ms);
        if is_missed && left_ms > 0 {
            return Some(Standing::Waits(left_ms));
        }
        Some(Standing::Due(slot.current_ms))
    }

    /// Does what is due; returns whether the machine is no more.
    pub(super) async fn due(&mut self, due: Due) -> bool {
        match due {
            Due::Unpark => {
                if let Some(id) = self.parked.take() {
                    self.unpark(id).await;
                }
            }
            Due::Unwritten => {
                if let Some((fact, _)) = self.unwritten.take() {
                    self.fact(fact).await;
                }
            }
            // It begins before the next wait.
            Due::Queue => self.queue_boot_ms = None,
            Due::Adopt => self.adopt().await,
            Due::Forget => return self.forget().await,
            Due::Restart => self.begin_automatic_start().await,
            Due::Schedule => self.schedule().await,
        }
        false
    }

    /// Starts a machine whose schedule says so, unless it runs.
    async fn schedule(&mut self) {
        let (slot_ms, is_due) = match self.standing() {
            Some(Standing::Due(slot_ms)) => (slot_ms, true),
            Some(Standing::Wrong(slot_ms)) => (slot_ms, false),
            Some(Standing::Waits(_)) | None => return,
        };
        let rests = matches!(self.record.state, State::Stopped | State::Failed);
        let begun = if is_due && rests && self.record.boot.is_none() {
            self.begin_start(Why::Schedule(slot_ms)).await
        } else {
            let mut record = self.record.clone();
            record.schedule_ms = Some(slot_ms);
            self.commit(record, None).await
        };
        if let Err(error) = begun {
            tracing::warn!(machine = %self.record.id, %error, "run of the schedule is left out");
            self.record.schedule_ms = Some(slot_ms);
        }
    }
}
