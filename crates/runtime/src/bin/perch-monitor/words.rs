//! What the platform says in a machine's log.
//!
//! Never more than one line a fact. What programs look for is as the contract has it (section 5.4:
//! `Main child exited normally with code: 0`, `Starting clean up.`); the rest is in our words.

use perch_runtime::{Ended, ExitReason, ExitStatus};

/// The program is about to be executed.
pub(crate) const STARTING: &str = "Starting machine";
/// The program did not end in time.
pub(crate) const KILLING: &str = "Main child did not end within its grace, killing it";
/// What the boot left is removed.
pub(crate) const CLEANING: &str = "Starting clean up.";
/// The most bytes of a line that somebody else asked for.
const NOTE_BYTES_MAX: usize = 2048;

/// The main program is sent a signal so that it ends.
pub(crate) fn stopping(signal: i32) -> String {
    format!("Sending signal {} to main child", signal_name(signal))
}

/// The program could not be executed.
pub(crate) fn not_started(reason: &str) -> String {
    format!("Main child was not started: {}", shown(reason))
}

/// The first of several main processes ended.
pub(crate) fn process_ended(process: u32, ended: Ended) -> String {
    let how = match ended.signal {
        Some(signal) => format!("was ended by signal {}", signal_name(signal)),
        None => format!("exited with code: {}", ended.code),
    };
    format!("Process {process} {how}, the others are asked to end")
}

/// A container's program is about to be executed.
pub(crate) fn container_starting(name: &str) -> String {
    format!("Starting container {name}")
}

/// A container's program could not be executed.
pub(crate) fn container_not_started(name: &str, reason: &str) -> String {
    format!("Container {name} was not started: {}", shown(reason))
}

/// A container's program ended.
pub(crate) fn container_ended(name: &str, ended: Ended) -> String {
    match ended.signal {
        Some(signal) => format!("Container {name} was ended by signal {}", signal_name(signal)),
        None => format!("Container {name} exited with code: {}", ended.code),
    }
}

/// A container's program is sent a signal.
pub(crate) fn container_signal(name: &str, signal: i32) -> String {
    format!("Sending signal {} to container {name}", signal_name(signal))
}

/// Returns what is said of an end: what ran out, if anything did, and how the program ended.
pub(crate) fn ended(status: &ExitStatus, memory_max_bytes: u64, pids_max: u32) -> Vec<String> {
    let mut lines = Vec::new();
    if status.oom_killed {
        lines.push(format!(
            "Out of memory: the machine reached its {} MiB and a process in it was killed",
            memory_max_bytes >> 20
        ));
    }
    if status.forks_refused {
        lines.push(format!(
            "Too many processes: the machine reached its {pids_max} and could make no other"
        ));
    }
    lines.push(match (status.reason, status.signal) {
        (ExitReason::Exited, None) => {
            format!("Main child exited normally with code: {}", status.code)
        }
        (ExitReason::Exited, Some(signal)) => {
            format!("Main child was ended by signal {}", signal_name(signal))
        }
        (ExitReason::NotExecutable, _) => {
            format!("Main child could not be executed, code: {}", status.code)
        }
        (ExitReason::NotStarted, _) => "Machine ended before its program was started".to_owned(),
        (ExitReason::InitFault, _) => format!("Machine ended: {}", shown(&status.message)),
        (ExitReason::Killed | ExitReason::MonitorLost, _) => "Machine was killed".to_owned(),
    });
    lines.push(CLEANING.to_owned());
    lines
}

/// Returns a text from outside or inside as one printable line of a bounded length.
pub(crate) fn note(text: &str) -> String {
    let end = text.floor_char_boundary(NOTE_BYTES_MAX);
    shown(text.get(..end).unwrap_or_default())
}

/// Returns a text from inside as one printable line.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        other => return format!("{other}"),
    };
    name.to_owned()
}
