//! The monitor: makes the sandbox of one boot of one machine, keeps its log and its exit status,
//! and lets agents talk to it.
//!
//! Never restarts anything, and never depends on the agent that started it.

mod clock;
mod container;
mod descriptors;
mod exec;
mod guest;
mod launch;
mod life;
mod lines;
mod mounts;
mod oci;
mod queue;
mod seccomp;
mod serve;
mod shared;
mod syscalls;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use perch_runtime::error::chain;
use perch_runtime::frame;
use perch_runtime::protocol::{Answer, Boot, FRAME_BYTES_MAX, Request};

fn main() -> ExitCode {
    match detach() {
        Ok(true) => {}
        Ok(false) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::FAILURE,
    }
    match take_boot() {
        Ok((socket, boot)) => run(&socket, *boot),
        Err(error) => {
            complain(&format!("read the boot: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Leaves the agent: its process tree, session and terminal. Returns `false` in the process that
/// shall end at once.
fn detach() -> io::Result<bool> {
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: nothing has made a thread yet.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        rustix::process::setsid()?;
    }
    Ok(pid == 0)
}

/// Takes the socket to the agent off standard input and reads what to boot.
fn take_boot() -> io::Result<(UnixStream, Box<Boot>)> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let mut socket = UnixStream::from(socket);
    match frame::read(&mut socket, FRAME_BYTES_MAX)? {
        Request::Boot(boot) => Ok((socket, boot)),
        other => Err(io::Error::other(format!("unexpected first request: {other:?}"))),
    }
}

fn run(mut socket: &UnixStream, boot: Boot) -> ExitCode {
    match launch::launch(boot) {
        Ok(running) => {
            let hello = Answer::Hello(Box::new(running.shared.info.clone()));
            // An agent that went away meanwhile does not know this boot: nobody wants it.
            let known = frame::write(&mut socket, &hello, FRAME_BYTES_MAX).is_ok();
            match life::live(running, known) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    complain(&chain(&error));
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            let reason = chain(&error);
            complain(&reason);
            // Nobody else is there to tell.
            frame::write(&mut socket, &Answer::Refused { reason }, FRAME_BYTES_MAX).ok();
            ExitCode::FAILURE
        }
    }
}

/// Writes to the monitor's own log, which is its standard error.
fn complain(text: &str) {
    rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes()).ok();
}
