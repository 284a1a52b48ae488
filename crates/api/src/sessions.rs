//! Exec sessions: the caller's upgraded connection and the host's, joined.
//!
//! Never reads a frame: bytes go through as they come.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::exec::{self, ExecSpec};
use perch_types::{Code, host};
use tokio::io::copy_bidirectional;

use crate::body::parse;
use crate::config::Shared;
use crate::machines::of_host;
use crate::reply::Failure;
use crate::routes::Target;

pub(crate) async fn attach(
    State(shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    mut request: Request,
) -> Result<Response, Failure> {
    let spec = spec(request.headers())?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(no_upgrade)?;
    let permit = Arc::clone(&shared.sessions).try_acquire_owned().map_err(|_| {
        let max = shared.limits.sessions_max;
        Failure::new(Code::RateLimited, format!("more than {max} sessions at once"))
    })?;
    let session = target.host()?.client.attach(&target.id, &spec).await;
    let session = session.map_err(|error| of_host(error, &target.id))?;
    tokio::spawn(async move {
        let _permit = permit;
        let mut inside = session.into_io();
        match upgrade.await {
            Ok(upgraded) => {
                let mut outside = TokioIo::new(upgraded);
                // An error is how most sessions end: one side is gone.
                if let Err(error) = copy_bidirectional(&mut outside, &mut inside).await {
                    tracing::debug!(%error, "session ended");
                }
            }
            Err(error) => tracing::debug!(%error, "session not upgraded"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, exec::UPGRADE)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn spec(headers: &HeaderMap) -> Result<ExecSpec, Failure> {
    let protocol = headers.get(UPGRADE).ok_or_else(no_upgrade)?;
    if !protocol.as_bytes().eq_ignore_ascii_case(exec::UPGRADE.as_bytes()) {
        return Err(no_upgrade());
    }
    let missing = || {
        Failure::new(Code::InvalidRequest, format!("the header `{}` is missing", host::EXEC_HEADER))
    };
    let spec: ExecSpec = parse(headers.get(host::EXEC_HEADER).ok_or_else(missing)?.as_bytes())?;
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(Failure::new(Code::InvalidRequest, "command: is empty"));
    }
    if spec.command.iter().any(|word| word.contains('\0')) {
        return Err(Failure::new(Code::InvalidRequest, "command: has a zero byte"));
    }
    Ok(spec)
}

fn no_upgrade() -> Failure {
    Failure::new(
        Code::InvalidRequest,
        format!("the request must be upgraded to `{}`", exec::UPGRADE),
    )
}
