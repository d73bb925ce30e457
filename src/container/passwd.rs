//! `/etc/passwd` and `/etc/group` of an image: read beneath its root, size-capped, never followed
//! out.

use std::os::fd::BorrowedFd;

use crate::diag::Result;

/// What USER means in one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// From passwd; `/` where the user has no entry.
    pub home: String,
}

/// Resolves USER (`name|uid[:group|gid]`; empty for root) in the rootfs `root`.
pub fn user(root: BorrowedFd<'_>, spec: &str) -> Result<User> {
    let _ = (root, spec);
    todo!()
}

/// Resolves `--chown` (`user[:group]`) in the rootfs `root`: a name alone has its primary group, a
/// number alone is also the gid. An unknown name is an error.
pub fn owner(root: BorrowedFd<'_>, spec: &str) -> Result<(u32, u32)> {
    let _ = (root, spec);
    todo!()
}
