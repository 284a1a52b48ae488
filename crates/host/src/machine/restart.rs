//! What follows when a machine's program ended by itself.
//!
//! Never starts anything and never reads a clock: a decision of policy, exit and history.

#![deny(clippy::wildcard_enum_match_arm)]

use perch_types::machine_config::{MachineConfig, RESTART_WINDOW, RestartPolicy};
use serde::{Deserialize, Serialize};

/// The pause before the first restart.
pub const PAUSE_MS: u64 = 100;
/// The longest pause before a restart.
pub const PAUSE_MS_MAX: u64 = 60_000;
/// How many restarts are remembered.
const REMEMBERED_MAX: usize = 64;

/// The restarts of a machine so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// How many since it was last started by hand.
    pub count: u32,
    /// When they were, in milliseconds since the server booted, as far as they are in the window.
    #[serde(default)]
    pub recent_boot_ms: Vec<i64>,
}

/// How the program ended, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code as the platform reports it.
    pub code: i32,
    /// Whether memory ran out.
    pub oom_killed: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is started again.
    Restart {
        /// After this pause.
        pause_ms: u64,
    },
    /// It stays stopped.
    Rest,
    /// It is removed.
    Destroy,
}

/// Decides what follows an exit that nobody asked for.
#[must_use]
pub fn decide(config: &MachineConfig, exit: Exit, history: &History, now_boot_ms: i64) -> Decision {
    let recent = recent(history, now_boot_ms).count();
    let failed = exit.code != 0 || exit.oom_killed;
    let retries_max = usize::try_from(config.restart_retries_max()).unwrap_or(usize::MAX);
    let again = match config.restart_policy() {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => failed && recent < retries_max,
    };
    if again {
        return Decision::Restart { pause_ms: pause_ms(recent) };
    }
    if config.auto_destroy { Decision::Destroy } else { Decision::Rest }
}

/// Decides what follows when the server was restarted under a machine that ran: that is no end of
/// the program's own, and no fault of it.
#[must_use]
pub fn after_reboot(config: &MachineConfig) -> Decision {
    match config.restart_policy() {
        RestartPolicy::Always | RestartPolicy::OnFailure => Decision::Restart { pause_ms: 0 },
        RestartPolicy::No if config.auto_destroy => Decision::Destroy,
        RestartPolicy::No => Decision::Rest,
    }
}

/// Decides what follows the end of a machine that was suspended: nobody wanted it to run, so it
/// waits for its next start.
#[must_use]
pub const fn after_suspension(config: &MachineConfig, by_itself: bool) -> Decision {
    if by_itself && config.auto_destroy { Decision::Destroy } else { Decision::Rest }
}

/// Returns the pause after so many restarts within the window.
#[must_use]
pub fn pause_ms(recent: usize) -> u64 {
    let shift = u32::try_from(recent.min(16)).unwrap_or(16);
    (PAUSE_MS << shift).min(PAUSE_MS_MAX)
}

impl History {
    /// Notes a restart.
    pub fn note(&mut self, now_boot_ms: i64) {
        self.count = self.count.saturating_add(1);
        let mut kept: Vec<i64> = recent(self, now_boot_ms).collect();
        kept.push(now_boot_ms);
        let surplus = kept.len().saturating_sub(REMEMBERED_MAX);
        kept.drain(..surplus);
        self.recent_boot_ms = kept;
    }
}

fn recent(history: &History, now_boot_ms: i64) -> impl Iterator<Item = i64> {
    let window_ms = i64::try_from(RESTART_WINDOW.get().as_millis()).unwrap_or(i64::MAX);
    // What was before the server booted is past the window, or as good as.
    history
        .recent_boot_ms
        .iter()
        .copied()
        .filter(move |at| *at <= now_boot_ms && now_boot_ms - *at < window_ms)
}

#[cfg(test)]
mod tests {
    use perch_types::machine_config::RestartConfig;

    use super::*;

    fn config(
        policy: RestartPolicy,
        max_retries: Option<u32>,
        auto_destroy: bool,
    ) -> MachineConfig {
        MachineConfig {
            restart: Some(RestartConfig {
                policy: Some(policy),
                max_retries,
                ..RestartConfig::default()
            }),
            auto_destroy,
            ..MachineConfig::default()
        }
    }

    #[test]
    fn policies() {
        let good = Exit { code: 0, oom_killed: false };
        let bad = Exit { code: 1, oom_killed: false };
        let oom = Exit { code: 0, oom_killed: true };
        let again = Decision::Restart { pause_ms: PAUSE_MS };
        for (policy, auto_destroy, exit, want) in [
            (RestartPolicy::No, false, bad, Decision::Rest),
            (RestartPolicy::No, true, bad, Decision::Destroy),
            (RestartPolicy::No, true, good, Decision::Destroy),
            (RestartPolicy::Always, false, good, again),
            (RestartPolicy::Always, true, bad, again),
            (RestartPolicy::OnFailure, false, good, Decision::Rest),
            (RestartPolicy::OnFailure, true, good, Decision::Destroy),
            (RestartPolicy::OnFailure, false, bad, again),
            (RestartPolicy::OnFailure, true, oom, again),
        ] {
            let config = config(policy, None, auto_destroy);
            assert_eq!(decide(&config, exit, &History::default(), 0), want, "{policy:?} {exit:?}");
        }
    }

    #[test]
    fn on_failure_gives_up_within_the_window_and_begins_anew_after_it() {
        let config = config(RestartPolicy::OnFailure, Some(3), false);
        let bad = Exit { code: 1, oom_killed: false };
        let mut history = History::default();
        let mut pauses = Vec::new();
        let mut now = 1_000_000;
        while let Decision::Restart { pause_ms } = decide(&config, bad, &history, now) {
            pauses.push(pause_ms);
            now += i64::try_from(pause_ms).unwrap();
            history.note(now);
        }
        assert_eq!(pauses, [100, 200, 400]);
        assert_eq!(history.count, 3);
        now += 300_000;
        assert_eq!(decide(&config, bad, &history, now), Decision::Restart { pause_ms: PAUSE_MS });
    }

    #[test]
    fn always_never_gives_up_and_never_waits_longer_than_the_longest() {
        let config = config(RestartPolicy::Always, Some(1), false);
        let mut history = History::default();
        for restart in 0..200 {
            history.note(restart);
        }
        let good = Exit { code: 0, oom_killed: false };
        let decision = decide(&config, good, &history, 200);
        assert_eq!(decision, Decision::Restart { pause_ms: PAUSE_MS_MAX });
        assert!(history.recent_boot_ms.len() <= REMEMBERED_MAX);
        assert_eq!(history.count, 200);
    }

    #[test]
    fn restarts_before_a_reboot_do_not_count() {
        let mut history = History::default();
        history.note(1_000_000);
        let config = config(RestartPolicy::OnFailure, Some(1), false);
        let bad = Exit { code: 1, oom_killed: false };
        assert_eq!(decide(&config, bad, &history, 5), Decision::Restart { pause_ms: PAUSE_MS });
    }

    #[test]
    fn after_a_reboot_the_policy_decides_whatever_the_history() {
        for (policy, auto_destroy, want) in [
            (RestartPolicy::Always, false, Decision::Restart { pause_ms: 0 }),
            (RestartPolicy::OnFailure, true, Decision::Restart { pause_ms: 0 }),
            (RestartPolicy::No, false, Decision::Rest),
            (RestartPolicy::No, true, Decision::Destroy),
        ] {
            assert_eq!(after_reboot(&config(policy, Some(0), auto_destroy)), want);
        }
    }

    #[test]
    fn what_ended_while_it_was_suspended_waits_for_its_next_start() {
        let always = config(RestartPolicy::Always, None, false);
        assert_eq!(after_suspension(&always, true), Decision::Rest);
        let gone = config(RestartPolicy::Always, None, true);
        assert_eq!(after_suspension(&gone, true), Decision::Destroy);
        assert_eq!(after_suspension(&gone, false), Decision::Rest);
    }
}
