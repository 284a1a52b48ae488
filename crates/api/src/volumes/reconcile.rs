//! What is to be done about volumes without anybody asking again: half-made ones are taken up if
//! their host has them, those of deleted apps are destroyed, documents of those that are gone are removed.
//!
//! Never destroys a volume for want of a document, and never forgets one that its host has lost:
//! that host may have been restored from an older state.

use std::collections::BTreeMap;

use perch_store::{Expected, delete_doc, list_docs, put_doc_freeing};
use perch_types::directory::{Document as _, Tombstone, VolumePlacementDoc, VolumeRecord};
use perch_types::error::chain;
use perch_types::host::VolumeCommand;
use perch_types::volume::VolumeState;
use perch_types::{HostId, OrgSlug, VolumeId};

use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reconcile::CREATION_TIME;

/// What is to be done about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Leave,
    /// Look again soon.
    Wait,
    /// Tell its host to destroy it.
    Destroy,
    /// Write down that it is there: whoever asked its host for it did not come to that. It is
    /// listed, so it must not go without a word.
    Made,
    /// Write down that it goes: whoever told its host to destroy it did not come to that.
    Going,
    /// Remove its document.
    Forget,
}

/// Decides about a volume: whether its app was deleted, whether the time of its creation is over,
/// and what its host says, if it answered.
fn verdict(
    placement: &VolumePlacementDoc,
    (is_buried, is_late): (bool, bool),
    on_host: Option<Option<&VolumeRecord>>,
) -> Verdict {
    let is_half = !placement.made;
    let is_unwanted = is_buried || (is_half && is_late);
    match on_host {
        None if is_unwanted => Verdict::Wait,
        None => Verdict::Leave,
        // Its host may be making it.
        Some(None) if is_unwanted && is_half && !is_late => Verdict::Wait,
        Some(None) if is_unwanted || placement.going => Verdict::Forget,
        Some(Some(record)) if record.state.is_going() && placement.made && !placement.going => {
            Verdict::Going
        }
        Some(Some(record))
            if is_half
                && !is_buried
                && (record.state.is_usable() || record.state == VolumeState::Recovering) =>
        {
            Verdict::Made
        }
        Some(Some(record)) if is_buried && !record.state.is_going() => match record.attached {
            // Its machine goes first.
            Some(_) => Verdict::Wait,
            None => Verdict::Destroy,
        },
        Some(Some(_) | None) => Verdict::Leave,
    }
}

/// Does what can be done now; returns whether nothing needs another look soon, and the apps, by
/// their ids, that still have volumes which are not told to go.
pub(crate) async fn pass(
    shared: &Shared,
    tombstones: &[(OrgSlug, String, Tombstone)],
) -> Result<(bool, Vec<String>), Error> {
    let store = shared.store.as_ref();
    let found = list_docs::<VolumePlacementDoc>(store).await;
    let found = found.map_err(fault("list volumes' placements"))?.documents;
    let now = shared.clock.now();
    let is_buried = |placement: &VolumePlacementDoc| {
        tombstones.iter().any(|(_, app_id, _)| *app_id == placement.app_id)
    };
    if found.is_empty() {
        return Ok((true, Vec::new()));
    }
    let hosts = ask(shared).await;
    let (mut is_done, mut left) = (true, Vec::new());
    for (key, found) in found {
        let rest = key.strip_prefix(VolumePlacementDoc::PREFIX).and_then(|key| key.split_once('/'));
        let Some((Ok(org), Ok(id))) =
            rest.map(|(org, id)| (org.parse::<OrgSlug>(), id.parse::<VolumeId>()))
        else {
            continue;
        };
        let placement = found.document;
        let buried = is_buried(&placement);
        let is_late = placement.created_at.plus(CREATION_TIME) <= now;
        let on_host = hosts.get(&placement.host).map(|volumes| volumes.get(&id));
        let doc = (org, id);
        match verdict(&placement, (buried, is_late), on_host) {
            Verdict::Leave => {}
            Verdict::Wait => {
                is_done = false;
                left.extend(buried.then_some(placement.app_id));
            }
            Verdict::Destroy => {
                is_done = false;
                destroy(shared, &placement.host, &doc.1).await;
                left.extend(buried.then(|| placement.app_id.clone()));
                let going = VolumePlacementDoc { made: true, going: true, ..placement };
                let expected = Expected::Revision(found.revision);
                let written = put_doc_freeing(store, &doc, &going, expected).await;
                written.map_err(fault("write a volume's placement"))?;
            }
            Verdict::Made => {
                let made = VolumePlacementDoc { made: true, ..placement };
                let expected = Expected::Revision(found.revision);
                match put_doc_freeing(store, &doc, &made, expected).await {
                    // Whoever asked for it was still there.
                    Ok(_) | Err(perch_store::Error::Conflict { .. }) => {}
                    Err(error) => return Err(fault("write a volume's placement")(error)),
                }
            }
            Verdict::Going => {
                let going = VolumePlacementDoc { going: true, ..placement };
                let expected = Expected::Revision(found.revision);
                let written = put_doc_freeing(store, &doc, &going, expected).await;
                written.map_err(fault("write a volume's placement"))?;
            }
            Verdict::Forget => {
                let expected = Expected::Revision(found.revision);
                let deleted = delete_doc::<VolumePlacementDoc>(store, &doc, expected).await;
                deleted.map_err(fault("forget a volume"))?;
            }
        }
    }
    Ok((is_done, left))
}

async fn destroy(shared: &Shared, host: &HostId, id: &VolumeId) {
    let Some(host) = shared.hosts.get(host) else { return };
    if let Err(error) = host.client.volume_command(id, &VolumeCommand::Destroy).await {
        tracing::warn!(error = chain(&error), volume = %id, "volume not destroyed yet");
    }
}

/// Returns what the hosts that answer say they have.
async fn ask(shared: &Shared) -> BTreeMap<HostId, BTreeMap<VolumeId, VolumeRecord>> {
    let mut found = BTreeMap::new();
    for host in shared.hosts.values() {
        match host.client.volumes().await {
            Ok(volumes) => {
                let volumes = volumes.into_iter().map(|volume| (volume.id.clone(), volume));
                found.insert(host.id.clone(), volumes.collect());
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), host = %host.id, "host not asked");
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use perch_types::directory::Generation;
    use perch_types::volume::VolumeUsage;
    use perch_types::{MachineId, Timestamp};

    use super::*;

    fn placement((made, going): (bool, bool)) -> VolumePlacementDoc {
        VolumePlacementDoc {
            app: "web".parse().unwrap(),
            app_id: "app_1".to_owned(),
            host: HostId::from_bits(1),
            region: "ams".parse().unwrap(),
            made,
            going,
            created_at: Timestamp::from_unix_ms(0),
        }
    }

    fn record(state: VolumeState, attached: bool) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId::from_bits(1),
            org: OrgSlug::personal(),
            app: "web".parse().unwrap(),
            app_id: "app_1".to_owned(),
            name: "data".to_owned(),
            host: HostId::from_bits(1),
            region: "ams".parse().unwrap(),
            generation: Generation { incarnation: 1, counter: 1 },
            state,
            size_gb: 1,
            attached: attached.then(|| MachineId::from_bits(1)),
            usage: VolumeUsage::default(),
            snapshot_retention: 5,
            auto_backup: true,
            copies: false,
            snapshot_error: None,
            destroy_at: None,
            created_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        }
    }

    #[test]
    fn nothing_is_destroyed_that_nobody_gave_up_and_nothing_is_forgotten_that_is_there() {
        use Verdict::{Destroy, Forget, Going, Leave, Made, Wait};
        let free = record(VolumeState::Created, false);
        let held = record(VolumeState::Created, true);
        let gone = record(VolumeState::PendingDestroy, false);
        let lost = record(VolumeState::Recovering, false);
        for (made, going, buried, late, on_host, expected) in [
            (true, false, false, true, Some(Some(&free)), Leave),
            (true, false, false, true, Some(None), Leave),
            (true, false, false, true, None, Leave),
            (false, false, false, false, Some(None), Leave),
            (false, false, false, true, Some(None), Forget),
            (false, false, false, false, Some(Some(&free)), Made),
            (false, false, false, true, Some(Some(&free)), Made),
            (false, false, false, true, Some(Some(&lost)), Made),
            (true, false, false, true, Some(Some(&lost)), Leave),
            (false, false, true, true, Some(Some(&free)), Destroy),
            (false, false, false, true, None, Wait),
            (true, false, true, false, Some(Some(&held)), Wait),
            (true, false, true, false, Some(Some(&free)), Destroy),
            (false, false, true, false, Some(None), Wait),
            (true, false, true, false, Some(Some(&gone)), Going),
            (true, false, false, false, Some(Some(&gone)), Going),
            (true, false, true, false, None, Wait),
            (true, true, false, true, Some(Some(&gone)), Leave),
            (true, true, false, true, Some(None), Forget),
        ] {
            let found = verdict(&placement((made, going)), (buried, late), on_host);
            assert_eq!(found, expected, "{made} {going} {buried} {late} {on_host:?}");
        }
    }
}
