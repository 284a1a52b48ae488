//! The file system of a volume: mounted for a machine, or held for a moment by whoever freezes,
//! grows or measures it.
//!
//! Never shows a mount to anybody: what is made here is attached nowhere until the caller does
//! so, and goes with the last descriptor of it. A file system that is mounted already is shared
//! with the one who mounted it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use perch_types::volume::VolumeUsage;
use rustix::fs::{Mode, OFlags, fstatvfs, openat, syncfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::Error;
use crate::loopback::Loop;

/// How long a machine that ends may take to let go of a volume, in milliseconds: what it wrote
/// last is on its way to the disk.
pub const FREE_TIMEOUT_MS: u64 = 60_000;
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;
/// How much of the file system inodes may take, in percent: XFS's own default.
const INODES_PERCENT: u32 = 25;

const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// Pieces of a file that the kernel is asked for at once, and how often at most.
const PIECES_MAX: u32 = 128;
const PIECE_ROUNDS_MAX: usize = 8192;
const PIECE_IS_LAST: u32 = 0x1;
const PIECE_IS_SHARED: u32 = 0x2000;

/// The kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Piece {
    at: u64,
    physical: u64,
    bytes: u64,
    reserved: [u64; 2],
    flags: u32,
    more_reserved: [u32; 3],
}

/// The kernel's `struct fiemap`, with room for the answer.
#[repr(C)]
struct Pieces {
    from: u64,
    bytes: u64,
    flags: u32,
    found: u32,
    room: u32,
    reserved: u32,
    all: [Piece; PIECES_MAX as usize],
}

/// Returns how many bytes of the disk an image takes that it shares with no other file: what it
/// writes there anew takes no more. Where the file system cannot tell, nothing is shared.
///
/// # Errors
/// When the kernel refuses.
pub fn own_bytes(image: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let file = File::open(image).map_err(Error::file("open", image))?;
    let (mut from, mut own) = (0, 0_u64);
    for _ in 0..PIECE_ROUNDS_MAX {
        let mut pieces = Pieces {
            from,
            bytes: u64::MAX - from,
            flags: 0,
            found: 0,
            room: PIECES_MAX,
            reserved: 0,
            all: [Piece::default(); PIECES_MAX as usize],
        };
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open, and the kernel writes at most as many pieces as `room`
        // says there is room for.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut pieces) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY) => {
                    let found = file.metadata().map_err(Error::file("read", image))?;
                    Ok(found.blocks().saturating_mul(512))
                }
                _ => Err(Error::file("list the pieces of", image)(error)),
            };
        }
        let found = usize::try_from(pieces.found.min(PIECES_MAX)).unwrap_or_default();
        let all = pieces.all.get(..found).unwrap_or_default();
        let alone = all.iter().filter(|piece| piece.flags & PIECE_IS_SHARED == 0);
        own = alone.fold(own, |sum, piece| sum.saturating_add(piece.bytes));
        match all.last() {
            Some(last) if last.flags & PIECE_IS_LAST == 0 => {
                from = last.at.saturating_add(last.bytes);
            }
            Some(_) | None => return Ok(own),
        }
    }
    // Of what is not known, it is not said that it is there.
    Ok(own)
}

/// The kernel's `struct xfs_growfs_data`.
#[repr(C)]
struct Grow {
    blocks: u64,
    inodes_percent: u32,
}

/// Attaches the image of a volume and mounts its file system; the mount is attached nowhere yet
/// and keeps the loop device.
///
/// # Errors
/// When somebody has the image for longer than [`FREE_TIMEOUT_MS`], or the kernel refuses.
pub fn mount(image: &Path) -> Result<(Loop, OwnedFd), Error> {
    let (device, held) = Loop::attach(image, FREE_TIMEOUT_MS)?;
    let tree = mount_device(&device)?;
    drop(held);
    Ok((device, tree))
}

fn mount_device(device: &Loop) -> Result<OwnedFd, Error> {
    let path = device.path();
    let fault = |operation| Error::file(operation, path.clone());
    let context = fsopen("xfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fault("open xfs for"))?;
    let set = context.as_fd();
    fsconfig_set_string(set, "source", &path).map_err(fault("configure xfs for"))?;
    // A volume that was made of another one's snapshot has the same identity.
    fsconfig_set_flag(set, "nouuid").map_err(fault("configure xfs for"))?;
    // What the machine deletes becomes free in the pool again.
    fsconfig_set_flag(set, "discard").map_err(fault("configure xfs for"))?;
    fsconfig_create(set).map_err(fault("mount the xfs file system of"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(set, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(fault("mount the xfs file system of"))
}

/// A volume's file system, held for a moment.
#[derive(Debug)]
pub struct Held {
    root: File,
    device: File,
    name: Loop,
    image: PathBuf,
}

impl Held {
    /// Holds the file system of a volume that is mounted; nothing when it is not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mounted(image: &Path) -> Result<Option<Self>, Error> {
        match Loop::find(image)? {
            Some((name, device)) => Self::of(image, name, device).map(Some),
            None => Ok(None),
        }
    }

    /// Holds the file system of a volume, mounting it where nobody else has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn any(image: &Path) -> Result<Self, Error> {
        if let Some(held) = Self::mounted(image)? {
            return Ok(held);
        }
        match Loop::attach(image, 0) {
            Ok((name, device)) => Self::of(image, name, device),
            // Somebody was faster.
            Err(error) => Self::mounted(image)?.ok_or(error),
        }
    }

    fn of(image: &Path, name: Loop, device: File) -> Result<Self, Error> {
        let tree = mount_device(&name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&tree, ".", flags, Mode::empty())
            .map_err(Error::file("open the root of", image))?;
        Ok(Self { root: root.into(), device, name, image: image.to_owned() })
    }

    /// Returns how full it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn usage(&self) -> Result<VolumeUsage, Error> {
        let found = fstatvfs(&self.root).map_err(Error::file("measure", &self.image))?;
        Ok(VolumeUsage {
            blocks: found.f_blocks,
            block_size: found.f_frsize,
            blocks_free: found.f_bfree,
            blocks_avail: found.f_bavail,
        })
    }

    /// Writes what is still in memory to the image, so that a freeze has little left to do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sync(&self) -> Result<(), Error> {
        syncfs(&self.root).map_err(Error::file("sync", &self.image))
    }

    /// Stops all writing; whoever writes waits. It stays so when this process ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self) -> Result<(), Error> {
        match self.control(FIFREEZE) {
            // It is frozen already, by one who ended before he thawed it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            other => other.map_err(Error::file("freeze", &self.image)),
        }
    }

    /// Lets writing go on, whether it was stopped or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<(), Error> {
        match self.control(FITHAW) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other.map_err(Error::file("thaw", &self.image)),
        }
    }

    fn control(&self, request: libc::Ioctl) -> io::Result<()> {
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open; these requests ignore their argument.
        let result = unsafe { libc::ioctl(self.root.as_raw_fd(), request, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes image and file system that large; neither ever becomes smaller.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn grow(&self, bytes: u64) -> Result<(), Error> {
        let file = OpenOptions::new()
            .write(true)
            .open(&self.image)
            .map_err(Error::file("open", &self.image))?;
        let now = file.metadata().map_err(Error::file("read", &self.image))?.len();
        if now < bytes {
            file.set_len(bytes).map_err(Error::file("size", &self.image))?;
            file.sync_all().map_err(Error::file("sync", &self.image))?;
        }
        self.name.resize(&self.device)?;
        let usage = self.usage()?;
        let grow = Grow {
            blocks: now.max(bytes) / usage.block_size.max(1),
            inodes_percent: INODES_PERCENT,
        };
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open and the kernel only reads the structure it expects.
        let result =
            unsafe { libc::ioctl(self.root.as_raw_fd(), XFS_IOC_FSGROWFSDATA, &raw const grow) };
        if result == 0 {
            return Ok(());
        }
        Err(Error::file("grow", &self.image)(io::Error::last_os_error()))
    }
}

/// The first argument that makes the monitor's binary a guard; the second is the image.
pub const GUARD_ARGUMENT: &str = "--thaw-when-alone";

/// Waits until whoever froze a volume has ended or closes this process's standard input, and lets
/// writing go on, whether it was stopped or not.
///
/// # Errors
/// When the kernel refuses.
pub fn guard(image: &Path) -> Result<(), Error> {
    // What is read means nothing, and a fault is as good as the end.
    io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
    Held::mounted(image)?.map_or(Ok(()), |held| held.thaw())
}
