//! The monitor: makes the sandbox of one boot of one machine, keeps its log and its exit status,
//! and lets agents talk to it.
//!
//! Never restarts a machine (a container of one it does, as its policy says), and never depends on
//! the agent that started it.

mod api;
mod container;
mod descriptors;
mod exec;
mod guest;
mod launch;
mod life;
mod lines;
mod members;
mod mounts;
mod oci;
mod queue;
mod seccomp;
mod serve;
mod shared;
mod syscalls;
mod words;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use perch_runtime::cgroup::{Hierarchies, Paths};
use perch_runtime::protocol::{Answer, Boot, FRAME_BYTES_MAX, Request};
use perch_runtime::{Error, clock, frame, volume};
use perch_types::error::chain;
use rustix::process::Pid;

fn main() -> ExitCode {
    if let Some(image) = guarded() {
        return match volume::guard(&image) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&chain(&error));
                ExitCode::FAILURE
            }
        };
    }
    match detach() {
        Ok(None) => {}
        Ok(Some(monitor)) => {
            if let Err(error) = leave_agent(monitor) {
                complain(&chain(&error));
            }
            return ExitCode::SUCCESS;
        }
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

/// Returns the volume that this process shall only watch over.
fn guarded() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == volume::GUARD_ARGUMENT).then(|| arguments.next())?.map(PathBuf::from)
}

/// Leaves the agent's process tree, session and terminal. Returns the monitor's id in the process
/// that is not it and shall end soon.
fn detach() -> io::Result<Option<Pid>> {
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: nothing has made a thread yet.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        rustix::process::setsid()?;
    }
    Ok(Pid::from_raw(pid))
}

/// Moves the monitor out of the agent's cgroup, into the one that the second argument names the
/// slice of. The first move after a while waits for every processor, some ten milliseconds; made
/// from here, while the monitor mounts, it holds up neither that nor the moves that follow. A
/// monitor that could not leave works as well, until the agent's cgroup is killed.
fn leave_agent(monitor: Pid) -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(machine), Some(slice)) = (arguments.next(), arguments.next()) else {
        return Err(Error::Spec("machine and slice are missing in the command line".to_owned()));
    };
    let hierarchies = Hierarchies::detect()?;
    let paths = Paths::new(&slice, &machine);
    // But for the first time it is there, and the wait begins at once.
    if hierarchies.add(&paths.monitors, monitor).is_ok() {
        return Ok(());
    }
    hierarchies.create(&paths.monitors)?;
    hierarchies.add(&paths.monitors, monitor)
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
    match launch::launch(boot, socket) {
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
