//! Programs: found, prepared and executed as their user.
//!
//! Never runs anything through a shell.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use perch_types::Secret;
use perch_types::guest::{CODE_NOT_EXECUTABLE, CODE_NOT_FOUND, REASON_BYTES_MAX};
use rustix::process::ioctl_tiocsctty;

use crate::accounts::Account;
use crate::signals;

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program was not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) reason: String,
}

impl Refusal {
    pub(crate) fn new(code: i32, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        reason.truncate(end);
        Self { code, reason }
    }
}

/// A program's three streams.
pub(crate) enum Streams {
    /// Nothing to read, and init's own outputs: the machine's log.
    Log,
    /// Nothing to read, and two descriptors for the outputs.
    Outputs(OwnedFd, OwnedFd),
    /// Three descriptors.
    Given(OwnedFd, OwnedFd, OwnedFd),
    /// A terminal.
    Terminal(OwnedFd),
}

/// A program and all that it runs with.
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a BTreeMap<String, Secret>,
    pub(crate) cwd: &'a str,
    pub(crate) account: &'a Account,
}

impl Program<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(Secret::expose).filter(|value| !value.is_empty())
    }

    /// Executes it and returns its process id.
    pub(crate) fn spawn(&self, streams: Streams) -> Result<i32, Refusal> {
        let Some(name) = self.argv.first().filter(|name| !name.is_empty()) else {
            return Err(Refusal::new(CODE_NOT_FOUND, "no program is named"));
        };
        let cwd = if self.cwd.is_empty() { "/" } else { self.cwd };
        make_cwd(Path::new(cwd), self.account)
            .map_err(|error| refuse_io("enter the working directory", cwd, &error))?;
        let path = find(name, self.variable("PATH").unwrap_or(PATH_DEFAULT), Path::new(cwd))?;
        let mut command = Command::new(&path);
        command.arg0(name).args(self.argv.iter().skip(1)).current_dir(cwd).env_clear();
        command.env("PATH", PATH_DEFAULT).env("HOME", &self.account.home);
        for (key, value) in self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.expose().contains('\0') {
                let reason = format!("the variable `{key}` cannot be set");
                return Err(Refusal::new(CODE_NOT_EXECUTABLE, reason));
            }
            if !value.expose().is_empty() || !matches!(key.as_str(), "PATH" | "HOME") {
                command.env(key, value.expose());
            }
        }
        let terminal = connect(&mut command, streams)
            .map_err(|error| refuse_io("connect the streams of", name, &error))?;
        become_user(&mut command, self.account, terminal);
        let child = command.spawn().map_err(|error| refuse_io("execute", name, &error))?;
        i32::try_from(child.id())
            .map_err(|_| Refusal::new(CODE_NOT_EXECUTABLE, "a process id out of range"))
    }
}

fn refuse_io(operation: &str, object: &str, error: &io::Error) -> Refusal {
    let code =
        if error.kind() == io::ErrorKind::NotFound { CODE_NOT_FOUND } else { CODE_NOT_EXECUTABLE };
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT) => " (the program, or the interpreter it names)",
        Some(libc::ENOEXEC) => " (built for another processor, or a script without `#!`)",
        _ => "",
    };
    Refusal::new(code, format!("{operation} `{object}`: {error}{hint}"))
}

/// Gives the command its streams; returns whether they are a terminal.
fn connect(command: &mut Command, streams: Streams) -> io::Result<bool> {
    match streams {
        Streams::Log => {
            command.stdin(Stdio::null());
            Ok(false)
        }
        Streams::Outputs(stdout, stderr) => {
            command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
            Ok(false)
        }
        Streams::Given(stdin, stdout, stderr) => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            Ok(false)
        }
        Streams::Terminal(slave) => {
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
            Ok(true)
        }
    }
}

fn become_user(command: &mut Command, account: &Account, terminal: bool) {
    let groups: Vec<_> =
        account.groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
    let uid = rustix::thread::Uid::from_raw(account.uid);
    let gid = rustix::thread::Gid::from_raw(account.gid);
    let prepare = move || {
        signals::unblock_all()?;
        // A session of its own: a group to signal, and the right to a terminal.
        rustix::process::setsid()?;
        if terminal {
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "what happens between fork and exec has no safe form")]
    // SAFETY: the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn make_cwd(cwd: &Path, account: &Account) -> io::Result<()> {
    match fs::metadata(cwd) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(cwd)?;
            std::os::unix::fs::chown(cwd, Some(account.uid), Some(account.gid))
        }
        Err(error) => Err(error),
    }
}

/// Finds a program as `execvp` does, but tells "none" from "not allowed".
fn find(name: &str, path: &str, cwd: &Path) -> Result<PathBuf, Refusal> {
    let executable = |candidate: &Path| {
        fs::metadata(candidate)
            .map(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let candidate = cwd.join(name);
        return match executable(&candidate) {
            Ok(true) => Ok(candidate),
            Ok(false) => Err(Refusal::new(
                CODE_NOT_EXECUTABLE,
                format!("`{name}` is not an executable file"),
            )),
            Err(error) => Err(refuse_io("execute", name, &error)),
        };
    }
    let mut refused = None;
    for dir in path.split(':') {
        let candidate = cwd.join(dir).join(name);
        match executable(&candidate) {
            Ok(true) => return Ok(candidate),
            Ok(false) => {
                let reason = format!("`{}` is not an executable file", candidate.display());
                refused.get_or_insert_with(|| Refusal::new(CODE_NOT_EXECUTABLE, reason));
            }
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| {
        Refusal::new(CODE_NOT_FOUND, format!("there is no program `{name}` in PATH ({path})"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_from_one_that_may_not_be_executed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        fs::write(root.path().join("data"), "").unwrap();
        fs::write(root.path().join("tool"), "").unwrap();
        fs::set_permissions(root.path().join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let cwd = Path::new("/");
        assert_eq!(find("tool", path, cwd).unwrap(), root.path().join("tool"));
        assert_eq!(find("./tool", "", root.path()).unwrap(), root.path().join("./tool"));
        assert_eq!(find("data", path, cwd).unwrap_err().code, CODE_NOT_EXECUTABLE);
        let none = find("none", path, cwd).unwrap_err();
        assert_eq!(none.code, CODE_NOT_FOUND);
        assert!(none.reason.contains("`none`"), "{}", none.reason);
        assert_eq!(find("/no/such", path, cwd).unwrap_err().code, CODE_NOT_FOUND);
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let refusal = Refusal::new(127, "ä".repeat(REASON_BYTES_MAX));
        assert!(refusal.reason.len() <= REASON_BYTES_MAX);
    }
}
