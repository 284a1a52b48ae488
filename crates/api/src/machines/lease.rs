//! Leases of machines (contract 1.6): who may change one for a while.
//!
//! Never kept in memory: a lease is a document of the directory, acquired and refreshed by
//! compare-and-set. [`guard`] is the one place where it is enforced, called for every endpoint
//! of the table that changes a machine.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use http::{HeaderMap, StatusCode};
use perch_store::{Compare, Expected, Op, Versioned, compare, delete_op, get_doc, put_op};
use perch_types::api::{Lease, LeaseReleased, LeaseReply, LeaseRequest};
use perch_types::directory::{Document as _, LeaseDoc, PlacementDoc};
use perch_types::endpoint::LEASE_HEADER;
use perch_types::{ApiError, Code, InstanceId, MachineId, OrgSlug, Timestamp};

use crate::body::{Json, Parameters};
use crate::config::Shared;
use crate::documents::{self, Placed};
use crate::error::{Error, store as fault};
use crate::names;
use crate::reply::Failure;
use crate::routes::{Caller, OfApp, Target};

/// Seconds that a lease lasts when nothing else was said.
const TTL_DEFAULT_S: u64 = 60;
/// The longest lease in seconds.
pub(crate) const TTL_MAX_S: u64 = 24 * 60 * 60;
/// How far a clock may be corrected, in seconds, without a lease ending for it.
const CORRECTION_MAX_S: u64 = 10;
/// The longest description in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// How often a write begins anew because another was faster.
const ATTEMPTS_MAX: usize = 8;

/// What a request is about, and who makes it.
type About = (Extension<OfApp>, Extension<Target>, Extension<Caller>);

/// How a machine's lease stands towards a request that may change the machine.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// Nobody holds one; what the document is then, if there is one that has ended.
    Free(Expected),
    /// Whoever asks holds it.
    Own(Box<Versioned<LeaseDoc>>),
}

impl Standing {
    /// Returns the condition under which a change may be written: that nobody acquired the lease
    /// in between. Its holder may refresh it at the same time, so an own one has none.
    pub(crate) fn compare(&self, org: &OrgSlug, id: &MachineId) -> Option<Compare> {
        match self {
            Self::Free(expected) => compare::<LeaseDoc>(&(org.clone(), id.clone()), *expected),
            Self::Own(_) => None,
        }
    }
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
) -> Result<JsonReply<LeaseReply>, Failure> {
    let lease = read(&shared, &app.org, &target.id).await?;
    let held = lease.filter(|lease| is_held(&lease.document, shared.clock.now()));
    let lease = held.ok_or_else(|| none(&target.id))?.document;
    Ok(JsonReply(answer(lease, &target).into()))
}

pub(crate) async fn acquire(
    State(shared): State<Arc<Shared>>,
    (Extension(OfApp(app)), Extension(Target(target)), Extension(Caller(caller))): About,
    parameters: Parameters,
    headers: HeaderMap,
    Json(request): Json<LeaseRequest>,
) -> Result<(StatusCode, JsonReply<LeaseReply>), Failure> {
    let asked = match request.ttl {
        Some(ttl) => Some(ttl),
        None => parameters.parsed::<u64>("ttl")?,
    };
    let wanted = Wanted {
        ttl_s: ttl("ttl", asked.unwrap_or(TTL_DEFAULT_S))?,
        owner: owner(&caller),
        description: description(request.description)?,
    };
    let nonce = nonce(&headers)?;
    let mut attempts = ATTEMPTS_MAX;
    loop {
        attempts -= 1;
        let standing = guard(&shared, (&app.org, &target.id), nonce).await?;
        let (lease, compares) = take(&shared, (&app.org, &target.id), &standing, &wanted)?;
        match write(&shared, (&app.org, &target.id), &lease, compares).await {
            Err(error) if attempts > 0 && error.is_conflict() => {}
            written => {
                written?;
                let reply = answer(lease, &target).into();
                return Ok((StatusCode::CREATED, JsonReply(reply)));
            }
        }
    }
}

pub(crate) async fn release(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Extension(Target(target)): Extension<Target>,
    headers: HeaderMap,
) -> Result<JsonReply<LeaseReleased>, Failure> {
    let nonce = nonce(&headers)?;
    let held = read(&shared, &app.org, &target.id).await?;
    let held = held.filter(|lease| is_held(&lease.document, shared.clock.now()));
    let held = held.ok_or_else(|| none(&target.id))?.document;
    if nonce != Some(held.nonce.as_str()) {
        return Err(taken(&target.id, &held));
    }
    drop_own(&shared, (&app.org, &target.id), &held.nonce).await?;
    Ok(JsonReply(LeaseReleased::default()))
}

/// Lets a change of a machine through, or says who holds the lease: nobody holds one, or whoever
/// asks does. A nonce whose lease has ended is refused, because others may have changed the
/// machine since.
pub(crate) async fn guard(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    nonce: Option<&str>,
) -> Result<Standing, Failure> {
    let found = read(shared, org, id).await?;
    let held = found.as_ref().is_some_and(|it| is_held(&it.document, shared.clock.now()));
    match (found, nonce) {
        (Some(lease), Some(nonce)) if held && lease.document.nonce == nonce => {
            Ok(Standing::Own(Box::new(lease)))
        }
        (Some(lease), _) if held => Err(taken(id, &lease.document)),
        (_, Some(_)) => {
            let text = format!("lease not found for machine {id}: the nonce's lease has ended");
            Err(Failure::new(Code::LeaseLost, text)
                .with_hint("look at the machine, then acquire a lease anew"))
        }
        (Some(lease), None) => Ok(Standing::Free(Expected::Revision(lease.revision))),
        (None, None) => Ok(Standing::Free(Expected::Absent)),
    }
}

/// Returns the nonce that a request has, if any.
pub(crate) fn nonce(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let Some(value) = headers.get(LEASE_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| {
        Failure::new(Code::InvalidRequest, format!("{LEASE_HEADER}: is not a lease's nonce"))
    })?;
    Ok(Some(text.trim()).filter(|text| !text.is_empty()))
}

/// What a lease is to be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    ttl_s: u64,
    owner: String,
    description: Option<String>,
}

impl Wanted {
    /// Returns what `lease_ttl` of a creation or an update asks for; nothing and 0 are no lease.
    pub(crate) fn of_ttl(lease_ttl: Option<u64>, caller: &Caller) -> Result<Option<Self>, Failure> {
        match lease_ttl {
            None | Some(0) => Ok(None),
            Some(seconds) => Ok(Some(Self {
                ttl_s: ttl("lease_ttl", seconds)?,
                owner: owner(&caller.0),
                description: None,
            })),
        }
    }
}

/// Returns the lease to write and what must hold for it: a new one, or the same for longer.
pub(crate) fn take(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    standing: &Standing,
    wanted: &Wanted,
) -> Result<(LeaseDoc, Vec<Compare>), Error> {
    let expires_at = shared.clock.now().plus(std::time::Duration::from_secs(wanted.ttl_s));
    let (lease, expected) = match standing {
        Standing::Own(own) => {
            let mut lease = own.document.clone();
            lease.expires_at = expires_at;
            lease.ttl_s = wanted.ttl_s;
            if let Some(description) = &wanted.description {
                lease.description.clone_from(description);
            }
            (lease, Expected::Revision(own.revision))
        }
        Standing::Free(expected) => {
            let lease = LeaseDoc {
                nonce: format!("{:032x}", names::random()?),
                owner: wanted.owner.clone(),
                description: wanted.description.clone().unwrap_or_default(),
                expires_at,
                ttl_s: wanted.ttl_s,
            };
            (lease, *expected)
        }
    };
    let key = (org.clone(), id.clone());
    Ok((lease, compare::<LeaseDoc>(&key, expected).into_iter().collect()))
}

/// Returns the operation that writes a lease.
pub(crate) fn put(org: &OrgSlug, id: &MachineId, lease: &LeaseDoc) -> Result<Op, Error> {
    put_op(&(org.clone(), id.clone()), lease).map_err(fault("write a lease"))
}

/// Ends a lease if it is still the one with the nonce.
pub(crate) async fn drop_own(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    nonce: &str,
) -> Result<(), Error> {
    let mut attempts = ATTEMPTS_MAX;
    loop {
        attempts -= 1;
        let found = read(shared, org, id).await?;
        let Some(lease) = found.filter(|lease| lease.document.nonce == nonce) else {
            return Ok(());
        };
        let key = (org.clone(), id.clone());
        let expected = compare::<LeaseDoc>(&key, Expected::Revision(lease.revision));
        let ops = vec![delete_op::<LeaseDoc>(&key)];
        let compares = expected.into_iter().collect();
        match documents::commit(shared.store.as_ref(), compares, ops, "release a lease").await {
            // It was refreshed in between.
            Err(error) if attempts > 0 && error.is_conflict() => {}
            released => return released.map(drop),
        }
    }
}

/// Deletes leases that have ended.
pub(crate) async fn collect(shared: &Shared) -> Result<(), Error> {
    let store = shared.store.as_ref();
    let all = perch_store::list_docs::<LeaseDoc>(store).await.map_err(fault("list leases"))?;
    let now = shared.clock.now();
    for (key, lease) in all.documents {
        if is_held(&lease.document, now) {
            continue;
        }
        match store.delete(&key, Expected::Revision(lease.revision)).await {
            // Somebody acquired it just now.
            Ok(_) | Err(perch_store::Error::Conflict { .. }) => {}
            Err(source) => return Err(fault("delete a lease")(source)),
        }
    }
    Ok(())
}

async fn write(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    lease: &LeaseDoc,
    mut compares: Vec<Compare>,
) -> Result<(), Error> {
    // A machine that is forgotten in between must not leave a lease behind.
    compares.push(Compare::Exists { key: PlacementDoc::key(&(org.clone(), id.clone())) });
    let ops = vec![put(org, id, lease)?];
    documents::commit(shared.store.as_ref(), compares, ops, "write a lease").await.map(drop)
}

async fn read(
    shared: &Shared,
    org: &OrgSlug,
    id: &MachineId,
) -> Result<Option<Versioned<LeaseDoc>>, Error> {
    get_doc(shared.store.as_ref(), &(org.clone(), id.clone())).await.map_err(fault("read a lease"))
}

/// Returns whether a lease holds. One that ends later than it could was written before the clock
/// was set back: it has ended, else it would hold for as long as the clock was off.
fn is_held(lease: &LeaseDoc, now: Timestamp) -> bool {
    let ttl_s = if lease.ttl_s == 0 { TTL_MAX_S } else { lease.ttl_s.min(TTL_MAX_S) };
    let latest = now.plus(std::time::Duration::from_secs(ttl_s + CORRECTION_MAX_S));
    now < lease.expires_at && lease.expires_at <= latest
}

fn answer(lease: LeaseDoc, target: &Placed) -> Lease {
    let version: InstanceId = target.placement.document.instance.clone();
    let expires_at = lease.expires_at.unix_s();
    let LeaseDoc { nonce, owner, description, .. } = lease;
    Lease { nonce, expires_at, owner, description, version }
}

fn taken(id: &MachineId, lease: &LeaseDoc) -> Failure {
    let text = format!(
        "failed to get lease on machine {id}: lease currently held by {}, expires at {}",
        lease.owner, lease.expires_at
    );
    Failure::new(Code::LeaseHeld, text)
        .with_hint("wait for it to end, or send its nonce if it is yours")
}

fn none(id: &MachineId) -> Failure {
    ApiError::new(Code::LeaseNotFound, format!("lease not found for machine {id}")).into()
}

fn owner(caller: &[crate::auth::Principal]) -> String {
    caller.first().map(|principal| principal.name.clone()).unwrap_or_default()
}

fn ttl(path: &str, seconds: u64) -> Result<u64, Failure> {
    if (1..=TTL_MAX_S).contains(&seconds) {
        return Ok(seconds);
    }
    let text = format!("{path}: {seconds} is not 1 to {TTL_MAX_S} seconds");
    Err(Failure::new(Code::InvalidValue, text))
}

fn description(text: Option<String>) -> Result<Option<String>, Failure> {
    match text {
        Some(text) if text.len() > DESCRIPTION_BYTES_MAX => {
            let text =
                format!("description: {} bytes are more than {DESCRIPTION_BYTES_MAX}", text.len());
            Err(Failure::new(Code::InvalidValue, text))
        }
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(expires_at_s: i64, ttl_s: u64) -> LeaseDoc {
        LeaseDoc {
            nonce: "a".to_owned(),
            owner: "me".to_owned(),
            description: String::new(),
            expires_at: Timestamp::from_unix_ms(expires_at_s * 1000),
            ttl_s,
        }
    }

    #[test]
    fn a_lease_holds_until_its_end_and_never_longer_than_any_may() {
        let day = i64::try_from(TTL_MAX_S).unwrap();
        let correction = i64::try_from(CORRECTION_MAX_S).unwrap();
        for (expires_at_s, ttl_s, now_s, held) in [
            (1_000_010, 60, 1_000_000, true),
            (1_000_010, 60, 1_000_009, true),
            (1_000_010, 60, 1_000_010, false),
            (1_000_010, 60, 2_000_000, false),
            (1_000_000 + day, TTL_MAX_S, 1_000_000, true),
            // The clock was set back after it was acquired, a little or by more than that.
            (1_000_060 + correction, 60, 1_000_000, true),
            (1_000_061 + correction, 60, 1_000_000, false),
            (1_000_001 + correction + day, TTL_MAX_S, 1_000_000, false),
            // A document of before, which does not say how long it was to hold.
            (1_000_000 + day, 0, 1_000_000, true),
            (1_000_001 + correction + day, 0, 1_000_000, false),
        ] {
            let now = Timestamp::from_unix_ms(now_s * 1000);
            let held_now = is_held(&lease(expires_at_s, ttl_s), now);
            assert_eq!(held_now, held, "{expires_at_s} {ttl_s} {now_s}");
        }
    }

    #[test]
    fn a_time_is_one_second_to_a_day() {
        for good in [1, 13, TTL_MAX_S] {
            assert_eq!(ttl("ttl", good).unwrap(), good);
        }
        for bad in [0, TTL_MAX_S + 1, u64::MAX] {
            let error = ttl("lease_ttl", bad).unwrap_err();
            assert!(error.error().error.starts_with("lease_ttl: "), "{}", error.error().error);
        }
    }
}
