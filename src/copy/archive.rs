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
use tar::EntryType;

use super::Owner;
use super::content;
use super::node::{self, Attributes};
use super::place::{self, Directory, Follows, Makes, Root, Spot, clamped, components, join, shown};
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::archive::{Archive, Chunk, Member};
use crate::layer::node::open_below;
use crate::layer::record::Device;
use crate::layer::{self, xattr};

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
    layer::decompress(input).is_ok_and(|plain| matches!(Archive::new(plain).next_member(), Ok(Some(_))))
}

/// Unpacks an archive into the directory `into`; `name` is its name for messages. What follows the
/// end of the archive is not read.
pub(super) fn unpack(
    input: impl Read + Send,
    name: &str,
    into: &Directory,
    root: &mut Root<'_>,
    owner: Option<Owner>,
    limits: Limits,
) -> Result<()> {
    let mut archive = Archive::new(layer::decompress(input)?);
    let buffer = vec![0; content::BUFFER_BYTES];
    let mut unpacker = Unpacker { into, root, owner, times: BTreeMap::new(), buffer, left: limits };
    while let Some(member) = archive.next_member().context(|| format!("cannot read the archive `{name}`"))? {
        unpacker.member(&member, &mut archive).map_err(|error| {
            let member = layer::node::shown(&member.path);
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

/// A time before 1970, or after what 64 bits of nanoseconds hold, is taken for 1970, as in BuildKit.
fn bounded((seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    if (0..=LAST).contains(&seconds) { (seconds, nanoseconds) } else { (0, 0) }
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
    const MAKES: Makes = Makes { mode: 0o755, owner: Some(Owner::ROOT), inherits_group: false };

    fn member<R: Read>(&mut self, member: &Member, archive: &mut Archive<R>) -> Result<()> {
        self.count(member)?;
        let path = clamped(&member.path);
        // A member for the destination itself (`./`): that has its look already. And the label of
        // a volume, which is no object.
        if path.is_empty() || member.entry_type.as_byte() == b'V' {
            return Ok(());
        }
        for name in components(&path) {
            place::check_name(name, &join(&self.into.path, &path))?;
        }
        let xattrs = member.xattrs.iter().map(|(name, value)| (name.to_bytes().to_vec(), value.clone()));
        let xattrs: Vec<_> = xattrs.filter(|(name, _)| xattr::is_kept(name)).collect();
        let mtime = bounded(member.mtime);
        let attributes = Attributes { owner: self.owner_of(member)?, mode: member.mode, mtime, xattrs: &xattrs };
        // GNU tar has directories of its own, with a list of the names in them.
        if member.entry_type == EntryType::Directory || member.entry_type.as_byte() == b'D' {
            return self.directory(&path, &attributes);
        }
        let (parent, name) = self.split(&path)?;
        if member.entry_type == EntryType::Link {
            return self.hardlink(&parent, name, &member.link, &attributes);
        }
        self.make_room(&parent, name)?;
        self.root.touch(&parent.path);
        let path = parent.join(name);
        let fd = parent.fd.as_fd();
        let device = |is_block| Device { is_block, major: member.major, minor: member.minor };
        let records = self.root.records;
        let made = match member.entry_type {
            EntryType::Regular => {
                let fd = node::make_file(fd, name).context(|| format!("cannot make `{}`", shown(&path)))?;
                let file = File::from(fd);
                self.write(&file, member.size_bytes, archive).context(|| format!("cannot write `{}`", shown(&path)))?;
                return node::set_attributes(file.as_fd(), &attributes, records)
                    .and_then(|()| node::set_time(file.as_fd(), mtime))
                    .context(|| attributes.refused(&shown(&path)));
            }
            EntryType::Symlink => rustix::fs::symlinkat(member.link.as_slice(), fd, name),
            EntryType::Fifo => node::make_fifo(fd, name),
            // Overlays mark a deletion by such a device.
            EntryType::Char if (member.major, member.minor) == (0, 0) => {
                return Err(Diagnostic::error("a character device 0:0 is a deletion to the overlay"));
            }
            EntryType::Char => node::make_device(fd, name, device(false), records),
            EntryType::Block => node::make_device(fd, name, device(true), records),
            other => {
                let letter = char::from(other.as_byte()).escape_default();
                return Err(Diagnostic::error(format!("a member of the unknown type `{letter}`")));
            }
        };
        match made {
            // No devices in a user namespace.
            Err(Errno::PERM) if matches!(member.entry_type, EntryType::Char | EntryType::Block) => Ok(()),
            other => other
                .and_then(|()| node::set_attributes_at(fd, name, &attributes, records))
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
        open_below(directory.fd.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|fd| node::set_attributes(fd.as_fd(), attributes, self.root.records))
            .context(|| attributes.refused(&shown(&directory.path)))?;
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
        node::set_attributes_at(parent.fd.as_fd(), name, attributes, self.root.records)
            .context(|| attributes.refused(&shown(&path)))
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
        match node::remove(parent.fd.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.context(|| format!("cannot remove `{}`", shown(&path)))?,
        }
        let below = [&path, &b"/"[..]].concat();
        self.times.retain(|other, _| *other != path && !other.starts_with(&below));
        self.root.touch(&parent.path);
        Ok(())
    }

    fn write<R: Read>(&mut self, file: &File, size_bytes: u64, archive: &mut Archive<R>) -> io::Result<()> {
        let mut position = 0;
        while let Some(chunk) = archive.next_chunk(&mut self.buffer)? {
            position += match chunk {
                Chunk::Hole(length) => length,
                Chunk::Data(count) => {
                    content::write(file, position, &self.buffer[..count])?;
                    count as u64
                }
            };
        }
        file.set_len(size_bytes)
    }

    fn count(&mut self, member: &Member) -> Result<()> {
        let left = self.left.members.checked_sub(1).zip(self.left.size_bytes.checked_sub(member.size_bytes));
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
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        let owner = id(member.uid).zip(id(member.gid)).map(|(uid, gid)| Owner { uid, gid });
        owner.ok_or_else(|| Diagnostic::error(format!("there is no owner {}:{}", member.uid, member.gid)))
    }
}
