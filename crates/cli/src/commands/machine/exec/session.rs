//! This end of an exec session: standard streams, the terminal's size, and the ways to end.
//!
//! Never lets one direction wait for the other: a program that reads nothing before its output was
//! taken would wait for ever.

use std::io;

use perch_client::{FrameReader, FrameWriter, Session};
use perch_types::exec::{ExecExit, Frame, PAYLOAD_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, Stdin};
use tokio::signal::unix::{SignalKind, signal};

use super::hang_up::HangUp;
use crate::raw_mode::{self, terminal_size};
use crate::stop_signals::{StopSignals, came};

/// How a session came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// The program ended.
    Program(ExecExit),
    /// Whoever sits at the terminal hung up.
    HungUp,
    /// A signal to this process ended it; the exit code that goes with it.
    Signal(i32),
}

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("talk to the machine")]
    Connection(#[source] perch_client::Error),
    #[error("session was refused: {0}")]
    Refused(String),
    #[error("connection ended before the program did")]
    Ended,
    #[error("read standard input")]
    Input(#[source] io::Error),
    #[error("write what the program said")]
    Output(#[source] io::Error),
    #[error("change the terminal's mode")]
    Mode(#[source] io::Error),
    #[error("take signals")]
    Signal(#[source] io::Error),
}

/// Carries bytes both ways until the program ends; with a terminal, that one is raw meanwhile and
/// as it was afterwards.
pub(super) async fn carry(session: Session, tty: bool) -> Result<End, SessionError> {
    let (reader, writer) = session.split();
    if !tty {
        return tokio::select! {
            end = hear(reader) => end,
            end = speak(writer, None) => end,
        };
    }
    // Before the mode is changed: a signal in between must not leave it changed.
    let mut stopped = StopSignals::take().map_err(SessionError::Signal)?;
    let mode = raw_mode::raw().map_err(SessionError::Mode)?;
    let end = tokio::select! {
        end = hear(reader) => end,
        end = speak(writer, Some(HangUp::new())) => end,
        code = stopped.next() => Ok(End::Signal(code)),
    };
    drop(mode);
    end
}

/// Shows what the program says until it ends.
async fn hear(mut reader: FrameReader) -> Result<End, SessionError> {
    loop {
        match reader.receive().await.map_err(SessionError::Connection)? {
            Some(Frame::Stdout(bytes)) => show(&mut io::stdout(), &bytes)?,
            Some(Frame::Stderr(bytes)) => show(&mut io::stderr(), &bytes)?,
            Some(Frame::Exit(exit)) => return Ok(End::Program(exit)),
            Some(Frame::Error(text)) => return Err(SessionError::Refused(text)),
            Some(Frame::Stdin(_) | Frame::StdinEnd | Frame::Resize(_)) => {}
            None => return Err(SessionError::Ended),
        }
    }
}

/// Passes on what is typed, and with a terminal its size; ends only when somebody hangs up.
async fn speak(mut writer: FrameWriter, mut terminal: Option<HangUp>) -> Result<End, SessionError> {
    let mut resized = signal(SignalKind::window_change()).map_err(SessionError::Signal)?;
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
    let mut open = true;
    if terminal.is_some() {
        // It may have another size by now than when the program was asked for.
        tell_size(&mut writer).await;
    }
    loop {
        tokio::select! {
            frame = next_input(&mut stdin, &mut buffer), if open => {
                let frame = match (frame.map_err(SessionError::Input)?, &mut terminal) {
                    (Frame::Stdin(typed), Some(hang_up)) => match hang_up.pass(&typed) {
                        Some(passed) if passed.is_empty() => continue,
                        Some(passed) => Frame::Stdin(passed),
                        None => return Ok(End::HungUp),
                    },
                    (frame, _) => frame,
                };
                open = frame != Frame::StdinEnd;
                // When the program is gone its exit code is on its way: that is what counts.
                open &= writer.send(&frame).await.is_ok();
            }
            () = came(&mut resized), if terminal.is_some() => tell_size(&mut writer).await,
            // Nothing more to pass on: the program's end ends the session.
            else => std::future::pending().await,
        }
    }
}

async fn tell_size(writer: &mut FrameWriter) {
    if let Some(size) = terminal_size() {
        // A session that is over needs no size.
        drop(writer.send(&Frame::Resize(size)).await);
    }
}

async fn next_input(stdin: &mut Stdin, buffer: &mut [u8]) -> io::Result<Frame> {
    let read = stdin.read(buffer).await?;
    Ok(match buffer.get(..read) {
        Some(bytes) if !bytes.is_empty() => Frame::Stdin(bytes.to_vec()),
        Some(_) | None => Frame::StdinEnd,
    })
}

fn show(to: &mut impl io::Write, bytes: &[u8]) -> Result<(), SessionError> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(SessionError::Output)
}
