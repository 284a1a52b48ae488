//! A program at a real terminal.
//!
//! Never interprets what it prints: escape sequences are bytes like others.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::wait_for;

/// How long words may take to appear, and a program to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most pieces taken up after a program has ended: more than the kernel keeps of it, and an
/// end should something else go on writing.
const LAST_PIECES_MAX: usize = 1024;
/// Does not wait.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What was shown so far, and where more comes from.
#[derive(Debug)]
struct Screen {
    master: File,
    shown: Mutex<Vec<u8>>,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to show, for ever without a limit; `false` when there is nothing, or
    /// never will be.
    fn has_more(&self, limit: Option<&Timespec>) -> bool {
        let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
        let found = retry_on_intr(|| poll(&mut polled, limit));
        found.is_ok() && polled.iter().any(|one| one.revents().contains(PollFlags::IN))
    }

    /// Takes up a piece, if there is one. One lock covers the look, the read and the note: after a
    /// `false`, nothing is on its way from here to what is shown.
    fn take_up(&self) -> bool {
        let mut shown = self.lock();
        if !self.has_more(Some(&NOW)) {
            return false;
        }
        let mut piece = [0; 4096];
        match (&self.master).read(&mut piece) {
            Ok(count) if count > 0 => {
                shown.extend_from_slice(piece.get(..count).unwrap_or_default());
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

/// A terminal and the program that runs at it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    // The program's side, kept open: its mode is looked at after the program has ended.
    line: OwnedFd,
    screen: Arc<Screen>,
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
        let master = keyboard.try_clone().context("copy the terminal")?;
        let screen = Arc::new(Screen { master, shown: Mutex::default() });
        let watched = Arc::clone(&screen);
        std::thread::spawn(move || {
            while watched.has_more(None) {
                watched.take_up();
            }
        });
        Ok(Self { keyboard, line, screen, child, before })
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
        String::from_utf8_lossy(&self.screen.lock()).into_owned()
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
    /// Everything that it wrote is shown by then.
    ///
    /// # Errors
    /// When it does not end in time; the error has all that was shown.
    pub fn ends(&mut self) -> Result<Option<i32>> {
        let child = &mut self.child;
        let status = wait_for("the program to end", PATIENCE, || child.try_wait().ok().flatten());
        // The thread that reads may not have had its turn yet.
        for _ in 0..LAST_PIECES_MAX {
            if !self.screen.take_up() {
                break;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the end of a program is run against the thread that reads.
    const QUICK_ENDS: usize = 20;

    #[test]
    fn the_last_words_of_a_program_are_shown_when_it_has_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; exit 7"]);
        for _ in 0..QUICK_ENDS {
            let mut terminal = Terminal::start(&command, (24, 80)).unwrap();
            let screen = Arc::clone(&terminal.screen);
            // As on a busy machine: the thread that reads has no turn before the end.
            let held = screen.lock();
            let ended = || terminal.child.try_wait().ok().flatten();
            wait_for("the program to end", PATIENCE, ended).unwrap();
            drop(held);
            assert_eq!(terminal.ends().unwrap(), Some(7));
            assert_eq!(terminal.shown(), "said\r\n");
        }
    }
}
