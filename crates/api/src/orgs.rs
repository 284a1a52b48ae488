//! What belongs to a whole organization (contract 1.7).
//!
//! Never asks a host for what the view has: only destroyed machines are the hosts' alone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{OrgMachine, OrgMachines};
use perch_types::error::chain;
use perch_types::{Code, MachineId, MachineState, OrgSlug, Region, Timestamp};

use crate::body::Parameters;
use crate::config::Shared;
use crate::machines::answer;
use crate::machines::filter::{Filter, Seen};
use crate::reply::Failure;
use crate::routes::OfOrg;

/// Machines of one page, at most and when nothing else was said.
const LIMIT_MAX: usize = 1000;

/// Where a page ended: machines are listed by when they changed, then by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    updated_unix_ms: i64,
    id: MachineId,
}

/// A text that no page ended with.
#[derive(Debug, thiserror::Error)]
#[error("is not one that this list gave")]
struct NotACursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.updated_unix_ms, self.id)
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (updated, id) = text.split_once('.').ok_or(NotACursor)?;
        let updated_unix_ms = updated.parse().map_err(|_| NotACursor)?;
        Ok(Self { updated_unix_ms, id: id.parse().map_err(|_| NotACursor)? })
    }
}

impl Cursor {
    fn of(machine: &OrgMachine) -> Self {
        Self { updated_unix_ms: machine.updated_at.unix_ms(), id: machine.id.clone() }
    }
}

pub(crate) async fn machines(
    State(shared): State<Arc<Shared>>,
    Extension(OfOrg(org)): Extension<OfOrg>,
    parameters: Parameters,
) -> Result<JsonReply<OrgMachines>, Failure> {
    let filter = Filter::of(&parameters)?;
    let limit = parameters.parsed::<usize>("limit")?.unwrap_or(LIMIT_MAX);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let text = format!("limit: {limit} is not 1 to {LIMIT_MAX}");
        return Err(Failure::new(Code::InvalidRequest, text));
    }
    let cursor = parameters.parsed::<Cursor>("cursor")?;
    let updated_after = parameters.parsed::<Timestamp>("updated_after")?;
    let (mut machines, error_regions) = all(&shared, &org, &filter).await;
    machines.retain(|machine| match (&cursor, updated_after) {
        // The cursor takes precedence.
        (Some(cursor), _) => Cursor::of(machine) > *cursor,
        (None, Some(after)) => machine.updated_at > after,
        (None, None) => true,
    });
    machines.sort_by_cached_key(Cursor::of);
    Ok(JsonReply(page(machines, limit, error_regions)))
}

fn page(mut machines: Vec<OrgMachine>, limit: usize, error_regions: Vec<Region>) -> OrgMachines {
    let has_more = machines.len() > limit;
    machines.truncate(limit);
    let last = machines.last();
    let next_cursor = last.filter(|_| has_more).map(|last| Cursor::of(last).to_string());
    OrgMachines {
        next_cursor: next_cursor.unwrap_or_default(),
        last_machine_id: last.map(|last| last.id.clone()),
        last_updated_at: last.map(|last| last.updated_at),
        error_regions,
        machines,
    }
}

/// Returns the machines of an organization, and the regions of which something may be missing.
async fn all(shared: &Shared, org: &OrgSlug, filter: &Filter) -> (Vec<OrgMachine>, Vec<Region>) {
    let view = shared.view.load();
    let records = view.machines().filter(|record| {
        let seen = Seen { state: record.state, region: &record.region, labels: &record.metadata };
        record.org == *org && filter.keeps(seen)
    });
    let mut machines: Vec<_> =
        records.map(|record| answer::of_org(record, filter.summary)).collect();
    let mut error_regions = Vec::new();
    for host in shared.hosts.values() {
        if !shared.view.is_live() {
            error_regions.push(host.region.clone());
        }
        if !filter.include_deleted {
            continue;
        }
        match host.client.machines().await {
            Ok(found) => {
                let destroyed = found.iter().filter(|it| {
                    let labels = &it.config.metadata;
                    let seen = Seen { state: it.state, region: &it.region, labels };
                    it.org == *org && it.state == MachineState::Destroyed && filter.keeps(seen)
                });
                let destroyed = destroyed.filter(|it| view.machine(&it.id).is_none());
                machines.extend(destroyed.map(|it| answer::of_org_destroyed(it, filter.summary)));
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), host = %host.id, "host not asked");
                error_regions.push(host.region.clone());
            }
        }
    }
    error_regions.sort_unstable();
    error_regions.dedup();
    (machines, error_regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is() {
        let cursor = Cursor { updated_unix_ms: 1_700_000_000_123, id: MachineId::from_bits(7) };
        assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        for bad in ["", ".", "7", "x.00000000000007", "7.7", "7.00000000000007 "] {
            bad.parse::<Cursor>().unwrap_err();
        }
        let later = Cursor { updated_unix_ms: 1_700_000_000_124, id: MachineId::from_bits(1) };
        assert!(later > cursor);
    }
}
