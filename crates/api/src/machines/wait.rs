//! Waits for a state of a machine (contract 1.5).
//!
//! Never polls: its host holds the question until it can be answered.

use axum::{Extension, Json as JsonReply};
use perch_types::api::WaitResponse;
use perch_types::host::WaitQuery;
use perch_types::{Code, InstanceId, MachineState};

use super::of_host;
use crate::body::Parameters;
use crate::documents::Placed;
use crate::reply::Failure;
use crate::routes::Target;

/// Seconds that a wait takes when nothing else was said, and at most.
const TIMEOUT_MAX_S: f64 = 60.0;
/// The longest id of an event.
const EVENT_ID_BYTES_MAX: usize = 64;
/// States in one wait.
const STATES_MAX: usize = 16;

pub(crate) async fn wait(
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Result<JsonReply<WaitResponse>, Failure> {
    let query = query(&parameters)?;
    let host = target.host()?;
    if let Some(instance) = &query.instance {
        let by_id = parameters.get("instance_id").is_some();
        let name = if by_id { "instance_id" } else { "version" };
        can_come(&target, name, instance).await?;
    }
    let machine = host.client.wait(&target.id, &query).await.map_err(|error| {
        if error.code() == Some(Code::DeadlineExceeded) {
            let seconds = query.timeout_ms / 1000;
            let text = format!(
                "deadline_exceeded: machine {} was not {} within {seconds} s: machine failed to \
                 reach desired state",
                target.id, query.states
            );
            return Failure::new(Code::DeadlineExceeded, text);
        }
        of_host(error, &target.id)
    })?;
    Ok(JsonReply(WaitResponse {
        ok: true,
        state: machine.state,
        version: machine.instance,
        event_id: machine.events.first().map(|event| event.id.clone()).unwrap_or_default(),
    }))
}

/// Refuses to wait for a version that the machine has no more, or never had.
async fn can_come(target: &Placed, name: &str, instance: &InstanceId) -> Result<(), Failure> {
    let current = &target.placement.document.instance;
    if instance == current {
        return Ok(());
    }
    // Until an update is done, or when it was given up, the version before is the machine's.
    let machine = target.host()?.client.machine(&target.id).await;
    let machine = machine.map_err(|error| of_host(error, &target.id))?;
    if *instance == machine.instance {
        return Ok(());
    }
    let text = format!("{name}: {instance} is not the machine's version, {current} is");
    Err(Failure::new(Code::InvalidRequest, text))
}

fn query(parameters: &Parameters) -> Result<WaitQuery, Failure> {
    let bad = |text: String| Failure::new(Code::InvalidRequest, text);
    let words = parameters.all("state").flat_map(|value| value.split(','));
    let mut states: Vec<&str> = words.map(str::trim).filter(|word| !word.is_empty()).collect();
    if states.is_empty() {
        states.push(MachineState::Started.as_str());
    }
    if states.len() > STATES_MAX {
        return Err(bad(format!("state: more than {STATES_MAX}")));
    }
    for state in &states {
        if !matches!(*state, "settled" | "ready") {
            state.parse::<MachineState>().map_err(|error| {
                let known = MachineState::ALL.map(MachineState::as_str).join(", ");
                bad(format!("state: {error}; allowed are {known}, settled, ready"))
            })?;
        }
    }
    let instance = match parameters.get("instance_id") {
        Some(_) => parameters.parsed::<InstanceId>("instance_id")?,
        None => parameters.parsed::<InstanceId>("version")?,
    };
    let from_event = parameters.get("from_event_id").map(str::to_owned);
    if from_event.as_ref().is_some_and(|id| id.len() > EVENT_ID_BYTES_MAX) {
        return Err(bad("from_event_id: is not an event's id".to_owned()));
    }
    // A client may send what it has left as a fraction.
    let timeout_s = parameters.parsed::<f64>("timeout")?.unwrap_or(TIMEOUT_MAX_S);
    if !timeout_s.is_finite() || timeout_s < 0.0 {
        return Err(bad("timeout: is not a number of seconds".to_owned()));
    }
    let timeout = std::time::Duration::from_secs_f64(timeout_s.clamp(1.0, TIMEOUT_MAX_S));
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(60_000);
    Ok(WaitQuery { states: states.join(","), instance, from_event, timeout_ms })
}
