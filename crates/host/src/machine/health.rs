//! Health of a machine's containers: their checks are carried out while they run, and the runtime
//! is told what follows.
//!
//! Never starts or stops a container itself, and never looks at one that does not run.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use perch_runtime::Instance;
use perch_runtime::containers::{ContainerState, Containers};
use perch_types::api::{CheckState, CheckStatus, ContainerSummary};
use perch_types::error::chain;
use perch_types::machine_config::{
    ContainerConfig, Healthcheck, HealthcheckKind, HttpHealthcheck, UnhealthyPolicy,
};
use perch_types::service::CheckProtocol;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::checks::{Attempt, Dial, Request};
use crate::shared::Shared;

/// Seconds between two checks when nothing else was said.
const INTERVAL_S: u64 = 10;
/// Seconds that a check may take when nothing else was said.
const TIMEOUT_S: u64 = 5;
/// Failures in a row when nothing else was said.
const FAILURES: u32 = 3;
/// Verdicts that may wait.
const VERDICTS_MAX: usize = 16;
/// The pause after a question that the monitor did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// How the containers of a machine stand, as the API says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Each.
    pub containers: Vec<ContainerSummary>,
    /// Their checks.
    pub checks: Vec<CheckStatus>,
    /// Why the machine gets no requests.
    pub because: Option<String>,
}

/// A check of a container, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    container: usize,
    /// The container's name and its own.
    name: String,
    attempt: Attempt,
    interval: Duration,
    timeout: Duration,
    grace: Duration,
    thresholds: [u32; 2],
    gates: bool,
    stops: bool,
}

/// Counts what a check says until it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Streak {
    passed: bool,
    length: u32,
    healthy: Option<bool>,
}

impl Streak {
    /// Takes an attempt into account; returns how the check stands if that changed.
    fn note(&mut self, passed: bool, [successes, failures]: [u32; 2]) -> Option<bool> {
        self.length = if passed == self.passed { self.length.saturating_add(1) } else { 1 };
        self.passed = passed;
        let needed = if passed { successes } else { failures };
        if self.length < needed || self.healthy == Some(passed) {
            return None;
        }
        self.healthy = Some(passed);
        self.healthy
    }
}

fn checks(containers: &[ContainerConfig]) -> Vec<Check> {
    let each = containers.iter().enumerate();
    each.flat_map(|(index, container)| {
        container.healthchecks.iter().filter_map(move |check| filled(index, container, check))
    })
    .collect()
}

fn filled(index: usize, container: &ContainerConfig, check: &Healthcheck) -> Option<Check> {
    let address = |port: Option<u16>| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port?)));
    let attempt = if let Some(http) = &check.http {
        Attempt::Http { address: address(http.port)?, request: request(http) }
    } else if let Some(tcp) = &check.tcp {
        Attempt::Tcp { address: address(tcp.port)? }
    } else {
        let command = check.exec.as_ref()?.command.clone();
        Attempt::Exec { container: container.name.clone(), command }
    };
    let seconds = |given: Option<u64>, or: u64| {
        Duration::from_secs(given.filter(|given| *given > 0).unwrap_or(or))
    };
    let count = |given: Option<u32>, or: u32| given.filter(|given| *given > 0).unwrap_or(or);
    Some(Check {
        container: index,
        name: format!("{}.{}", container.name, check.name),
        attempt,
        interval: seconds(check.interval, INTERVAL_S),
        timeout: seconds(check.timeout, TIMEOUT_S),
        grace: Duration::from_secs(check.grace_period.unwrap_or_default()),
        thresholds: [count(check.success_threshold, 1), count(check.failure_threshold, FAILURES)],
        gates: check.kind == Some(HealthcheckKind::Readiness),
        stops: check.unhealthy == Some(UnhealthyPolicy::Stop),
    })
}

fn request(http: &HttpHealthcheck) -> Request {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Request {
        tls: http.scheme == Some(CheckProtocol::Https),
        skip_verify: http.tls_skip_verify == Some(true),
        server_name: text(&http.tls_server_name),
        method: text(&http.method).unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase(),
        path: text(&http.path).unwrap_or_else(|| "/".to_owned()),
        headers: http
            .headers
            .iter()
            .flat_map(|one| one.values.iter().map(|value| (one.name.clone(), value.clone())))
            .collect(),
    }
}

/// A verdict of one check.
struct Verdict {
    check: usize,
    /// The start of the container that it is about.
    start: u32,
    healthy: Option<bool>,
    output: String,
}

/// What is known of all.
struct Known {
    checks: Vec<Check>,
    states: Vec<Option<bool>>,
    statuses: Vec<CheckStatus>,
    containers: Containers,
    names: Vec<String>,
}

impl Known {
    fn new(containers: &[ContainerConfig], now: perch_types::Timestamp) -> Self {
        let checks = checks(containers);
        let statuses = checks.iter().map(|check| CheckStatus {
            name: check.name.clone(),
            status: CheckState::Warning,
            output: String::new(),
            updated_at: now,
        });
        Self {
            states: vec![None; checks.len()],
            statuses: statuses.collect(),
            checks,
            containers: Containers::default(),
            names: containers.iter().map(|one| one.name.clone()).collect(),
        }
    }

    /// Returns whether all checks of a container pass; nothing while that is not known.
    fn healthy(&self, container: usize) -> Option<bool> {
        let own = self.checks.iter().zip(&self.states);
        let own = own.filter(|(check, _)| check.container == container);
        let states: Vec<Option<bool>> = own.map(|(_, state)| *state).collect();
        if states.contains(&Some(false)) {
            return Some(false);
        }
        let all = !states.is_empty() && states.iter().all(|state| *state == Some(true));
        all.then_some(true)
    }

    /// Returns whether a check of a container fails for which it is to be stopped.
    fn unwell(&self, container: usize) -> bool {
        let mut own = self.checks.iter().zip(&self.states);
        own.any(|(check, state)| {
            check.container == container && check.stops && *state == Some(false)
        })
    }

    fn standing(&self) -> Standing {
        let gating = self.checks.iter().zip(&self.states).zip(&self.statuses);
        let mut failing = gating.filter(|((check, state), _)| check.gates && **state != Some(true));
        let because = failing.next().map(|((check, _), status)| {
            if status.output.is_empty() {
                format!("check {} has not passed yet", check.name)
            } else {
                format!("check {}: {}", check.name, status.output)
            }
        });
        let states = self.containers.each.iter().map(|one| one.state);
        let states = states.chain(std::iter::repeat(ContainerState::Created));
        let containers = self.names.iter().zip(states).map(|(name, state)| ContainerSummary {
            name: name.clone(),
            state: state.word().to_owned(),
        });
        Standing { containers: containers.collect(), checks: self.statuses.clone(), because }
    }

    fn note(&mut self, verdict: &Verdict, now: perch_types::Timestamp) {
        if let (Some(status), Some(state)) =
            (self.statuses.get_mut(verdict.check), self.states.get_mut(verdict.check))
        {
            if *state != verdict.healthy {
                status.updated_at = now;
            }
            *state = verdict.healthy;
            status.status = match verdict.healthy {
                Some(true) => CheckState::Passing,
                Some(false) => CheckState::Critical,
                None => CheckState::Warning,
            };
            status.output.clone_from(&verdict.output);
        }
    }

    fn forget(&mut self, container: usize, now: perch_types::Timestamp) {
        for index in 0..self.checks.len() {
            if self.checks.get(index).is_some_and(|check| check.container == container) {
                let output = String::new();
                self.note(&Verdict { check: index, start: 0, healthy: None, output }, now);
            }
        }
    }
}

/// Returns what is known before anything was asked.
#[must_use]
pub fn first(containers: &[ContainerConfig], now: perch_types::Timestamp) -> Standing {
    Known::new(containers, now).standing()
}

/// Follows the containers of a boot and tells of every change, for as long as it runs.
pub async fn follow(
    shared: Arc<Shared>,
    instance: Arc<dyn Instance>,
    containers: Vec<ContainerConfig>,
    news: mpsc::Sender<Standing>,
) {
    let clock = Arc::clone(&shared.effects.clock);
    let Ok(namespace) = instance.network_namespace() else { return };
    let (sender, mut verdicts) = mpsc::channel(VERDICTS_MAX);
    let mut tasks = Vec::new();
    tasks.resize_with(containers.len(), || (0, JoinSet::new()));
    let dial = Dial::inside(namespace, &shared, &instance);
    let known = Known::new(&containers, clock.now());
    let mut following = Following { known, tasks, dial, sender, told: BTreeMap::new() };
    let mut told = Standing::default();
    // One question at a time: each has a thread of the monitor's until it is answered.
    let mut asking = instance.containers(0);
    loop {
        let told_runtime = following.tell(instance.as_ref()).await;
        let behind = told_runtime.is_err();
        if let Err(error) = told_runtime {
            tracing::debug!(error = %chain(&error),
                "monitor was not told of a container's health");
        }
        let standing = following.known.standing();
        if standing != told {
            told = standing.clone();
            if news.send(standing).await.is_err() {
                return;
            }
        }
        tokio::select! {
            answer = &mut asking => {
                match answer {
                    Ok(found) => following.stand(found, clock.now()),
                    Err(perch_runtime::Error::Ended(_)) => return,
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
                asking = instance.containers(following.known.containers.counter);
            }
            Some(verdict) = verdicts.recv() => following.judge(&verdict, clock.now()),
            () = tokio::time::sleep(AGAIN), if behind => {}
        }
    }
}

/// What follows the containers of a boot.
struct Following {
    known: Known,
    /// The start that a container's checks are about, and they.
    tasks: Vec<(u32, JoinSet<()>)>,
    dial: Dial,
    sender: mpsc::Sender<Verdict>,
    /// What the runtime was told of containers: of which start, its health, whether to stop it.
    told: BTreeMap<usize, (u32, Option<bool>, bool)>,
}

impl Following {
    /// Begins the checks of containers that were started, and ends those of ones that do not run.
    fn stand(&mut self, found: Containers, now: perch_types::Timestamp) {
        self.known.containers = found;
        for container in 0..self.tasks.len() {
            let status = self.known.containers.each.get(container).copied().unwrap_or_default();
            let runs = status.state == ContainerState::Started;
            let wanted = if runs { status.starts } else { 0 };
            let Some((start, _)) = self.tasks.get(container) else { continue };
            if *start == wanted {
                continue;
            }
            self.known.forget(container, now);
            let mut tasks = JoinSet::new();
            let own = self.known.checks.iter().enumerate();
            let own = own.filter(|(_, check)| runs && check.container == container);
            for (index, check) in own {
                let (dial, sender) = (self.dial.clone(), self.sender.clone());
                tasks.spawn(watch(check.clone(), (index, wanted), dial, sender));
            }
            if let Some(place) = self.tasks.get_mut(container) {
                // The checks of the program that ended end with it.
                *place = (wanted, tasks);
            }
        }
    }

    /// Takes a verdict into account.
    fn judge(&mut self, verdict: &Verdict, now: perch_types::Timestamp) {
        let Some(check) = self.known.checks.get(verdict.check) else {
            return;
        };
        // What was said of a program that has ended says nothing of the next.
        if self.tasks.get(check.container).is_some_and(|(start, _)| *start == verdict.start) {
            self.known.note(verdict, now);
        }
    }

    /// Tells the runtime what it was not told yet of those that run.
    async fn tell(&mut self, instance: &dyn Instance) -> Result<(), perch_runtime::Error> {
        for (container, (start, _)) in self.tasks.iter().enumerate().filter(|(_, one)| one.0 > 0) {
            let (healthy, unwell) = (self.known.healthy(container), self.known.unwell(container));
            let mut told = self.told.get(&container).copied().unwrap_or_default();
            if told.0 != *start {
                told = (*start, None, false);
            }
            if let Some(healthy) = healthy.filter(|healthy| told.1 != Some(*healthy)) {
                instance.container_health(container, *start, healthy).await?;
                told.1 = Some(healthy);
                self.told.insert(container, told);
            }
            if unwell && !told.2 {
                instance.stop_unwell(container, *start).await?;
                told.2 = true;
                self.told.insert(container, told);
            }
        }
        Ok(())
    }
}

/// Carries out a check at its intervals and tells of every change.
async fn watch(
    check: Check,
    (index, start): (usize, u32),
    dial: Dial,
    sender: mpsc::Sender<Verdict>,
) {
    let began = tokio::time::Instant::now();
    let mut streak = Streak::default();
    let mut output = String::new();
    loop {
        let (passed, said) = check.attempt.carry_out(check.timeout, &dial).await;
        let in_grace = began.elapsed() < check.grace;
        let counts = passed || !in_grace;
        let changed = counts && streak.note(passed, check.thresholds).is_some();
        if changed || said != output {
            output.clone_from(&said);
            let verdict = Verdict { check: index, start, healthy: streak.healthy, output: said };
            if sender.send(verdict).await.is_err() {
                return;
            }
        }
        // One that has not passed yet may hold others up; its failures count no sooner for it.
        let early = streak.healthy.is_none() && in_grace;
        tokio::time::sleep(if early { AGAIN.min(check.interval) } else { check.interval }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_counts_when_it_said_the_same_often_enough() {
        for (thresholds, attempts, want) in [
            ([1, 3], "p", vec![Some(true)]),
            ([1, 3], "fff", vec![None, None, Some(false)]),
            ([2, 2], "pfpp", vec![None, None, None, Some(true)]),
            ([1, 2], "pfpff", vec![Some(true), None, None, None, Some(false)]),
            ([1, 1], "pp", vec![Some(true), None]),
        ] {
            let mut streak = Streak::default();
            let found: Vec<_> =
                attempts.chars().map(|one| streak.note(one == 'p', thresholds)).collect();
            assert_eq!(found, want, "{thresholds:?} {attempts}");
        }
    }

    fn containers() -> Vec<ContainerConfig> {
        serde_json::from_value(serde_json::json!([
            {"name": "web", "healthchecks": [
                {"name": "up", "http": {"port": 80, "path": "/up", "scheme": "https"},
                 "kind": "readiness", "interval": 2},
                {"name": "live", "tcp": {"port": 81}, "kind": "liveness", "unhealthy": "stop"}]},
            {"name": "db", "healthchecks": [
                {"name": "ping", "exec": {"command": ["ping"]}, "failure_threshold": 1}]},
        ]))
        .unwrap()
    }

    #[test]
    fn checks_are_filled_in_and_named_after_their_container() {
        let found = checks(&containers());
        let names: Vec<&str> = found.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["web.up", "web.live", "db.ping"]);
        assert_eq!((found[0].gates, found[0].stops, found[0].interval.as_secs()), (true, false, 2));
        assert_eq!(
            (found[1].gates, found[1].stops, found[1].interval.as_secs()),
            (false, true, 10)
        );
        assert_eq!((found[2].container, found[2].thresholds), (1, [1, 1]));
        assert!(matches!(&found[0].attempt, Attempt::Http { address, request }
            if address.ip().is_loopback() && request.tls));
    }

    #[test]
    fn requests_wait_for_checks_of_readiness_only() {
        let now = perch_types::Timestamp::UNIX_EPOCH;
        let mut known = Known::new(&containers(), now);
        let mut note = |check, healthy, output: &str| {
            known.note(&Verdict { check, start: 0, healthy, output: output.to_owned() }, now);
            let standing = known.standing();
            (standing.because, known.healthy(0), known.healthy(1))
        };
        let not_yet = Some("check web.up has not passed yet".to_owned());
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(note(2, yes, "ok"), (not_yet, None, yes));
        assert_eq!(note(0, yes, "200"), (None, None, yes));
        assert_eq!(note(1, yes, "connected"), (None, yes, yes));
        assert_eq!(note(1, no, "no"), (None, no, yes));
        let failing = Some("check web.up: 500".to_owned());
        assert_eq!(note(0, no, "500"), (failing, no, yes));
        assert!(known.unwell(0) && !known.unwell(1));
        known.forget(0, now);
        assert_eq!(known.standing().checks[0].status, CheckState::Warning);
        assert_eq!(known.standing().checks[2].status, CheckState::Passing);
    }
}
