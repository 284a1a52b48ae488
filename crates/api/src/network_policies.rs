//! Network policies of apps (contract 1.11): set, listed, taken away.
//!
//! Never touches a firewall: a host reads them when a machine starts, and makes the rules.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_store::{
    Compare, Expected, Txn, Versioned, compare, delete_doc, get_doc, list_docs_under, put_op,
};
use perch_types::directory::{AppDoc, Document as _};
use perch_types::network_policy::{
    NAME_BYTES_MAX, NetworkPolicy, POLICIES_MAX, PORTS_MAX, PolicySelector, RULES_MAX,
    SELECTED_MAX, SetNetworkPolicy,
};
use perch_types::{Code, MachineId, OrgSlug};

use crate::body::Json;
use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reply::Failure;
use crate::routes::OfApp;
use crate::{machines, names};

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
) -> Result<JsonReply<Vec<NetworkPolicy>>, Failure> {
    let mut policies = all(&shared, &app).await?;
    policies.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    Ok(JsonReply(policies))
}

pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(request): Json<SetNetworkPolicy>,
) -> Result<JsonReply<NetworkPolicy>, Failure> {
    admit(&request)?;
    own_machines(&shared, &app, &request.selector)?;
    let SetNetworkPolicy { id, name, selector, rules } = request;
    // One after the other, so that the limit is one.
    let _turn = shared.assigning.lock().await;
    let before = match id.filter(|id| !id.is_empty()) {
        Some(id) => Some(to_change(&shared, &app, &id).await?),
        None => None,
    };
    if before.is_none() && all(&shared, &app).await?.len() >= POLICIES_MAX {
        let text = format!("an app has at most {POLICIES_MAX} network policies");
        return Err(Failure::new(Code::InvalidValue, text).with_hint("delete one of them"));
    }
    let now = shared.clock.now();
    let (id, created_at, expected) = match before {
        Some(Versioned { document, revision }) => {
            (document.id, document.created_at, Expected::Revision(revision))
        }
        None => (names::network_policy_id()?, now, Expected::Absent),
    };
    let policy = NetworkPolicy { id, name, selector, rules, created_at, updated_at: now };
    let key = (app.org.clone(), app.name.clone(), policy.id.clone());
    let put = put_op(&key, &policy).map_err(fault("write a network policy"))?;
    let mut compares: Vec<_> = compare::<NetworkPolicy>(&key, expected).into_iter().collect();
    // An app that was deleted in between must not get a policy that nobody would take away.
    compares.push(Compare::Exists { key: AppDoc::key(&(app.org.clone(), app.name.clone())) });
    let written = shared.store.txn(compares, vec![put]).await.and_then(Txn::or_conflict);
    written.map_err(fault("write a network policy"))?;
    Ok(JsonReply(policy))
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let found = find(&shared, &app, &id).await?.ok_or_else(|| {
        let shown: String = id.chars().take(80).collect();
        Failure::new(Code::NotFound, format!("policy: the app has no network policy `{shown}`"))
    })?;
    let key = (app.org.clone(), app.name.clone(), found.document.id);
    let deleted = delete_doc::<NetworkPolicy>(shared.store.as_ref(), &key, Expected::Any).await;
    deleted.map_err(fault("delete a network policy"))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn all(shared: &Shared, app: &AppDoc) -> Result<Vec<NetworkPolicy>, Error> {
    let (org, name): (&OrgSlug, _) = (&app.org, &app.name);
    let found = list_docs_under(shared.store.as_ref(), &format!("{org}/{name}/")).await;
    let found = found.map_err(fault("list network policies"))?;
    Ok(found.documents.into_iter().map(|(_, policy)| policy.document).collect())
}

/// Returns the policy that a body changes.
async fn to_change(
    shared: &Shared,
    app: &AppDoc,
    id: &str,
) -> Result<Versioned<NetworkPolicy>, Failure> {
    if let Some(found) = find(shared, app, id).await? {
        return Ok(found);
    }
    let known: Vec<String> = all(shared, app).await?.into_iter().map(|it| it.id).collect();
    Err(Failure::unknown_reference("id", ("network policy", id), &known)
        .with_hint("leave `id` out to make a new one"))
}

async fn find(
    shared: &Shared,
    app: &AppDoc,
    id: &str,
) -> Result<Option<Versioned<NetworkPolicy>>, Error> {
    // Anything else can be no key's part.
    if !names::is_network_policy_id(id) {
        return Ok(None);
    }
    let key = (app.org.clone(), app.name.clone(), id.to_owned());
    let found = get_doc::<NetworkPolicy>(shared.store.as_ref(), &key).await;
    found.map_err(fault("read a network policy"))
}

fn admit(request: &SetNetworkPolicy) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::new(Code::InvalidValue, text));
    let name = &request.name;
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
        return refuse(format!(
            "name: is not 1 to {NAME_BYTES_MAX} bytes without control characters"
        ));
    }
    let PolicySelector { all, machines, metadata } = &request.selector;
    let named = [*all == Some(true), machines.is_some(), metadata.is_some()];
    if named.into_iter().filter(|it| *it).count() != 1 {
        return refuse("selector: is not exactly one of all, machines, metadata".to_owned());
    }
    let counts = [
        ("selector.machines", machines.as_ref().map(Vec::len), 1..=SELECTED_MAX),
        (
            "selector.metadata",
            metadata.as_ref().map(std::collections::BTreeMap::len),
            1..=SELECTED_MAX,
        ),
        ("rules", Some(request.rules.len()), 1..=RULES_MAX),
    ];
    for (field, count, allowed) in counts {
        if let Some(count) = count.filter(|count| !allowed.contains(count)) {
            return refuse(format!("{field}: {count} are not 1 to {}", allowed.end()));
        }
    }
    for (index, rule) in request.rules.iter().enumerate() {
        let path = format!("rules[{index}].ports");
        let count = rule.ports.len();
        if !(1..=PORTS_MAX).contains(&count) {
            return refuse(format!("{path}: {count} are not 1 to {PORTS_MAX}"));
        }
        if let Some(zero) = rule.ports.iter().position(|it| it.port == 0) {
            return refuse(format!("{path}[{zero}].port: 0 is not 1 to 65535"));
        }
    }
    Ok(())
}

/// Refuses a selector that names a machine of another app, or none.
fn own_machines(shared: &Shared, app: &AppDoc, selector: &PolicySelector) -> Result<(), Failure> {
    let view = shared.view.load();
    for (index, machine) in selector.machines.iter().flatten().enumerate() {
        let id = machine.id.parse::<MachineId>().ok();
        let own = id.as_ref().and_then(|id| view.machine(id));
        if own.is_none_or(|own| own.org != app.org || own.app != app.name) {
            let path = format!("selector.machines[{index}].id");
            let known = machines::ids(shared, app);
            return Err(Failure::unknown_reference(&path, ("machine", &machine.id), &known));
        }
    }
    Ok(())
}
