//! Layers: from an overlay upper dir to a canonical directory, from there to a tar and back.
//!
//! ```text
//! upper ── canonical ──▶ layer dir ── pack ──▶ tar (its SHA-256 is the diff ID)
//!                            ▲                  │
//!                            └───── unpack ─────┘        pack(unpack(pack(d))) == pack(d)
//! ```
//!
//! A layer dir is an overlay lower dir: whiteouts are character devices 0:0, there are no opaque
//! directories and no overlay xattrs, and every parent directory of an entry is there. What its maker
//! could not make is recorded in it (`record`).

pub mod node;
pub mod xattr;
pub mod record;
pub mod whiteout;
pub mod merged;
pub mod canonical;
pub mod header;
mod pack;
mod observer;
mod stream;
pub mod archive;
pub mod staging;
pub mod unpack;
mod table;
mod relief;
pub mod compress;
pub mod decompress;
mod names;
mod flatten;
mod transfer;
mod difference;
mod fuse_overlay;

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{Digest, TreeDigest};

pub use compress::Workers;
pub use difference::Snapshot;
pub use header::Member;
pub use merged::{lookup, read_file};
pub use record::Records;
pub use relief::{Cutting, Met, Relief};
pub use table::Table;
pub use transfer::{Links, Shift};

/// What a canonical upper holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries below the root, parents and whiteouts included; 0 means the step changed nothing.
    pub entries: u64,
    /// Sum of the sizes of regular files, hard links once.
    pub size_bytes: u64,
    /// The latest modification time of what is neither a directory nor a whiteout, in seconds since the epoch.
    pub newest: i64,
}

/// Makes an upper dir canonical, in place, once, at commit: compares it with what is below,
/// removes what did not change, and turns opaque directories into explicit whiteouts. `lowers` are
/// layer dirs, topmost first. `skeleton` is the directory that stood below all of them to offer mount points:
/// its names do not count as there.
pub fn canonicalize(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    skeleton: Option<BorrowedFd<'_>>,
) -> Result<Summary> {
    canonical::canonicalize(upper, lowers, skeleton)
}

/// Fills the empty directory `into` with what `layers` (topmost first, on the same filesystem) show
/// together; files become links to theirs. With nothing below, it is a layer dir.
pub fn flatten(layers: &[BorrowedFd<'_>], into: BorrowedFd<'_>) -> Result<()> {
    flatten::flatten(layers, into).context(|| "cannot make one directory of many layers")
}

/// Fills the empty directory `into` with what is in `from`, a layer dir or another tree: whiteouts and attributes
/// too, not sockets.
pub fn transfer(from: BorrowedFd<'_>, into: BorrowedFd<'_>, links: Links<'_>, shift: Shift) -> Result<()> {
    transfer::transfer(from, into, links, shift).context(|| "cannot copy a tree of files")
}

/// What the names in a layer dir stand for, directories and whiteouts left out; a file with several names is there
/// several times.
pub fn files_by_name(dir: BorrowedFd<'_>) -> Result<Vec<node::Identity>> {
    names::files(dir).context(|| "cannot look for the names of files")
}

/// Looks at a tree before it is worked on; `beside` is a directory on its filesystem.
pub fn snapshot(tree: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> Result<Snapshot> {
    difference::snapshot(tree, beside).context(|| "cannot look at a tree of files")
}

/// Fills the upper dir `into` with what was changed in `tree` since it was `before`; it is to be made canonical
/// then.
pub fn difference(tree: BorrowedFd<'_>, before: Snapshot, into: BorrowedFd<'_>, shift: Shift) -> Result<()> {
    difference::difference(tree, before, into, shift).context(|| "cannot find what a step changed")
}

/// Turns what `fuse-overlayfs` has left in an upper dir over `lowers` since a time into what the kernel's overlay
/// would have left.
pub fn translate_fuse_overlay(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], since: (i64, u32)) -> Result<()> {
    fuse_overlay::translate(upper, lowers, since).context(|| "cannot read what fuse-overlayfs left")
}

/// Writes a layer dir as a tar: a pure function of the directory's content.
pub fn pack(dir: BorrowedFd<'_>, out: &mut (dyn Write + Send)) -> Result<()> {
    pack_with(dir, None, out, None)
}

/// The same, and finds the digest of what is packed.
pub fn pack_and_digest(dir: BorrowedFd<'_>, out: &mut (dyn Write + Send)) -> Result<TreeDigest> {
    let mut tree = observer::Tree::default();
    pack_with(dir, None, out, Some(&mut tree))?;
    Ok(tree.finish())
}

/// The same of a layer dir in which files stand for what is elsewhere. Returns the digests of the contents of which
/// nobody knew them, with their numbers.
pub fn pack_outline(
    dir: BorrowedFd<'_>,
    contents: &dyn Contents,
    out: &mut (dyn Write + Send),
) -> Result<Vec<(usize, Digest)>> {
    let mut check = observer::Check::default();
    pack_with(dir, Some(contents), out, Some(&mut check))?;
    check.finish().map_err(|path| contents.is_another(&path))
}

fn pack_with<'a>(
    dir: BorrowedFd<'_>,
    contents: Option<&dyn Contents>,
    out: &'a mut (dyn Write + Send),
    observer: Option<&'a mut dyn observer::Observer>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let mut stream = stream::Stream::new(scope, out, observer);
        pack::pack(dir, contents, &mut stream)?;
        stream.finish()
    })
}

/// What is elsewhere, and has files in a layer dir that stand for it.
pub trait Contents {
    /// Whether the file at `path` stands for others: then `put` takes each of those, in the order of a layer. They have
    /// the place of the file, and nothing else in its directory is between them.
    fn instead(&self, path: &[u8], put: &mut Put<'_>) -> Result<bool>;

    /// What to say where the content of what is put at `path` is not what it was.
    fn is_another(&self, path: &[u8]) -> Diagnostic;
}

/// Takes a member and its bytes, if it has any.
pub type Put<'p> = dyn FnMut(&Member<'_>, Option<Content>) -> Result<()> + 'p;

/// The bytes of a member.
pub struct Content {
    pub file: std::fs::File,
    pub expected: Expected,
}

/// What bytes have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Digest(Digest),
    /// Whatever they are, which is to be told with this number.
    Anything(usize),
}

/// Applies a layer tar (uncompressed) to the empty directory `into`, as a layer dir that stands on
/// `lowers` (topmost first): implied parents take their metadata from below, opaque markers become
/// whiteouts of what is below. Hostile names never leave `into`.
pub fn unpack(tar: &mut dyn Read, into: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>]) -> Result<Summary> {
    unpack::unpack(tar, into, lowers)
}

/// The table of a layer tar (uncompressed), which is read to its end. `None` for what is no layer tar, or one that is too
/// large for it; fails only where reading does.
pub fn tabulate(tar: &mut dyn Read) -> std::io::Result<Option<Table>> {
    table::read(tar)
}

/// The same of a layer dir, which shows the same over what is below.
pub fn tabulate_dir(dir: BorrowedFd<'_>) -> Result<Option<Table>> {
    table::of_dir(dir).context(|| "cannot read a layer dir")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compression {
    None,
    /// zlib levels.
    Gzip {
        level: u32,
    },
    Zstd {
        level: u32,
    },
}

impl Compression {
    pub const MAX_GZIP_LEVEL: u32 = 9;
    pub const MAX_ZSTD_LEVEL: u32 = 22;
    /// What exports use when nothing is said.
    pub const DEFAULT: Self = Self::Gzip { level: 6 };
    /// What zstd itself uses when nothing is said.
    pub const ZSTD: Self = Self::Zstd { level: 3 };
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("uncompressed"),
            Self::Gzip { level } => write!(f, "gzip, level {level}"),
            Self::Zstd { level } => write!(f, "zstd, level {level}"),
        }
    }
}

/// Compresses; the bytes do not depend on who does.
pub fn compress(
    input: &mut dyn Read,
    output: &mut (dyn Write + Send),
    compression: Compression,
    workers: Workers<'_>,
) -> Result<()> {
    compress::compress(input, output, compression, workers)
}

/// A reader of the plain content: gzip (several members), bzip2, xz and zstd are told by their
/// first bytes; anything else is passed through.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    decompress::decompress(input)
}
