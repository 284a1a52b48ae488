//! `perch machine exec`.
//!
//! Never prints anything of its own between the program's bytes; its exit code is the command's.

mod hang_up;
mod session;

use std::io;
use std::time::Duration;

use clap::Args;
use perch_client::Api;
use perch_types::api::ExecRequest;
use perch_types::exec::{ExecExit, ExecSpec};
use perch_types::{AppName, MachineId, MachineState};
use tokio::time::sleep;

use self::session::{End, SessionError, carry};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::raw_mode::terminal_size;
use crate::ui::Ui;

/// What runs at a terminal when no program is named: the better shell of those that images have.
const SHELL: [&str; 3] = ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"];
/// The signal that nothing survives: programs get it when their machine ends.
const KILLED: i32 = 9;
/// How often, and with which pauses, a machine is looked at whose programs were killed.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How to leave a session that no longer answers.
const AFTER_HELP: &str = "At a terminal, Enter, `~` and `.` hang up; `~~` is a `~`.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExecArgs {
    /// Machine's id
    id: MachineId,
    /// Program and arguments [default: a shell, at a terminal]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Pass standard input on, also where it is no terminal
    #[arg(short, long)]
    interactive: bool,
    /// Give the program no terminal, even when there is one
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Container to run it in [default: the first that runs]
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Seconds it may take; only without a terminal
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    mut args: ExecArgs,
) -> Result {
    let tty = Ui::is_interactive() && !args.no_tty && !invocation.ui.is_json();
    if args.command.is_empty() {
        if !tty {
            return Err(CommandError::usage(
                "no program is named, and a shell needs a terminal",
                format!("`perch machine exec {} PROGRAM ARGUMENT…`", args.id),
            ));
        }
        args.command = SHELL.map(str::to_owned).to_vec();
    }
    if tty || args.interactive {
        return Box::pin(interactive(invocation, api, app, args, tty)).await;
    }
    let what = what(&args);
    let request = ExecRequest {
        command: args.command,
        timeout: args.timeout,
        container: args.container,
        ..ExecRequest::default()
    };
    let answer = api.exec(app, &args.id, &request).await.during(&what)?;
    if invocation.ui.is_json() {
        invocation.ui.json(&answer);
        return ended(answer.exit_code);
    }
    raw_output(io::stdout(), answer.stdout.as_bytes()).during(&what)?;
    raw_output(io::stderr(), answer.stderr.as_bytes()).during(&what)?;
    ended(answer.exit_code)
}

fn what(args: &ExecArgs) -> String {
    format!("run `{}` in machine `{}`", args.command.join(" "), args.id)
}

async fn interactive(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    args: ExecArgs,
    tty: bool,
) -> Result {
    let what = what(&args);
    let size = terminal_size().filter(|_| tty);
    let spec = ExecSpec {
        command: args.command,
        tty,
        rows: size.map_or(0, |it| it.rows),
        cols: size.map_or(0, |it| it.cols),
        container: args.container,
    };
    let session = api.attach(app, &args.id, &spec).await.during(&what)?;
    let end = Box::pin(carry(session, tty)).await;
    if tty && !matches!(end, Ok(End::Program(ExecExit { exit_signal: None, .. }))) {
        // The program was cut off, most likely within a line.
        invocation.ui.say("");
    }
    match end {
        Ok(End::Program(exit)) => {
            if exit.exit_signal == Some(KILLED)
                && let Some(state) = left_running(api, app, &args.id).await
            {
                invocation.ui.warn(format!("machine {} is {state}: its programs ended", args.id));
            }
            ended(exit.exit_code)
        }
        Ok(End::HungUp) => Err(CommandError::refused(
            format!("hung up: the program in machine `{}` was told to end", args.id),
            "type `~~` for a `~` at the start of a line",
        )),
        Ok(End::Signal(code)) => ended(code),
        Err(SessionError::Ended | SessionError::Connection(_)) => Err(CommandError::refused(
            format!("the connection to machine `{}` ended before the program did", args.id),
            format!(
                "the program was told to end; when the server is back, run the command again \
                 (`perch machine status {} --app {app}` shows the machine)",
                args.id
            ),
        )),
        Err(error) => Err(CommandError::operation(what, error)),
    }
}

/// Returns the state of a machine that does not run any more. Its end may be seen here before the
/// server has written it down.
async fn left_running(api: &Api, app: &AppName, id: &MachineId) -> Option<MachineState> {
    for _ in 0..LOOKS_MAX {
        match api.machine(app, id).await.ok()?.state {
            MachineState::Started => sleep(LOOK_PAUSE).await,
            state => return Some(state),
        }
    }
    None
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
