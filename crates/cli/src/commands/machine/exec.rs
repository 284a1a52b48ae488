//! `perch machine exec`.
//!
//! Never prints anything of its own between the program's bytes; its exit code is the command's.

use std::io;

use clap::Args;
use perch_client::{Api, FrameReader, FrameWriter};
use perch_types::api::ExecRequest;
use perch_types::exec::{ExecSpec, Frame, PAYLOAD_BYTES_MAX};
use perch_types::{AppName, MachineId};
use tokio::io::{AsyncReadExt as _, Stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::raw_mode::{self, terminal_size};
use crate::ui::Ui;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Machine's id
    id: MachineId,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Pass standard input on, also where it is no terminal
    #[arg(short, long)]
    interactive: bool,
    /// Give the program no terminal, even when there is one
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Seconds it may take; only without a terminal
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    args: ExecArgs,
) -> Result {
    let tty = Ui::is_interactive() && !args.no_tty && !invocation.ui.is_json();
    let what = format!("run `{}` in machine `{}`", args.command.join(" "), args.id);
    if tty || args.interactive {
        let size = terminal_size().filter(|_| tty);
        let spec = ExecSpec {
            command: args.command,
            tty,
            rows: size.map_or(0, |it| it.rows),
            cols: size.map_or(0, |it| it.cols),
        };
        let session = api.attach(app, &args.id, &spec).await.during(&what)?;
        let (reader, writer) = session.split();
        let mode = if tty { Some(raw_mode::raw().during(&what)?) } else { None };
        let result = Box::pin(relay(reader, writer, tty)).await;
        drop(mode);
        return ended(result.during(what)?);
    }
    let request =
        ExecRequest { command: args.command, timeout: args.timeout, ..ExecRequest::default() };
    let answer = api.exec(app, &args.id, &request).await.during(&what)?;
    if invocation.ui.is_json() {
        invocation.ui.json(&answer);
        return ended(answer.exit_code);
    }
    raw_output(io::stdout(), answer.stdout.as_bytes()).during(&what)?;
    raw_output(io::stderr(), answer.stderr.as_bytes()).during(&what)?;
    ended(answer.exit_code)
}

fn ended(code: i32) -> Result {
    if code == 0 { Ok(()) } else { Err(CommandError::Program(code)) }
}

/// Writes what a program said. To a terminal only printable text goes: whoever wants all bytes
/// asks for a terminal of its own, or sends the output elsewhere.
fn raw_output(mut to: impl io::Write + io::IsTerminal, bytes: &[u8]) -> io::Result<()> {
    if !to.is_terminal() {
        return to.write_all(bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        write!(to, "{}{end}", crate::escape::escape(line))?;
    }
    Ok(())
}

/// Carries bytes both ways until the program ends; returns its exit code.
async fn relay(
    mut reader: FrameReader,
    mut writer: FrameWriter,
    tty: bool,
) -> std::result::Result<i32, SessionError> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
    let mut resized = signal(SignalKind::window_change()).map_err(SessionError::Signal)?;
    let mut open = true;
    loop {
        tokio::select! {
            frame = reader.receive() => match frame.map_err(SessionError::Connection)? {
                Some(Frame::Stdout(bytes)) => show(&mut io::stdout(), &bytes)?,
                Some(Frame::Stderr(bytes)) => show(&mut io::stderr(), &bytes)?,
                Some(Frame::Exit(exit)) => return Ok(exit.exit_code),
                Some(Frame::Error(text)) => return Err(SessionError::Refused(text)),
                Some(Frame::Stdin(_) | Frame::StdinEnd | Frame::Resize(_)) => {}
                None => return Err(SessionError::Ended),
            },
            frame = next_input(&mut stdin, &mut buffer), if open => {
                let frame = frame.map_err(SessionError::Input)?;
                open = frame != Frame::StdinEnd;
                // When the program is gone its exit code is on its way: that is what counts.
                open &= writer.send(&frame).await.is_ok();
            }
            () = window_changed(&mut resized), if tty => {
                if let Some(size) = terminal_size() {
                    open &= writer.send(&Frame::Resize(size)).await.is_ok();
                }
            }
        }
    }
}

async fn next_input(stdin: &mut Stdin, buffer: &mut [u8]) -> io::Result<Frame> {
    let read = stdin.read(buffer).await?;
    Ok(match buffer.get(..read) {
        Some(bytes) if !bytes.is_empty() => Frame::Stdin(bytes.to_vec()),
        Some(_) | None => Frame::StdinEnd,
    })
}

async fn window_changed(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

fn show(to: &mut impl io::Write, bytes: &[u8]) -> std::result::Result<(), SessionError> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(SessionError::Output)
}

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
enum SessionError {
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
    #[error("watch the terminal's size")]
    Signal(#[source] io::Error),
}
