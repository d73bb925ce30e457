//! The system calls that may be asked about instead of being carried out: those that a user namespace
//! forbids or cannot say, although the layer that comes of a step can.

use crate::layer::Records;

/// A system call by what it means; the 32-bit machines have several numbers for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Mknod,
    Mknodat,
    Setxattr,
    Lsetxattr,
    Fsetxattr,
    Setxattrat,
    Chown,
    Lchown,
    Fchown,
    Fchownat,
    Utimensat,
    UtimensatTime64,
    Setuid,
    Setgid,
    Setreuid,
    Setregid,
    Setresuid,
    Setresgid,
    Setfsuid,
    Setfsgid,
    Setgroups,
    Capset,
    Prctl,
    Prlimit64,
    Setrlimit,
    Getrlimit,
    Ugetrlimit,
    Stat,
    Lstat,
    Fstat,
    Newfstatat,
    Statx,
    Open,
    Openat,
    Openat2,
    Creat,
    Mkdir,
    Mkdirat,
    Symlink,
    Symlinkat,
    Execve,
    Execveat,
    Getuid,
    Getgid,
    Geteuid,
    Getegid,
    Getresuid,
    Getresgid,
    Getgroups,
}

/// How wide the ids among a call's arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The oldest calls of 32-bit machines.
    Bits16,
    Bits32,
}

/// The names that the lists of numbers have for these calls.
#[cfg(test)]
pub const NAMES: &[(&str, Call)] = &[
    ("mknod", Call::Mknod),
    ("mknodat", Call::Mknodat),
    ("setxattr", Call::Setxattr),
    ("lsetxattr", Call::Lsetxattr),
    ("fsetxattr", Call::Fsetxattr),
    ("setxattrat", Call::Setxattrat),
    ("chown", Call::Chown),
    ("lchown", Call::Lchown),
    ("fchown", Call::Fchown),
    ("fchownat", Call::Fchownat),
    ("utimensat", Call::Utimensat),
    ("utimensat_time64", Call::UtimensatTime64),
    ("setuid", Call::Setuid),
    ("setgid", Call::Setgid),
    ("setreuid", Call::Setreuid),
    ("setregid", Call::Setregid),
    ("setresuid", Call::Setresuid),
    ("setresgid", Call::Setresgid),
    ("setfsuid", Call::Setfsuid),
    ("setfsgid", Call::Setfsgid),
    ("setgroups", Call::Setgroups),
    ("capset", Call::Capset),
    ("prctl", Call::Prctl),
    ("prlimit64", Call::Prlimit64),
    ("setrlimit", Call::Setrlimit),
    ("getrlimit", Call::Getrlimit),
    ("ugetrlimit", Call::Ugetrlimit),
    ("stat", Call::Stat),
    ("lstat", Call::Lstat),
    ("fstat", Call::Fstat),
    ("newfstatat", Call::Newfstatat),
    ("statx", Call::Statx),
    ("open", Call::Open),
    ("openat", Call::Openat),
    ("openat2", Call::Openat2),
    ("creat", Call::Creat),
    ("mkdir", Call::Mkdir),
    ("mkdirat", Call::Mkdirat),
    ("symlink", Call::Symlink),
    ("symlinkat", Call::Symlinkat),
    ("execve", Call::Execve),
    ("execveat", Call::Execveat),
    ("getuid", Call::Getuid),
    ("getgid", Call::Getgid),
    ("geteuid", Call::Geteuid),
    ("getegid", Call::Getegid),
    ("getresuid", Call::Getresuid),
    ("getresgid", Call::Getresgid),
    ("getgroups", Call::Getgroups),
];

/// Which calls of a step are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// Those that make device nodes.
    Nodes,
    /// And those that set extended attributes: one that stands for a device is not for everybody to set.
    Attributes,
    /// Those that make files, say whose they are, or who somebody is.
    Owners,
}

impl Watch {
    /// What it takes to have a layer's records be true.
    pub fn of(records: Records) -> Self {
        match records {
            Records::None => Self::Nodes,
            Records::Nodes => Self::Attributes,
            Records::Owners => Self::Owners,
        }
    }
}
