//! What the API reads and writes in the directory.
//!
//! Never writes what is: records of machines are the hosts'.

use std::collections::BTreeSet;

use perch_store::{
    Compare, Expected, Op, Purpose, Revision, Store, Txn, Versioned, compare, delete_op, get_doc,
    list_docs, list_docs_under, put_op,
};
use perch_types::directory::{
    AppDoc, AppNameClaim, ConfigDoc, Document as _, LeaseDoc, NetworkCounter, NetworkDoc,
    PlacementDoc, Tombstone,
};
use perch_types::ips;
use perch_types::network_policy;
use perch_types::secrets::{self, SecretsHead};
use perch_types::{AppName, Code, InstanceId, MachineId, OrgSlug};

use crate::certificates;
use crate::config::{Host, Shared};
use crate::error::{Error, store as fault};
use crate::reply::Failure;
use crate::{names, ports};

/// The counter of networks.
const NETWORKS: &str = "networks";
/// The counter of apps.
const APPS: &str = "apps";
/// How often a creation begins anew because another api was faster with a counter.
const CREATE_ATTEMPTS_MAX: usize = 16;

/// Versions of a machine whose configurations are kept.
pub(crate) const VERSIONS_MAX: usize = 20;
/// Of those that are too many, how many go at once.
const FORGOTTEN_MAX: usize = perch_store::TXN_OPS_MAX / 2;

/// A machine, where it is placed, and that host unless it is not known here.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) id: MachineId,
    pub(crate) placement: Versioned<PlacementDoc>,
    pub(crate) host: Option<Host>,
}

impl Placed {
    /// Returns the host.
    pub(crate) fn host(&self) -> Result<&Host, Failure> {
        self.host.as_ref().ok_or_else(|| {
            Failure::new(
                Code::Unavailable,
                "the machine's host does not belong to this platform now",
            )
        })
    }
}

/// An app to make.
#[derive(Debug, Clone)]
pub(crate) struct NewApp {
    pub(crate) name: AppName,
    pub(crate) org: OrgSlug,
    pub(crate) network: String,
    pub(crate) role: Option<String>,
}

/// Returns who owns an app's name.
pub(crate) async fn claim(store: &dyn Store, app: &AppName) -> Result<Option<AppNameClaim>, Error> {
    let found = get_doc::<AppNameClaim>(store, &(app.clone(),)).await;
    Ok(found.map_err(fault("read an app's name"))?.map(|claim| claim.document))
}

/// Returns an app.
pub(crate) async fn app(
    store: &dyn Store,
    org: &OrgSlug,
    app: &AppName,
) -> Result<Option<AppDoc>, Error> {
    let found = get_doc::<AppDoc>(store, &(org.clone(), app.clone())).await;
    Ok(found.map_err(fault("read an app"))?.map(|app| app.document))
}

/// Returns the condition that an app is the one that a request is about: it was not deleted, nor
/// was another made under its name while a body was on its way.
pub(crate) async fn still(store: &dyn Store, app: &AppDoc) -> Result<Compare, Error> {
    let doc_key = (app.org.clone(), app.name.clone());
    let key = AppDoc::key(&doc_key);
    let found = get_doc::<AppDoc>(store, &doc_key).await.map_err(fault("read an app"))?;
    Ok(match found {
        // An app's document is never written again.
        Some(found) if found.document.id == app.id => {
            Compare::Revision { key, revision: found.revision }
        }
        Some(_) => Compare::Absent { key },
        None => Compare::Exists { key },
    })
}

/// Returns the apps of an organization, by name.
pub(crate) async fn apps(store: &dyn Store, org: &OrgSlug) -> Result<Vec<AppDoc>, Error> {
    let found = list_docs_under::<AppDoc>(store, &format!("{org}/")).await;
    let found = found.map_err(fault("list apps"))?;
    for unreadable in &found.unreadable {
        tracing::error!(key = unreadable.key, error = %unreadable.error, "app not readable");
    }
    Ok(found.documents.into_iter().map(|(_, app)| app.document).collect())
}

/// Makes an app, its name's claim, its network and its number at once; `None` when the name is
/// somebody's.
pub(crate) async fn create_app(shared: &Shared, new: &NewApp) -> Result<Option<AppDoc>, Error> {
    let _turn = shared.creating_app.lock().await;
    let mut attempts = CREATE_ATTEMPTS_MAX;
    loop {
        attempts -= 1;
        if claim(shared.store.as_ref(), &new.name).await?.is_some() {
            return Ok(None);
        }
        match try_create_app(shared, new).await {
            Err(Error::Store { source: perch_store::Error::Conflict { .. }, .. })
                if attempts > 0 => {}
            done => return done.map(Some),
        }
    }
}

async fn try_create_app(shared: &Shared, new: &NewApp) -> Result<AppDoc, Error> {
    let store = shared.store.as_ref();
    let now = shared.clock.now();
    let encode = || fault("write an app");
    let mut compares = Vec::new();
    let mut ops = Vec::new();

    let network_key = (new.org.clone(), new.network.clone());
    let network = get_doc::<NetworkDoc>(store, &network_key).await;
    let network_id = match network.map_err(fault("read a network"))? {
        Some(network) => network.document.id,
        None => {
            let id = count(store, NETWORKS, &mut compares, &mut ops).await?;
            compares.extend(compare::<NetworkDoc>(&network_key, Expected::Absent));
            ops.push(put_op(&network_key, &NetworkDoc { id }).map_err(encode())?);
            id
        }
    };
    let number = count(store, APPS, &mut compares, &mut ops).await?;
    let app = AppDoc {
        id: names::app_id(now)?,
        number: number.into(),
        name: new.name.clone(),
        org: new.org.clone(),
        network: new.network.clone(),
        network_id,
        role: new.role.clone(),
        created_at: now,
    };
    let (claim_key, app_key) = ((new.name.clone(),), (new.org.clone(), new.name.clone()));
    compares.extend(compare::<AppNameClaim>(&claim_key, Expected::Absent));
    ops.push(put_op(&claim_key, &AppNameClaim { org: new.org.clone() }).map_err(encode())?);
    compares.extend(compare::<AppDoc>(&app_key, Expected::Absent));
    ops.push(put_op(&app_key, &app).map_err(encode())?);
    commit(store, compares, ops, "write an app").await?;
    Ok(app)
}

/// Takes the next number of a counter in the transaction that is being put together.
async fn count(
    store: &dyn Store,
    name: &str,
    compares: &mut Vec<Compare>,
    ops: &mut Vec<Op>,
) -> Result<u32, Error> {
    let key = (name.to_owned(),);
    let found = get_doc::<NetworkCounter>(store, &key).await.map_err(fault("read a counter"))?;
    let (last, expected) = match found {
        Some(counter) => (counter.document.last, Expected::Revision(counter.revision)),
        None => (0, Expected::Absent),
    };
    let next = last.saturating_add(1);
    compares.extend(compare::<NetworkCounter>(&key, expected));
    ops.push(put_op(&key, &NetworkCounter { last: next }).map_err(fault("write a counter"))?);
    Ok(next)
}

/// Marks an app as deleted: it is gone for clients, its name stays taken until its machines are
/// gone too.
pub(crate) async fn bury_app(shared: &Shared, app: &AppDoc) -> Result<(), Error> {
    let tombstone = Tombstone { app: app.name.clone(), deleted_at: shared.clock.now() };
    let grave = put_op(&(app.org.clone(), app.id.clone()), &tombstone);
    let grave = grave.map_err(fault("write a tombstone"))?;
    let key = (app.org.clone(), app.name.clone());
    let there = still(shared.store.as_ref(), app).await?;
    // With the head goes the app's key: from now on nobody gets it any more.
    let ops = vec![grave, delete_op::<AppDoc>(&key), delete_op::<SecretsHead>(&key)];
    free(shared.store.as_ref(), vec![there], ops, "bury an app").await?;
    // Builds under way must not push any more: the name may be another organization's soon.
    shared.push_tokens.revoke_app(&app.id);
    Ok(())
}

/// Returns the tombstones: organization, app id, tombstone.
pub(crate) async fn tombstones(
    store: &dyn Store,
) -> Result<Vec<(OrgSlug, String, Tombstone)>, Error> {
    let found = list_docs::<Tombstone>(store).await.map_err(fault("list tombstones"))?;
    let parts = |key: &str| {
        let rest = key.strip_prefix(Tombstone::PREFIX)?;
        let (org, app_id) = rest.split_once('/')?;
        Some((org.parse::<OrgSlug>().ok()?, app_id.to_owned()))
    };
    let documents = found.documents.into_iter();
    Ok(documents
        .filter_map(|(key, stone)| parts(&key).map(|(org, id)| (org, id, stone.document)))
        .collect())
}

/// Removes what is left of a deleted app; its name is free then.
pub(crate) async fn forget_app(
    store: &dyn Store,
    org: &OrgSlug,
    app_id: &str,
    name: &AppName,
) -> Result<(), Error> {
    forget_under(store, &secrets::prefix(org, name)).await?;
    forget_under(store, &ips::prefix(org, name)).await?;
    forget_under(store, &network_policy::prefix(org, name)).await?;
    certificates::forget(store, org, name).await?;
    for batch in ports::release_ops(store, org, app_id).await?.chunks(perch_store::TXN_OPS_MAX) {
        let (compares, ops): (Vec<_>, Vec<_>) = batch.iter().cloned().unzip();
        // Another app may begin or end to share one of them: then the next turn does it.
        commit(store, compares.into_iter().flatten().collect(), ops, "release ports").await?;
    }
    let stone = (org.clone(), app_id.to_owned());
    let compares = vec![Compare::Exists { key: Tombstone::key(&stone) }];
    let ops = vec![delete_op::<Tombstone>(&stone), delete_op::<AppNameClaim>(&(name.clone(),))];
    commit(store, compares, ops, "forget an app").await.map(drop)
}

/// Removes everything of an app that lies under a prefix, before another app gets its name.
pub(crate) async fn forget_under(store: &dyn Store, prefix: &str) -> Result<(), Error> {
    let found = store.list(prefix).await.map_err(fault("list what an app had"))?;
    for batch in found.entries.chunks(perch_store::TXN_OPS_MAX) {
        let ops = batch.iter().map(|entry| Op::delete(entry.key.clone())).collect();
        commit(store, Vec::new(), ops, "forget what an app had").await?;
    }
    Ok(())
}

/// Returns where a machine is placed.
pub(crate) async fn placement(
    store: &dyn Store,
    org: &OrgSlug,
    id: &MachineId,
) -> Result<Option<Versioned<PlacementDoc>>, Error> {
    get_doc(store, &(org.clone(), id.clone())).await.map_err(fault("read a placement"))
}

/// Returns all placements of an organization.
pub(crate) async fn placements(
    store: &dyn Store,
    org: &OrgSlug,
) -> Result<Vec<(MachineId, Versioned<PlacementDoc>)>, Error> {
    let found = list_docs_under::<PlacementDoc>(store, &format!("{org}/")).await;
    let found = found.map_err(fault("list placements"))?;
    let of = |key: &str| key.rsplit('/').next()?.parse::<MachineId>().ok();
    let documents = found.documents.into_iter();
    Ok(documents.filter_map(|(key, placement)| of(&key).map(|id| (id, placement))).collect())
}

/// Returns all placements there are: organization, machine, placement.
pub(crate) async fn all_placements(
    store: &dyn Store,
) -> Result<Vec<(OrgSlug, MachineId, PlacementDoc)>, Error> {
    let found = list_docs::<PlacementDoc>(store).await.map_err(fault("list placements"))?;
    let parts = |key: &str| {
        let (org, id) = key.strip_prefix(PlacementDoc::PREFIX)?.split_once('/')?;
        Some((org.parse::<OrgSlug>().ok()?, id.parse::<MachineId>().ok()?))
    };
    let documents = found.documents.into_iter();
    Ok(documents
        .filter_map(|(key, found)| parts(&key).map(|(org, id)| (org, id, found.document)))
        .collect())
}

/// Returns the versions of a machine that are kept, newest first.
pub(crate) async fn versions(
    store: &dyn Store,
    (org, app, id): (&OrgSlug, &AppName, &MachineId),
) -> Result<Vec<(InstanceId, ConfigDoc)>, Error> {
    let found = list_docs_under::<ConfigDoc>(store, &format!("{org}/{app}/{id}/")).await;
    let found = found.map_err(fault("list configurations"))?;
    let of = |key: &str| key.rsplit('/').next()?.parse::<InstanceId>().ok();
    let documents = found.documents.into_iter();
    let mut versions: Vec<_> = documents
        .filter_map(|(key, config)| of(&key).map(|instance| (instance, config.document)))
        .collect();
    versions.sort_by(|(one, a), (other, b)| (b.created_at, other).cmp(&(a.created_at, one)));
    Ok(versions)
}

/// Returns the operations that make room for one more version: the oldest go.
pub(crate) async fn forget_versions(
    store: &dyn Store,
    (org, id): (&OrgSlug, &MachineId),
    before: &PlacementDoc,
) -> Result<Vec<Op>, Error> {
    let versions = versions(store, (org, &before.app, id)).await?.into_iter();
    let old = versions.skip(VERSIONS_MAX.saturating_sub(1)).map(|(instance, _)| instance);
    let old = old.filter(|instance| *instance != before.instance).take(FORGOTTEN_MAX);
    Ok(old
        .map(|instance| delete_op::<ConfigDoc>(&config_key(org, &before.app, id, &instance)))
        .collect())
}

/// What is written with a machine's placement, and what must hold for all of it.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
}

/// Writes a machine's placement and the configuration of its version, at once.
pub(crate) async fn place(
    shared: &Shared,
    (app, id): (&AppDoc, &MachineId),
    (placement, config): (&PlacementDoc, &ConfigDoc),
    expected: Expected,
    beside: Beside,
) -> Result<Revision, Error> {
    let key = (app.org.clone(), id.clone());
    let config_key = config_key(&app.org, &placement.app, id, &placement.instance);
    let encode = || fault("write a placement");
    let mut compares: Vec<_> = compare::<PlacementDoc>(&key, expected).into_iter().collect();
    compares.extend(compare::<ConfigDoc>(&config_key, Expected::Absent));
    // An app that was deleted in between must not get a machine that nobody would destroy.
    compares.push(still(shared.store.as_ref(), app).await?);
    compares.extend(beside.compares);
    let mut ops = vec![
        put_op(&key, placement).map_err(encode())?,
        put_op(&config_key, config).map_err(encode())?,
    ];
    ops.extend(beside.ops);
    commit(shared.store.as_ref(), compares, ops, "write a placement").await
}

/// Puts a machine's placement back to what it was before a version that its host refused.
pub(crate) async fn unplace_version(
    store: &dyn Store,
    (org, id): (&OrgSlug, &MachineId),
    before: &PlacementDoc,
    refused: (&InstanceId, Revision),
) -> Result<(), Error> {
    let key = (org.clone(), id.clone());
    let (instance, written) = refused;
    let compares = compare::<PlacementDoc>(&key, Expected::Revision(written)).into_iter().collect();
    let ops = vec![
        put_op(&key, before).map_err(fault("write a placement"))?,
        delete_op::<ConfigDoc>(&config_key(org, &before.app, id, instance)),
    ];
    free(store, compares, ops, "take a version back").await.map(drop)
}

/// Removes everything that the directory has of a machine but its host's record.
pub(crate) async fn forget_machine(
    store: &dyn Store,
    org: &OrgSlug,
    app: &AppName,
    id: &MachineId,
) -> Result<(), Error> {
    let under = format!("{org}/{app}/{id}/");
    let configs = store.list(&format!("{}{under}", ConfigDoc::PREFIX)).await;
    let keys: BTreeSet<String> =
        configs.map_err(fault("list configurations"))?.entries.into_iter().map(|e| e.key).collect();
    let key = (org.clone(), id.clone());
    let mut ops = vec![delete_op::<LeaseDoc>(&key), delete_op::<PlacementDoc>(&key)];
    let last = ops.len();
    // The placement goes with the last batch: until then the machine can be found again.
    for key in keys {
        ops.insert(0, Op::delete(key));
        if ops.len() == perch_store::TXN_OPS_MAX {
            let rest = ops.split_off(perch_store::TXN_OPS_MAX - last);
            commit(store, Vec::new(), std::mem::replace(&mut ops, rest), "forget a machine")
                .await?;
        }
    }
    commit(store, Vec::new(), ops, "forget a machine").await.map(drop)
}

/// Returns the configuration of a version.
pub(crate) async fn config(
    store: &dyn Store,
    org: &OrgSlug,
    id: &MachineId,
    placement: &PlacementDoc,
) -> Result<Option<ConfigDoc>, Error> {
    let key = config_key(org, &placement.app, id, &placement.instance);
    let found = get_doc::<ConfigDoc>(store, &key).await;
    Ok(found.map_err(fault("read a configuration"))?.map(|config| config.document))
}

fn config_key(
    org: &OrgSlug,
    app: &AppName,
    id: &MachineId,
    instance: &InstanceId,
) -> (OrgSlug, AppName, MachineId, InstanceId) {
    (org.clone(), app.clone(), id.clone(), instance.clone())
}

/// Does a transaction by which something goes, on a full disk too; else as [`commit`].
async fn free(
    store: &dyn Store,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    operation: &'static str,
) -> Result<Revision, Error> {
    let done = store.txn_for(Purpose::Freeing, compares, ops).await;
    done.and_then(Txn::or_conflict).map_err(fault(operation))
}

/// Does a transaction; a compare that does not hold is [`perch_store::Error::Conflict`].
pub(crate) async fn commit(
    store: &dyn Store,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    operation: &'static str,
) -> Result<Revision, Error> {
    store.txn(compares, ops).await.and_then(Txn::or_conflict).map_err(fault(operation))
}
