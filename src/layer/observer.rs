//! Who looks at a layer while it is packed: the tree digest is made of what is seen, or content that comes from
//! elsewhere is compared with what it has to be.

use std::mem;
use std::ops::Range;

use super::Expected;
use super::header::Member;
use crate::digest::{Digest, Hasher, TreeDigest};

/// Who looks at what goes by, in order.
pub trait Observer: Send {
    /// Whether it is to see members, and not only content.
    fn sees_members(&self) -> bool;

    /// `bytes` are those of the buffer.
    fn see(&mut self, piece: Piece, bytes: &[u8]);
}

pub enum Piece {
    /// Of a member; see [`describe`].
    Description(Vec<u8>),
    /// Of the content of a file, among the bytes of a buffer.
    Content(Range<usize>),
    /// What comes is the content of a file that comes from elsewhere.
    Begin,
    /// That is over: the file lands at `path` and had to have this content.
    End { path: Vec<u8>, expected: Expected },
}

/// Makes the tree digest: that of the members, without their times.
#[derive(Default)]
pub struct Tree(Hasher);

impl Tree {
    pub fn finish(self) -> TreeDigest {
        TreeDigest::new(self.0.finish())
    }
}

impl Observer for Tree {
    fn sees_members(&self) -> bool {
        true
    }

    fn see(&mut self, piece: Piece, bytes: &[u8]) {
        match piece {
            Piece::Description(description) => self.0.update(&description),
            Piece::Content(range) => self.0.update(&bytes[range]),
            Piece::Begin | Piece::End { .. } => {}
        }
    }
}

/// Makes sure that files have the content they have to have, or finds what they have.
#[derive(Default)]
pub struct Check {
    hasher: Hasher,
    another: Option<Vec<u8>>,
    found: Vec<(usize, Digest)>,
}

impl Check {
    /// What was found, or the first file that has another content.
    pub fn finish(self) -> Result<Vec<(usize, Digest)>, Vec<u8>> {
        self.another.map_or(Ok(self.found), Err)
    }
}

impl Observer for Check {
    fn sees_members(&self) -> bool {
        false
    }

    fn see(&mut self, piece: Piece, bytes: &[u8]) {
        match piece {
            Piece::Description(_) => {}
            Piece::Begin => self.hasher = Hasher::default(),
            Piece::Content(range) => self.hasher.update(&bytes[range]),
            Piece::End { path, expected } => match (mem::take(&mut self.hasher).finish(), expected) {
                (digest, Expected::Anything(number)) => self.found.push((number, digest)),
                (digest, Expected::Digest(expected)) if digest == expected => {}
                (_, Expected::Digest(_)) => drop(self.another.get_or_insert(path)),
            },
        }
    }
}

/// A member as the tree digest sees it: everything but the times.
pub fn describe(member: &Member<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(member.path.len() + member.link.len() + 64);
    let mut field = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    field(member.path);
    field(&[member.entry_type.as_byte()]);
    for number in [member.mode, member.uid, member.gid, member.major, member.minor] {
        field(&number.to_le_bytes());
    }
    field(&member.size_bytes.to_le_bytes());
    field(member.link);
    field(&(member.xattrs.len() as u64).to_le_bytes());
    for (name, value) in member.xattrs {
        field(name.to_bytes());
        field(value);
    }
    out
}
