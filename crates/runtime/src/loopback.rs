//! Loop devices: an image file as a disk.
//!
//! Never attaches an image twice: two mounts of one file system destroy it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{Error, clock};

/// How often another free device is tried when somebody else was faster.
const ATTEMPTS_MAX: u32 = 64;
/// How long an earlier boot may take to let go of an image, in milliseconds.
pub const FREE_TIMEOUT_MS: u64 = 5_000;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// A loop device that clears itself when its mount is gone.
#[derive(Debug, Clone)]
pub struct Loop {
    number: i32,
    image: PathBuf,
}

/// The kernel's `struct loop_config`; unused parts are zero.
#[repr(C)]
struct Configuration {
    descriptor: u32,
    block_bytes: u32,
    info: Info,
    reserved: [u64; 8],
}

/// The kernel's `struct loop_info64`.
#[repr(C)]
#[derive(Default)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    bytes_max: u64,
    number: u32,
    encryption: u32,
    key_bytes: u32,
    flags: u32,
    file_name: Name,
    crypt_name: Name,
    key: [u8; 32],
    init: [u64; 2],
}

/// A name in [`Info`].
#[repr(C)]
struct Name([u8; 64]);

impl Default for Name {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Loop {
    /// Attaches an image; the device lasts as long as the returned file or a mount of it. Waits
    /// at most `patience_ms` for somebody else to let go of the image.
    ///
    /// # Errors
    /// When somebody has the image, or the kernel refuses.
    pub fn attach(image: &Path, patience_ms: u64) -> Result<(Self, File), Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .map_err(Error::file("open", image))?;
        lock(&file, image, patience_ms)?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(Error::file("open", "/dev/loop-control"))?;
        for _ in 0..ATTEMPTS_MAX {
            #[expect(unsafe_code, reason = "no safe binding")]
            // SAFETY: the descriptor is open and this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                let error = io::Error::last_os_error();
                return Err(Error::system("find a free loop device")(error));
            }
            let this = Self { number, image: image.to_owned() };
            match this.configure(&file) {
                Ok(device) => return Ok((this, device)),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(Error::file("attach", this.path())(error)),
            }
        }
        Err(Error::system("find a free loop device")(io::Error::from(io::ErrorKind::ResourceBusy)))
    }

    fn configure(&self, file: &File) -> io::Result<File> {
        let device = OpenOptions::new().read(true).write(true).open(self.path())?;
        let configuration = Configuration {
            descriptor: u32::try_from(file.as_raw_fd()).unwrap_or_default(),
            block_bytes: 0,
            info: Info { flags: LO_FLAGS_AUTOCLEAR, ..Info::default() },
            reserved: [0; 8],
        };
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open and the kernel only reads the structure it expects.
        let result =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const configuration) };
        if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
    }

    /// Finds the device that an image is attached to; the returned file keeps it that. Nothing
    /// when it is attached nowhere.
    ///
    /// # Errors
    /// When the image or the list of devices cannot be read.
    pub fn find(image: &Path) -> Result<Option<(Self, File)>, Error> {
        let wanted = fs::metadata(image).map_err(Error::file("read", image))?;
        let name = image.file_name().unwrap_or_default();
        let folder = Path::new("/sys/block");
        let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
        for entry in entries.flatten() {
            let device = entry.file_name();
            let number = device.to_str().and_then(|name| name.strip_prefix("loop"));
            let Some(number) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            // Paths depend on who reads them, names do not: they only save opening the others.
            let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
            let backing = backing.unwrap_or_default();
            if Path::new(backing.trim_end_matches('\n')).file_name() != Some(name) {
                continue;
            }
            let this = Self { number, image: image.to_owned() };
            let Ok(device) = OpenOptions::new().read(true).write(true).open(this.path()) else {
                continue;
            };
            if is_backed_by(&device, &wanted) {
                return Ok(Some((this, device)));
            }
        }
        Ok(None)
    }

    /// Has a device look at its image's size again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, device: &File) -> Result<(), Error> {
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open and this request takes no argument.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) };
        if result == 0 {
            return Ok(());
        }
        Err(Error::file("resize", self.path())(io::Error::last_os_error()))
    }

    /// Returns the device's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// Waits until the kernel has let go of the image.
    ///
    /// # Errors
    /// When that takes longer than [`FREE_TIMEOUT_MS`].
    pub fn wait_until_free(&self) -> Result<(), Error> {
        let backing = format!("/sys/block/loop{}/loop/backing_file", self.number);
        let deadline = clock::boot_ms().saturating_add(FREE_TIMEOUT_MS);
        loop {
            let ours = fs::read_to_string(&backing)
                .is_ok_and(|text| Path::new(text.trim_end_matches('\n')) == self.image);
            if !ours {
                return Ok(());
            }
            if clock::boot_ms() > deadline {
                return Err(Error::Timeout {
                    operation: "detach the loop device",
                    limit_ms: FREE_TIMEOUT_MS,
                });
            }
            clock::pause(Duration::from_millis(1));
        }
    }
}

/// Returns whether a device, which an open file keeps from changing, has a file behind it.
fn is_backed_by(device: &File, wanted: &fs::Metadata) -> bool {
    let mut info = Info::default();
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: the descriptor is open and the kernel writes the structure of the size it expects.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    let (major, minor) = (rustix::fs::major(wanted.dev()), rustix::fs::minor(wanted.dev()));
    let kernel =
        (u64::from(minor) & 0xff) | (u64::from(major) << 8) | ((u64::from(minor) & !0xff) << 12);
    result == 0 && info.inode == wanted.ino() && info.device == kernel
}

/// Locks an image. The loop device holds the same open file, so the lock lasts as long as it.
fn lock(file: &File, image: &Path, patience_ms: u64) -> Result<(), Error> {
    let deadline = clock::boot_ms().saturating_add(patience_ms);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if clock::boot_ms() < deadline => {
                clock::pause(Duration::from_millis(2));
            }
            Err(error) => {
                return Err(Error::file("lock (somebody else has it)", image)(error));
            }
        }
    }
}
