//! The tree that layers are applied to, by descriptors and single names.
//!
//! Never follows a link out of the tree: a parent is found by `openat2` with the tree as root, and
//! the last name of a path is never followed at all.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, openat,
    openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Fault;
use super::archive::Entry;
use super::path::Place;

/// How often a lookup that raced with a rename elsewhere on the system is tried again.
const LOOKUP_TRIES_MAX: u32 = 100;
const COPY_BUFFER_BYTES: usize = 128 * 1024;
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is known about a folder, by its inode.
#[derive(Debug, Clone, Copy)]
struct Folder {
    depth: usize,
    mtime: Timespec,
}

/// A folder as a place for entries.
#[derive(Debug, Clone)]
struct Parent {
    fd: Rc<OwnedFd>,
    depth: usize,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    depth_max: usize,
    /// Folders of all layers: their times are set last, as every new name in them changes them.
    folders: HashMap<u64, Folder>,
    /// Inodes that the current layer made or changed: its whiteouts do not mean these.
    fresh: HashSet<u64>,
    /// The parent of the last entry.
    last: Option<(Vec<u8>, Parent)>,
    buffer: Vec<u8>,
}

impl Tree {
    /// Takes an empty folder.
    pub(super) fn new(root: OwnedFd, depth_max: usize) -> Result<Self, Fault> {
        let inode = fstat(&root).map_err(|e| Fault::system("look at the tree", e))?.st_ino;
        fchmod(&root, Mode::from_raw_mode(0o755)).map_err(|e| Fault::system("open the tree", e))?;
        let folders = HashMap::from([(inode, Folder { depth: 0, mtime: EPOCH })]);
        let buffer = vec![0; COPY_BUFFER_BYTES];
        Ok(Self { root, depth_max, folders, fresh: HashSet::new(), last: None, buffer })
    }

    /// Begins a layer.
    pub(super) fn begin_layer(&mut self) {
        self.fresh.clear();
        self.last = None;
    }

    /// Writes a file; returns how many bytes `content` had.
    pub(super) fn file(
        &mut self,
        place: &Place,
        entry: &Entry,
        content: &mut dyn Read,
    ) -> Result<(), Fault> {
        let parent = self.parent(&place.parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | FOLDERLESS;
        let private = Mode::from_raw_mode(0o600);
        let opened = match openat(&*parent.fd, place.name.as_slice(), flags, private) {
            Err(Errno::EXIST) => {
                self.clear_place(&parent, &place.name)?;
                openat(&*parent.fd, place.name.as_slice(), flags, private)
            }
            other => other,
        };
        let mut file = std::fs::File::from(opened.map_err(|e| Fault::system("make a file", e))?);
        let mut left = entry.size_bytes;
        while left > 0 {
            let count = content.read(&mut self.buffer).map_err(|e| super::archive::unpacked(&e))?;
            let part = self.buffer.get(..count).unwrap_or_default();
            if part.is_empty() {
                return Err(Fault::Invalid("a file in a layer is cut short".to_owned()));
            }
            file.write_all(part).map_err(|e| Fault::io("write a file", &e))?;
            left = left.saturating_sub(count as u64);
        }
        self.finish(file.as_fd(), entry)?;
        futimens(&file, &times(entry)).map_err(|e| Fault::system("set a file's time", e))
    }

    /// Makes a folder or changes the one that is there.
    pub(super) fn folder(&mut self, place: &Place, entry: &Entry) -> Result<(), Fault> {
        let parent = self.parent(&place.parent)?;
        match stat_name(parent.fd.as_fd(), &place.name)? {
            Some(stat) if is_folder(&stat) => {}
            found => {
                if found.is_some() {
                    self.clear_place(&parent, &place.name)?;
                }
                self.make_folder(&parent, &place.name)?;
            }
        }
        let folder = openat(&*parent.fd, place.name.as_slice(), FOLDER, Mode::empty())
            .map_err(|e| Fault::system("open a folder", e))?;
        self.folder_metadata(&folder, entry)
    }

    /// Changes the tree's own folder.
    pub(super) fn root_metadata(&mut self, entry: &Entry) -> Result<(), Fault> {
        let root = openat(&self.root, c".", FOLDER, Mode::empty())
            .map_err(|e| Fault::system("open the tree", e))?;
        self.folder_metadata(&root, entry)
    }

    /// Makes a symbolic link; its target is text, whatever it says.
    pub(super) fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<(), Fault> {
        let parent = self.parent(&place.parent)?;
        self.last = None;
        let (fd, name) = (&*parent.fd, place.name.as_slice());
        let made = match symlinkat(entry.link.as_slice(), fd, name) {
            Err(Errno::EXIST) => {
                self.clear_place(&parent, name)?;
                symlinkat(entry.link.as_slice(), fd, name)
            }
            other => other,
        };
        made.map_err(|e| Fault::system("make a symbolic link", e))?;
        let (uid, gid) = owner(entry);
        chownat(fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Fault::system("set a link's owner", e))?;
        utimensat(fd, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Fault::system("set a link's time", e))?;
        if let Some(stat) = stat_name(fd.as_fd(), name)? {
            self.fresh.insert(stat.st_ino);
        }
        Ok(())
    }

    /// Gives an existing file one more name. A symbolic link may be the file; it is not followed.
    pub(super) fn hard_link(&mut self, place: &Place, target: &Place) -> Result<(), Fault> {
        let missing = || {
            let name = String::from_utf8_lossy(&target.name).into_owned();
            Fault::Invalid(format!("a hard link to {name:?}, which is not in the image"))
        };
        let from = self.find_parent(&target.parent)?.ok_or_else(missing)?;
        let stat = stat_name(from.as_fd(), &target.name)?.ok_or_else(missing)?;
        if is_folder(&stat) {
            return Err(Fault::Invalid("a hard link to a folder".to_owned()));
        }
        let to = self.parent(&place.parent)?;
        if let Some(existing) = stat_name(to.fd.as_fd(), &place.name)? {
            self.fresh.insert(stat.st_ino);
            if existing.st_ino == stat.st_ino {
                return Ok(());
            }
            self.clear_place(&to, &place.name)?;
        }
        linkat(&from, target.name.as_slice(), &*to.fd, place.name.as_slice(), AtFlags::empty())
            .map_err(|e| match e {
                Errno::NOENT => missing(),
                Errno::MLINK => Fault::over("the names of one file", u64::from(u16::MAX)),
                other => Fault::system("make a hard link", other),
            })?;
        self.fresh.insert(stat.st_ino);
        Ok(())
    }

    /// Removes a name that a lower layer made.
    pub(super) fn whiteout(&mut self, place: &Place) -> Result<(), Fault> {
        let Some(parent) = self.find_parent(&place.parent)? else {
            return Ok(());
        };
        self.last = None;
        self.prune(parent.as_fd(), &place.name, false).map(|_| ())
    }

    /// Removes what lower layers have in a folder.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), Fault> {
        let Some(folder) = self.find_parent(path)? else {
            return Ok(());
        };
        self.last = None;
        self.prune_children(folder.as_fd(), false).map(|_| ())
    }

    /// Sets the folders' times, and returns the newest time of any file.
    pub(super) fn finish_times(self) -> Result<i64, Fault> {
        let mut newest = 0;
        let root = openat(&self.root, c".", FOLDER, Mode::empty())
            .map_err(|e| Fault::system("open the tree", e))?;
        self.set_times(&root, &mut newest)?;
        Ok(newest)
    }

    fn set_times(&self, folder: &OwnedFd, newest: &mut i64) -> Result<(), Fault> {
        for name in names(folder.as_fd())? {
            let Some(stat) = stat_name(folder.as_fd(), &name)? else {
                continue;
            };
            if is_folder(&stat) {
                let child = openat(folder, name.as_slice(), FOLDER, Mode::empty())
                    .map_err(|e| Fault::system("open a folder", e))?;
                self.set_times(&child, newest)?;
            } else {
                *newest = (*newest).max(stat.st_mtime);
            }
        }
        let inode = fstat(folder).map_err(|e| Fault::system("look at a folder", e))?.st_ino;
        let mtime = self.folders.get(&inode).map_or(EPOCH, |folder| folder.mtime);
        *newest = (*newest).max(mtime.tv_sec);
        futimens(folder, &Timestamps { last_access: mtime, last_modification: mtime })
            .map_err(|e| Fault::system("set a folder's time", e))
    }

    fn folder_metadata(&mut self, folder: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
        let inode = self.finish(folder.as_fd(), entry)?;
        if let Some(known) = self.folders.get_mut(&inode) {
            known.mtime = times(entry).last_modification;
        }
        Ok(())
    }

    /// Sets owner, then mode, then attributes: each takes away what a later one sets.
    fn finish(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<u64, Fault> {
        let (uid, gid) = owner(entry);
        fchown(fd, uid, gid).map_err(|e| Fault::system("set an owner", e))?;
        fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(|e| Fault::system("set a mode", e))?;
        for (name, value) in &entry.xattrs {
            fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
                .map_err(|e| Fault::system("set an attribute", e))?;
        }
        let inode = fstat(fd).map_err(|e| Fault::system("look at a file", e))?.st_ino;
        self.fresh.insert(inode);
        Ok(inode)
    }

    fn make_folder(&mut self, parent: &Parent, name: &[u8]) -> Result<(), Fault> {
        let depth = parent.depth + 1;
        if depth > self.depth_max {
            return Err(Fault::over("the depth of a path", self.depth_max as u64));
        }
        mkdirat(&*parent.fd, name, Mode::from_raw_mode(0o755))
            .map_err(|e| Fault::system("make a folder", e))?;
        let stat = stat_name(parent.fd.as_fd(), name)?
            .ok_or_else(|| Fault::System("look at a new folder".to_owned()))?;
        self.folders.insert(stat.st_ino, Folder { depth, mtime: EPOCH });
        self.fresh.insert(stat.st_ino);
        Ok(())
    }

    /// Removes whatever has the name, whichever layer made it.
    fn clear_place(&mut self, parent: &Parent, name: &[u8]) -> Result<(), Fault> {
        self.last = None;
        self.prune(parent.fd.as_fd(), name, true).map(|_| ())
    }

    /// Removes a name and what is under it, but for what the current layer made, unless `all`.
    /// Returns whether it is gone.
    fn prune(&mut self, parent: BorrowedFd<'_>, name: &[u8], all: bool) -> Result<bool, Fault> {
        let Some(stat) = stat_name(parent, name)? else {
            return Ok(true);
        };
        let keep = !all && self.fresh.contains(&stat.st_ino);
        if !is_folder(&stat) {
            if !keep {
                unlinkat(parent, name, AtFlags::empty())
                    .map_err(|e| Fault::system("remove a file", e))?;
            }
            return Ok(!keep);
        }
        let folder = openat(parent, name, FOLDER, Mode::empty())
            .map_err(|e| Fault::system("open a folder", e))?;
        let empty = self.prune_children(folder.as_fd(), all)?;
        if keep || !empty {
            return Ok(false);
        }
        unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(|e| Fault::system("remove a folder", e))?;
        self.folders.remove(&stat.st_ino);
        Ok(true)
    }

    fn prune_children(&mut self, folder: BorrowedFd<'_>, all: bool) -> Result<bool, Fault> {
        let mut empty = true;
        for name in names(folder)? {
            empty &= self.prune(folder, &name, all)?;
        }
        Ok(empty)
    }

    /// Returns the folder at a path inside the tree, if there is one.
    fn find_parent(&self, path: &[u8]) -> Result<Option<OwnedFd>, Fault> {
        match self.lookup(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(Fault::system("find a folder", errno)),
        }
    }

    fn lookup(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < LOOKUP_TRIES_MAX => tries += 1,
                other => return other,
            }
        }
    }

    /// Returns the folder at a path inside the tree; makes what is missing of it.
    fn parent(&mut self, path: &[u8]) -> Result<Parent, Fault> {
        if let Some((known, parent)) = &self.last
            && known == path
        {
            return Ok(parent.clone());
        }
        let fd = match self.lookup(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_parents(path)?,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(not_a_folder(path)),
            Err(errno) => return Err(Fault::system("find a folder", errno)),
        };
        let parent = self.as_parent(fd)?;
        self.last = Some((path.to_vec(), parent.clone()));
        Ok(parent)
    }

    fn as_parent(&self, fd: OwnedFd) -> Result<Parent, Fault> {
        let inode = fstat(&fd).map_err(|e| Fault::system("look at a folder", e))?.st_ino;
        let depth = self.folders.get(&inode).map_or(self.depth_max, |folder| folder.depth);
        Ok(Parent { fd: Rc::new(fd), depth })
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, Fault> {
        let ends = path
            .iter()
            .enumerate()
            .filter_map(|(at, byte)| (*byte == b'/').then_some(at))
            .chain([path.len()]);
        let mut above = self.lookup(b"").map_err(|e| Fault::system("open the tree", e))?;
        let mut start = 0;
        for end in ends {
            let name = path.get(start..end).unwrap_or_default();
            let upto = path.get(..end).unwrap_or_default();
            start = end + 1;
            above = match self.lookup(upto) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    let parent = self.as_parent(above)?;
                    // A link to nowhere has the name already: nothing is made through it.
                    if stat_name(parent.fd.as_fd(), name)?.is_some() {
                        return Err(not_a_folder(path));
                    }
                    self.make_folder(&parent, name)?;
                    self.lookup(upto).map_err(|e| Fault::system("open a folder", e))?
                }
                Err(_) => return Err(not_a_folder(path)),
            };
        }
        Ok(above)
    }
}

/// Flags of a file that is new: never a link's target.
const FOLDERLESS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);
const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// The latest time that is kept, in the year 2242; file systems differ beyond.
const MTIME_MAX_S: i64 = 1 << 33;

fn not_a_folder(path: &[u8]) -> Fault {
    let shown = String::from_utf8_lossy(path.get(..path.len().min(120)).unwrap_or(path));
    Fault::Invalid(format!("an entry under {shown:?}, which is not a folder"))
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    let id = |id: u64| u32::try_from(id).unwrap_or(0);
    (Some(Uid::from_raw(id(entry.uid))), Some(Gid::from_raw(id(entry.gid))))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_s.clamp(0, MTIME_MAX_S),
        tv_nsec: i64::from(entry.mtime_ns),
    };
    Timestamps { last_access: time, last_modification: time }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn stat_name(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Fault> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Fault::system("look at a file", errno)),
    }
}

fn names(folder: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Fault> {
    let entries = Dir::read_from(folder).map_err(|e| Fault::system("list a folder", e))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Fault::system("list a folder", e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
