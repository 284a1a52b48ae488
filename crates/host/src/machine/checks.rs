//! Checks of a machine: a connection or a request at intervals.
//!
//! Never decides what follows: a verdict is all.

mod attempt;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use perch_types::api::{CheckState, CheckStatus};
use perch_types::clock::Clock;
use perch_types::service::{
    self, CHECK_TIMEOUT_MAX, CheckKind, CheckProtocol, CheckPurpose, SERVICE_CHECK_INTERVAL_MIN,
    check_names,
};
use perch_types::{GoDuration, MachineConfig, Timestamp};
use tokio::sync::mpsc;

pub use attempt::{Attempt, Dial, Request};

/// The time between two checks when nothing else was said.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(15);
/// How long a check may take when nothing else was said.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The time between two checks of a machine that has not passed one yet.
const EARLY_PAUSES_MS: [u64; 6] = [50, 100, 200, 400, 800, 1_000];

/// A check, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether the machine is not ready while it does not pass.
    pub gates: bool,
    attempt: Attempt,
    interval: Duration,
    timeout: Duration,
    grace: Duration,
}

/// What a check said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How it stands.
    pub state: CheckState,
    /// The last answer.
    pub output: String,
    /// Since when.
    pub since: Timestamp,
}

impl Verdict {
    /// Returns that nothing is known.
    #[must_use]
    pub const fn unknown(now: Timestamp) -> Self {
        Self { state: CheckState::Warning, output: String::new(), since: now }
    }
}

/// Returns the checks of a configuration in the order of their names.
#[must_use]
pub fn of(config: &MachineConfig, address: IpAddr) -> Vec<Check> {
    let of_services = config.services.iter().flat_map(|service| {
        service.checks.iter().map(|check| (check, service.internal_port, true))
    });
    let of_machine = config.checks.values().map(|check| {
        (check, check.port.unwrap_or_default(), check.purpose == Some(CheckPurpose::Readiness))
    });
    check_names(&config.services, &config.checks)
        .into_iter()
        .zip(of_services.chain(of_machine))
        .map(|(name, (check, port, gates))| filled(name, check, (address, port), gates))
        .collect()
}

fn filled(name: String, check: &service::Check, at: (IpAddr, u16), gates: bool) -> Check {
    let (address, internal_port) = at;
    let get = |duration: Option<GoDuration>| duration.map(GoDuration::get);
    let address = SocketAddr::new(address, check.port.unwrap_or(internal_port));
    Check {
        name,
        gates,
        attempt: match check.kind {
            Some(CheckKind::Http) => Attempt::Http { address, request: request(check) },
            Some(CheckKind::Tcp) | None => Attempt::Tcp { address },
        },
        interval: get(check.interval)
            .unwrap_or(INTERVAL_DEFAULT)
            .max(SERVICE_CHECK_INTERVAL_MIN.get()),
        timeout: get(check.timeout).unwrap_or(TIMEOUT_DEFAULT).min(CHECK_TIMEOUT_MAX.get()),
        grace: get(check.grace_period).unwrap_or_default(),
    }
}

fn request(check: &service::Check) -> Request {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Request {
        tls: check.protocol == Some(CheckProtocol::Https),
        skip_verify: check.tls_skip_verify == Some(true),
        server_name: text(&check.tls_server_name),
        method: text(&check.method).unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase(),
        path: text(&check.path).unwrap_or_else(|| "/".to_owned()),
        headers: check
            .headers
            .iter()
            .flat_map(|one| one.values.iter().map(|value| (one.name.clone(), value.clone())))
            .collect(),
    }
}

/// Returns what the API says of the checks.
#[must_use]
pub fn statuses(checks: &[Check], verdicts: &[Verdict]) -> Vec<CheckStatus> {
    checks
        .iter()
        .zip(verdicts)
        .map(|(check, verdict)| CheckStatus {
            name: check.name.clone(),
            status: verdict.state,
            output: verdict.output.clone(),
            updated_at: verdict.since,
        })
        .collect()
}

/// Returns why the machine is not ready, by its checks.
#[must_use]
pub fn first_failing(checks: &[Check], verdicts: &[Verdict]) -> Option<String> {
    let (check, verdict) = checks
        .iter()
        .zip(verdicts)
        .find(|(check, verdict)| check.gates && verdict.state != CheckState::Passing)?;
    Some(if verdict.output.is_empty() {
        format!("check {} has not passed yet", check.name)
    } else {
        format!("check {}: {}", check.name, verdict.output)
    })
}

/// Carries out a check at its intervals and tells of every change. `ran` is how long the program
/// had been running when this began.
pub async fn follow(
    check: Check,
    (clock, ran): (Arc<dyn Clock>, Duration),
    index: usize,
    news: mpsc::Sender<(usize, Verdict)>,
) {
    let began_ms = clock.boot_ms();
    let mut told: Option<(CheckState, String)> = None;
    let mut failures = 0_usize;
    loop {
        let (passed, output) = check.attempt.carry_out(check.timeout, &Dial::Direct).await;
        let age = Duration::from_millis(clock.boot_ms().saturating_sub(began_ms));
        let now = (judge(passed, ran.saturating_add(age), check.grace), output);
        if told.as_ref() != Some(&now) {
            let verdict = Verdict { state: now.0, output: now.1.clone(), since: clock.now() };
            if news.send((index, verdict)).await.is_err() {
                return;
            }
            told = Some(now);
        }
        tokio::time::sleep(pause(&check, passed, &mut failures)).await;
    }
}

/// Decides how a check stands. A failure in the time of grace does not count, nor does it pass.
fn judge(passed: bool, age: Duration, grace: Duration) -> CheckState {
    match (passed, age < grace) {
        (true, _) => CheckState::Passing,
        (false, true) => CheckState::Warning,
        (false, false) => CheckState::Critical,
    }
}

/// A machine that has just started is looked at often, so that it is not kept waiting.
fn pause(check: &Check, passed: bool, failures: &mut usize) -> Duration {
    if passed {
        *failures = EARLY_PAUSES_MS.len();
        return check.interval;
    }
    let early = EARLY_PAUSES_MS.get(*failures).copied();
    *failures = failures.saturating_add(1);
    early.map_or(check.interval, Duration::from_millis).min(check.interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(config: serde_json::Value) -> Vec<Check> {
        of(&serde_json::from_value(config).unwrap(), "10.0.0.1".parse().unwrap())
    }

    #[test]
    fn checks_have_their_names_and_defaults() {
        let checks = checks(serde_json::json!({
            "services": [{"internal_port": 80, "checks": [
                {"type": "http", "path": "/up", "interval": "10ms", "timeout": "5m"},
                {"type": "tcp", "port": 81, "grace_period": "3s"}]}],
            "checks": {
                "alive": {"port": 90, "type": "tcp", "kind": "informational"},
                "serves": {"port": 91, "type": "tcp", "kind": "readiness"},
            },
        }));
        let found: Vec<String> = checks
            .iter()
            .map(|one| {
                let (Attempt::Tcp { address } | Attempt::Http { address, .. }) = &one.attempt
                else {
                    panic!("a connection is needed");
                };
                let Check { name, gates, interval, timeout, grace, .. } = one;
                format!("{name} {address:?} {gates} {interval:?} {timeout:?} {grace:?}")
            })
            .collect();
        assert_eq!(
            found,
            [
                "servicecheck-00-http-80 10.0.0.1:80 true 1s 60s 0ns",
                "servicecheck-01-tcp-81 10.0.0.1:81 true 15s 5s 3s",
                "alive 10.0.0.1:90 false 15s 5s 0ns",
                "serves 10.0.0.1:91 true 15s 5s 0ns",
            ]
        );
    }

    #[test]
    fn a_request_is_what_was_configured_or_its_default() {
        let of_check = |check: serde_json::Value| {
            let config =
                serde_json::json!({"services": [{"internal_port": 80, "checks": [check]}]});
            let Attempt::Http { request, .. } = checks(config).remove(0).attempt else {
                panic!("an HTTP check is needed");
            };
            request
        };
        let plain = of_check(serde_json::json!({"type": "http", "method": "", "path": ""}));
        let (method, path) = ("GET".to_owned(), "/".to_owned());
        assert_eq!(plain, Request { method, path, ..Request::default() });
        let whole = of_check(serde_json::json!({
            "type": "http", "method": "head", "path": "/up?a=1", "protocol": "https",
            "tls_skip_verify": true, "tls_server_name": "web.example",
            "headers": [{"name": "X-A", "values": ["1", "2"]}, {"name": "Host", "values": ["web"]}],
        }));
        assert!(whole.tls && whole.skip_verify);
        assert_eq!((whole.method.as_str(), whole.path.as_str()), ("HEAD", "/up?a=1"));
        assert_eq!(whole.server_name.as_deref(), Some("web.example"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(whole.headers, [pair("X-A", "1"), pair("X-A", "2"), pair("Host", "web")]);
    }

    #[test]
    fn only_service_checks_and_those_of_readiness_keep_requests_away() {
        let checks = checks(serde_json::json!({
            "services": [{"internal_port": 80, "checks": [{"type": "tcp"}]}],
            "checks": {"note": {"port": 1, "type": "tcp"},
                       "ready": {"port": 2, "type": "tcp", "kind": "readiness"}},
        }));
        let verdict = |state, output: &str| Verdict {
            state,
            output: output.to_owned(),
            since: Timestamp::UNIX_EPOCH,
        };
        use CheckState::{Critical, Passing, Warning};
        for (states, want) in [
            ([Passing, Passing, Passing], None),
            ([Passing, Critical, Passing], None),
            ([Critical, Passing, Passing], Some("check servicecheck-00-tcp-80: no")),
            ([Warning, Passing, Passing], Some("check servicecheck-00-tcp-80: no")),
            ([Passing, Passing, Critical], Some("check ready: no")),
        ] {
            let verdicts = states.map(|state| verdict(state, "no"));
            assert_eq!(first_failing(&checks, &verdicts).as_deref(), want, "{states:?}");
        }
        let unknown = [Verdict::unknown(Timestamp::UNIX_EPOCH)];
        assert_eq!(
            first_failing(&checks, &unknown).as_deref(),
            Some("check servicecheck-00-tcp-80 has not passed yet")
        );
    }

    #[test]
    fn a_failure_counts_when_the_grace_is_over() {
        let second = Duration::from_secs(1);
        for (passed, age, grace, want) in [
            (true, second, 2 * second, CheckState::Passing),
            (false, second, 2 * second, CheckState::Warning),
            (false, 2 * second, 2 * second, CheckState::Critical),
            (false, Duration::ZERO, Duration::ZERO, CheckState::Critical),
        ] {
            assert_eq!(judge(passed, age, grace), want, "{passed} {age:?} {grace:?}");
        }
    }

    #[test]
    fn a_check_is_repeated_soon_until_it_passes_and_at_its_interval_from_then_on() {
        let config = serde_json::json!({"services": [{"internal_port": 80, "checks": [
            {"type": "tcp", "interval": "3s"}]}]});
        let check = checks(config).remove(0);
        let mut failures = 0;
        let mut ms = |passed| pause(&check, passed, &mut failures).as_millis();
        assert_eq!([ms(false), ms(false), ms(false)], [50, 100, 200]);
        assert_eq!([ms(true), ms(false), ms(false)], [3000, 3000, 3000]);
    }
}
