//! Further programs inside a running sandbox.
//!
//! Never buffers without a limit: a slow caller slows the program down.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::instance::SandboxInstance;
use crate::protocol::{Answer, CHUNK_BYTES_MAX, ExecFrame, FRAME_BYTES_MAX, Request};
use crate::{
    EXEC_FRAMES_MAX, EXEC_OUTPUT_BYTES_MAX, EXEC_TIMEOUT_MS_MAX, Ended, Error, ExecEvent,
    ExecInput, ExecOutput, ExecRequest, ExecStream, GuestExec, frame,
};

/// How long a program that was killed at the end of its time may take to be reported.
const KILLED_WAIT_MS: u64 = 2_000;

pub(super) async fn stream(
    instance: &SandboxInstance,
    exec: GuestExec,
) -> Result<ExecStream, Error> {
    let mut socket = instance.greet().await?;
    frame::send(&mut socket, &Request::Exec(Box::new(exec)), FRAME_BYTES_MAX)
        .await
        .map_err(|source| instance.lost("write to", source))?;
    match frame::receive(&mut socket, FRAME_BYTES_MAX).await {
        Ok(Answer::Done) => {}
        Ok(Answer::Refused { reason }) => {
            return Err(Error::Refused { operation: "run a program", reason });
        }
        Ok(Answer::NotExecutable { code, reason }) => {
            return Err(Error::NotExecutable { code, reason });
        }
        Ok(other) => {
            return Err(Error::Shape(format!("unexpected answer to exec: {other:?}")));
        }
        Err(source) => return Err(instance.lost("read from", source)),
    }
    let (reader, writer) = socket.into_split();
    let (input, inputs) = mpsc::channel(EXEC_FRAMES_MAX);
    let (event, events) = mpsc::channel(EXEC_FRAMES_MAX);
    tokio::spawn(async move {
        // Whichever ends first ends the other: the caller hung up, or the program ended.
        tokio::select! {
            () = pump_in(inputs, writer) => {}
            () = pump_out(reader, event) => {}
        }
    });
    Ok(ExecStream { input, events })
}

async fn pump_in(mut inputs: mpsc::Receiver<ExecInput>, mut writer: OwnedWriteHalf) {
    while let Some(input) = inputs.recv().await {
        let frames = match input {
            ExecInput::Stdin(bytes) => bytes
                .chunks(CHUNK_BYTES_MAX)
                .map(|chunk| ExecFrame::Stdin(BASE64.encode(chunk)))
                .collect(),
            ExecInput::Eof => vec![ExecFrame::Eof],
            ExecInput::Resize(size) => vec![ExecFrame::Resize(size)],
            ExecInput::Signal(signal) => vec![ExecFrame::Signal(signal)],
        };
        for one in frames {
            let request = Request::ExecFrame(one);
            if frame::send(&mut writer, &request, FRAME_BYTES_MAX).await.is_err() {
                // The program ended; the other direction has its end still to read.
                return std::future::pending().await;
            }
        }
    }
}

async fn pump_out(mut reader: OwnedReadHalf, events: mpsc::Sender<ExecEvent>) {
    while let Ok(Answer::ExecFrame(received)) = frame::receive(&mut reader, FRAME_BYTES_MAX).await {
        let event = match received {
            ExecFrame::Stdout(text) => BASE64.decode(text).ok().map(ExecEvent::Stdout),
            ExecFrame::Stderr(text) => BASE64.decode(text).ok().map(ExecEvent::Stderr),
            ExecFrame::Ended(ended) => Some(ExecEvent::Ended(ended)),
            ExecFrame::Failed { code, reason } => Some(ExecEvent::Failed { code, reason }),
            _ => None,
        };
        let Some(event) = event else { return };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// The parts of an [`ExecOutput`] as they come.
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    bytes_max: usize,
    end: Option<Result<Ended, Error>>,
}

impl Collected {
    fn take(&mut self, event: ExecEvent) {
        match event {
            ExecEvent::Stdout(bytes) => {
                self.truncated |= append(&mut self.stdout, &bytes, self.bytes_max);
            }
            ExecEvent::Stderr(bytes) => {
                self.truncated |= append(&mut self.stderr, &bytes, self.bytes_max);
            }
            ExecEvent::Ended(ended) => self.end = Some(Ok(ended)),
            ExecEvent::Failed { code, reason } => {
                self.end = Some(Err(Error::NotExecutable { code, reason }));
            }
        }
    }

    async fn collect(&mut self, events: &mut mpsc::Receiver<ExecEvent>) {
        while self.end.is_none() {
            match events.recv().await {
                Some(event) => self.take(event),
                None => return,
            }
        }
    }
}

fn append(to: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) -> bool {
    let room = bytes_max.saturating_sub(to.len()).min(bytes.len());
    to.extend(bytes.iter().take(room));
    room < bytes.len()
}

/// Returns `value` within `max`, of which 0 means the most.
fn within<T: Ord + Default + Copy>(value: T, max: T) -> T {
    if value == T::default() { max } else { value.min(max) }
}

pub(super) async fn run(
    instance: &SandboxInstance,
    request: ExecRequest,
) -> Result<ExecOutput, Error> {
    let limit_ms = within(request.timeout_ms, EXEC_TIMEOUT_MS_MAX);
    let mut collected = Collected {
        stdout: Vec::new(),
        stderr: Vec::new(),
        truncated: false,
        bytes_max: within(request.output_bytes_max, EXEC_OUTPUT_BYTES_MAX),
        end: None,
    };
    let ExecStream { input, mut events } = stream(instance, request.exec).await?;
    let feeder = input.clone();
    let stdin = request.stdin;
    let feed = tokio::spawn(async move {
        // A program that has ended takes no input: not a fault.
        if stdin.is_empty() || feeder.send(ExecInput::Stdin(stdin)).await.is_ok() {
            drop(feeder.send(ExecInput::Eof).await);
        }
    });
    let limit = Duration::from_millis(limit_ms);
    let timed_out = tokio::time::timeout(limit, collected.collect(&mut events)).await.is_err();
    if timed_out && input.send(ExecInput::Signal(9)).await.is_ok() {
        let wait = Duration::from_millis(KILLED_WAIT_MS);
        // If even that does not come, the answer below says what is known.
        drop(tokio::time::timeout(wait, collected.collect(&mut events)).await);
    }
    feed.abort();
    let ended = match collected.end {
        Some(end) => end?,
        None if timed_out => Ended { code: 137, signal: Some(9) },
        None => return Err(instance.lost("read from", std::io::ErrorKind::UnexpectedEof.into())),
    };
    Ok(ExecOutput {
        ended,
        stdout: collected.stdout,
        stderr: collected.stderr,
        truncated: collected.truncated,
        timed_out,
    })
}
