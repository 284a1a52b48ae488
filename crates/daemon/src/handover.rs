//! One supervisor leaves its place to the program that is installed now, as the same process.
//!
//! Never closes a listening socket on the way: they lie in a packet socket that becomes the standard
//! input of the new program, and with them the connections that nobody has accepted yet.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::manager;
use crate::roles::front::DRAIN_MAX;
use crate::setup::{self, Purpose, SOCKETS_MAX};

/// Says to a program that sockets lie in its standard input.
const INHERITS: &str = "PERCHD_INHERITS";
/// The most packets of sockets.
const PACKETS_MAX: usize = 64;
/// How often a process that drains is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often one that is to end, and how long it may take.
const END_LOOK_EVERY: Duration = Duration::from_millis(20);
const END_MAX: Duration = Duration::from_secs(5);
/// How long the program after this one may take to say whether it accepts the settings, and how much
/// of what it says is read.
const CHECK_MAX: Duration = Duration::from_secs(10);
const CHECK_BYTES_MAX: u64 = 16 * 1024;

/// What the supervisor before this one left.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    pub(crate) sockets: Vec<(Purpose, OwnedFd)>,
    /// Processes that end what they have under way; this one's children.
    pub(crate) draining: Vec<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Packet {
    sockets: Vec<Purpose>,
    draining: Vec<i32>,
    is_last: bool,
}

/// Takes what was left, if this program took another's place, or what the service manager kept.
pub(crate) fn inherited() -> Result<Inheritance> {
    match std::env::var_os(INHERITS) {
        Some(_) => receive(std::io::stdin()).context("take the sockets of the program before"),
        None => Ok(Inheritance { sockets: manager::kept(), draining: Vec::new() }),
    }
}

fn receive(channel: impl AsFd) -> Result<Inheritance> {
    let mut inheritance = Inheritance::default();
    for _ in 0..PACKETS_MAX {
        let (bytes, fds) = setup::receive_packet(channel.as_fd())?;
        let packet: Packet = serde_json::from_slice(&bytes).context("read a packet")?;
        ensure!(fds.len() == packet.sockets.len(), "sockets were lost on the way");
        inheritance.sockets.extend(packet.sockets.into_iter().zip(fds));
        inheritance.draining.extend(packet.draining);
        if packet.is_last {
            return Ok(inheritance);
        }
    }
    anyhow::bail!("there are more than {PACKETS_MAX} packets of sockets")
}

fn send(channel: &OwnedFd, sockets: &[(Purpose, BorrowedFd<'_>)], draining: &[i32]) -> Result<()> {
    let packets = sockets.len().div_ceil(SOCKETS_MAX).max(1);
    ensure!(packets <= PACKETS_MAX, "{} sockets are too many", sockets.len());
    for number in 0..packets {
        let some = sockets.iter().skip(number * SOCKETS_MAX).take(SOCKETS_MAX);
        let (purposes, fds): (Vec<_>, Vec<_>) = some.copied().unzip();
        let is_last = number + 1 == packets;
        let draining = if is_last { draining.to_vec() } else { Vec::new() };
        let packet = Packet { sockets: purposes, draining, is_last };
        let bytes = serde_json::to_vec(&packet).context("write a packet")?;
        setup::send_packet(channel, &bytes, &fds)?;
    }
    Ok(())
}

/// The program that takes this one's place when it is asked to.
#[derive(Debug)]
pub(crate) struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Successor {
    /// Whatever lies where this program was found when it began.
    pub(crate) fn new() -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        Ok(Self { program, arguments: std::env::args_os().skip(1).collect() })
    }

    /// Checks that it runs and accepts the settings: nothing has ended yet.
    pub(crate) async fn check(&self) -> Result<()> {
        self.check_within(CHECK_MAX).await
    }

    async fn check_within(&self, limit: Duration) -> Result<()> {
        let (status, told) = tokio::time::timeout(limit, self.ask())
            .await
            .with_context(|| format!("wait {limit:?} for `{}`", self.program.display()))??;
        ensure!(
            status.success(),
            "it refuses the settings: {}",
            String::from_utf8_lossy(&told).trim()
        );
        Ok(())
    }

    /// Asks the program whether it accepts the settings; it ends with the question. Returns how it
    /// ended, and the beginning of what it had to say.
    async fn ask(&self) -> Result<(ExitStatus, Vec<u8>)> {
        let what = || format!("run `{}`", self.program.display());
        // `perchd serve FLAGS` becomes `perchd config FLAGS`.
        let flags = self.arguments.iter().skip(1);
        let mut child = tokio::process::Command::new(&self.program)
            .arg("config")
            .args(flags)
            .env_remove(INHERITS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(what)?;
        let mut told = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            stderr.take(CHECK_BYTES_MAX).read_to_end(&mut told).await.with_context(what)?;
        }
        Ok((child.wait().await.with_context(what)?, told))
    }

    /// Becomes that program; returns only when it cannot.
    pub(crate) fn begin(
        &self,
        sockets: &[(Purpose, BorrowedFd<'_>)],
        draining: &[i32],
    ) -> Result<Infallible> {
        let (ours, theirs) = setup::pair()?;
        send(&ours, sockets, draining).context("leave the sockets")?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(INHERITS, "1").stdin(Stdio::from(theirs));
        for taken in manager::LISTEN {
            command.env_remove(taken);
        }
        let error = command.exec();
        Err(error).with_context(|| format!("run `{}`", self.program.display()))
    }
}

/// Waits for a process that the program before this one has started, and ends it when it is late.
pub(crate) async fn reap(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    let late = Instant::now() + DRAIN_MAX + LOOK_EVERY;
    // Its number is its own until it is waited for here.
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
        if Instant::now() > late {
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends processes that drain, because the server does.
pub(crate) async fn end(draining: &[i32]) {
    for pid in draining.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let late = Instant::now() + END_MAX;
        // One that was waited for is nobody's number any more, and not signalled.
        while matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
            let signal = if Instant::now() < late { Signal::TERM } else { Signal::KILL };
            rustix::process::kill_process(pid, signal).ok();
            tokio::time::sleep(END_LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_waits_is_accepted_by_the_program_after() {
        let (ours, theirs) = setup::pair().unwrap();
        let count = SOCKETS_MAX + 3;
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|one| one.local_addr().unwrap()).collect();
        let mut waiting = TcpStream::connect(addresses[count - 1]).unwrap();
        waiting.write_all(b"hello").unwrap();
        let sockets: Vec<_> = listeners.iter().map(|one| (Purpose::Http, one.as_fd())).collect();
        send(&ours, &sockets, &[7, 8]).unwrap();
        // As by the exec: what sent them is gone before they are received.
        drop((ours, listeners));
        let inheritance = receive(&theirs).unwrap();
        assert_eq!(inheritance.draining, [7, 8]);
        assert_eq!(inheritance.sockets.len(), count);
        let (_, last) = inheritance.sockets.into_iter().next_back().unwrap();
        let last = TcpListener::from(last);
        assert_eq!(last.local_addr().unwrap(), addresses[count - 1]);
        let mut bytes = [0; 5];
        last.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[tokio::test]
    async fn a_program_is_not_waited_for_without_end_and_not_heard_without_end() {
        // It is told `config` and what comes after the first.
        let successor = |program: &str, arguments: Vec<String>| Successor {
            program: program.into(),
            arguments: arguments.into_iter().map(OsString::from).collect(),
        };
        let limit = Duration::from_millis(200);
        let error = successor("yes", Vec::new()).check_within(limit).await.unwrap_err();
        assert!(error.to_string().starts_with("wait 200ms"), "{error:#}");
        let names = (0..400).map(|number| format!("/nowhere/{number:0>200}")).collect();
        let error = successor("cat", names).check().await.unwrap_err().to_string();
        assert!(error.starts_with("it refuses the settings: "), "{error}");
        assert!(error.contains("config") && error.contains("/nowhere/0"), "{error}");
        assert!(error.len() < 20 * 1024, "{}", error.len());
        successor("true", Vec::new()).check().await.unwrap();
    }

    #[test]
    fn nothing_to_take_is_an_error_and_no_start_without_sockets() {
        let (ours, theirs) = setup::pair().unwrap();
        drop(ours);
        receive(&theirs).unwrap_err();
    }
}
