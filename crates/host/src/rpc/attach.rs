//! A program inside a machine, its streams over an upgraded connection.
//!
//! Never buffers more than a few frames in either direction.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use perch_runtime::{ExecEvent, ExecInput, ExecStream, TerminalSize};
use perch_types::exec::{
    ExecExit, ExecSpec, Frame, HEADER_BYTES, PAYLOAD_BYTES_MAX, UPGRADE, decode, encode,
};
use perch_types::host::EXEC_HEADER;
use perch_types::{ApiError, Code};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::{Refusal, machine_id};
use crate::Host;

/// Bytes read from the connection at once.
const READ_BYTES: usize = 16 * 1024;

/// Answers 101 once the program was asked for, then carries frames.
pub(super) async fn attach(
    State(host): State<Host>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let id = machine_id(&id)?;
    let refuse = |text: &str| Refusal(ApiError::new(Code::InvalidRequest, text));
    let wanted = request.headers().get(http::header::UPGRADE).and_then(|value| value.to_str().ok());
    if !wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(UPGRADE)) {
        return Err(refuse("header Upgrade: it must name perch-exec/1"));
    }
    let spec = request
        .headers()
        .get(EXEC_HEADER)
        .ok_or_else(|| refuse("header perch-exec: it is missing"))?;
    let spec: ExecSpec = serde_json::from_slice(spec.as_bytes()).map_err(|error| {
        Refusal(ApiError::new(Code::InvalidRequest, format!("header perch-exec: {error}")))
    })?;
    let program = host.attach(&id, spec).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => carry(TokioIo::new(connection), program).await,
            Err(error) => tracing::debug!(%error, "connection was not upgraded"),
        }
    });
    Response::builder()
        .status(http::StatusCode::SWITCHING_PROTOCOLS)
        .header(http::header::UPGRADE, UPGRADE)
        .header(http::header::CONNECTION, "upgrade")
        .body(Body::empty())
        .map_err(|_| super::internal())
}

/// Carries frames both ways until the program ends or the caller hangs up.
async fn carry<C: AsyncRead + AsyncWrite + Send + 'static>(connection: C, program: ExecStream) {
    let (reader, mut writer) = tokio::io::split(connection);
    let ExecStream { input, mut events } = program;
    let reading = read_frames(reader, input);
    let writing = async {
        while let Some(event) = events.recv().await {
            for frame in frames(event) {
                if writer.write_all(&encode(&frame)).await.is_err() {
                    return;
                }
            }
        }
        // Nobody may be reading any more.
        drop(writer.shutdown().await);
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        () = &mut writing => {}
        () = &mut reading => {}
    }
}

async fn read_frames<R: AsyncRead + Unpin>(mut reader: R, input: mpsc::Sender<ExecInput>) {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        loop {
            match decode(&buffer) {
                Ok(Some((frame, used))) => {
                    buffer.drain(..used);
                    if let Some(message) = message(frame)
                        && input.send(message).await.is_err()
                    {
                        // The program ended; what it wrote is still being sent.
                        std::future::pending::<()>().await;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "session ends at a broken frame");
                    return;
                }
            }
        }
        debug_assert!(buffer.len() < HEADER_BYTES + PAYLOAD_BYTES_MAX, "frames are decoded");
        if !matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
            return;
        }
    }
}

fn message(frame: Frame) -> Option<ExecInput> {
    match frame {
        Frame::Stdin(bytes) => Some(ExecInput::Stdin(bytes)),
        Frame::StdinEnd => Some(ExecInput::Eof),
        Frame::Resize(size) => {
            Some(ExecInput::Resize(TerminalSize { rows: size.rows, cols: size.cols }))
        }
        Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Error(_) => None,
    }
}

fn frames(event: ExecEvent) -> Vec<Frame> {
    match event {
        ExecEvent::Stdout(bytes) => {
            bytes.chunks(PAYLOAD_BYTES_MAX).map(|chunk| Frame::Stdout(chunk.to_vec())).collect()
        }
        ExecEvent::Stderr(bytes) => {
            bytes.chunks(PAYLOAD_BYTES_MAX).map(|chunk| Frame::Stderr(chunk.to_vec())).collect()
        }
        ExecEvent::Ended(ended) => {
            vec![Frame::Exit(ExecExit { exit_code: ended.code, exit_signal: ended.signal })]
        }
        ExecEvent::Failed { code, reason } => vec![
            Frame::Stderr(format!("{reason}\n").into_bytes()),
            Frame::Exit(ExecExit { exit_code: code, exit_signal: None }),
        ],
    }
}
