//! COPY and ADD: lands the entries of a listing in a root, as BuildKit does.

use std::os::fd::BorrowedFd;

use crate::context::{Listing, Tree};
use crate::diag::Result;

/// Who owns what lands, where `--chown` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How to land.
#[derive(Clone, Debug)]
pub struct Landing<'a> {
    /// Absolute; a trailing slash says "a directory".
    pub destination: &'a str,
    pub owner: Option<Owner>,
    pub chmod: Option<&'a str>,
    /// The destination's symbolic links are not followed (`--link`).
    pub is_link: bool,
    pub has_parents: bool,
    /// Archives among the sources are unpacked.
    pub unpacks: bool,
    /// Modification time, in seconds since the epoch, of directories made on the way.
    pub now: i64,
}

/// Copies every selection of `listing` from `tree` beneath `root` (a writable overlay or a plain
/// directory). A file whose content differs from the listing's digest is an error: the context
/// changed during the build. On failure `root` holds a part of the copy and is to be thrown away.
pub fn land(tree: &Tree, listing: &Listing, root: BorrowedFd<'_>, landing: &Landing<'_>) -> Result<()> {
    let _ = (tree, listing, root, landing);
    todo!()
}

/// Lands a file that is no file of a tree: a heredoc or a download.
pub struct Blob<'a> {
    pub name: &'a str,
    pub content: &'a [u8],
    pub mode: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
}

pub fn land_blob(blob: &Blob<'_>, root: BorrowedFd<'_>, landing: &Landing<'_>) -> Result<()> {
    let _ = (blob, root, landing);
    todo!()
}
