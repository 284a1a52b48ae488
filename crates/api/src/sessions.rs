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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, split};

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
                join(&mut outside, &mut inside).await;
            }
            Err(error) => tracing::debug!(%error, "session not upgraded"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, exec::UPGRADE)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Carries bytes both ways until the inside has said all that it had to say. That it takes nothing
/// any more is no reason to keep its last words from the caller: they are how the program ended.
async fn join<O, I>(outside: &mut O, inside: &mut I)
where
    O: AsyncRead + AsyncWrite + Unpin,
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_outside, mut to_outside) = split(outside);
    let (mut from_inside, mut to_inside) = split(inside);
    let telling = async {
        // An error is how many sessions end: one side is gone.
        if let Err(error) = copy(&mut from_outside, &mut to_inside).await {
            tracing::debug!(%error, "session takes nothing any more");
        }
        to_inside.shutdown().await.unwrap_or_default();
        std::future::pending::<()>().await;
    };
    let hearing = async {
        if let Err(error) = copy(&mut from_inside, &mut to_outside).await {
            tracing::debug!(%error, "session ended");
        }
        to_outside.shutdown().await.unwrap_or_default();
    };
    tokio::select! {
        () = telling => {}
        () = hearing => {}
    }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    /// Bytes that a pipe between two tasks holds.
    const PIPE_BYTES: usize = 64;

    #[tokio::test]
    async fn the_last_words_arrive_though_nothing_is_taken_any_more() {
        // The inside has said all and is closed; what the caller types meanwhile has no reader.
        for _ in 0..50 {
            let (mut caller, mut outside) = duplex(PIPE_BYTES);
            let (mut inside, mut program) = duplex(PIPE_BYTES);
            program.write_all(b"exit 7").await.unwrap();
            drop(program);
            caller.write_all(b"typed").await.unwrap();
            join(&mut outside, &mut inside).await;
            drop(outside);
            let mut heard = Vec::new();
            caller.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"exit 7");
        }
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_is_told_to_the_inside() {
        let (caller, mut outside) = duplex(PIPE_BYTES);
        let (mut inside, mut program) = duplex(PIPE_BYTES);
        drop(caller);
        let seen = async {
            let mut rest = Vec::new();
            program.read_to_end(&mut rest).await.unwrap();
            drop(program);
        };
        tokio::join!(join(&mut outside, &mut inside), seen);
    }
}
