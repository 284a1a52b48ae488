//! The API as a machine has it from inside, at `/.fly/api`: without a token, for itself alone.
//!
//! Never takes from a request who is asking: the host says it with the connection, and a token that
//! comes along counts for nothing. What a machine may not do to itself is whatever would give a
//! program in it more than it has: another image, another program with other rights, its end. Nor does it hold leases: it could keep
//! its owner from stopping it.

use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::header::AUTHORIZATION;
use perch_types::endpoint::{Action, Endpoint};
use perch_types::host::MachineIdentity;
use perch_types::{Code, MachineId};
use tokio::net::UnixStream;

use crate::auth::Principal;
use crate::config::Api;
use crate::reply::Failure;
use crate::serve::{Limiter, Patient, Peer, ServeLimits, connection};

/// Connections of one machine at once.
const CONNECTIONS_OF_MACHINE_MAX: usize = 16;
/// How long a connection may be idle, and how long the head of a request may take.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The paths that are about one machine.
const MACHINE: &str = "/v1/apps/{app}/machines/{machine}";

/// What a machine may ask about itself, as methods and what follows [`MACHINE`].
const ALLOWED: [(&str, &str); 21] = [
    ("GET", ""),
    ("GET", "/wait"),
    ("GET", "/events"),
    ("GET", "/versions"),
    ("GET", "/ps"),
    ("GET", "/memory"),
    ("POST", "/start"),
    ("POST", "/stop"),
    ("POST", "/suspend"),
    ("POST", "/restart"),
    ("POST", "/signal"),
    ("POST", "/cordon"),
    ("POST", "/uncordon"),
    ("GET", "/metadata"),
    ("PUT", "/metadata"),
    ("PATCH", "/metadata"),
    ("POST", "/metadata"),
    ("GET", "/metadata/{key}"),
    ("PUT", "/metadata/{key}"),
    ("POST", "/metadata/{key}"),
    ("DELETE", "/metadata/{key}"),
];

/// Serves machines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inside {
    router: Router,
    connections: Limiter<MachineId>,
}

impl Inside {
    /// Makes it of a running API.
    #[must_use]
    pub fn new(api: &Api) -> Self {
        Self { router: api.router(), connections: Limiter::new(CONNECTIONS_OF_MACHINE_MAX) }
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: UnixStream, who: MachineIdentity) {
        let Some(_place) = self.connections.take(&who.machine) else {
            tracing::debug!(machine = %who.machine, "machine has too many connections to its API");
            return;
        };
        let router = self.router.clone().layer(from_fn(without_token)).layer(Extension(who));
        let limits = ServeLimits { header_read_timeout: IDLE_TIMEOUT, ..ServeLimits::default() };
        let (_never, ended) = tokio::sync::watch::channel(false);
        let stream = Patient::new(stream, limits.stall_timeout);
        connection(stream, router, Peer(None), (limits, ended)).await;
    }
}

async fn without_token(mut request: Request, next: Next) -> Response {
    request.headers_mut().remove(AUTHORIZATION);
    next.run(request).await
}

/// Returns what a machine is to the handler of an endpoint.
///
/// `named` are the app and the machine that the request is about.
pub(crate) fn principal(
    who: &MachineIdentity,
    endpoint: Endpoint,
    named: (Option<&str>, Option<&str>),
) -> Result<Principal, Failure> {
    let (app, machine) = named;
    if app.is_some_and(|app| app != who.app.as_str()) {
        return Err(perch_types::ApiError::app_not_found(app.unwrap_or_default()).into());
    }
    if machine.is_some_and(|machine| machine != who.machine.as_str()) {
        return Err(perch_types::ApiError::machine_not_found(machine.unwrap_or_default()).into());
    }
    if !is_allowed(endpoint) {
        let text = "a machine may not ask for this from inside";
        return Err(Failure::new(Code::Forbidden, text).with_hint(format!(
            "what it may see and do is about itself, below /v1/apps/{}/machines/{}",
            who.app, who.machine
        )));
    }
    Ok(Principal {
        token_id: format!("machine-{}", who.machine),
        name: who.machine.to_string(),
        org: who.org.clone(),
        operator: false,
        expires_at: None,
        app_id: None,
    })
}

fn is_allowed(endpoint: Endpoint) -> bool {
    // Who it is for is the machine that asks.
    if endpoint == perch_types::endpoint::TOKEN_OIDC {
        return true;
    }
    let rest = endpoint.path.strip_prefix(MACHINE);
    let action = matches!(endpoint.action, Action::Read | Action::Write);
    action && rest.is_some_and(|rest| ALLOWED.contains(&(endpoint.method, rest)))
}

#[cfg(test)]
mod tests {
    use perch_types::endpoint::{self, ALL};

    use super::*;

    fn who() -> MachineIdentity {
        MachineIdentity {
            org: perch_types::OrgSlug::personal(),
            app: "web".parse().unwrap(),
            machine: MachineId::from_bits(7),
        }
    }

    fn code(endpoint: Endpoint, app: Option<&str>, machine: Option<&str>) -> Option<Code> {
        principal(&who(), endpoint, (app, machine)).err().map(|failure| failure.error().code)
    }

    #[test]
    fn only_what_is_about_itself_is_allowed_and_nothing_that_gives_it_more() {
        let own = MachineId::from_bits(7).to_string();
        for endpoint in ALL {
            let app = endpoint.path.contains("{app}").then_some("web");
            let machine = endpoint.path.contains("{machine}").then_some(own.as_str());
            let allowed = code(*endpoint, app, machine).is_none();
            assert!(
                !allowed || endpoint.path.starts_with(MACHINE) || *endpoint == endpoint::TOKEN_OIDC,
                "{} {}",
                endpoint.method,
                endpoint.path
            );
        }
        for allowed in [
            endpoint::MACHINE_GET,
            endpoint::MACHINE_WAIT,
            endpoint::MACHINE_EVENTS,
            endpoint::MACHINE_START,
            endpoint::MACHINE_STOP,
            endpoint::MACHINE_RESTART,
            endpoint::MACHINE_SIGNAL,
            endpoint::MACHINE_CORDON,
            endpoint::MACHINE_UNCORDON,
        ] {
            assert_eq!(code(allowed, Some("web"), Some(&own)), None, "{allowed:?}");
        }
        for refused in [
            endpoint::MACHINE_UPDATE,
            endpoint::MACHINE_DELETE,
            endpoint::MACHINE_EXEC,
            endpoint::MACHINE_ATTACH,
            endpoint::MACHINE_LOGS,
            endpoint::MACHINE_LEASE_GET,
            endpoint::MACHINE_LEASE_ACQUIRE,
            endpoint::MACHINE_LEASE_RELEASE,
        ] {
            assert_eq!(
                code(refused, Some("web"), Some(&own)),
                Some(Code::Forbidden),
                "{refused:?}"
            );
        }
        assert_eq!(code(endpoint::APPS_LIST, None, None), Some(Code::Forbidden));
        assert_eq!(code(endpoint::MACHINES_LIST, Some("web"), None), Some(Code::Forbidden));
    }

    #[test]
    fn others_look_as_if_they_were_not_there() {
        let (own, other) =
            (MachineId::from_bits(7).to_string(), MachineId::from_bits(8).to_string());
        let get = endpoint::MACHINE_GET;
        assert_eq!(code(get, Some("web"), Some(&other)), Some(Code::MachineNotFound));
        assert_eq!(code(get, Some("other"), Some(&own)), Some(Code::AppNotFound));
        assert_eq!(code(endpoint::APP_GET, Some("other"), None), Some(Code::AppNotFound));
    }
}
