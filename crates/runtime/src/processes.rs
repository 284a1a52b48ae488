//! The processes of a machine, looked at from outside of it.
//!
//! Never trusts what it reads: names, arguments and folders are the machine's own words, each of a
//! bounded length. Never reads of a process that is not the machine's, even if it has just got the
//! id of one that was.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};

use crate::Error;
use crate::cgroup::Hierarchies;

/// The most processes that are looked at.
pub const PROCESSES_MAX: usize = 1024;
/// The most bytes of a command line or a folder that are kept.
pub const TEXT_BYTES_MAX: usize = 1024;
/// The most descriptors of all processes together that are looked at.
const DESCRIPTORS_MAX: usize = 16 * 1024;
/// The most bytes of a file of procfs that are read.
const FILE_BYTES_MAX: u64 = 16 * 1024;
/// Ticks a second in what procfs says to programs; fixed on every architecture that Perch runs on.
pub const TICKS_PER_SECOND: u64 = 100;

/// One process of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Its id inside the machine, or inside its container if there are several.
    pub pid: i32,
    /// Its id on the server.
    pub host_pid: i32,
    /// Which table of processes it is in: of several containers each has its own.
    pub table: u64,
    /// When it started, in ticks since the server booted.
    pub start_ticks: u64,
    /// CPU time so far, in ticks.
    pub cpu_ticks: u64,
    /// Memory of its own in bytes.
    pub rss_bytes: u64,
    /// Its command line, or its name in brackets if it has none.
    pub command: String,
    /// Its working folder.
    pub directory: String,
    /// The inodes of its sockets.
    pub sockets: Vec<u64>,
}

/// Lists the processes of a cgroup, sorted by id. One that ends meanwhile is left out. Blocks.
///
/// # Errors
/// When there is no such cgroup.
pub fn list(hierarchies: &Hierarchies, group: &Path) -> Result<Vec<Process>, Error> {
    let mut budget = DESCRIPTORS_MAX;
    let mut ids = hierarchies.processes(group)?;
    // Containers number their processes each from 1: only the server's own numbers are unique.
    ids.sort_unstable();
    ids.dedup();
    let mut found: Vec<Process> = ids
        .into_iter()
        .take(PROCESSES_MAX)
        .filter_map(|pid| look(pid, group, &mut budget).ok().flatten())
        .collect();
    found.sort_unstable_by_key(|process| (process.pid, process.host_pid));
    Ok(found)
}

/// Looks at one process; nothing if it is not one of the cgroup.
fn look(pid: i32, group: &Path, budget: &mut usize) -> io::Result<Option<Process>> {
    // Whoever gets the id later has another folder: this one then has nothing in it.
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
    if !is_member(&read(folder.as_fd(), c"cgroup")?, group) {
        return Ok(None);
    }
    let status = read(folder.as_fd(), c"status")?;
    let stat = read(folder.as_fd(), c"stat")?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let inside = field(&status, "NSpid:").and_then(|ids| ids.split_whitespace().next_back());
    let inside = inside.and_then(|id| id.parse().ok()).ok_or_else(invalid)?;
    let times = Times::parse(&stat).ok_or_else(invalid)?;
    // Kernel threads and what has just ended have no memory.
    let rss_kb: u64 = field(&status, "VmRSS:").and_then(first_number).unwrap_or(0);
    Ok(Some(Process {
        pid: inside,
        host_pid: pid,
        table: link(folder.as_fd(), c"ns/pid")
            .ok()
            .and_then(|target| inode(&target, "pid"))
            .unwrap_or_default(),
        start_ticks: times.start,
        cpu_ticks: times.cpu,
        rss_bytes: rss_kb.saturating_mul(1024),
        command: command(&read(folder.as_fd(), c"cmdline")?, &times.name),
        directory: link(folder.as_fd(), c"cwd").map(|path| text(&path)).unwrap_or_default(),
        sockets: sockets(folder.as_fd(), budget).unwrap_or_default(),
    }))
}

fn open(folder: BorrowedFd<'_>, name: &CStr, more: OFlags) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty())?)
}

fn read(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::from(open(folder, name, OFlags::empty())?);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn link(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    Ok(readlinkat(folder, name, Vec::new())?.into_bytes())
}

fn sockets(folder: BorrowedFd<'_>, budget: &mut usize) -> io::Result<Vec<u64>> {
    let descriptors = open(folder, c"fd", OFlags::DIRECTORY)?;
    let mut found = Vec::new();
    for entry in Dir::read_from(&descriptors)? {
        if *budget == 0 {
            break;
        }
        *budget -= 1;
        let entry = entry?;
        // It may have been closed since; `.` and `..` are no links.
        let Ok(target) = link(descriptors.as_fd(), entry.file_name()) else {
            continue;
        };
        found.extend(inode(&target, "socket"));
    }
    Ok(found)
}

/// Reads the target of a link to what has no path, such as `socket:[inode]`.
fn inode(target: &[u8], kind: &str) -> Option<u64> {
    let inode = target.strip_prefix(kind.as_bytes())?.strip_prefix(b":[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// Returns whether a process's list of cgroups has the group or one below it.
fn is_member(cgroups: &[u8], group: &Path) -> bool {
    let text = String::from_utf8_lossy(cgroups);
    text.lines().any(|line| {
        let path = line.splitn(3, ':').nth(2).unwrap_or_default();
        Path::new(path.trim_start_matches('/')).starts_with(group)
    })
}

struct Times {
    name: String,
    cpu: u64,
    start: u64,
}

impl Times {
    fn parse(stat: &[u8]) -> Option<Self> {
        let stat = String::from_utf8_lossy(stat);
        // The name, in parentheses, may hold anything; what follows it is numbers.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        // Fields 14, 15 and 22; the first after the name is field 3.
        Some(Self { name, cpu: number(11)?.saturating_add(number(12)?), start: number(19)? })
    }
}

fn field<'a>(status: &'a [u8], name: &str) -> Option<&'a str> {
    let lines = status.split(|byte| *byte == b'\n');
    let line = lines.filter_map(|line| std::str::from_utf8(line).ok());
    line.into_iter().find_map(|line| line.strip_prefix(name))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Returns the arguments with spaces between them; the name for a process that has none.
fn command(arguments: &[u8], name: &str) -> String {
    let words = arguments.strip_suffix(b"\0").unwrap_or(arguments);
    if words.is_empty() {
        return text(format!("[{name}]").as_bytes());
    }
    let spaced: Vec<u8> = words.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    text(&spaced)
}

/// Returns bytes of the machine's as text: cut, and without control characters.
fn text(bytes: &[u8]) -> String {
    let cut = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    let plain = |one: char| if one.is_control() { '\u{fffd}' } else { one };
    String::from_utf8_lossy(cut).chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_chooses_its_name_and_nothing_else() {
        let stat = b"7 (a ) 1 2 (b) S 1 7 7 0 -1 0 0 0 0 0 30 12 0 0 20 0 1 0 4242 0 0";
        let times = Times::parse(stat).unwrap();
        assert_eq!((times.name.as_str(), times.cpu, times.start), ("a ) 1 2 (b", 42, 4242));
        assert!(Times::parse(b"7 (a").is_none());
        assert!(Times::parse(b"7 (a) S 1").is_none());
    }

    #[test]
    fn words_of_the_machine_are_cut_and_have_no_control_characters() {
        assert_eq!(
            command(b"sh\0-c\0echo a\nb\x1b[2J\0", "sh"),
            "sh -c echo a\u{fffd}b\u{fffd}[2J"
        );
        assert_eq!(command(b"", "kworker"), "[kworker]");
        assert_eq!(command(b"\xff\xfe\0", "x"), "\u{fffd}\u{fffd}");
        assert_eq!(text(&[b'a'; 5000]).len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn a_process_counts_only_in_its_own_machines_group() {
        let of = |text: &str| is_member(text.as_bytes(), Path::new("perch/machines/1"));
        assert!(of("0::/perch/machines/1\n"));
        assert!(of("9:pids:/\n8:memory:/perch/machines/1/below\n"));
        assert!(!of("0::/perch/machines/12\n"));
        assert!(!of("0::/user.slice\n"));
        assert!(!of("perch/machines/1"));
    }

    #[test]
    fn sockets_are_told_from_other_links() {
        assert_eq!(inode(b"socket:[123]", "socket"), Some(123));
        assert_eq!(inode(b"/tmp/socket:[1]", "socket"), None);
        assert_eq!(inode(b"socket:[x]", "socket"), None);
        assert_eq!(inode(b"socket:[1]", "pid"), None);
        assert_eq!(field(b"Name:\tx\nNSpid:\t10\t2\n", "NSpid:"), Some("\t10\t2"));
    }
}
