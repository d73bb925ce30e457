//! Deleted names: character devices 0:0 in a layer dir, `.wh.` names in a layer tar.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{self, FileType, Mode};
use rustix::io::Errno;

/// Before the name of a file that is gone.
pub const PREFIX: &[u8] = b".wh.";

/// What the name of a tar member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Name,
    /// This name is gone from the layers below.
    Whiteout(&'a [u8]),
    /// Everything in the directory is gone from the layers below.
    Opaque,
    /// Bookkeeping of the AUFS filesystem; no part of the tree.
    Aufs,
    /// Deletes nothing that could be there: `.wh.`, `.wh..`, `.wh...`.
    Invalid,
}

/// The meaning of the last component of a member's path.
pub fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(PREFIX) {
        None => Meaning::Name,
        Some(b".wh..opq") => Meaning::Opaque,
        Some(b"" | b"." | b"..") => Meaning::Invalid,
        Some(rest) if rest.starts_with(PREFIX) => Meaning::Aufs,
        Some(rest) => Meaning::Whiteout(rest),
    }
}

/// Puts a whiteout in a layer dir. Permitted to everyone, unlike other devices.
pub fn create(dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
    fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_say() {
        for (name, expected) in [
            (&b"plain"[..], Meaning::Name),
            (b".wh", Meaning::Name),
            (b"x.wh.y", Meaning::Name),
            (b".wh.x", Meaning::Whiteout(b"x")),
            (b".wh...x", Meaning::Whiteout(b"..x")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk", Meaning::Aufs),
            (b".wh.", Meaning::Invalid),
            (b".wh..", Meaning::Invalid),
            (b".wh...", Meaning::Invalid),
        ] {
            assert_eq!(meaning(name), expected, "{}", name.escape_ascii());
        }
    }
}
