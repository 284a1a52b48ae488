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
use perch_sockets::{Patience, Patient};
use perch_types::endpoint::{self, Endpoint};
use perch_types::host::MachineIdentity;
use perch_types::{Code, MachineId};
use tokio::net::UnixStream;

use crate::auth::Principal;
use crate::config::Api;
use crate::reply::Failure;
use crate::serve::{Limiter, Peer, ServeLimits, connection};

/// Connections of one machine at once.
const CONNECTIONS_OF_MACHINE_MAX: usize = 16;
/// How long a connection may be idle, and how long the head of a request may take.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a machine may ask, all of it about itself.
const ALLOWED: [Endpoint; 20] = [
    endpoint::MACHINE_GET,
    endpoint::MACHINE_WAIT,
    endpoint::MACHINE_EVENTS,
    endpoint::MACHINE_VERSIONS,
    endpoint::MACHINE_PS,
    endpoint::MACHINE_MEMORY,
    endpoint::MACHINE_START,
    endpoint::MACHINE_STOP,
    endpoint::MACHINE_SUSPEND,
    endpoint::MACHINE_RESTART,
    endpoint::MACHINE_SIGNAL,
    endpoint::MACHINE_CORDON,
    endpoint::MACHINE_UNCORDON,
    endpoint::MACHINE_METADATA_GET,
    endpoint::MACHINE_METADATA_PUT,
    endpoint::MACHINE_METADATA_PATCH,
    endpoint::MACHINE_METADATA_KEY_GET,
    endpoint::MACHINE_METADATA_KEY_SET,
    endpoint::MACHINE_METADATA_KEY_DELETE,
    // Who it is for is the machine that asks.
    endpoint::TOKEN_OIDC,
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
        let patience = Patience::reading_nothing(limits.stall_timeout);
        let stream = Patient::new(stream, patience.clone());
        connection(stream, patience, router, Peer(None), (limits, ended)).await;
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
    if !ALLOWED.contains(&endpoint) {
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

#[cfg(test)]
mod tests {
    use perch_types::endpoint::ALL;

    use super::*;

    /// What there is about one machine and would give a program in it more than it has.
    const REFUSED: [Endpoint; 10] = [
        endpoint::MACHINE_UPDATE,
        endpoint::MACHINE_DELETE,
        endpoint::MACHINE_EXEC,
        endpoint::MACHINE_ATTACH,
        endpoint::MACHINE_LOGS,
        endpoint::MACHINE_MEMORY_SET,
        endpoint::MACHINE_MEMORY_RECLAIM,
        endpoint::MACHINE_LEASE_GET,
        endpoint::MACHINE_LEASE_ACQUIRE,
        endpoint::MACHINE_LEASE_RELEASE,
    ];

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
            // One that is new is in one of the lists, or about something else.
            let allowed = match machine {
                Some(_) => !REFUSED.contains(endpoint),
                None => *endpoint == endpoint::TOKEN_OIDC,
            };
            let refused = code(*endpoint, app, machine);
            let expected = (!allowed).then_some(Code::Forbidden);
            assert_eq!(refused, expected, "{} {}", endpoint.method, endpoint.path);
            assert_eq!(ALLOWED.contains(endpoint), allowed, "{}", endpoint.path);
        }
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
