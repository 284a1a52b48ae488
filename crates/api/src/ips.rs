//! Addresses of apps (contract 1.11): assigned, listed, released.
//!
//! Never makes one: they are the server's public addresses, and the edge answers at all of them
//! for every app. What is written down is which app its owner wants to be reached there.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_store::{Compare, Expected, Txn, delete_doc, list_docs, put_op};
use perch_types::directory::{AppDoc, Document as _};
use perch_types::ips::{AssignIp, IpAssignment, IpAssignments, IpDoc, IpType};
use perch_types::{Code, Region};

use crate::body::Json;
use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reply::Failure;
use crate::routes::OfApp;

/// What an operator does about a server that does not know its addresses.
const HINT: &str = "the server's operator names its addresses: `public_ips` in perchd.toml";

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
) -> Result<JsonReply<IpAssignments>, Failure> {
    let mut own: Vec<IpDoc> = all(&shared).await?.into_iter().filter(|it| of(it, &app)).collect();
    own.sort_by_key(|it| (it.created_at, it.ip));
    let ips = own.iter().map(|it| answer(&shared.platform.region, it)).collect();
    Ok(JsonReply(IpAssignments { ips }))
}

pub(crate) async fn assign(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(request): Json<AssignIp>,
) -> Result<JsonReply<IpAssignment>, Failure> {
    admit(&request, &shared.platform.region)?;
    // One after the other, so that no two apps get one address for themselves.
    let _turn = shared.assigning.lock().await;
    let all = all(&shared).await?;
    let ip = choose(request.kind, &shared.public_ips, &all, &app)?;
    let is_shared = request.kind == IpType::SharedV4;
    if let Some(there) = all.iter().find(|it| of(it, &app) && it.ip == ip)
        && there.shared == is_shared
    {
        return Ok(JsonReply(answer(&shared.platform.region, there)));
    }
    let document = IpDoc {
        app: app.name.clone(),
        org: app.org.clone(),
        ip,
        shared: is_shared,
        created_at: shared.clock.now(),
    };
    let key = (app.org.clone(), app.name.clone(), ip);
    let put = put_op(&key, &document).map_err(fault("write an address"))?;
    // An app that was deleted in between must not get an address that nobody would release.
    let there = AppDoc::key(&(app.org.clone(), app.name.clone()));
    let compares = vec![Compare::Exists { key: there }];
    let written = shared.store.txn(compares, vec![put]).await.and_then(Txn::or_conflict);
    written.map_err(fault("write an address"))?;
    Ok(JsonReply(answer(&shared.platform.region, &document)))
}

pub(crate) async fn release(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let ip = asked.parse::<IpAddr>().ok();
    let all = all(&shared).await?;
    let found = all.iter().find(|it| of(it, &app) && Some(it.ip) == ip).ok_or_else(|| {
        let shown: String = asked.chars().take(80).collect();
        Failure::new(Code::NotFound, format!("ip: the app does not have the address `{shown}`"))
    })?;
    let key = (app.org.clone(), app.name.clone(), found.ip);
    let deleted = delete_doc::<IpDoc>(shared.store.as_ref(), &key, Expected::Any).await;
    deleted.map_err(fault("release an address"))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn all(shared: &Shared) -> Result<Vec<IpDoc>, Error> {
    let found = list_docs::<IpDoc>(shared.store.as_ref()).await.map_err(fault("list addresses"))?;
    Ok(found.documents.into_iter().map(|(_, it)| it.document).collect())
}

fn of(document: &IpDoc, app: &AppDoc) -> bool {
    document.org == app.org && document.app == app.name
}

fn answer(region: &Region, document: &IpDoc) -> IpAssignment {
    IpAssignment {
        ip: document.ip,
        region: region.clone(),
        service_name: String::new(),
        shared: document.shared,
        created_at: document.created_at,
    }
}

fn admit(request: &AssignIp, own: &Region) -> Result<(), Failure> {
    if request.kind == IpType::PrivateV6 {
        let text = "type: this server has no private addresses for apps (.flycast)";
        return Err(Failure::new(Code::UnsupportedKey, text)
            .with_hint("machines of one network reach each other at <app>.internal"));
    }
    let given = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
    for (name, field) in [
        ("org_slug", &request.org_slug),
        ("network", &request.network),
        ("service_name", &request.service_name),
    ] {
        if given(field) {
            let text = format!("{name}: is for private addresses, which this server does not have");
            return Err(Failure::new(Code::UnsupportedKey, text));
        }
    }
    match request.region.as_deref() {
        None | Some("" | "global") => Ok(()),
        Some(region) if region == own.as_str() => Ok(()),
        Some(region) => {
            let shown: String = region.chars().take(80).collect();
            let text = format!("region: `{shown}` has no addresses; allowed is {own}");
            Err(Failure::new(Code::InvalidValue, text))
        }
    }
}

/// Chooses one of the server's addresses for an app.
fn choose(
    kind: IpType,
    addresses: &[IpAddr],
    all: &[IpDoc],
    app: &AppDoc,
) -> Result<IpAddr, Failure> {
    let is_v6 = matches!(kind, IpType::V6 | IpType::PrivateV6);
    let mut fitting = addresses.iter().filter(|ip| ip.is_ipv6() == is_v6).peekable();
    if fitting.peek().is_none() {
        let family = if is_v6 { "IPv6" } else { "IPv4" };
        let text = format!(
            "type: `{}` cannot be had: this server has no public {family} address",
            kind.as_str()
        );
        return Err(Failure::new(Code::InsufficientCapacity, text).with_hint(HINT));
    }
    let is_free = |ip: &&IpAddr| {
        let mut others = all.iter().filter(|it| it.ip == **ip && !of(it, app));
        match kind {
            IpType::V4 => others.next().is_none(),
            IpType::SharedV4 => others.all(|it| it.shared),
            IpType::V6 | IpType::PrivateV6 => true,
        }
    };
    fitting.find(is_free).copied().ok_or_else(|| {
        let text = format!(
            "type: `{}` cannot be had: other apps have every IPv4 address of this server",
            kind.as_str()
        );
        let hint = match kind {
            IpType::V4 => "ask for `shared_v4`: apps are told apart by their host names",
            _ => HINT,
        };
        Failure::new(Code::InsufficientCapacity, text).with_hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use perch_types::{OrgSlug, Timestamp};

    use super::*;

    fn app(name: &str) -> AppDoc {
        AppDoc {
            id: format!("app_{name}"),
            number: 1,
            name: name.parse().unwrap(),
            org: OrgSlug::personal(),
            network: "default".to_owned(),
            network_id: 1,
            role: None,
            created_at: Timestamp::from_unix_ms(0),
        }
    }

    fn has(name: &str, ip: &str, shared: bool) -> IpDoc {
        IpDoc {
            app: name.parse().unwrap(),
            org: OrgSlug::personal(),
            ip: ip.parse().unwrap(),
            shared,
            created_at: Timestamp::from_unix_ms(0),
        }
    }

    #[test]
    fn an_address_is_shared_or_one_apps_alone() {
        let addresses: Vec<IpAddr> =
            ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
        let web = app("web");
        let chosen = |kind, all: &[IpDoc]| {
            let chosen = choose(kind, &addresses, all, &web);
            chosen.map_or_else(|error| error.error().error.clone(), |ip| ip.to_string())
        };
        let (first, second) = ("192.0.2.1", "192.0.2.2");
        let taken = "other apps have every IPv4 address";
        for (kind, all, want) in [
            (IpType::SharedV4, vec![], first),
            (IpType::SharedV4, vec![has("api", first, true)], first),
            (IpType::SharedV4, vec![has("api", first, false)], second),
            (IpType::SharedV4, vec![has("api", first, false), has("b", second, false)], taken),
            (IpType::SharedV4, vec![has("web", first, false)], first),
            (IpType::V4, vec![], first),
            (IpType::V4, vec![has("api", first, true)], second),
            (IpType::V4, vec![has("api", first, true), has("b", second, false)], taken),
            (IpType::V4, vec![has("web", first, true)], first),
            (IpType::V6, vec![has("api", "2001:db8::1", false)], "2001:db8::1"),
        ] {
            let got = chosen(kind, &all);
            assert!(got == want || want == taken && got.contains(taken), "{kind:?} {all:?}: {got}");
        }
        for kind in [IpType::V4, IpType::V6, IpType::SharedV4] {
            let error = choose(kind, &[], &[], &web).unwrap_err();
            assert_eq!(error.error().code, Code::InsufficientCapacity);
            assert!(error.error().hint.as_ref().unwrap().contains("public_ips"), "{kind:?}");
        }
    }
}
