//! The volumes of an organization, page by page (contract 1.7).
//!
//! Never skips one that stays as it is: pages go by the time of the last change and the id.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::directory::VolumeRecord;
use perch_types::volume::{OrgVolume, OrgVolumes};
use perch_types::{Code, Timestamp, VolumeId};

use super::words::{states, words};
use super::{answer, read};
use crate::body::Parameters;
use crate::config::Shared;
use crate::reply::Failure;
use crate::routes::{Caller, OfOrg};

/// Volumes of one page, at most and when nothing else was said.
const PAGE_MAX: usize = 1000;

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfOrg(org)): Extension<OfOrg>,
    Extension(caller): Extension<Caller>,
    parameters: Parameters,
) -> Result<JsonReply<OrgVolumes>, Failure> {
    let asked = Asked::of(&parameters)?;
    let view = shared.view.load();
    // A token for one app sees that app's only.
    let reaches = |volume: &&VolumeRecord| {
        caller.0.iter().any(|principal| principal.reaches(&org, &volume.app_id))
    };
    let of_org = view.volumes().filter(|volume| volume.org == org).filter(reaches);
    let (page, next_cursor) = asked.page(of_org.cloned().collect());
    let last = page.last();
    let (last_volume_id, last_updated_at) = (
        last.map_or_else(String::new, |last| last.id.to_string()),
        last.map(|last| last.updated_at),
    );
    let volumes = page.into_iter().map(|record| {
        let status = read::status(&shared, &record);
        let (app_name, updated_at) = (record.app.clone(), record.updated_at);
        let record = if asked.is_summary { answer::summary(record) } else { record };
        OrgVolume { app_name, updated_at, volume: answer::volume(record, status) }
    });
    let volumes = volumes.collect();
    Ok(JsonReply(OrgVolumes { volumes, next_cursor, last_volume_id, last_updated_at }))
}

struct Asked {
    include_deleted: bool,
    is_summary: bool,
    regions: Vec<String>,
    states: Vec<perch_types::volume::VolumeState>,
    updated_after: Option<Timestamp>,
    after: Option<(i64, VolumeId)>,
    limit: usize,
}

impl Asked {
    fn of(parameters: &Parameters) -> Result<Self, Failure> {
        let bad = |text: String| Failure::new(Code::InvalidRequest, text);
        let limit = parameters.parsed::<usize>("limit")?.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(bad(format!("limit: {limit} is not 1 to {PAGE_MAX}")));
        }
        let updated_after = parameters.get("updated_after").map(|text| {
            serde_json::from_value(text.into()).map_err(|_| {
                bad("updated_after: is not a time such as 2026-01-02T03:04:05Z".into())
            })
        });
        let after = parameters.get("cursor").map(|text| {
            let parts = text.split_once('.');
            parts
                .and_then(|(ms, id)| Some((ms.parse().ok()?, id.parse().ok()?)))
                .ok_or_else(|| bad("cursor: is not one that this list gave".to_owned()))
        });
        Ok(Self {
            include_deleted: parameters.flag("include_deleted")?,
            is_summary: parameters.flag("summary")?,
            regions: words(parameters, "region"),
            states: states(parameters)?,
            updated_after: updated_after.transpose()?,
            after: after.transpose()?,
            limit,
        })
    }

    fn keeps(&self, record: &VolumeRecord) -> bool {
        let is_after = self
            .after
            .as_ref()
            .is_none_or(|(ms, id)| (record.updated_at.unix_ms(), &record.id) > (*ms, id));
        is_after
            && (self.include_deleted
                || !record.state.is_going()
                || self.states.contains(&record.state))
            && (self.states.is_empty() || self.states.contains(&record.state))
            && (self.regions.is_empty()
                || self.regions.iter().any(|region| region == record.region.as_str()))
            && self.updated_after.is_none_or(|after| record.updated_at > after)
    }

    /// Returns a page and the cursor of the next, which is empty at the end.
    fn page(&self, mut all: Vec<VolumeRecord>) -> (Vec<VolumeRecord>, String) {
        all.retain(|record| self.keeps(record));
        all.sort_by(|one, other| (one.updated_at, &one.id).cmp(&(other.updated_at, &other.id)));
        let is_more = all.len() > self.limit;
        all.truncate(self.limit);
        let cursor = all
            .last()
            .filter(|_| is_more)
            .map_or_else(String::new, |last| format!("{}.{}", last.updated_at.unix_ms(), last.id));
        (all, cursor)
    }
}

#[cfg(test)]
mod tests {
    use perch_types::directory::Generation;
    use perch_types::volume::{VolumeState, VolumeUsage};
    use perch_types::{HostId, OrgSlug};

    use super::*;

    fn record(number: u128, updated_ms: i64) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId::from_bits(number),
            org: OrgSlug::personal(),
            app: "web".parse().unwrap(),
            app_id: "app_1".to_owned(),
            name: "data".to_owned(),
            host: HostId::from_bits(1),
            region: "ams".parse().unwrap(),
            generation: Generation { incarnation: 1, counter: 1 },
            state: VolumeState::Created,
            size_gb: 1,
            attached: None,
            usage: VolumeUsage::default(),
            snapshot_retention: 5,
            auto_backup: true,
            copies: false,
            snapshot_error: None,
            destroy_at: None,
            created_at: Timestamp::from_unix_ms(updated_ms),
            updated_at: Timestamp::from_unix_ms(updated_ms),
        }
    }

    fn asked(after: Option<(i64, VolumeId)>) -> Asked {
        Asked {
            include_deleted: false,
            is_summary: false,
            regions: Vec::new(),
            states: Vec::new(),
            updated_after: None,
            after,
            limit: 2,
        }
    }

    #[test]
    fn pages_follow_each_other_without_a_gap_even_among_equals() {
        let all: Vec<_> = [(1, 5), (2, 5), (3, 5), (4, 1), (5, 9)]
            .map(|(number, ms)| record(number, ms))
            .to_vec();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, cursor) = asked(after).page(all.clone());
            seen.extend(page.iter().map(|record| record.id.clone()));
            if cursor.is_empty() {
                break;
            }
            let (ms, id) = cursor.split_once('.').unwrap();
            after = Some((ms.parse().unwrap(), id.parse().unwrap()));
        }
        let expected = [4, 1, 2, 3, 5].map(VolumeId::from_bits);
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_goes_is_left_out_unless_it_is_asked_for() {
        let mut going = record(1, 1);
        going.state = VolumeState::PendingDestroy;
        assert!(!asked(None).keeps(&going));
        assert!(Asked { include_deleted: true, ..asked(None) }.keeps(&going));
        assert!(Asked { states: vec![VolumeState::PendingDestroy], ..asked(None) }.keeps(&going));
        assert!(
            !Asked { states: vec![VolumeState::PendingDestroy], ..asked(None) }
                .keeps(&record(1, 1))
        );
        assert!(!Asked { regions: vec!["iad".to_owned()], ..asked(None) }.keeps(&record(1, 1)));
    }
}
