//! The main processes of a machine, most often one.
//!
//! Never keeps a machine alive without one of them: the first that ends takes the others along,
//! and its end is the machine's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use perch_types::guest::{Ended, FromGuest};

/// What is to be done about the end of a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing: it was none of the main processes.
    Nothing,
    /// The others are asked to end; the monitor is told.
    StopOthers(FromGuest),
    /// The machine waits for the rest.
    Wait,
    /// The machine ends with this report.
    End(FromGuest),
}

/// The main processes that run.
#[derive(Debug, Default)]
pub(crate) struct Mains {
    /// Which process has which number.
    running: BTreeMap<i32, u32>,
    /// Whether there was ever more than one.
    several: bool,
    /// The end that became the machine's.
    end: Option<Ended>,
    grace: Duration,
    kill_at: Option<Instant>,
}

impl Mains {
    /// Notes the processes that were started, in their order.
    pub(crate) fn new(pids: &[i32], grace: Duration) -> Self {
        let running = pids.iter().copied().zip(0_u32..).collect();
        Self { running, several: pids.len() > 1, end: None, grace, kill_at: None }
    }

    /// Returns whether one of them runs.
    pub(crate) fn run(&self) -> bool {
        !self.running.is_empty()
    }

    /// Returns the processes that run.
    pub(crate) fn pids(&self) -> impl Iterator<Item = i32> {
        self.running.keys().copied()
    }

    /// Takes the end of a process into account.
    pub(crate) fn ended(&mut self, pid: i32, ended: Ended, now: Instant) -> Then {
        let Some(process) = self.running.remove(&pid) else {
            return Then::Nothing;
        };
        let first = self.end.is_none();
        let end = *self.end.get_or_insert(ended);
        if self.running.is_empty() && !self.several {
            return Then::End(FromGuest::Ended(end));
        }
        if first {
            self.kill_at = Some(now.checked_add(self.grace).unwrap_or(now));
            return Then::StopOthers(FromGuest::ProcessEnded { process, ended });
        }
        if self.running.is_empty() { Then::End(FromGuest::Ended(end)) } else { Then::Wait }
    }

    /// Returns how long the rest may still take, and the report once that is over. Init ends then,
    /// and the kernel kills what is left.
    pub(crate) fn patience(&self, now: Instant) -> (Option<Duration>, Option<FromGuest>) {
        let (Some(at), Some(end)) = (self.kill_at, self.end) else {
            return (None, None);
        };
        let left = at.saturating_duration_since(now);
        (Some(left), left.is_zero().then_some(FromGuest::Ended(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn exit(code: i32) -> Ended {
        Ended { code, signal: None }
    }

    #[test]
    fn the_end_of_the_only_process_is_the_machines() {
        let now = Instant::now();
        let mut mains = Mains::new(&[7], GRACE);
        assert_eq!(mains.ended(9, exit(1), now), Then::Nothing);
        assert_eq!(mains.patience(now), (None, None));
        assert_eq!(mains.ended(7, exit(3), now), Then::End(FromGuest::Ended(exit(3))));
    }

    #[test]
    fn the_first_of_several_that_ends_takes_the_others_along() {
        let now = Instant::now();
        let mut mains = Mains::new(&[7, 8, 9], GRACE);
        let told = FromGuest::ProcessEnded { process: 1, ended: exit(3) };
        assert_eq!(mains.ended(8, exit(3), now), Then::StopOthers(told));
        assert_eq!(mains.pids().collect::<Vec<_>>(), [7, 9]);
        assert_eq!(mains.patience(now), (Some(GRACE), None));
        assert_eq!(mains.ended(7, exit(143), now), Then::Wait);
        assert_eq!(mains.ended(9, exit(0), now), Then::End(FromGuest::Ended(exit(3))));
    }

    #[test]
    fn who_does_not_end_in_time_is_not_waited_for() {
        let now = Instant::now();
        let mut mains = Mains::new(&[7, 8], GRACE);
        assert!(matches!(mains.ended(7, exit(0), now), Then::StopOthers(_)));
        let late = now + GRACE;
        assert_eq!(mains.patience(late), (Some(Duration::ZERO), Some(FromGuest::Ended(exit(0)))));
    }

    #[test]
    fn processes_that_end_together_are_one_end() {
        let now = Instant::now();
        let mut mains = Mains::new(&[7, 8], GRACE);
        assert!(matches!(mains.ended(8, exit(4), now), Then::StopOthers(_)));
        assert_eq!(mains.ended(7, exit(5), now), Then::End(FromGuest::Ended(exit(4))));
    }
}
