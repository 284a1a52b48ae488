//! A machine's memory while it runs: what it may use, what it uses, and taking back what it could
//! do without.
//!
//! Never kills: a limit that what is in use does not fit under is refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::cgroup::{Hierarchies, named_number, number, optional, write};

/// A machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// What it may use.
    pub limit_bytes: u64,
    /// What it uses, without what the kernel can take back at once.
    pub used_bytes: u64,
}

impl Memory {
    /// Returns what it could use more.
    #[must_use]
    pub const fn available_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// Reads the memory of a cgroup.
///
/// # Errors
/// When there is no such cgroup.
pub fn read(hierarchies: &Hierarchies, group: &Path) -> Result<Memory, Error> {
    let files = Files::of(hierarchies, group)?;
    let missing = |file: PathBuf| Error::file("read", file)(io::ErrorKind::InvalidData);
    let limit_bytes = number(&files.limit).ok_or_else(|| missing(files.limit.clone()))?;
    let all = number(&files.usage).ok_or_else(|| missing(files.usage.clone()))?;
    let stat = fs::read_to_string(&files.stat).map_err(Error::file("read", &files.stat))?;
    // Pages of files that nobody has looked at for a while go without anybody's noticing.
    let cache = named_number(&stat, files.inactive).unwrap_or(0);
    Ok(Memory { limit_bytes, used_bytes: all.saturating_sub(cache) })
}

/// Changes what a cgroup may use, taking back what is not needed when it is to be less.
///
/// # Errors
/// [`Error::InUse`] when more is in use; then the limit is as it was.
pub fn set_limit(hierarchies: &Hierarchies, group: &Path, bytes: u64) -> Result<(), Error> {
    let files = Files::of(hierarchies, group)?;
    let before = read(hierarchies, group)?.limit_bytes;
    if bytes >= before {
        // Memory and swap together, on version 1, must never be less than memory alone.
        if let Some(both) = &files.with_swap {
            optional(both, &with_swap(both, before, bytes).to_string())?;
        }
        return write(&files.limit, &bytes.to_string());
    }
    let in_use = |found: u64| Error::InUse { used_mb: found.div_ceil(1 << 20) };
    let usage = || number(&files.usage).unwrap_or(u64::MAX);
    // Version 2 would kill where version 1 refuses.
    if usage() > bytes && matches!(hierarchies, Hierarchies::Unified(_)) {
        reclaim(hierarchies, group, usage().saturating_sub(bytes))?;
        if usage() > bytes {
            return Err(in_use(usage()));
        }
    }
    match write(&files.limit, &bytes.to_string()) {
        Err(Error::File { source, .. }) if source.raw_os_error() == Some(BUSY) => {
            Err(in_use(usage()))
        }
        Err(error) => Err(error),
        Ok(()) => match &files.with_swap {
            Some(both) => optional(both, &with_swap(both, before, bytes).to_string()).map(drop),
            None => Ok(()),
        },
    }
}

/// Takes back memory that a cgroup could do without; returns how much it really was. Blocks.
///
/// # Errors
/// When the kernel has no way to.
pub fn reclaim(hierarchies: &Hierarchies, group: &Path, bytes: u64) -> Result<u64, Error> {
    let files = Files::of(hierarchies, group)?;
    let before = number(&files.usage).unwrap_or(0);
    match hierarchies {
        Hierarchies::Unified(_) => match write(&files.reclaim, &bytes.to_string()) {
            // It found less than was asked for: what was found is gone all the same.
            Err(Error::File { source, .. }) if source.raw_os_error() == Some(AGAIN) => {}
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoFeature("memory.reclaim"));
            }
            other => other?,
        },
        // Version 1 knows all or nothing. A limit that is lowered for a moment could be told how
        // much, and would kill a program that asks for memory in that moment.
        Hierarchies::Legacy(_) => match write(&files.reclaim, "0") {
            Err(Error::File { source, .. }) if source.raw_os_error() == Some(BUSY) => {}
            other => other?,
        },
    }
    Ok(before.saturating_sub(number(&files.usage).unwrap_or(before)))
}

/// Returns the limit of memory and swap together that leaves as much swap as before.
fn with_swap(file: &Path, before: u64, bytes: u64) -> u64 {
    let swap = number(file).map_or(0, |both| both.saturating_sub(before));
    bytes.saturating_add(swap)
}

/// Linux's EBUSY.
const BUSY: i32 = 16;
/// Linux's EAGAIN.
const AGAIN: i32 = 11;

struct Files {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    reclaim: PathBuf,
    with_swap: Option<PathBuf>,
    inactive: &'static str,
}

impl Files {
    fn of(hierarchies: &Hierarchies, group: &Path) -> Result<Self, Error> {
        let root = hierarchies
            .of("memory")
            .ok_or_else(|| Error::file("find the controller", "memory")(io::ErrorKind::NotFound))?;
        let at = |name: &str| root.join(group).join(name);
        Ok(match hierarchies {
            Hierarchies::Unified(_) => Self {
                limit: at("memory.max"),
                usage: at("memory.current"),
                stat: at("memory.stat"),
                reclaim: at("memory.reclaim"),
                with_swap: None,
                inactive: "inactive_file",
            },
            Hierarchies::Legacy(_) => Self {
                limit: at("memory.limit_in_bytes"),
                usage: at("memory.usage_in_bytes"),
                stat: at("memory.stat"),
                reclaim: at("memory.force_empty"),
                with_swap: Some(at("memory.memsw.limit_in_bytes")),
                inactive: "total_inactive_file",
            },
        })
    }
}
