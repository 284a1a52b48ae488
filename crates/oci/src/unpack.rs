//! Layers become a tree and the tree an erofs file, in a child without rights.
//!
//! Never lets a layer choose where a byte goes: paths are resolved inside the tree by the kernel
//! (`openat2`), owners are ids of a user namespace, and the child has no network.
//!
//! The parent starts the child in the work folder. The child leaves for new user, network, mount
//! and IPC namespaces and says so; the parent maps ids 0 to 65535 to a host range, hands that
//! range the work folder, and sends the [`Job`]. The child unpacks, reports and then becomes
//! `mkfs.erofs`, which therefore sees and stores ids from 0, and capabilities without the
//! namespace's root in them.

mod archive;
mod child;
mod layer;
mod parent;
mod path;
mod tree;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use perch_types::image::Digest;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;

pub use child::child_main;
pub(crate) use parent::build;

/// The first of the 65,536 host ids that the unpacking child owns, unless configured.
pub const HOST_ID_BASE: u32 = 0x7000_0000;
/// How many ids the child owns.
pub const HOST_ID_COUNT: u32 = 65_536;
/// The longest job or report, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1024 * 1024;
/// The name of the tree inside the work folder.
const TREE: &str = "tree";
/// The name of the erofs file inside the work folder.
pub(crate) const EROFS: &str = "rootfs.erofs";
/// What the child says when its namespaces exist.
const READY: &str = "ready";
/// The program that writes the file system.
const MKFS: &str = "mkfs.erofs";
/// The same for every image, so that the same layers give the same bytes.
const EROFS_UUID: &str = "70657263-6800-4000-8000-65726f667331";

/// With which rights layers are unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Privilege {
    /// In a child: `program` with `args` must call [`child_main`] before it starts any thread.
    Child {
        /// The program, mostly the daemon's own.
        program: PathBuf,
        /// Its arguments, `["unpack-layer"]`.
        args: Vec<String>,
        /// The first of 65,536 host ids that belong to nobody else.
        host_id_base: u32,
    },
    /// In this process, with its rights. For tests and for tools that unpack images they made.
    InProcess,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Not at all.
    Plain,
    /// With gzip, one or more members.
    Gzip,
    /// With zstd, one or more frames.
    Zstd,
}

/// One layer, verified and waiting in the work folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its file's name in the work folder.
    pub(crate) file: String,
    pub(crate) packing: Packing,
    /// The digest of the unpacked bytes.
    pub(crate) diff_id: Digest,
    pub(crate) size_bytes: u64,
}

/// What the child is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// From the lowest to the highest.
    pub(crate) layers: Vec<Layer>,
    pub(crate) limits: Limits,
}

/// What unpacking came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Entries read.
    pub(crate) entries: u64,
    /// Device nodes, fifos and sockets that were left out (security list R6).
    pub(crate) specials_dropped: u64,
    /// Attributes that were left out (security list R6).
    pub(crate) xattrs_dropped: u64,
    /// Unpacked bytes.
    pub(crate) bytes: u64,
    /// The newest modification time, seconds since 1970; the file system's own time.
    pub(crate) newest_mtime_s: i64,
}

/// Why a layer was not unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    #[error("{what} is over the limit of {limit}")]
    OverLimit { what: String, limit: u64 },
    #[error("{0}")]
    Invalid(String),
    #[error("no space left")]
    NoSpace,
    #[error("{0}")]
    System(String),
}

impl Fault {
    fn over(what: &str, limit: u64) -> Self {
        Self::OverLimit { what: what.to_owned(), limit }
    }

    fn system(operation: &str, errno: rustix::io::Errno) -> Self {
        if errno == rustix::io::Errno::NOSPC || errno == rustix::io::Errno::DQUOT {
            Self::NoSpace
        } else {
            Self::System(format!("{operation}: {errno}"))
        }
    }

    fn io(operation: &str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            Self::NoSpace
        } else {
            Self::System(format!("{operation}: {error}"))
        }
    }
}

/// Times of files newer than this are cut to it, and it is the file system's own time. As it is the
/// newest time in the tree, every file keeps its own and the same tree gives the same bytes.
const MKFS_TIME: &str = "SOURCE_DATE_EPOCH";

fn mkfs_arguments() -> [String; 5] {
    let uuid = format!("-U{EROFS_UUID}");
    let quiet = "--quiet".to_owned();
    [quiet, "-zlz4".to_owned(), uuid, EROFS.to_owned(), TREE.to_owned()]
}
