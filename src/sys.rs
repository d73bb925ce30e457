//! Every `unsafe` of the crate: the system calls that rustix does not wrap. One call a block, each
//! with the sentence that says why it is sound. And [`open_beneath`], which has to be called again.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_char, c_int, c_long};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;

/// Opens `path` from `dir` as `resolve` says (`openat2`, Linux 5.6). The kernel gives up a lookup of `..` where something is
/// renamed or mounted meanwhile, anywhere on the machine (`EAGAIN`): it is tried again.
pub fn open_beneath(
    dir: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// A process that this one made. It must be waited for with [`wait`].
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks a child that is PID 1 of a new pid namespace; `None` in the child. The namespace of later
/// children is as before.
///
/// The fork is the C library's own, so that its locks (malloc's above all) are whole in the child
/// even if other threads run; what other threads were doing to Rust's data is not, so the child
/// must not touch anything shared with them.
pub fn fork_into_new_pid_namespace() -> io::Result<Option<Child>> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    // SAFETY: a pid namespace for children changes nothing about memory or file descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?;
    // SAFETY: the child keeps to the contract above, which is the caller's.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        return Ok(None);
    }
    let forked = checked(forked.into());
    rustix::thread::move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    let pid = pid_from(forked?)?;
    Ok(Some(Child { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())? }))
}

fn pid_from(raw: c_long) -> io::Result<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("not a process id"))
}

/// Forks a child into the new namespaces `flags` (`CLONE_NEW*`); `None` in the child. For processes
/// with a single thread only: the C library does not learn of this fork.
pub fn clone(flags: c_int) -> io::Result<Option<Child>> {
    let mut pidfd: c_int = -1;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM this is a fork; `arguments` and `pidfd` live across the call.
    let cloned = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) })?;
    if cloned == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child { pid: pid_from(cloned)?, pidfd }))
}

/// Memory for the stack of a child that shares its parent's memory, above a page that nobody may touch.
#[derive(Debug)]
pub struct Stack {
    base: *mut c_void,
}

impl Stack {
    const SIZE_BYTES: usize = 1 << 20;
    /// Of the largest pages that a processor has.
    const GUARD_BYTES: usize = 64 << 10;

    pub fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: new memory, nowhere in particular.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), Self::SIZE_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first pages of what was just mapped.
        checked(unsafe { libc::mprotect(base, Self::GUARD_BYTES, libc::PROT_NONE) }.into())?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and nobody runs on it: its one user is waited for.
        unsafe { libc::munmap(self.base, Self::SIZE_BYTES) };
    }
}

/// Makes a child in the new namespaces `flags` (`CLONE_NEW*`) that runs `life` on `stack` in this process's
/// memory, and waits until it executes a program or ends, as it does at the end of its life: no page is copied, and
/// none given up. For processes with a single thread only.
///
/// The child's descriptors, ids and directories are its own. What it allocates and has not freed by then
/// stays allocated, and its peak of memory ([`Waited`]) begins with what this process has.
pub fn clone_sharing_memory(flags: c_int, stack: &mut Stack, life: &dyn Fn()) -> io::Result<Child> {
    extern "C" fn begin(life: *mut c_void) -> c_int {
        // SAFETY: the pointer below, to what lives until the child no longer uses this memory.
        let life = unsafe { *life.cast::<&dyn Fn()>() };
        life();
        exit(0)
    }
    /// `SUID_DUMP_USER`
    const DUMPABLE: libc::c_ulong = 1;
    // A child that changes its ids takes this from the memory, so from this process, too: what it makes later would not
    // belong to it in /proc.
    // SAFETY: asks only.
    let was_dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) } == 1;
    let mut pidfd: c_int = -1;
    let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let life = (&raw const life).cast_mut().cast();
    // SAFETY: the end of the stack, a multiple of 16 as every ABI wants it.
    let top = unsafe { stack.base.byte_add(Stack::SIZE_BYTES) };
    // SAFETY: CLONE_VFORK stops this thread, the only one, while the child uses its memory; `life`, the stack and
    // `pidfd` live across the call.
    let cloned = unsafe { libc::clone(begin, top, flags, life, &raw mut pidfd) };
    let cloned = checked(cloned.into());
    if was_dumpable {
        // SAFETY: changes nothing about memory or file descriptors; this value is always taken.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, DUMPABLE) };
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Child { pid: pid_from(cloned?)?, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Ends the process at once: no destructors, no exit handlers, which belong to the parent.
pub fn exit(status: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(status) }
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    /// As of `wait(2)`.
    pub status: i32,
    /// User and system time of the child and of those it waited for.
    pub cpu: Duration,
    /// Peak resident set of the largest of them.
    pub peak_bytes: u64,
    /// From and to block devices.
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// Waits for a child's end.
pub fn wait(pid: Pid) -> io::Result<Waited> {
    let mut status = 0;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right types.
        let waited = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, &raw mut usage) };
        match checked(waited.into()) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.try_into().unwrap_or(0))
            + Duration::from_micros(time.tv_usec.try_into().unwrap_or(0))
    };
    let number = |number: c_long| u64::try_from(number).unwrap_or(0);
    Ok(Waited {
        status,
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        peak_bytes: number(usage.ru_maxrss) * 1024,
        // Blocks here are sectors, whatever the disk has.
        read_bytes: number(usage.ru_inblock) * 512,
        written_bytes: number(usage.ru_oublock) * 512,
    })
}

/// Sets the ids that file system operations of this thread are done as.
///
/// The calls cannot tell whether they succeeded; they do for a process with CAP_SETUID and
/// CAP_SETGID. Capabilities stay if the securebit `NO_SETUID_FIXUP` is set. The kernel forgets the
/// parent-death signal.
pub fn set_filesystem_ids(uid: u32, gid: u32) {
    // SAFETY: changes nothing about memory; the raw call works on this thread alone.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

/// What [`mount_setattr`] changes: `MOUNT_ATTR_*` bits, and the user namespace whose map the mount
/// is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes<'a> {
    pub set: u64,
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Changes the mount that `mount` is the root of; with `is_recursive`, all those below it too.
pub fn mount_setattr(mount: BorrowedFd<'_>, is_recursive: bool, attributes: MountAttributes<'_>) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if is_recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let attributes = libc::mount_attr {
        attr_set: attributes.set | attributes.id_map.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: attributes.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is an empty C string and `attributes` lives across the call.
    checked(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    })?;
    Ok(())
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no descriptor is closed now, so no owner is deceived.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Closes every descriptor above standard error but those in `keep`. For a process that has just been
/// forked and drops nothing that it inherited.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    keep.sort_unstable();
    let mut first = 3;
    for end in keep.into_iter().chain([u32::MAX]) {
        if first < end {
            // SAFETY: the owners of these descriptors live on in the parent process only.
            checked(unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) })?;
        }
        first = end.saturating_add(1).max(first);
    }
    Ok(())
}

/// Gives every signal its default action and unblocks all.
pub fn reset_signals() {
    // The kernel's `struct sigaction`: all zeroes say the default action. The C library would
    // refuse the two signals it keeps for itself, which may come ignored from whoever started us.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the default action runs no code of ours; `default` is as large as what is read.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), 8) };
    }
    // SAFETY: all-zero is a value of sigset_t.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a live local.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is initialised; the old set is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Replaces this process by the program at `path`; returns only if that cannot be done.
pub fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// One instruction of classic BPF.
pub type Instruction = libc::sock_filter;

/// Makes `filter` decide on every later system call of this process and its descendants. Calls that it
/// does not decide on (`SECCOMP_RET_USER_NOTIF`) are asked about on the descriptor returned.
pub fn install_seccomp_filter(filter: &[Instruction]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(|_| io::Error::other("the filter is too long"))?,
        filter: filter.as_ptr().cast_mut(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: `program` points to `len` instructions, which the kernel only reads.
        checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
    };
    // A call that is interrupted by a signal starts over, although it may have been done already; with
    // the second flag (Linux 5.19) it waits, as a call that works on a disk does.
    let listening = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let listener = match install(listening | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(listening)?,
        installed => installed?,
    };
    let listener = c_int::try_from(listener).map_err(|_| io::Error::other("not a descriptor"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    pub id: u64,
    /// The thread that made it, in the pid namespace of the one that received this.
    pub thread: u32,
    /// `AUDIT_ARCH_*`.
    pub machine: u32,
    pub number: u32,
    pub arguments: [u64; 6],
}

/// What becomes of a system call.
#[derive(Debug)]
pub enum Answer {
    /// It returns this.
    Return(i64),
    /// It fails with this number.
    Fail(i32),
    /// It returns the number under which its process has this file from then on.
    Open { file: OwnedFd, is_closed_on_exec: bool },
    /// It is carried out as if nobody had asked; its caller may have changed what it points at.
    Continue,
}

/// Waits for the next call; `ENOENT` if its thread ended meanwhile.
pub fn receive_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: all fields are integers, for which zero is a value, and the one that the kernel wants.
    let mut received: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: this request writes one `seccomp_notif`, which is live.
    checked(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut received) }.into())?;
    Ok(Notification {
        id: received.id,
        thread: received.pid,
        machine: received.data.arch,
        number: received.data.nr.cast_unsigned(),
        arguments: received.data.args,
    })
}

/// Lets the answered thread go on where the answer was given (Linux 6.6): it waits for nothing else,
/// so that waking another processor would only take longer.
pub fn answer_on_this_processor(listener: BorrowedFd<'_>) -> io::Result<()> {
    /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`
    const SYNC_WAKE_UP: u64 = 1;
    let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
    // SAFETY: this request takes a number in the place of a pointer.
    checked(unsafe { libc::ioctl(listener.as_raw_fd(), request, SYNC_WAKE_UP) }.into())?;
    Ok(())
}

/// Whether the thread that made the call still waits, so that its number means nobody else.
pub fn is_notification_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
    // SAFETY: this request reads one number, which is live.
    unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const id) == 0 }
}

/// Answers a call; `ENOENT` if nobody waits any more.
pub fn answer_notification(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (val, error, flags) = match answer {
        Answer::Open { file, is_closed_on_exec } => return answer_with_file(listener, id, &file, is_closed_on_exec),
        Answer::Return(value) => (value, 0, 0),
        Answer::Fail(errno) => (0, -errno, 0),
        Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let response = libc::seccomp_notif_resp { id, val, error, flags };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: this request reads one `seccomp_notif_resp`, which is live.
    checked(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const response) }.into())?;
    Ok(())
}

fn answer_with_file(listener: BorrowedFd<'_>, id: u64, file: &OwnedFd, is_closed_on_exec: bool) -> io::Result<()> {
    let addition = libc::seccomp_notif_addfd {
        id,
        // The answer is sent in the same moment (Linux 5.14).
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: file.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: if is_closed_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
    // SAFETY: this request reads one `seccomp_notif_addfd`, which is live.
    checked(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const addition) }.into())?;
    Ok(())
}

/// A limit on a resource; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// How long the process of this thread may work in real time.
pub fn real_time_limit(thread: u32) -> io::Result<Limit> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let (resource, new) = (libc::RLIMIT_RTTIME, ptr::null());
    // SAFETY: no new limit is given, and `limit` is written to.
    checked(unsafe { libc::prlimit64(thread.cast_signed(), resource, new, &raw mut limit) }.into())?;
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

pub fn set_real_time_limit(thread: u32, limit: Limit) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    let (resource, old) = (libc::RLIMIT_RTTIME, ptr::null_mut());
    // SAFETY: `limit` is read, and the old one is not asked for.
    checked(unsafe { libc::prlimit64(thread.cast_signed(), resource, &raw const limit, old) }.into())?;
    Ok(())
}

/// What of a file's description is to be said differently.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub uid: u32,
    pub gid: u32,
    /// Kind and number of a device.
    pub device: Option<(u32, u64)>,
}

/// `struct stat` of what is open, as a system call writes it.
pub fn stat_bytes(file: BorrowedFd<'_>, said: Said) -> io::Result<Vec<u8>> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string and `stat` is written to.
    checked(unsafe { libc::fstatat(file.as_raw_fd(), c"".as_ptr(), &raw mut stat, libc::AT_EMPTY_PATH) }.into())?;
    (stat.st_uid, stat.st_gid) = (said.uid, said.gid);
    if let Some((kind, number)) = said.device {
        stat.st_mode = kind | stat.st_mode & 0o7777;
        stat.st_rdev = number;
        (stat.st_size, stat.st_blocks) = (0, 0);
    }
    let start = (&raw const stat).cast::<u8>();
    // SAFETY: `stat` is live, and was all zeroes with its padding before the kernel wrote to it.
    Ok(unsafe { std::slice::from_raw_parts(start, size_of::<libc::stat>()) }.to_vec())
}

/// `struct statx` of what is open, as a system call writes it.
pub fn statx_bytes(file: BorrowedFd<'_>, flags: u32, mask: u32, said: Said) -> io::Result<Vec<u8>> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags.cast_signed() & libc::AT_STATX_SYNC_TYPE | libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string and `stat` is written to.
    checked(unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut stat) }.into())?;
    (stat.stx_uid, stat.stx_gid) = (said.uid, said.gid);
    if let Some((kind, number)) = said.device {
        stat.stx_mode = (kind | u32::from(stat.stx_mode) & 0o7777) as u16;
        (stat.stx_rdev_major, stat.stx_rdev_minor) = (libc::major(number), libc::minor(number));
        (stat.stx_size, stat.stx_blocks) = (0, 0);
    }
    let start = (&raw const stat).cast::<u8>();
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts(start, size_of::<libc::statx>()) }.to_vec())
}

/// Leaves the session keyring that this process inherited for a new, empty one.
pub fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name makes an anonymous keyring.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, 1, ptr::null::<c_char>()) })?;
    Ok(())
}

/// Moves this process into a new user namespace, and a copy of its mount namespace that belongs to
/// it. Fails in a process with several threads.
pub fn enter_new_user_namespace() -> io::Result<()> {
    let flags = rustix::thread::UnshareFlags::NEWUSER | rustix::thread::UnshareFlags::NEWNS;
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Moves this process into a new network namespace, owned by its user namespace.
pub fn enter_new_network_namespace() -> io::Result<()> {
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// Moves this process into a namespace of host names that its user namespace owns; they stay what they are.
pub fn enter_new_host_name_namespace() -> io::Result<()> {
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUTS) }?)
}

/// Makes the control group that this process is in the root of what it sees of them.
pub fn enter_new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }?)
}

/// Moves this process into a copy of its mount namespace, owned by its user namespace.
pub fn enter_new_mount_namespace() -> io::Result<()> {
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Gives this thread a working directory, umask and root of its own.
pub fn keep_own_working_directory() -> io::Result<()> {
    // SAFETY: changes nothing about memory or file descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?)
}

/// Reads the names of the extended attributes of `name` in `dir`, itself even if it is a link, each with a zero
/// byte behind it. Returns their length; `ENOSYS` before Linux 6.13.
pub fn list_attributes_at(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> io::Result<usize> {
    /// `listxattrat`, on all machines.
    const LISTXATTRAT: c_long = 465;
    let (dir, flags) = (dir.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `name` ends with a zero byte, and the kernel writes no more than the length of `buffer`.
    let length = unsafe { libc::syscall(LISTXATTRAT, dir, name.as_ptr(), flags, buffer.as_mut_ptr(), buffer.len()) };
    Ok(checked(length)? as usize)
}

/// Brings the loopback interface of this process's network namespace up.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all-zero is a value of every member of this union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: this request reads one `ifreq`, which is live.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into())?;
    Ok(())
}

/// Makes the tap interface `name` in this process's network namespace, which stays when nobody has it open any
/// more. `tun` is an open `/dev/net/tun`.
pub fn make_tap(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all-zero is a value of every member of this union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: this request reads and writes one `ifreq`, which is live.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }.into())?;
    // SAFETY: this request takes a number.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, libc::c_ulong::from(1_u8)) }.into())?;
    Ok(())
}

/// Has the program that `command` starts, and all that this starts, killed when the other end of the pipe
/// `life` is closed: by who holds it, or by its death, however that comes. The program leads a process
/// group of its own, in which somebody waits for that.
pub fn die_with(command: &mut std::process::Command, life: OwnedFd) {
    use std::os::unix::process::CommandExt as _;
    let watch = move || {
        rustix::process::setpgid(None, None)?;
        if clone(0)?.is_none() {
            // Nobody is to wait for the end of a stream because it is open here.
            let _ = rustix::stdio::dup2_stdin(&life);
            let _ = rustix::stdio::dup2_stdout(&life);
            let _ = rustix::stdio::dup2_stderr(&life);
            // SAFETY: the owners of these descriptors live on in the parent process only.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            let _ = rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut [0]));
            let _ = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
            exit(0);
        }
        Ok(())
    };
    // SAFETY: between fork and exec there are system calls only, and no memory is allocated.
    unsafe { command.pre_exec(watch) };
}

/// Blocks `signals` for this thread and those it starts, and gives a descriptor from which they can
/// be read instead.
pub fn signal_fd(signals: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: a zeroed sigset_t is valid storage for sigemptyset, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writing.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in signals {
        // SAFETY: `set` is an initialised set.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    // SAFETY: `set` is an initialised set; the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd has just returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of the next signal of a [`signal_fd`]; waits for it.
pub fn read_signal(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // The kernel writes whole `signalfd_siginfo` structures, which begin with the number.
    let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut information))?;
    let number = information.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    Ok(c_int::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lookup_that_others_disturb_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        ["d", "e", "e/1"].iter().for_each(|name| fs::create_dir(path(name)).unwrap());
        fs::write(path("d/file"), "").unwrap();
        let root = fs::File::open(directory.path()).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    fs::rename(path("e/1"), path("e/2")).unwrap();
                    fs::rename(path("e/2"), path("e/1")).unwrap();
                }
            });
            let open = |_| open_beneath(&root, "d/../d/../d/../d/file", OFlags::RDONLY, ResolveFlags::IN_ROOT);
            let failed = (0..20_000).map(open).find_map(Result::err);
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
