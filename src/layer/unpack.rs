//! From a layer tar to a layer dir.
//!
//! Who reads the tar makes what is in it, in order. A crew gives files their owners and modes, and small ones their content:
//! that takes an open file, whatever becomes of its name meanwhile.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;
use tar::EntryType;

use super::Summary;
use super::archive::{Archive, Chunk, Member};
use super::node::{self, node_at, shown};
use super::record::{Device, Records};
use super::staging::{Place, Staging, create_file};
use super::whiteout::{Meaning, meaning};
use super::xattr::{self, Xattrs};
use crate::diag::{Context, Diagnostic, Result};
use crate::parallel::{self, Crew, Job};

/// More than any image has: what is past these is an attack.
const MAX_ENTRIES: usize = 20_000_000;
const MAX_TOTAL_BYTES: u64 = 4 << 40;

/// Files up to this size are filled by others: so much is held for each that waits.
const SMALL_BYTES: u64 = 32 << 10;

/// See [`super::unpack`].
pub fn unpack(tar: &mut dyn Read, into: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>]) -> Result<Summary> {
    let mut staging = Staging::new(into, lowers).context(|| "cannot open the directory of a layer")?;
    std::thread::scope(|scope| {
        let fillers = Crew::new(scope, parallel::processors());
        let made = make(tar, &mut staging, &fillers);
        // What of these went wrong comes earlier in the tar.
        fillers.finish().map_err(|(_, error)| *error)?;
        made
    })?;
    staging.finish().context(|| "cannot finish the directory of a layer")
}

fn make(tar: &mut dyn Read, staging: &mut Staging<'_>, fillers: &Crew<'_, '_, Filling>) -> Result<()> {
    let mut archive = Archive::new(tar);
    let mut buffer = vec![0; 256 << 10];
    let (mut entries, mut total_bytes) = (0_usize, 0_u64);
    while let Some(member) = archive.next_member().context(|| "cannot read a layer tar")? {
        entries += 1;
        total_bytes = total_bytes.saturating_add(member.size_bytes);
        if entries > MAX_ENTRIES || total_bytes > MAX_TOTAL_BYTES {
            return Err(Diagnostic::error("cannot unpack a layer: it is too large to be one"));
        }
        match apply(&member, &mut archive, staging, &mut buffer) {
            Ok(None) => {}
            Ok(Some(made)) => fillers.push(Filling { slot: entries, member, made, records: staging.records }),
            Err(error) => return Err(cannot_unpack(&member, error)),
        }
        if entries.is_multiple_of(1024) && fillers.has_failed() {
            return Ok(());
        }
    }
    archive.drain().context(|| "cannot read a layer tar")
}

fn cannot_unpack(member: &Member, error: io::Error) -> Diagnostic {
    Diagnostic::error(format!("cannot unpack `{}` of a layer", shown(&member.path))).caused_by(error)
}

/// A file of which others do the rest.
struct Made {
    file: File,
    /// What has yet to be written.
    content: Vec<u8>,
    owner: Owner,
}

#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// A job for the crew.
struct Filling {
    slot: usize,
    member: Member,
    made: Made,
    records: Records,
}

impl Job for Filling {
    type Output = ();

    fn slot(&self) -> usize {
        self.slot
    }

    fn size_bytes(&self) -> u64 {
        self.made.content.len() as u64
    }

    fn run(&self, _: &mut [u8]) -> Result<()> {
        self.fill().map_err(|error| cannot_unpack(&self.member, error))
    }
}

impl Filling {
    fn fill(&self) -> io::Result<()> {
        let Made { file, content, owner } = &self.made;
        let mut file = file;
        file.write_all(content)?;
        owner.given(self.records.set_owner(file, owner.uid, owner.gid))?;
        fs::fchmod(file, Mode::from_raw_mode(self.member.mode))?;
        xattr::set(file, &xattrs(&self.member))?;
        Ok(fs::futimens(file, &node::times(self.member.mtime))?)
    }
}

impl Owner {
    fn of(member: &Member) -> io::Result<Self> {
        let owner = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        match (owner(member.uid), owner(member.gid)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err(refused(&format!("its owner {}:{} is out of range", member.uid, member.gid))),
        }
    }

    /// What came of giving it to something.
    fn given(self, result: Result<(), Errno>) -> io::Result<()> {
        let Self { uid, gid } = self;
        match result {
            Err(Errno::INVAL) => Err(refused(&format!(
                "its owner {uid}:{gid} is outside the ids of this user namespace (see /etc/subuid and /etc/subgid)"
            ))),
            other => Ok(other?),
        }
    }
}

fn apply(
    member: &Member,
    archive: &mut Archive<&mut dyn Read>,
    staging: &mut Staging<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<Made>> {
    let Some((parent, name)) = split(&member.path)? else {
        // A root that is a link would have its owner and mode set on what it points at.
        return match member.entry_type {
            EntryType::Directory => Ok(None),
            _ => Err(refused("the root of a layer must be a directory")),
        };
    };
    let of_aufs = |component: &[u8]| meaning(component) == Meaning::Aufs;
    if of_aufs(name) || parent.split(|byte| *byte == b'/').any(of_aufs) {
        return Ok(None);
    }
    if parent.split(|byte| *byte == b'/').any(|component| meaning(component) != Meaning::Name) {
        return Err(refused("a name starting with `.wh.` means a deleted file, nothing can be in it"));
    }
    let place = staging.place(&parent)?;
    let meaning = meaning(name);
    let Some(place) = place else {
        return match meaning {
            // Nothing can be there to be deleted.
            Meaning::Whiteout(_) | Meaning::Opaque => Ok(None),
            _ => Err(refused("its parent is not a directory")),
        };
    };
    match meaning {
        Meaning::Opaque => staging.opaque(&place)?,
        Meaning::Whiteout(name) => staging.whiteout(&place, &CString::new(name)?)?,
        Meaning::Name if member.entry_type == EntryType::Regular => {
            return add_file(member, archive, staging, buffer, &place, &CString::new(name)?).map(Some);
        }
        Meaning::Name => add(member, staging, &place, &CString::new(name)?)?,
        Meaning::Aufs => {}
        Meaning::Invalid => return Err(refused("it deletes no name")),
    }
    Ok(None)
}

fn add_file(
    member: &Member,
    archive: &mut Archive<&mut dyn Read>,
    staging: &mut Staging<'_>,
    buffer: &mut [u8],
    place: &Place,
    name: &CStr,
) -> io::Result<Made> {
    let owner = Owner::of(member)?;
    // Most often there is none yet.
    let mut file = File::from(match create_file(&place.fd, name) {
        Err(Errno::EXIST) => {
            staging.clear(place, name)?;
            create_file(&place.fd, name)?
        }
        created => created?,
    });
    let content = match archive.content(SMALL_BYTES)? {
        Some(content) => content,
        None => {
            write_content(archive, &mut file, buffer)?;
            Vec::new()
        }
    };
    Ok(Made { file, content, owner })
}

/// Anything but a file.
fn add(member: &Member, staging: &mut Staging<'_>, place: &Place, name: &CStr) -> io::Result<()> {
    let owner = Owner::of(member)?;
    let Owner { uid, gid } = owner;
    let records = staging.records;
    let mode = Mode::from_raw_mode(member.mode);
    if member.entry_type == EntryType::Directory {
        let fd = staging.directory(place, name, member.mtime)?;
        owner.given(records.set_owner(&fd, uid, gid))?;
        fs::fchmod(&fd, mode)?;
        return Ok(xattr::replace(&fd, &xattrs(member))?);
    }
    let source = match member.entry_type {
        EntryType::Link => match link_source(member, staging)? {
            (from, from_name) if from.path == place.path && *from_name == *name => return Ok(()),
            source => Some(source),
        },
        // A device 0:0 is what a whiteout looks like in an overlay.
        EntryType::Char if member.major == 0 && member.minor == 0 => return Ok(staging.whiteout(place, name)?),
        _ => None,
    };
    if node_at(&place.fd, name)?.is_some() {
        staging.clear(place, name)?;
    }
    match member.entry_type {
        EntryType::Link => {
            if let Some((from, from_name)) = source {
                fs::linkat(&from.fd, from_name.as_c_str(), &place.fd, name, AtFlags::empty())?;
            }
            return Ok(());
        }
        EntryType::Symlink => {
            if member.link.is_empty() {
                return Err(refused("it is a symbolic link to nothing"));
            }
            fs::symlinkat(&member.link, &place.fd, name)?;
            owner.given(records.set_owner_at(&place.fd, name, uid, gid))?;
            return Ok(records.set_mtime_at(&place.fd, name, member.mtime)?);
        }
        EntryType::Fifo => fs::mknodat(&place.fd, name, FileType::Fifo, Mode::empty(), 0)?,
        EntryType::Char | EntryType::Block => {
            if member.major >= 1 << 12 || member.minor >= 1 << 20 {
                return Err(refused("there is no such device"));
            }
            let is_block = member.entry_type == EntryType::Block;
            records.make_device(&place.fd, name, Device { is_block, major: member.major, minor: member.minor })?;
        }
        _ => return Err(refused("it is of a kind that no layer has")),
    }
    owner.given(records.set_owner_at(&place.fd, name, uid, gid))?;
    fs::chmodat(&place.fd, name, mode, AtFlags::empty())?;
    Ok(records.set_mtime_at(&place.fd, name, member.mtime)?)
}

/// The file that a hard link is another name of, in this layer if need be by a copy.
fn link_source(member: &Member, staging: &mut Staging<'_>) -> io::Result<(Rc<Place>, CString)> {
    let target = shown(&member.link);
    let missing = || refused(&format!("it is a link to `{target}`, which is not there"));
    let (parent, name) = split(&member.link)?.ok_or_else(missing)?;
    let name = CString::new(name)?;
    let place = staging.place(&parent)?.ok_or_else(missing)?;
    match node_at(&place.fd, &name)? {
        Some(node) if node.is_directory() => Err(refused(&format!("it is a hard link to the directory `{target}`"))),
        Some(node) if node.is_whiteout() => Err(missing()),
        Some(_) => Ok((place, name)),
        None if staging.copy_up(&place, &name)? => Ok((place, name)),
        None => Err(missing()),
    }
}

/// The parent, slashes and dots cleaned, and the last component; `None` for the root.
pub(super) fn split(path: &[u8]) -> io::Result<Option<(Vec<u8>, &[u8])>> {
    let mut components = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    if components.clone().any(|component| component == b"..") {
        return Err(refused("its path leads upwards"));
    }
    if path.contains(&0) {
        return Err(refused("its path holds a NUL"));
    }
    let Some(name) = components.next_back() else { return Ok(None) };
    Ok(Some((components.collect::<Vec<_>>().join(&b'/'), name)))
}

fn write_content(archive: &mut Archive<&mut dyn Read>, file: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    let mut ends_in_hole = false;
    while let Some(chunk) = archive.next_chunk(buffer)? {
        match chunk {
            Chunk::Data(count) => file.write_all(&buffer[..count])?,
            Chunk::Hole(count) => {
                file.seek(SeekFrom::Current(i64::try_from(count).map_err(|_| refused("it is too large"))?))?;
            }
        }
        ends_in_hole = matches!(chunk, Chunk::Hole(_));
    }
    if ends_in_hole {
        let size = file.stream_position()?;
        file.set_len(size)?;
    }
    Ok(())
}

/// The attributes a layer dir holds, whatever the tar has.
pub(super) fn xattrs(member: &Member) -> Xattrs {
    let kept = member.xattrs.iter().filter(|(name, _)| xattr::is_kept(name.to_bytes()));
    let kept: BTreeMap<_, _> = kept
        .map(|(name, value)| {
            let is_capability = name.as_c_str() == xattr::CAPABILITY;
            (name.clone(), if is_capability { xattr::portable_capability(value.clone()) } else { value.clone() })
        })
        .collect();
    kept.into_iter().collect()
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
