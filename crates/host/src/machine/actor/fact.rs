//! What follows from what happened to a machine.
//!
//! Never waits: a decision and the beginning of a run.

use std::sync::Arc;
use std::time::Duration;

use perch_runtime::{ExitReason, ExitStatus, Instance};
use perch_types::ApiError;
use perch_types::api::{CheckState, CheckStatus};
use perch_types::error::chain;
use tokio::sync::mpsc;

use super::Actor;
use super::begin::{PUT_OFF_MS, Why};
use crate::machine::plan::Intent;
use crate::machine::record::{Boot, Desired, Exiting, Reached, Readiness};
use crate::machine::restart::{Decision, Exit, after_suspension, decide};
use crate::machine::run::{Input, lost_exit};
use crate::machine::state::{Fact, State};
use crate::schema::Queued;

/// After which a boot's end is awaited again when it could not be.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) async fn fact(&mut self, fact: Fact) {
        // Nobody tells of an end again: it is kept until it is journaled.
        let kept = matches!(fact, Fact::Exited(_) | Fact::Lost { .. }).then(|| fact.clone());
        let result = match fact {
            Fact::Exited(exit) => self.exited(*exit).await,
            Fact::Lost { boot } => {
                let exit = lost_exit(&self.record);
                self.exited(ExitStatus { boot, ..exit }).await
            }
            Fact::Reached { boot, what } => self.reached(boot, what).await,
            Fact::StandIn { event } => self.stand_in(event).await,
            Fact::Readiness { boot, readiness } => {
                // A check that was under way when its machine was frozen says nothing.
                let looked_at = |one: &Boot| one.number == boot && !one.frozen;
                let current = self.record.boot.as_ref().is_some_and(looked_at);
                if current && readiness != self.readiness {
                    self.tell_health(&readiness);
                    self.readiness = readiness;
                    self.publish();
                }
                Ok(())
            }
        };
        if let Err(error) = result {
            tracing::error!(machine = %self.record.id, %error, "fact could not be journaled");
            self.unwritten = kept.map(|fact| (fact, self.boot_ms_after(PUT_OFF_MS)));
        }
    }

    /// Says once a boot that it ran into a limit.
    async fn reached(&mut self, boot: u64, what: Reached) -> Result<(), ApiError> {
        if self.record.boot.as_ref().is_none_or(|one| one.number != boot) {
            return Ok(());
        }
        let mut record = self.record.clone();
        let Some(text) = record.note_reached(what, self.shared.instant()) else {
            return Ok(());
        };
        self.say(vec![text]);
        self.commit(record, None).await
    }

    /// Takes the place of a machine that failed, once for each of its failures.
    async fn stand_in(&mut self, event: String) -> Result<(), ApiError> {
        let rests = self.record.state == State::Stopped && self.record.boot.is_none();
        if !rests || self.record.stood_in.contains(&event) {
            return Ok(());
        }
        self.begin_start(Why::StandIn(event)).await
    }

    /// Writes into the machine's log which of its checks began to pass or to fail.
    fn tell_health(&self, now: &Readiness) {
        self.say(health_lines(&self.readiness.checks, &now.checks));
    }

    /// Writes lines into the machine's log.
    pub(super) fn say(&self, lines: Vec<String>) {
        let Some(instance) = self.instance.clone().filter(|_| !lines.is_empty()) else {
            return;
        };
        let machine = self.record.id.clone();
        // It waits for nobody: the machine's task goes on, and a line that is lost is only that.
        tokio::spawn(async move {
            for line in lines {
                if let Err(error) = instance.note(&line).await {
                    tracing::debug!(%machine, %error, "line for the log is lost");
                }
            }
        });
    }

    /// The boot ended although nobody asked for it.
    pub(super) async fn exited(&mut self, exit: ExitStatus) -> Result<(), ApiError> {
        if self.record.boot.as_ref().is_none_or(|boot| boot.number != exit.boot) {
            return Ok(());
        }
        self.watchers.clear();
        self.exit_watcher = None;
        self.readiness = Readiness::default();
        let at = self.shared.instant();
        let now_ms = i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX);
        let mut record = self.record.clone();
        let ended = Exit { code: exit.code, oom_killed: exit.oom_killed };
        let stop_waits = self.queued.iter().any(is_end);
        let decision = if stop_waits {
            Decision::Rest
        } else if record.state == State::Suspended {
            after_suspension(&record.version.config, exit.reason == ExitReason::Exited)
        } else {
            decide(&record.version.config, ended, &record.history, now_ms)
        };
        let intent = match decision {
            Decision::Restart { pause_ms } => {
                record.state = State::Starting;
                record.history.note(now_ms);
                let boot_ms = self.shared.effects.clock.boot_ms();
                record.restart_boot_ms = Some(boot_ms.saturating_add(pause_ms));
                Intent::Settle
            }
            Decision::Rest => {
                record.state = State::Stopped;
                record.desired = Desired::Stopped;
                Intent::Settle
            }
            Decision::Destroy => {
                record.state = State::Destroying;
                record.desired = Desired::Gone;
                Intent::Destroy
            }
        };
        let restarting = matches!(decision, Decision::Restart { .. });
        // One that was to be stopped has not failed: no standby takes its place.
        record.note_exit(&exit, Exiting { asked: stop_waits, restarting }, at);
        if intent == Intent::Destroy {
            record.boot = None;
        }
        let input = Input { asked: false, ..Input::new(intent) };
        self.instance = None;
        self.commit(record, Some(input)).await
    }
}

/// Returns what is to be said of checks that stand differently now.
fn health_lines(before: &[CheckStatus], now: &[CheckStatus]) -> Vec<String> {
    let stood = |name: &str| before.iter().find(|check| check.name == name).map(|one| one.status);
    let changed = now.iter().filter(|check| stood(&check.name) != Some(check.status));
    changed
        .filter_map(|check| match check.status {
            CheckState::Passing => Some(format!("Health check `{}` is now passing", check.name)),
            CheckState::Critical => {
                Some(format!("Health check `{}` is failing: {}", check.name, check.output))
            }
            CheckState::Warning => None,
        })
        .collect()
}

pub(super) fn is_end(queued: &Queued) -> bool {
    use perch_types::host::Command;
    matches!(queued.command, Command::Stop { .. } | Command::Destroy { .. })
}

/// Waits for the end of a boot and tells of it.
pub(super) async fn follow_exit(instance: Arc<dyn Instance>, facts: mpsc::Sender<Fact>) {
    let info = instance.info();
    let fact = loop {
        let error = match instance.wait().await {
            Ok(exit) => break Fact::Exited(Box::new(exit)),
            Err(error) => error,
        };
        let error_chain = chain(&error);
        // Of any other fault, such as a want of descriptors, the boot knows nothing.
        if matches!(error, perch_runtime::Error::Ended(_) | perch_runtime::Error::Shape(_)) {
            tracing::warn!(machine = %info.machine, error = %error_chain, "monitor is gone");
            break Fact::Lost { boot: info.boot };
        }
        tracing::warn!(machine = %info.machine, error = %error_chain, "end cannot be awaited");
        tokio::time::sleep(FOLLOW_PAUSE).await;
    };
    // The task may be ending.
    drop(facts.send(fact).await);
}
