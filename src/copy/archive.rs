//! ADD of an archive: its members land in the destination directory as they are recorded.
//!
//! Whose archive it is is not known. Names are clamped into the destination, links (of the image or
//! of the archive) are resolved with the destination as their `/`, only `user.*` attributes and
//! capabilities are kept, and there is a bound on members and bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use super::Owner;
use super::content;
use super::member::{Kind, Member, Members};
use super::node::{self, Attributes};
use super::place::{self, Directory, Follows, Makes, Root, Spot, clamped, components, join, shown};
use crate::diag::{Context, Diagnostic, Result};

/// What an archive may grow to; generous, since an image of a system is one too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub members: u64,
    pub size_bytes: u64,
}

impl Limits {
    /// For an archive of that size as it is (compressed): 2000 times as much, which no gzip comes
    /// to, at least 16 GiB and at most 1 TiB.
    pub const fn of(packed_bytes: u64) -> Self {
        let unpacked = packed_bytes.saturating_mul(2000);
        let (least, most) = (16 << 30, 1 << 40);
        let size_bytes = if unpacked < least { least } else { unpacked };
        Self { members: 10_000_000, size_bytes: if size_bytes > most { most } else { size_bytes } }
    }
}

/// Whether this is a tar with at least one member, compressed or not. What is damaged from its
/// start is none.
pub(super) fn is_archive(input: impl Read + Send) -> bool {
    decompress(input).is_ok_and(|plain| matches!(Members::new(plain).next(), Ok(Some(_))))
}

/// Unpacks an archive into the directory `into`; `name` is its name for messages.
pub(super) fn unpack(
    input: impl Read + Send,
    name: &str,
    into: &Directory,
    root: &mut Root<'_>,
    owner: Option<Owner>,
    limits: Limits,
) -> Result<()> {
    let plain = decompress(input)?;
    let mut members = Members::new(plain);
    let mut unpacker =
        Unpacker { into, root, owner, times: BTreeMap::new(), buffer: vec![0; content::BUFFER_BYTES], left: limits };
    while let Some(member) = members.next().context(|| format!("cannot read the archive `{name}`"))? {
        unpacker.member(&member, &mut members).map_err(|error| {
            let member = String::from_utf8_lossy(&member.name);
            let cause = error.cause.map_or_else(String::new, |cause| format!(": {cause}"));
            Diagnostic::error(format!("cannot unpack `{member}` of the archive `{name}`"))
                .caused_by(format!("{}{cause}", error.message))
        })?;
    }
    for (path, mtime) in unpacker.times {
        unpacker.root.set_time(path, mtime);
    }
    Ok(())
}

struct Unpacker<'a, 'r> {
    into: &'a Directory,
    root: &'a mut Root<'r>,
    owner: Option<Owner>,
    /// Of directories that are members; set at the end, as members land in them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    buffer: Vec<u8>,
    /// What the archive may still hold.
    left: Limits,
}

impl Unpacker<'_, '_> {
    /// Implied parents are root's whatever `--chown` says.
    const MAKES: Makes = Makes { mode: 0o755, owner: Owner::ROOT };

    fn member<R: Read>(&mut self, member: &Member, members: &mut Members<R>) -> Result<()> {
        self.count(member)?;
        let path = clamped(&member.name);
        if path.is_empty() {
            return Ok(());
        }
        for name in components(&path) {
            place::check_name(name, &join(&self.into.path, &path))?;
        }
        let xattrs: Vec<_> = member.xattrs.iter().filter(|(name, _)| is_kept(name)).cloned().collect();
        let attributes =
            Attributes { owner: self.owner_of(member)?, mode: member.mode, mtime: member.mtime, xattrs: &xattrs };
        if member.kind == Kind::Directory {
            return self.directory(&path, &attributes);
        }
        let (parent, name) = self.split(&path)?;
        if let Kind::Hardlink { target } = &member.kind {
            return self.hardlink(&parent, name, target, &attributes);
        }
        self.make_room(&parent, name)?;
        self.root.touch(&parent.path);
        let path = parent.join(name);
        let fd = parent.fd.as_fd();
        let made = match &member.kind {
            Kind::File { size_bytes, pieces } => {
                let fd = node::make_file(fd, name).context(|| format!("cannot make `{}`", shown(&path)))?;
                let file = File::from(fd);
                self.write(&file, *size_bytes, pieces, members)
                    .context(|| format!("cannot write `{}`", shown(&path)))?;
                return node::set_attributes(file.as_fd(), &attributes)
                    .and_then(|()| node::set_time(file.as_fd(), member.mtime))
                    .context(|| format!("cannot set the owner and mode of `{}`", shown(&path)));
            }
            Kind::Symlink { target } => rustix::fs::symlinkat(target.as_slice(), fd, name),
            Kind::Fifo => node::make_special(fd, name, FileType::Fifo, (0, 0)),
            // Overlays mark a deletion by such a device.
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Err(Diagnostic::error("a character device 0:0 is a deletion to the overlay"));
            }
            Kind::CharDevice { major, minor } => {
                node::make_special(fd, name, FileType::CharacterDevice, (*major, *minor))
            }
            Kind::BlockDevice { major, minor } => node::make_special(fd, name, FileType::BlockDevice, (*major, *minor)),
            Kind::Directory | Kind::Hardlink { .. } => return Ok(()),
        };
        let is_device = matches!(member.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
        match made {
            // No devices in a user namespace.
            Err(Errno::PERM) if is_device => Ok(()),
            other => other
                .and_then(|()| node::set_attributes_at(fd, name, &attributes))
                .context(|| format!("cannot make `{}`", shown(&path))),
        }
    }

    fn directory(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<()> {
        let directory = match self.root.walk(self.into, path, Follows::Links, Self::MAKES)? {
            Spot::Directory(directory) => directory,
            Spot::Name { parent, name, is_free } => {
                if !is_free {
                    self.make_room(&parent, &name)?;
                }
                self.root.make_directory(&parent, &name, Self::MAKES)?
            }
        };
        // Through a link that leads back to it: the destination's own look is not the archive's.
        if directory.path == self.into.path {
            return Ok(());
        }
        place::open_below(directory.fd.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|fd| node::set_attributes(fd.as_fd(), attributes))
            .context(|| format!("cannot set the owner and mode of `{}`", shown(&directory.path)))?;
        self.times.insert(directory.path, attributes.mtime);
        Ok(())
    }

    /// The last name's owner, mode and time count for all names of the file.
    fn hardlink(&mut self, parent: &Directory, name: &[u8], target: &[u8], attributes: &Attributes<'_>) -> Result<()> {
        let target = clamped(target);
        let shown_target = shown(&join(&self.into.path, &target));
        if target.is_empty() {
            return Err(Diagnostic::error("a hard link to the archive's root"));
        }
        let (target_parent, target_name) = self.split(&target)?;
        match place::kind_of(target_parent.fd.as_fd(), target_name) {
            Ok(Some(FileType::Directory)) => {
                return Err(Diagnostic::error(format!("a hard link to the directory `{shown_target}`")));
            }
            Ok(None) => return Err(Diagnostic::error(format!("a hard link to `{shown_target}`, which is not there"))),
            other => other.context(|| format!("cannot read `{shown_target}`"))?,
        };
        let path = parent.join(name);
        if target_parent.join(target_name) != path {
            self.make_room(parent, name)?;
            rustix::fs::linkat(&target_parent.fd, target_name, &parent.fd, name, AtFlags::empty())
                .context(|| format!("cannot link `{}` to `{shown_target}`", shown(&path)))?;
            self.root.touch(&parent.path);
        }
        node::set_attributes_at(parent.fd.as_fd(), name, attributes)
            .context(|| format!("cannot set the owner and mode of `{}`", shown(&path)))
    }

    /// The directory a member is in, made if need be, and its name there.
    fn split<'p>(&mut self, path: &'p [u8]) -> Result<(Directory, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        Ok((self.root.directory(self.into, parent, Follows::Links, Self::MAKES)?, name))
    }

    /// Whatever is there gives way, a directory with all that is in it.
    fn make_room(&mut self, parent: &Directory, name: &[u8]) -> Result<()> {
        let path = parent.join(name);
        match node::remove_tree(parent.fd.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.context(|| format!("cannot remove `{}`", shown(&path)))?,
        }
        let below = [&path, &b"/"[..]].concat();
        self.times.retain(|other, _| *other != path && !other.starts_with(&below));
        self.root.touch(&parent.path);
        Ok(())
    }

    fn write<R: Read>(
        &mut self,
        file: &File,
        size_bytes: u64,
        pieces: &[(u64, u64)],
        members: &mut Members<R>,
    ) -> io::Result<()> {
        for &(offset, length) in pieces {
            content::fill(file, offset, &mut members.data(), length, &mut self.buffer, None)?;
        }
        file.set_len(size_bytes)
    }

    fn count(&mut self, member: &Member) -> Result<()> {
        let size_bytes = match member.kind {
            Kind::File { size_bytes, .. } => size_bytes,
            _ => 0,
        };
        let left = self.left.members.checked_sub(1).zip(self.left.size_bytes.checked_sub(size_bytes));
        let (members, size_bytes) =
            left.ok_or_else(|| Diagnostic::error("the archive unpacks to more than is reasonable"))?;
        self.left = Limits { members, size_bytes };
        Ok(())
    }

    fn owner_of(&self, member: &Member) -> Result<Owner> {
        if let Some(owner) = self.owner {
            return Ok(owner);
        }
        // The last one is "do not change" to the kernel.
        let id = |id: i64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        let owner = id(member.uid).zip(id(member.gid)).map(|(uid, gid)| Owner { uid, gid });
        owner.ok_or_else(|| Diagnostic::error(format!("there is no owner {}:{}", member.uid, member.gid)))
    }
}

/// What the overlay keeps of its own in attributes, trusted or user, is not a stranger's to set.
fn is_kept(xattr: &[u8]) -> bool {
    xattr == b"security.capability" || xattr.starts_with(b"user.") && !xattr.starts_with(b"user.overlay.")
}

/// Reads what gzip, bzip2, xz or zstd made, told by its first bytes, and anything else as it is.
fn decompress<'a>(input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    const MAX_XZ_BYTES: u64 = 1 << 30;
    let mut input = io::BufReader::new(input);
    let start = io::BufRead::fill_buf(&mut input).context(|| "cannot read the archive")?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(input))
    } else if start.starts_with(b"BZh") {
        Box::new(bzip2::bufread::MultiBzDecoder::new(input))
    } else if start.starts_with(b"\xfd7zXZ\0") {
        let mut plain = Vec::new();
        lzma_rs::xz_decompress(&mut input.take(MAX_XZ_BYTES), &mut plain)
            .map_err(|error| Diagnostic::error("cannot read the archive").caused_by(format!("{error:?}")))?;
        Box::new(io::Cursor::new(plain))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(input)
            .map_err(|error| Diagnostic::error("cannot read the archive").caused_by(error))?;
        Box::new(decoder)
    } else {
        Box::new(input)
    })
}
