//! A thread that waits for the answer to its system call: its memory, its view of the file system and
//! its credentials.

use std::cell::OnceCell;
use std::ffi::CString;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::getgroups;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups};

use super::status::Status;
use crate::sys::{self, Answer, Notification};

/// As the kernel's limit on a path, its end included.
const PATH_BYTES: usize = 4096;
const PAGE_BYTES: u64 = 4096;
/// `AT_FDCWD`, of which a call may have set the lower half only.
const CURRENT_DIRECTORY: i32 = libc::AT_FDCWD;

pub struct Target {
    /// Its directory in procfs, which stays its own: when it is gone nothing is found there.
    dir: OwnedFd,
    /// Its number here, as long as it waits.
    pub thread: u32,
    status: OnceCell<Status>,
}

/// A path as a call gives it: what it is relative to, and the rest as far as the last name.
pub struct Place {
    /// The directory of the last name.
    pub parent: OwnedFd,
    /// With the slashes that follow it.
    pub name: CString,
}

impl Target {
    /// Finds the thread in `proc`, a procfs of this process's pid namespace.
    pub fn find(proc: BorrowedFd<'_>, listener: BorrowedFd<'_>, notification: &Notification) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(proc, notification.thread.to_string(), flags, Mode::empty())?;
        // While it waits its number is no other's; from here on its directory is held.
        if !sys::is_notification_valid(listener, notification.id) {
            return Err(Errno::SRCH);
        }
        Ok(Self { dir, thread: notification.thread, status: OnceCell::new() })
    }

    /// What the kernel says of it, which takes a while; asked once.
    pub fn status(&self) -> Result<&Status, Errno> {
        if let Some(status) = self.status.get() {
            return Ok(status);
        }
        let text = read(&self.dir, "status")?;
        let status = Status::parse(&String::from_utf8_lossy(&text)).ok_or(Errno::SRCH)?;
        Ok(self.status.get_or_init(|| status))
    }

    /// Whether its ids and capabilities are those of the user namespace `namespace`.
    pub fn is_of(&self, namespace: BorrowedFd<'_>) -> Result<bool, Errno> {
        let own = rustix::fs::statat(&self.dir, "ns/user", AtFlags::empty())?;
        let expected = rustix::fs::fstat(namespace)?;
        Ok((own.st_dev, own.st_ino) == (expected.st_dev, expected.st_ino))
    }

    /// The path at `address` in its memory.
    pub fn string(&self, address: u64) -> Result<CString, Errno> {
        let memory = self.memory(OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        while bytes.len() < PATH_BYTES {
            let from = address.checked_add(bytes.len() as u64).ok_or(Errno::FAULT)?;
            // Up to the end of a page: the next one need not be there.
            let room = usize::try_from(PAGE_BYTES - from % PAGE_BYTES).unwrap_or(0).min(PATH_BYTES - bytes.len());
            let mut piece = vec![0; room];
            let count = read_at(&memory, &mut piece, from)?;
            bytes.extend_from_slice(&piece[..count]);
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                bytes.truncate(end);
                return CString::new(bytes).map_err(|_| Errno::FAULT);
            }
        }
        Err(Errno::NAMETOOLONG)
    }

    /// So many bytes at `address` in its memory.
    pub fn bytes(&self, address: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; size];
        let (mut done, memory) = (0, self.memory(OFlags::RDONLY)?);
        while done < size {
            let from = address.checked_add(done as u64).ok_or(Errno::FAULT)?;
            done += read_at(&memory, &mut bytes[done..], from)?;
        }
        Ok(bytes)
    }

    /// Writes to its memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let (mut done, memory) = (0, self.memory(OFlags::WRONLY)?);
        while done < bytes.len() {
            let to = address.checked_add(done as u64).ok_or(Errno::FAULT)?;
            done += match rustix::io::retry_on_intr(|| rustix::io::pwrite(&memory, &bytes[done..], to)) {
                Ok(0) | Err(Errno::IO) => return Err(Errno::FAULT),
                written => written?,
            };
        }
        Ok(())
    }

    /// Answers with this, if there is a place for it.
    pub fn write_if(&self, address: u64, bytes: &[u8]) -> Result<Answer, Errno> {
        if address != 0 {
            self.write(address, bytes)?;
        }
        Ok(Answer::Return(0))
    }

    fn memory(&self, access: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.dir, "mem", access | OFlags::CLOEXEC, Mode::empty())
    }

    pub fn mount_namespace(&self) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.dir, "ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// The file that it has open under a number.
    pub fn open_file(&self, number: u64) -> Result<OwnedFd, Errno> {
        // The kernel takes an `unsigned int`.
        match rustix::fs::openat(
            &self.dir,
            format!("fd/{}", number as u32),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => Err(Errno::BADF),
            opened => opened,
        }
    }

    /// Makes this process see files as the thread does, until the view is dropped. What a path means is
    /// then for the kernel to say: no rule of ours about links or `..` has to be right.
    pub fn look<'h>(&self, home: &'h Home) -> Result<View<'h>, Errno> {
        let root = self.directory("root")?;
        let cwd = self.directory("cwd")?;
        let view = View { home };
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        rustix::process::fchdir(&cwd)?;
        Ok(view)
    }

    /// Makes this process act as the thread: with its ids and its capabilities, under its creation mask.
    /// Where it is meanwhile, a view or its home, it stays: leaving takes its own capabilities.
    pub fn act<'h, Here>(&self, _here: &'h Here) -> Result<Actor<'h>, Errno> {
        let status = self.status()?;
        let actor = Actor { own: capabilities(None)?, here: PhantomData };
        rustix::process::umask(Mode::from_raw_mode(status.umask));
        let groups: Vec<Gid> = status.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        // In some user namespaces nobody may change them.
        if getgroups()? != groups {
            set_thread_groups(&groups)?;
        }
        let (uid, gid) = status.filesystem_ids;
        sys::set_filesystem_ids(uid, gid);
        actor.limit(status.capabilities)?;
        Ok(actor)
    }

    /// The directory that a call names by a number.
    fn base(&self, number: u64) -> Result<OwnedFd, Errno> {
        // The kernel takes an `int`.
        match number as u32 as i32 {
            CURRENT_DIRECTORY => self.directory("cwd"),
            number @ 0.. => match self.directory(&format!("fd/{number}")) {
                Err(Errno::NOENT) => Err(Errno::BADF),
                opened => opened,
            },
            _ => Err(Errno::BADF),
        }
    }

    fn directory(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, name, flags, Mode::empty())
    }

    /// What the path at `address`, relative to the directory `number`, is to be looked up from. To be
    /// asked for before anything is looked at: only this process as itself may read another's memory.
    pub fn path(&self, number: u64, address: u64) -> Result<Path, Errno> {
        let text = self.string(address)?;
        if text.is_empty() {
            return Err(Errno::NOENT);
        }
        if text.to_bytes().starts_with(b"/") {
            return Ok(Path { base: None, text: self.own_name(text)? });
        }
        Ok(Path { base: Some(self.base(number)?), text })
    }

    /// What a call with `AT_*` flags is about. Of these only the ones that say so are looked at.
    pub fn object(&self, directory: u64, address: u64, flags: u64) -> Result<Object, Errno> {
        let flags = AtFlags::from_bits_retain(flags as u32);
        if flags.contains(AtFlags::EMPTY_PATH) && (address == 0 || self.string(address)?.is_empty()) {
            return match directory as u32 as i32 {
                CURRENT_DIRECTORY => self.directory("cwd").map(Object::Open),
                _ => self.open_file(directory).map(Object::Open),
            };
        }
        let is_followed = !flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        Ok(Object::Named { path: self.path(directory, address)?, is_followed })
    }

    /// `/proc/self` is whoever asks, and `/dev` has links there; the thread has numbers in it.
    fn own_name(&self, path: CString) -> Result<CString, Errno> {
        const WHOLE: [(&str, &str); 4] =
            [("/dev/fd", "fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")];
        let bytes = path.to_bytes();
        if !bytes.starts_with(b"/proc/") && !bytes.starts_with(b"/dev/") {
            return Ok(path);
        }
        let (process, thread) = self.status()?.own_numbers;
        if let Some((_, name)) = WHOLE.iter().find(|(whole, _)| whole.as_bytes() == bytes) {
            return CString::new(format!("/proc/{process}/{name}")).map_err(|_| Errno::INVAL);
        }
        let own = [
            ("/proc/self/", format!("/proc/{process}/")),
            ("/proc/thread-self/", format!("/proc/{process}/task/{thread}/")),
            ("/dev/fd/", format!("/proc/{process}/fd/")),
        ];
        for (prefix, name) in own {
            if let Some(rest) = bytes.strip_prefix(prefix.as_bytes()) {
                return CString::new([name.as_bytes(), rest].concat()).map_err(|_| Errno::INVAL);
            }
        }
        Ok(path)
    }
}

/// A path of the thread's.
pub struct Path {
    /// None for an absolute one.
    base: Option<OwnedFd>,
    text: CString,
}

impl Path {
    /// Goes to the directory that it names itself.
    pub fn directory(&self) -> Result<Place, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = self.base.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd);
        let parent = rustix::fs::openat(base, &self.text, flags, Mode::empty())?;
        Ok(Place { parent, name: c".".to_owned() })
    }

    /// Goes to the directory of the last name, in the present view and as whoever acts.
    pub fn place(&self) -> Result<Place, Errno> {
        let bytes = self.text.to_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = bytes.split_at(start);
        let parent = if parent.is_empty() { b"." } else { parent };
        // Of the root alone nothing is left.
        let name = if name.is_empty() { b"." } else { name };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = self.base.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd);
        let parent = rustix::fs::openat(base, parent, flags, Mode::empty())?;
        Ok(Place { parent, name: CString::new(name).map_err(|_| Errno::INVAL)? })
    }
}

/// What a call is about.
pub enum Object {
    /// A file that the thread has open.
    Open(OwnedFd),
    Named {
        path: Path,
        is_followed: bool,
    },
}

impl Object {
    /// Opens it as a place, in the present view and as whoever acts.
    pub fn open(self) -> Result<OwnedFd, Errno> {
        match self {
            Self::Open(file) => Ok(file),
            Self::Named { path, is_followed } => {
                let follow = if is_followed { OFlags::empty() } else { OFlags::NOFOLLOW };
                let base = path.base.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd);
                rustix::fs::openat(base, &path.text, OFlags::PATH | OFlags::CLOEXEC | follow, Mode::empty())
            }
        }
    }
}

/// This process's own root.
pub struct Home(OwnedFd);

impl Home {
    pub fn here() -> Result<Self, Errno> {
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// This process with another's root and current directory. They are its own again when this is dropped.
pub struct View<'h> {
    home: &'h Home,
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // It was here before, and may always return.
        let _ = rustix::process::fchdir(&self.home.0).and_then(|()| rustix::process::chroot("."));
    }
}

/// This process as another, until it is dropped.
pub struct Actor<'h> {
    own: CapabilitySets,
    here: PhantomData<&'h ()>,
}

impl Actor<'_> {
    /// Lets go of all capabilities but these.
    pub fn limit(&self, kept: CapabilitySet) -> Result<(), Errno> {
        set_capabilities(None, CapabilitySets { effective: self.own.effective & kept, ..self.own })
    }
}

impl Drop for Actor<'_> {
    fn drop(&mut self) {
        // Both are always possible: what is effective may be what is permitted.
        let _ = set_capabilities(None, self.own);
        sys::set_filesystem_ids(0, 0);
        rustix::process::umask(Mode::empty());
    }
}

fn read_at(memory: &OwnedFd, into: &mut [u8], from: u64) -> Result<usize, Errno> {
    match rustix::io::retry_on_intr(|| rustix::io::pread(memory, &mut *into, from)) {
        Ok(0) | Err(Errno::IO) => Err(Errno::FAULT),
        read => read,
    }
}

/// Opens for reading what is open as a place.
pub fn reopen(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
}

fn read(dir: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)))? == 0 {
            return Ok(bytes);
        }
        bytes.reserve(4096);
    }
}
