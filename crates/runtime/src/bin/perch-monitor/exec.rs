//! Further programs of a machine, their streams tied to an agent's connection.
//!
//! Never buffers more than a little: a slow agent slows the program down, nothing else.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_runtime::frame;
use perch_runtime::protocol::{Answer, CHUNK_BYTES_MAX, ExecFrame, FRAME_BYTES_MAX, Request};
use perch_types::guest::{
    EXECS_MAX, Ended, FrameBuffer, FromGuest, GuestExec, TerminalSize, ToGuest,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::descriptors::{Read, pipe_in, pipe_out, read};
use crate::shared::{Mailbox, Phase, Shared};

/// How long init may take to execute a program.
const START_TIMEOUT_S: i64 = 15;
/// The most input that waits for the program before no more is taken from the agent.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// The most pieces of output that are passed on after the program has ended.
const LAST_PIECES_MAX: usize = 256;

/// The machine's streams of a program.
struct Streams {
    input: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    tty: bool,
}

struct Exec<'a> {
    id: u32,
    container: usize,
    shared: &'a Shared,
    client: &'a UnixStream,
    mailbox: Arc<Mailbox>,
    streams: Streams,
    waiting: Vec<u8>,
    input_ends: bool,
    frames: FrameBuffer,
}

/// Runs a program until it ends or the agent goes away.
pub(crate) fn run(shared: &Shared, client: &UnixStream, exec: GuestExec) -> io::Result<()> {
    let tty = exec.tty.is_some();
    let mut writer = client;
    let mailbox = Arc::new(Mailbox::new(tty)?);
    let found = shared.container(exec.container.as_deref());
    let registered = found.and_then(|found| Ok((found, register(shared, &mailbox)?)));
    let (container, id) = match registered {
        Ok(registered) => registered,
        Err(reason) => {
            let answer = Answer::Refused { reason };
            return frame::write(&mut writer, &answer, FRAME_BYTES_MAX);
        }
    };
    let result = begin(shared, (container, id), exec, &mailbox).and_then(|begun| match begun {
        Ok(streams) => {
            let mut exec = Exec {
                id,
                container,
                shared,
                client,
                mailbox,
                streams,
                waiting: Vec::new(),
                input_ends: false,
                frames: FrameBuffer::default(),
            };
            let pumped = frame::write(&mut writer, &Answer::Done, FRAME_BYTES_MAX)
                .and_then(|()| exec.pump());
            if !pumped.as_ref().is_ok_and(|ended| *ended) {
                // It may have ended by itself meanwhile.
                exec.signal(libc::SIGHUP).ok();
            }
            pumped.map(drop)
        }
        Err(answer) => frame::write(&mut writer, &answer, FRAME_BYTES_MAX),
    });
    shared.change(|state| state.execs.remove(&id));
    result
}

fn register(shared: &Shared, mailbox: &Arc<Mailbox>) -> Result<u32, String> {
    shared.change(|state| {
        if state.phase != Phase::Running {
            return Err("the program does not run".to_owned());
        }
        if state.execs.len() >= EXECS_MAX {
            return Err(format!("{EXECS_MAX} further programs run already"));
        }
        state.exec_last = state.exec_last.wrapping_add(1);
        state.execs.insert(state.exec_last, Arc::clone(mailbox));
        Ok(state.exec_last)
    })
}

/// Asks init to execute the program.
fn begin(
    shared: &Shared,
    (container, id): (usize, u32),
    exec: GuestExec,
    mailbox: &Mailbox,
) -> io::Result<Result<Streams, Answer>> {
    let owner = shared.spec.ids.first;
    let message = |exec| ToGuest::Exec { id, exec: Box::new(exec) };
    let mut streams = Streams { input: None, stdout: None, stderr: None, tty: mailbox.tty };
    if mailbox.tty {
        shared.speaker(container).send(&message(exec), &[])?;
    } else {
        let (stdin, input) = pipe_in(owner)?;
        let (out, stdout) = pipe_out(owner)?;
        let (err, stderr) = pipe_out(owner)?;
        let theirs = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        shared.speaker(container).send(&message(exec), &theirs)?;
        (streams.input, streams.stdout, streams.stderr) = (Some(input), Some(out), Some(err));
    }
    let mut polled = [
        PollFd::new(&mailbox.wake.descriptor, PollFlags::IN),
        PollFd::new(&shared.init, PollFlags::IN),
    ];
    let limit = Timespec { tv_sec: START_TIMEOUT_S, tv_nsec: 0 };
    poll(&mut polled, Some(&limit))?;
    Ok(match mailbox.take() {
        Some((FromGuest::ExecStarted { .. }, master)) => {
            if let Some(master) = master {
                streams.input = Some(master.try_clone()?);
                streams.stdout = Some(master);
            }
            Ok(streams)
        }
        Some((FromGuest::ExecFailed { code, reason, .. }, _)) => {
            Err(Answer::NotExecutable { code, reason })
        }
        _ => Err(Answer::Refused { reason: "init did not answer".to_owned() }),
    })
}

/// What one wait found.
struct Ready {
    client: bool,
    mailbox: bool,
    init: bool,
}

impl Exec<'_> {
    /// Passes everything on until the program ends, or until the agent goes away: `false`.
    fn pump(&mut self) -> io::Result<bool> {
        loop {
            let ready = self.wait()?;
            self.pass_on(1)?;
            self.feed();
            if ready.client && !self.listen()? {
                return Ok(false);
            }
            if ready.mailbox
                && let Some((FromGuest::ExecEnded { ended, .. }, _)) = self.mailbox.take()
            {
                return self.end(ended).map(|()| true);
            }
            if ready.init {
                let killed = Ended { code: 137, signal: Some(libc::SIGKILL) };
                return self.end(killed).map(|()| true);
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let full = self.waiting.len() >= INPUT_BYTES_MAX;
        let client_flags = if full { PollFlags::empty() } else { PollFlags::IN };
        let mut polled = vec![
            PollFd::new(self.client, client_flags),
            PollFd::new(&self.mailbox.wake.descriptor, PollFlags::IN),
            PollFd::new(&self.shared.init, PollFlags::IN),
        ];
        for one in [&self.streams.stdout, &self.streams.stderr].into_iter().flatten() {
            polled.push(PollFd::new(one, PollFlags::IN));
        }
        if let Some(input) = &self.streams.input
            && !self.waiting.is_empty()
        {
            polled.push(PollFd::new(input, PollFlags::OUT));
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|one| !one.revents().is_empty());
        let mut next = || ready.next().unwrap_or_default();
        Ok(Ready { client: next(), mailbox: next(), init: next() })
    }

    fn send(&self, frame_out: ExecFrame) -> io::Result<()> {
        let mut writer = self.client;
        frame::write(&mut writer, &Answer::ExecFrame(frame_out), FRAME_BYTES_MAX)
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        self.shared.speaker(self.container).send(&ToGuest::SignalExec { id: self.id, signal }, &[])
    }

    /// Passes output on, at most so many pieces of each stream.
    fn pass_on(&mut self, pieces_max: usize) -> io::Result<()> {
        for _ in 0..pieces_max {
            let stdout = self.piece(false)?;
            let stderr = self.piece(true)?;
            if !stdout && !stderr {
                break;
            }
        }
        Ok(())
    }

    /// Passes one piece of one stream on; returns whether there may be more.
    fn piece(&mut self, is_stderr: bool) -> io::Result<bool> {
        let stream = if is_stderr { &mut self.streams.stderr } else { &mut self.streams.stdout };
        let Some(from) = stream.as_ref() else {
            return Ok(false);
        };
        let mut piece = [0; CHUNK_BYTES_MAX];
        match read(from, &mut piece) {
            Read::Bytes(count) => {
                let text = BASE64.encode(piece.get(..count).unwrap_or_default());
                let kind = if is_stderr { ExecFrame::Stderr } else { ExecFrame::Stdout };
                self.send(kind(text))?;
                Ok(true)
            }
            Read::Later => Ok(false),
            Read::End => {
                *stream = None;
                Ok(false)
            }
        }
    }

    /// Gives the program as much input as it takes.
    fn feed(&mut self) {
        if let Some(input) = &self.streams.input
            && !self.waiting.is_empty()
        {
            match rustix::io::write(input, &self.waiting) {
                Ok(count) => {
                    self.waiting.drain(..count);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // It closed its input: the rest is for nobody.
                Err(_) => {
                    self.waiting.clear();
                    self.streams.input = None;
                }
            }
        }
        // A terminal has no end of input of its own; its reader is told by the character for it.
        if self.input_ends && self.waiting.is_empty() && !self.streams.tty {
            self.streams.input = None;
        }
    }

    /// Takes up what the agent sent; `false` when it went away.
    fn listen(&mut self) -> io::Result<bool> {
        let mut piece = [0; CHUNK_BYTES_MAX];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let count = match rustix::net::recv(self.client, &mut piece, flags) {
            Ok((0, _)) => return Ok(false),
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
            Err(_) => return Ok(false),
        };
        self.frames.push(piece.get(..count).unwrap_or_default());
        while let Some(request) =
            self.frames.next::<Request>(FRAME_BYTES_MAX).map_err(io::Error::other)?
        {
            let Request::ExecFrame(received) = request else {
                return Ok(false);
            };
            match received {
                ExecFrame::Stdin(text) => match BASE64.decode(text) {
                    Ok(bytes) if !self.input_ends => self.waiting.extend(bytes),
                    Ok(_) => {}
                    Err(_) => return Ok(false),
                },
                ExecFrame::Eof => {
                    self.input_ends = true;
                    if self.streams.tty {
                        self.waiting.push(4);
                    }
                }
                ExecFrame::Resize(size) => self.resize(size),
                ExecFrame::Signal(signal) => self.signal(signal)?,
                _ => return Ok(false),
            }
        }
        self.feed();
        Ok(true)
    }

    fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.streams.stdout
            && self.streams.tty
        {
            let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is gone has no size.
            tcsetwinsize(terminal, size).ok();
        }
    }

    fn end(&mut self, ended: Ended) -> io::Result<()> {
        self.pass_on(LAST_PIECES_MAX)?;
        self.send(ExecFrame::Ended(ended))
    }
}
