//! Start, stop, suspend, restart, signal, cordon, destroy: commands that the host carries out.
//!
//! Never answers before the host has journaled the command and the API's own view holds it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{Done, SignalRequest, StartResponse, StopRequest};
use perch_types::host::{Accepted, Command};
use perch_types::machine_config::{STOP_TIMEOUT_MAX, Signal};
use perch_types::{Code, GoDuration};
use serde_json::Value;

use super::of_host;
use crate::body::{Json, Parameters};
use crate::config::Shared;
use crate::documents::Placed;
use crate::reply::Failure;
use crate::routes::{OfApp, Target};
use crate::{admit, reconcile, view};

type Answer<T> = Result<JsonReply<T>, Failure>;

pub(crate) async fn start(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
) -> Answer<StartResponse> {
    let accepted = command(&shared, &target, &Command::Start).await?;
    Ok(JsonReply(StartResponse {
        previous_state: accepted.previous_state,
        migrated: false,
        new_host: String::new(),
    }))
}

pub(crate) async fn stop(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<StopRequest>,
) -> Answer<Done> {
    polite(request.signal, request.timeout)?;
    let stop = Command::Stop { signal: request.signal, timeout: request.timeout };
    done(command(&shared, &target, &stop).await)
}

pub(crate) async fn suspend(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
) -> Answer<Done> {
    done(command(&shared, &target, &Command::Suspend).await)
}

pub(crate) async fn restart(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Answer<Done> {
    let timeout = match parameters.get("timeout") {
        // A bare number is seconds here: that is what clients put into a query.
        Some(text) => match text.parse::<u64>() {
            Ok(seconds) => Some(GoDuration::from_secs(seconds)),
            Err(_) => parameters.parsed::<GoDuration>("timeout")?,
        },
        None => None,
    };
    let signal = parameters.get("signal").map(|name| named("signal", name)).transpose()?;
    polite(signal, timeout)?;
    let force = parameters.flag("force_stop")?;
    let restart = Command::Restart { force, signal, timeout };
    done(command(&shared, &target, &restart).await)
}

pub(crate) async fn signal(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<SignalRequest>,
) -> Answer<Done> {
    let signal = match &request.signal {
        Value::String(name) => named("signal", name)?,
        Value::Number(number) => Signal::ALL
            .into_iter()
            .find(|signal| number.as_i64() == Some(signal.number().into()))
            .ok_or_else(unknown_signal)?,
        _ => return Err(unknown_signal()),
    };
    let signal = Command::Signal { signal: signal.number() };
    done(command(&shared, &target, &signal).await)
}

pub(crate) async fn cordon(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
) -> Answer<Done> {
    done(command(&shared, &target, &Command::SetCordoned { cordoned: true }).await)
}

pub(crate) async fn uncordon(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
) -> Answer<Done> {
    done(command(&shared, &target, &Command::SetCordoned { cordoned: false }).await)
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Answer<Done> {
    let force = parameters.flag("force")? || parameters.flag("kill")?;
    command(&shared, &target, &Command::Destroy { force }).await?;
    // From here on the machine is to go, whatever happens to its host.
    reconcile::promise(&shared, (&app.org, &target.id), &app.name, Duration::ZERO).await?;
    shared.reconciler.wake();
    Ok(JsonReply(Done { ok: true }))
}

/// Gives a machine's host a command and returns once the view holds what became of it.
pub(super) async fn command(
    shared: &Shared,
    target: &Placed,
    command: &Command,
) -> Result<Accepted, Failure> {
    let host = target.host()?;
    let accepted = host.client.command(&target.id, command).await;
    let accepted = accepted.map_err(|error| of_host(error, &target.id))?;
    view::follow(shared, &host.id, &accepted.machine).await;
    Ok(accepted)
}

fn done(accepted: Result<Accepted, Failure>) -> Answer<Done> {
    accepted.map(|_| JsonReply(Done { ok: true }))
}

fn polite(signal: Option<Signal>, timeout: Option<GoDuration>) -> Result<(), Failure> {
    if let Some(signal) = signal {
        admit::stop_signal("signal", signal)?;
    }
    match timeout {
        Some(timeout) if timeout > STOP_TIMEOUT_MAX => {
            let text = format!("timeout: {timeout} is longer than {STOP_TIMEOUT_MAX}");
            Err(Failure::new(Code::InvalidValue, text))
        }
        _ => Ok(()),
    }
}

fn named(path: &str, name: &str) -> Result<Signal, Failure> {
    let upper = name.to_ascii_uppercase();
    let found = Signal::ALL.into_iter().find(|signal| signal.as_str() == upper);
    found.ok_or_else(|| {
        let shown: String = name.chars().take(40).collect();
        let words = Signal::words();
        let text = format!("{path}: `{shown}` is not a signal; allowed are {words}");
        Failure::new(Code::InvalidValue, text)
    })
}

fn unknown_signal() -> Failure {
    let words = Signal::words();
    let text = format!("signal: is not a signal; allowed are {words}, or the number of one");
    Failure::new(Code::InvalidValue, text)
}
