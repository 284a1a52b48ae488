//! What a machine uses while it runs: processes and memory (contract 1.3).
//!
//! Never reads them itself: its host does, from outside of the machine.

use std::cmp::Ordering;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::Code;
use perch_types::api::{MachineMemory, ProcessStat, ReclaimMemory, ReclaimedMemory, SetMemory};

use super::of_host;
use crate::body::{Json, Parameters};
use crate::config::Shared;
use crate::reply::Failure;
use crate::routes::Target;

type Answer<T> = Result<JsonReply<T>, Failure>;
type Compare = fn(&ProcessStat, &ProcessStat) -> Ordering;

/// What processes can be sorted by.
const ORDERS: [(&str, Compare); 7] = [
    ("pid", |one, other| one.pid.cmp(&other.pid)),
    ("stime", |one, other| one.stime.cmp(&other.stime)),
    ("rtime", |one, other| one.rtime.cmp(&other.rtime)),
    ("command", |one, other| one.command.cmp(&other.command)),
    ("directory", |one, other| one.directory.cmp(&other.directory)),
    ("cpu", |one, other| one.cpu.cmp(&other.cpu)),
    ("rss", |one, other| one.rss.cmp(&other.rss)),
];

pub(crate) async fn processes(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    parameters: Parameters,
) -> Answer<Vec<ProcessStat>> {
    let (compare, descending) = order(&parameters)?;
    let host = target.host()?;
    let found = host.client.processes(&target.id).await;
    let mut found = found.map_err(|error| of_host(error, &target.id))?;
    found.sort_by(|one, other| {
        let order = compare(one, other).then(one.pid.cmp(&other.pid));
        if descending { order.reverse() } else { order }
    });
    Ok(JsonReply(found))
}

pub(crate) async fn memory(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
) -> Answer<MachineMemory> {
    let memory = target.host()?.client.memory(&target.id).await;
    memory.map(JsonReply).map_err(|error| of_host(error, &target.id))
}

pub(crate) async fn set_memory(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<SetMemory>,
) -> Answer<MachineMemory> {
    let memory = target.host()?.client.set_memory(&target.id, request).await;
    memory.map(JsonReply).map_err(|error| of_host(error, &target.id))
}

pub(crate) async fn reclaim_memory(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(request): Json<ReclaimMemory>,
) -> Answer<ReclaimedMemory> {
    let reclaimed = target.host()?.client.reclaim_memory(&target.id, request).await;
    reclaimed.map(JsonReply).map_err(|error| of_host(error, &target.id))
}

fn order(parameters: &Parameters) -> Result<(Compare, bool), Failure> {
    let bad = |name: &str, value: &str, allowed: &str| {
        let shown: String = value.chars().take(40).collect();
        let text = format!("{name}: `{shown}` is not one of {allowed}");
        Failure::new(Code::InvalidRequest, text)
    };
    let wanted = parameters.get("sort_by").unwrap_or("pid");
    let found = ORDERS.iter().find(|(name, _)| *name == wanted);
    let (_, compare) = found.ok_or_else(|| {
        let names: Vec<&str> = ORDERS.iter().map(|(name, _)| *name).collect();
        bad("sort_by", wanted, &names.join(", "))
    })?;
    match parameters.get("order") {
        None | Some("asc") => Ok((*compare, false)),
        Some("desc") => Ok((*compare, true)),
        Some(other) => Err(bad("order", other, "asc, desc")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_of_a_field_and_up_or_down() {
        let of = |pairs: &[(&str, &str)]| order(&Parameters::of(pairs));
        assert!(!of(&[]).unwrap().1);
        let (compare, descending) = of(&[("sort_by", "rss"), ("order", "desc")]).unwrap();
        let with = |rss| ProcessStat { rss, ..ProcessStat::default() };
        assert!(descending && compare(&with(1), &with(2)) == Ordering::Less);
        for (bad, wanted) in [
            (("sort_by", "name"), "sort_by: `name` is not one of pid, stime, rtime, command"),
            (("order", "up"), "order: `up` is not one of asc, desc"),
        ] {
            let failure = of(&[bad]).map(drop).unwrap_err();
            assert_eq!(failure.error().code, Code::InvalidRequest);
            assert!(failure.error().error.starts_with(wanted), "{}", failure.error().error);
        }
    }
}
