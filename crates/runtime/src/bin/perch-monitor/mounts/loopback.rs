//! Loop devices: an image file as a disk.
//!
//! Never attaches an image twice: two mounts of one ext4 destroy it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use perch_runtime::Error;
use rustix::fs::{FlockOperation, flock};

use crate::clock;

/// How often another free device is tried when somebody else was faster.
const ATTEMPTS_MAX: u32 = 64;
/// How long an earlier boot may take to let go of the image, in milliseconds.
const FREE_TIMEOUT_MS: u64 = 5_000;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// A loop device that clears itself when its mount is gone.
#[derive(Debug)]
pub(super) struct Loop {
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
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

impl Loop {
    /// Attaches an image; the device lasts as long as the returned file or a mount of it.
    pub(super) fn attach(image: &Path) -> Result<(Self, File), Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .map_err(Error::file("open", image))?;
        lock(&file, image)?;
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
            info: Info {
                device: 0,
                inode: 0,
                real_device: 0,
                offset: 0,
                bytes_max: 0,
                number: 0,
                encryption: 0,
                key_bytes: 0,
                flags: LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the descriptor is open and the kernel only reads the structure it expects.
        let result =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const configuration) };
        if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns the device's path.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// Waits until the kernel has let go of the image.
    pub(super) fn wait_until_free(&self) -> Result<(), Error> {
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

/// Locks an image. The loop device holds the same open file, so the lock lasts as long as it.
fn lock(file: &File, image: &Path) -> Result<(), Error> {
    let deadline = clock::boot_ms().saturating_add(FREE_TIMEOUT_MS);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if clock::boot_ms() < deadline => {
                clock::pause(Duration::from_millis(2));
            }
            Err(error) => {
                return Err(Error::file("lock (another boot has it)", image)(error));
            }
        }
    }
}
