//! A program at a real terminal.
//!
//! Never interprets what it prints: escape sequences are bytes like others.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::wait_for;

/// How long words may take to appear, and a program to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal and the program that runs at it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    // The program's side, kept open: its mode is looked at after the program has ended.
    line: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
    before: Termios,
}

impl Terminal {
    /// Starts a command at a terminal of its own, of that many rows and columns.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the command cannot be started.
    pub fn start(command: &Command, size: (u16, u16)) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("open a terminal")?;
        grantpt(&master).and_then(|()| unlockpt(&master)).context("unlock the terminal")?;
        let name = ptsname(&master, Vec::new()).context("name the terminal")?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(name, flags, Mode::empty()).context("open the terminal")?;
        let before = tcgetattr(&line).context("read the terminal's mode")?;
        tcsetwinsize(&master, winsize(size)).context("size the terminal")?;
        // `setsid` makes the terminal that of a new session, which no safe call here can.
        let mut child = Command::new("setsid");
        child.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => child.env(name, value),
                None => child.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            child.current_dir(folder);
        }
        let end = || line.try_clone().map(Stdio::from).context("copy the terminal");
        let child = child.stdin(end()?).stdout(end()?).stderr(end()?).spawn();
        let child = child.context("start the program")?;
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().context("copy the terminal")?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let screenful = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count) = screen.read(&mut piece) {
                let mut all = screenful.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend_from_slice(piece.get(..count).unwrap_or_default());
            }
        });
        Ok(Self { keyboard, line, shown, child, before })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("type")
    }

    /// Returns everything that was shown so far.
    #[must_use]
    pub fn shown(&self) -> String {
        let all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Waits until words are shown.
    ///
    /// # Errors
    /// When they are not in time; the error has all that was.
    pub fn sees(&self, words: &str) -> Result<()> {
        let seen = || self.shown().contains(words).then_some(());
        wait_for(words, PATIENCE, seen).with_context(|| format!("on the screen:\n{}", self.shown()))
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, size: (u16, u16)) -> Result<()> {
        tcsetwinsize(&self.keyboard, winsize(size)).context("size the terminal")
    }

    /// Returns whether keys go to the program as they are.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn is_raw(&self) -> Result<bool> {
        let modes = tcgetattr(&self.line).context("read the terminal's mode")?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// Returns whether the terminal is as it was before the program began.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn is_as_before(&self) -> Result<bool> {
        let now = tcgetattr(&self.line).context("read the terminal's mode")?;
        let modes = |it: &Termios| (it.input_modes, it.output_modes, it.local_modes);
        Ok(modes(&now) == modes(&self.before))
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.context("read a process id")?, signal)
            .context("signal the program")
    }

    /// Waits until the program ends; returns its exit code, and `None` when a signal ended it.
    ///
    /// # Errors
    /// When it does not end in time; the error has all that was shown.
    pub fn ends(&mut self) -> Result<Option<i32>> {
        let child = &mut self.child;
        let status = wait_for("the program to end", PATIENCE, || child.try_wait().ok().flatten());
        Ok(status.with_context(|| format!("on the screen:\n{}", self.shown()))?.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed half-way; one that has ended is no longer there to be killed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn winsize((rows, columns): (u16, u16)) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
