//! From where requests may be sent on to an organization's apps (contract 4.3): told and set.
//!
//! Never asks the organizations that it names: they learn nothing by it, and get nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_store::{Expected, delete_doc, get_doc, put_doc};
use perch_types::Code;
use perch_types::replays::{ReplaySources, SOURCES_MAX};

use crate::body::Json;
use crate::config::Shared;
use crate::error::store as fault;
use crate::reply::Failure;
use crate::routes::OfOrg;

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfOrg(org)): Extension<OfOrg>,
) -> Result<JsonReply<ReplaySources>, Failure> {
    let found = get_doc::<ReplaySources>(shared.store.as_ref(), &(org,)).await;
    let found = found.map_err(fault("read an organization's replay sources"))?;
    Ok(JsonReply(found.map(|found| found.document).unwrap_or_default()))
}

pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(OfOrg(org)): Extension<OfOrg>,
    Json(mut sources): Json<ReplaySources>,
) -> Result<JsonReply<ReplaySources>, Failure> {
    let slugs = &mut sources.allowed_replay_source_org_slugs;
    let mut seen = BTreeSet::new();
    slugs.retain(|slug| *slug != org && seen.insert(slug.clone()));
    if slugs.len() > SOURCES_MAX {
        let count = slugs.len();
        let text = format!("allowed_replay_source_org_slugs: {count} are more than {SOURCES_MAX}");
        return Err(Failure::new(Code::InvalidValue, text));
    }
    let (store, key) = (shared.store.as_ref(), (org,));
    let done = if sources == ReplaySources::default() {
        // What says nothing is not kept.
        delete_doc::<ReplaySources>(store, &key, Expected::Any).await
    } else {
        put_doc(store, &key, &sources, Expected::Any).await
    };
    done.map_err(fault("write an organization's replay sources"))?;
    Ok(JsonReply(sources))
}
