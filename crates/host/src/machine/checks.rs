//! Checks of a machine's services: a connection or a request at intervals.
//!
//! Never decides what follows: a verdict is all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use perch_types::api::{CheckState, CheckStatus};
use perch_types::clock::Clock;
use perch_types::service::{self, CheckKind, check_names};
use perch_types::{MachineConfig, Timestamp};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// The time between two checks when nothing else was said.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(15);
/// The shortest time between two checks.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How long a check may take when nothing else was said.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The longest that a check may take.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The time between two checks of a machine that has not passed one yet.
const EARLY_PAUSES_MS: [u64; 6] = [50, 100, 200, 400, 800, 1_000];
/// Bytes of an answer that are kept.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Bytes of an answer that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A check, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether the machine is not ready while it does not pass.
    pub gates: bool,
    kind: CheckKind,
    address: SocketAddr,
    interval: Duration,
    timeout: Duration,
    grace: Duration,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
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
    let names = check_names(&config.services, &config.checks);
    let of_services = config
        .services
        .iter()
        .flat_map(|one| one.checks.iter().map(|check| (check, one.internal_port, true)));
    let of_machine = config.checks.values().filter_map(|check| {
        let gates = check.other.get("kind").and_then(|kind| kind.as_str()) == Some("readiness");
        Some((check, check.port?, gates))
    });
    // A check of the machine without a port has nowhere to go; its name is left out with it.
    let named = config.checks.iter().filter(|(_, check)| check.port.is_some());
    let of_services_count = names.len().saturating_sub(config.checks.len());
    let names = names
        .iter()
        .take(of_services_count)
        .cloned()
        .chain(named.map(|(name, _)| name.clone()))
        .collect::<Vec<_>>();
    names
        .into_iter()
        .zip(of_services.chain(of_machine))
        .map(|(name, (check, port, gates))| filled(name, check, (address, port), gates))
        .collect()
}

fn filled(name: String, check: &service::Check, at: (IpAddr, u16), gates: bool) -> Check {
    let (address, internal_port) = at;
    let get =
        |duration: Option<perch_types::GoDuration>| duration.map(perch_types::GoDuration::get);
    Check {
        name,
        gates,
        kind: check.kind.unwrap_or(CheckKind::Tcp),
        address: SocketAddr::new(address, check.port.unwrap_or(internal_port)),
        interval: get(check.interval).unwrap_or(INTERVAL_DEFAULT).max(INTERVAL_MIN),
        timeout: get(check.timeout).unwrap_or(TIMEOUT_DEFAULT).min(TIMEOUT_MAX),
        grace: get(check.grace_period).unwrap_or_default(),
        method: check.method.clone().unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase(),
        path: check.path.clone().unwrap_or_else(|| "/".to_owned()),
        headers: headers(check),
    }
}

fn headers(check: &service::Check) -> Vec<(String, String)> {
    let Some(list) = check.other.get("headers").and_then(|headers| headers.as_array()) else {
        return Vec::new();
    };
    let mut headers = Vec::new();
    for header in list {
        let Some(name) = header.get("name").and_then(|name| name.as_str()) else {
            continue;
        };
        let values = header.get("values").and_then(|values| values.as_array());
        for value in values.into_iter().flatten().filter_map(|value| value.as_str()) {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    headers
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

/// Carries out a check at its intervals and tells of every change.
pub async fn follow(
    check: Check,
    clock: Arc<dyn Clock>,
    index: usize,
    news: mpsc::Sender<(usize, Verdict)>,
) {
    let began_ms = clock.boot_ms();
    let mut told: Option<(CheckState, String)> = None;
    let mut failures = 0_usize;
    loop {
        let (passed, output) = attempt(&check).await;
        let in_grace =
            Duration::from_millis(clock.boot_ms().saturating_sub(began_ms)) < check.grace;
        let state = match (passed, in_grace) {
            (true, _) => CheckState::Passing,
            (false, true) => CheckState::Warning,
            (false, false) => CheckState::Critical,
        };
        let now = (state, output);
        if told.as_ref() != Some(&now) {
            let verdict = Verdict { state, output: now.1.clone(), since: clock.now() };
            if news.send((index, verdict)).await.is_err() {
                return;
            }
            told = Some(now);
        }
        tokio::time::sleep(pause(&check, passed, &mut failures)).await;
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

async fn attempt(check: &Check) -> (bool, String) {
    let attempt = async {
        match check.kind {
            CheckKind::Tcp => connect(check).await.map(|_| (true, "connected".to_owned())),
            CheckKind::Http => request(check).await,
        }
    };
    match tokio::time::timeout(check.timeout, attempt).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => (false, reason),
        Err(_) => (false, format!("no answer within {:?}", check.timeout)),
    }
}

async fn connect(check: &Check) -> Result<TcpStream, String> {
    TcpStream::connect(check.address)
        .await
        .map_err(|error| format!("connect to port {}: {error}", check.address.port()))
}

async fn request(check: &Check) -> Result<(bool, String), String> {
    let stream = connect(check).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let mut request = http::Request::builder()
        .method(check.method.as_str())
        .uri(check.path.as_str())
        .header(http::header::USER_AGENT, "perch-check");
    if !check.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(http::header::HOST, check.address.to_string());
    }
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok::<_, String>((status, body))
    };
    tokio::pin!(exchange);
    let (status, body) = tokio::select! {
        biased;
        result = &mut exchange => result?,
        // The answer may have come with the end of the connection.
        _ended = connection => exchange.await?,
    };
    let body: String = String::from_utf8_lossy(&body).chars().take(OUTPUT_BYTES_MAX).collect();
    Ok((status.is_success(), format!("{} {}", status.as_u16(), body.trim()).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_have_their_names_and_defaults() {
        let config: MachineConfig = serde_json::from_value(serde_json::json!({
            "services": [{"internal_port": 80, "checks": [
                {"type": "http", "path": "/up", "interval": "10ms"}, {"type": "tcp", "port": 81}]}],
            "checks": {
                "alive": {"port": 90, "type": "tcp"},
                "nowhere": {"type": "tcp"},
                "serves": {"port": 91, "kind": "readiness"},
            },
        }))
        .unwrap();
        let checks = of(&config, "10.0.0.1".parse().unwrap());
        let found: Vec<String> = checks
            .iter()
            .map(|check| {
                format!("{} {} {} {:?}", check.name, check.address, check.gates, check.interval)
            })
            .collect();
        assert_eq!(
            found,
            [
                "servicecheck-00-http-80 10.0.0.1:80 true 1s",
                "servicecheck-01-tcp-81 10.0.0.1:81 true 15s",
                "alive 10.0.0.1:90 false 15s",
                "serves 10.0.0.1:91 true 15s",
            ]
        );
    }

    async fn answer_once(answer: &'static str) -> SocketAddr {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_request_passes_on_success_only() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", (true, "200 hi")),
            ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", (false, "302")),
            ("HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nboom", (false, "500 boom")),
        ] {
            let address = answer_once(answer).await;
            let config: MachineConfig = serde_json::from_value(serde_json::json!({
                "services": [{"internal_port": address.port(), "checks": [{"type": "http"}]}],
            }))
            .unwrap();
            let checks = of(&config, address.ip());
            assert_eq!(attempt(&checks[0]).await, (want.0, want.1.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let config: MachineConfig = serde_json::from_value(serde_json::json!({
            "checks": {"up": {"port": address.port(), "type": "tcp"}},
        }))
        .unwrap();
        let (passed, output) = attempt(&of(&config, address.ip())[0]).await;
        assert!(!passed);
        assert!(output.starts_with(&format!("connect to port {}", address.port())), "{output}");
    }
}
