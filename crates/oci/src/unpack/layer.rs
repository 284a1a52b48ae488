//! One layer: unpacked, counted, hashed and applied to the tree.
//!
//! Never keeps a device node, fifo or socket, nor an attribute but `security.capability` and
//! `user.*`: they are left out and counted (security list R6). Setuid bits are kept; whoever
//! mounts the image decides about them.

use std::fs::File;
use std::io::{self, BufReader, Read};

use perch_types::image::Digest;
use sha2::{Digest as _, Sha256};

use super::archive::{Archive, Entry, Kind};
use super::path::{self, Place, Target};
use super::tree::Tree;
use super::{Fault, Job, Layer, Packing, Report};
use crate::limits::{Limits, OWNER_ID_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX, XATTRS_PER_ENTRY_MAX};

const READ_BUFFER_BYTES: usize = 256 * 1024;
/// The largest window of a zstd frame, as a power of two: what the reference decoder allows.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Applies all layers in the work folder to the tree in it.
pub(super) fn unpack(work: &std::path::Path, job: &Job) -> Result<Report, Fault> {
    let root = rustix::fs::open(
        work.join(super::TREE),
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Fault::system("open the tree", e))?;
    let mut tree = Tree::new(root, job.limits.depth_max)?;
    let mut report = Report::default();
    for layer in &job.layers {
        let file = File::open(work.join(&layer.file)).map_err(|e| Fault::io("open a layer", &e))?;
        tree.begin_layer();
        apply(&mut tree, layer, file, (&job.limits, &mut report))?;
    }
    report.newest_mtime_s = tree.finish_times()?;
    Ok(report)
}

fn apply(
    tree: &mut Tree,
    layer: &Layer,
    file: File,
    (limits, report): (&Limits, &mut Report),
) -> Result<(), Fault> {
    let mut meter = Meter::new(decoder(layer.packing, file)?, layer, limits, report.bytes);
    let mut archive = Archive::new(&mut meter);
    let mut specials = std::mem::take(report);
    while let Some(entry) = archive.next_entry()? {
        specials.entries += 1;
        if specials.entries > limits.entries_max {
            return Err(Fault::over("the number of entries", limits.entries_max));
        }
        apply_entry(tree, entry, &mut archive, (limits, &mut specials))?;
    }
    archive.drain()?;
    *report = specials;
    report.bytes += meter.count;
    let actual = Digest::from_sha256(&meter.hash.finalize().into());
    if actual == layer.diff_id {
        Ok(())
    } else {
        Err(Fault::Invalid(format!(
            "a layer's unpacked bytes have digest `{actual}` instead of `{}`",
            layer.diff_id
        )))
    }
}

fn apply_entry<R: Read>(
    tree: &mut Tree,
    mut entry: Entry,
    archive: &mut Archive<R>,
    (limits, report): (&Limits, &mut Report),
) -> Result<(), Fault> {
    let target = path::classify(&entry.path, limits.depth_max)?;
    let place = match target {
        Target::Reserved => return Ok(()),
        Target::Whiteout(place) => return tree.whiteout(&place),
        Target::Opaque(folder) => return tree.opaque(&folder),
        Target::Root => None,
        Target::Place(place) => Some(place),
    };
    check_owner(&entry)?;
    let before = entry.xattrs.len();
    keep_xattrs(&mut entry)?;
    report.xattrs_dropped += (before - entry.xattrs.len()) as u64;
    match (entry.kind, place) {
        (Kind::Folder, None) => tree.root_metadata(&entry),
        (_, None) => Err(Fault::Invalid("an entry without a name is not a folder".to_owned())),
        (Kind::Folder, Some(place)) => tree.folder(&place, &entry),
        (Kind::File, Some(place)) => tree.file(&place, &entry, &mut archive.content()),
        (Kind::Symlink, Some(place)) => {
            if entry.link.is_empty() || entry.link.contains(&0) {
                return Err(Fault::Invalid("a symbolic link without a target".to_owned()));
            }
            if entry.link.len() > PATH_BYTES_MAX {
                return Err(Fault::over("the length of a link's target", PATH_BYTES_MAX as u64));
            }
            tree.symlink(&place, &entry)
        }
        (Kind::HardLink, Some(place)) => tree.hard_link(&place, &link_target(&entry, limits)?),
        (Kind::Special, Some(_)) => {
            report.specials_dropped += 1;
            Ok(())
        }
    }
}

fn link_target(entry: &Entry, limits: &Limits) -> Result<Place, Fault> {
    path::split(&path::clean(&entry.link, limits.depth_max)?)
        .ok_or_else(|| Fault::Invalid("a hard link to the root folder".to_owned()))
}

fn check_owner(entry: &Entry) -> Result<(), Fault> {
    if entry.uid > OWNER_ID_MAX || entry.gid > OWNER_ID_MAX {
        return Err(Fault::over("an owner's id", OWNER_ID_MAX));
    }
    Ok(())
}

fn keep_xattrs(entry: &mut Entry) -> Result<(), Fault> {
    if entry.xattrs.len() > XATTRS_PER_ENTRY_MAX {
        return Err(Fault::over("the attributes of a file", XATTRS_PER_ENTRY_MAX as u64));
    }
    if entry.xattrs.iter().any(|(_, value)| value.len() > XATTR_BYTES_MAX) {
        return Err(Fault::over("the size of an attribute", XATTR_BYTES_MAX as u64));
    }
    let file = entry.kind == Kind::File;
    // Links and device nodes may not have user attributes; capabilities are for files.
    let may_have = matches!(entry.kind, Kind::File | Kind::Folder);
    entry.xattrs.retain(|(name, _)| {
        !name.contains(&0)
            && ((name.starts_with(b"user.") && name.len() > 5 && name.len() < 256 && may_have)
                || (name == b"security.capability" && file))
    });
    Ok(())
}

/// Opens the packed stream, and refuses one that is packed otherwise than its media type says
/// (security list R3).
fn decoder(packing: Packing, file: File) -> Result<Box<dyn Read>, Fault> {
    let mut file = BufReader::with_capacity(READ_BUFFER_BYTES, file);
    let start = io::BufRead::fill_buf(&mut file).map_err(|e| Fault::io("read a layer", &e))?;
    let actual = match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => Packing::Plain,
    };
    if actual != packing {
        return Err(Fault::Invalid(format!(
            "a layer is packed as {actual:?} and its media type says {packing:?}"
        )));
    }
    Ok(match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file)
                .map_err(|e| Fault::io("set up the zstd decoder", &e))?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(|e| Fault::io("set up the zstd decoder", &e))?;
            Box::new(decoder)
        }
    })
}

/// Hashes and counts unpacked bytes and stops at the limits.
struct Meter {
    source: Box<dyn Read>,
    hash: Sha256,
    count: u64,
    /// Bytes of earlier layers.
    before: u64,
    packed_bytes: u64,
    limits: Limits,
}

impl Meter {
    fn new(source: Box<dyn Read>, layer: &Layer, limits: &Limits, before: u64) -> Self {
        let hash = Sha256::new();
        Self {
            source,
            hash,
            count: 0,
            before,
            packed_bytes: layer.size_bytes,
            limits: limits.clone(),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        let limits = &self.limits;
        if self.before.saturating_add(self.count) > limits.uncompressed_bytes_max {
            return Err(Fault::over("the unpacked size", limits.uncompressed_bytes_max));
        }
        let allowed = self.packed_bytes.saturating_mul(limits.ratio_max);
        if self.count > limits.ratio_free_bytes.max(allowed) {
            return Err(Fault::over("the ratio of unpacked to packed bytes", limits.ratio_max));
        }
        Ok(())
    }
}

impl Read for Meter {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        self.count += count as u64;
        self.check().map_err(io::Error::other)?;
        Ok(count)
    }
}
